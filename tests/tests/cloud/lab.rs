//! The machines that the other tests stand on.

use std::time::Duration;

use berth_tests::{
    lab::{Hypervisor, Libvirtd, Site},
    wait::{Seen, wait_for},
};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_hypervisor_keeps_its_domains_over_a_power_cut_and_leaves_nothing_behind()
-> anyhow::Result<()> {
    let mut site = Site::open()?;
    let mut hypervisor = Hypervisor::create(&site, 1, Libvirtd::Running).await?;
    let xml = "<domain type='qemu'><name>d1</name><memory unit='MiB'>32</memory><os><type>hvm</type></os></domain>";
    let file = site.dir().join("d1.xml");
    std::fs::write(&file, xml)?;
    hypervisor
        .text(&["virsh", "-q", "define", &file.display().to_string()])
        .await?;
    hypervisor.text(&["virsh", "-q", "start", "d1"]).await?;
    assert_eq!(hypervisor.pids_of("qemu-system-x86_64")?.len(), 1);

    hypervisor.restart_libvirtd().await?;
    assert_eq!(
        hypervisor.text(&["virsh", "domstate", "d1"]).await?.trim(),
        "running"
    );

    hypervisor.power_cut()?;
    hypervisor.boot().await?;
    hypervisor.start_libvirtd().await?;
    assert_eq!(
        hypervisor.text(&["virsh", "domstate", "d1"]).await?.trim(),
        "shut off"
    );
    assert_eq!(hypervisor.text(&["hostname"]).await?.trim(), "hv1");

    hypervisor.power_cut()?;
    let wrong = site.close();
    assert!(wrong.is_empty(), "{wrong:?}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_berth_would_leave_on_a_hypervisor_is_found() -> anyhow::Result<()> {
    let mut site = Site::open()?;
    let hypervisor = Hypervisor::create(&site, 1, Libvirtd::Running).await?;
    assert!(hypervisor.remains().await?.is_empty());
    hypervisor
        .text(&["ip", "link", "add", "btb0", "type", "bridge"])
        .await?;
    hypervisor
        .text(&["ip", "netns", "add", "berth-left"])
        .await?;
    hypervisor
        .text(&["nft", "add", "table", "bridge", "berth"])
        .await?;
    std::fs::create_dir_all(hypervisor.state_dir().join("instances/left"))?;
    let xml = "<domain type='qemu'><name>berth-left</name><memory>4096</memory><os><type>hvm</type></os></domain>";
    let file = site.dir().join("left.xml");
    std::fs::write(&file, xml)?;
    hypervisor
        .text(&["virsh", "-q", "define", &file.display().to_string()])
        .await?;
    let dnsmasq = [
        "sh",
        "-c",
        "dnsmasq --keep-in-foreground --port=0 --conf-file=/dev/null >/dev/null 2>&1 &",
    ];
    hypervisor.text(&dnsmasq).await?;
    let expected = [
        "domain berth-left",
        "link btb0",
        "namespace berth-left",
        "of nftables: table bridge berth",
        "instances/: left",
        "process dnsmasq",
    ];
    wait_for(
        "all leftovers to be found",
        Duration::from_secs(60),
        async || {
            let remains = hypervisor.remains().await?;
            let found = expected
                .iter()
                .all(|part| remains.iter().any(|line| line.contains(part)));
            Ok(Seen::when(
                found && remains.len() == expected.len(),
                remains,
            ))
        },
    )
    .await?;
    drop(hypervisor);
    let wrong = site.close();
    assert!(wrong.is_empty(), "{wrong:?}");
    Ok(())
}

/// Folder, vhost and database bear the number: whoever gets it while they are still being removed loses his own.
#[test]
fn a_number_is_taken_until_nothing_bears_it_any_more() -> anyhow::Result<()> {
    let mut site = Site::open()?;
    let number = site.number();
    // What keeps the end waiting.
    let mut process = std::process::Command::new("sleep")
        .arg("2")
        .env("BERTH_LAB", number.to_string())
        .spawn()?;
    let closing = std::thread::spawn(move || site.close());
    while !closing.is_finished() {
        let other = Site::open()?;
        let ended = process.try_wait()?.is_some();
        assert!(ended || other.number() != number, "free too early");
    }
    process.wait()?;
    let wrong = closing.join().map_err(|_| anyhow::anyhow!("panicked"))?;
    assert!(wrong.is_empty(), "{wrong:?}");
    Ok(())
}

#[tokio::test]
async fn a_wait_that_fails_says_what_it_saw_last() {
    let result = wait_for("the moon", Duration::from_millis(10), async || {
        Ok(Seen::when(false, "clouds"))
    })
    .await;
    let text = result
        .map_err(|error| error.to_string())
        .err()
        .unwrap_or_default();
    assert!(
        text.contains("for the moon; last seen: \"clouds\""),
        "{text}"
    );
}
