//! What a libvirtd that is started anew says of guests that are off, with a real one.

use super::*;
use berth_agent::decide::domain::LeftOff;

#[tokio::test(flavor = "multi_thread")]
async fn why_a_guest_is_off_is_known_over_a_restart_of_libvirtd_if_it_was_noted() {
    let hypervisor = Hypervisor::start();
    let libvirt = Libvirt::start(&hypervisor.address(), Options::default());
    let mut config = booted(&hypervisor, &libvirt).await;
    let id = config.id;
    libvirt.apply(&DomainStep::Shutdown(id)).await.unwrap();
    let domain = wait_for_state(&libvirt, id, PowerState::Shutdown).await;
    assert_eq!(domain.off_reason, Some(OffReason::Guest));

    let restart = || {
        hypervisor.kill_libvirtd();
        hypervisor.start_libvirtd();
        hypervisor.wait_libvirtd();
    };
    for (noted, expected) in [
        (Some(LeftOff::Guest), OffReason::Guest),
        (Some(LeftOff::Crashed), OffReason::Crashed),
        // As it is after every start.
        (None, OffReason::Unknown),
    ] {
        config.metadata.left_off = noted;
        twice(&libvirt, DomainStep::Define(Box::new(config.clone()))).await;
        restart();
        let domain = observed(&libvirt, id).await;
        assert_eq!(domain.off_reason, Some(expected), "{domain:?}");
        assert_eq!(domain.metadata.as_ref(), Some(&config.metadata));
    }

    // What libvirt does know counts more.
    config.metadata.left_off = Some(LeftOff::Guest);
    twice(&libvirt, DomainStep::Define(Box::new(config.clone()))).await;
    twice(&libvirt, DomainStep::Start(id)).await;
    assert_eq!(observed(&libvirt, id).await.off_reason, None);
    twice(&libvirt, DomainStep::Destroy(id)).await;
    let domain = observed(&libvirt, id).await;
    assert_eq!(domain.off_reason, Some(OffReason::Destroyed));
    twice(&libvirt, DomainStep::Undefine(id)).await;
}
