//! What libvirt says of domains unasked, with a real one.

use super::*;

/// Longer than an event takes on a busy machine, and shorter than anything looks regularly.
const SOON: Duration = Duration::from_secs(5);

/// Waits until libvirt has said nothing for a while: one change may be several events.
async fn quiet(libvirt: &Libvirt) {
    while tokio::time::timeout(Duration::from_secs(1), libvirt.news())
        .await
        .is_ok()
    {}
}

/// Waits until libvirt is listened to: that is news as well.
async fn listened_to(libvirt: &Libvirt) {
    let news = tokio::time::timeout(LIMIT, libvirt.news()).await;
    assert!(news.is_ok(), "nobody listens to libvirt");
    quiet(libvirt).await;
}

/// Waits for news of something that was just done.
async fn told(libvirt: &Libvirt, what: &str) {
    let news = tokio::time::timeout(SOON, libvirt.news()).await;
    news.unwrap_or_else(|_| panic!("nobody was told within {SOON:?}: {what}"));
    quiet(libvirt).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_happens_to_a_domain_is_told_also_by_a_libvirtd_that_was_killed_and_started_again() {
    let hypervisor = Hypervisor::start();
    let libvirt = Arc::new(Libvirt::start(&hypervisor.address(), Options::default()));
    let listening = Arc::clone(&libvirt);
    let listener = tokio::spawn(async move { listening.listen().await });
    listened_to(&libvirt).await;

    let config = instance(&hypervisor);
    let (id, name) = (config.id, names::domain(config.id));
    twice(&libvirt, DomainStep::Define(Box::new(config.clone()))).await;
    told(&libvirt, "a definition").await;
    twice(&libvirt, DomainStep::Start(id)).await;
    told(&libvirt, "a start").await;
    for (argv, what) in [
        (&["suspend", &name], "somebody pauses it"),
        (&["resume", &name], "somebody lets it go on"),
        (&["destroy", &name], "somebody switches it off"),
    ] {
        hypervisor.virsh(argv);
        told(&libvirt, what).await;
    }

    hypervisor.kill_libvirtd();
    hypervisor.start_libvirtd();
    listened_to(&libvirt).await;
    twice(&libvirt, DomainStep::Start(id)).await;
    told(&libvirt, "another start").await;
    hypervisor.virsh(&["destroy", &name]);
    told(&libvirt, "somebody switches it off again").await;
    assert_eq!(
        observed(&libvirt, id).await.off_reason,
        Some(OffReason::Destroyed)
    );
    assert!(!listener.is_finished());
    listener.abort();
}
