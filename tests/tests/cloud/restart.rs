//! Nothing in a guest's path depends on the agent: it may be stopped, killed and started under traffic.

use std::time::Duration;

use berth_common::message::view::InstanceView;
use berth_tests::{
    TestCloud,
    cloud::{CONVERGE_LIMIT, InstanceOptions},
    lab::hypervisor::interrupt,
    wait::{Seen, wait_for},
    with_cloud,
};

#[test]
fn a_guest_loses_no_packet_while_its_agent_is_stopped_killed_and_started() {
    with_cloud(TestCloud::builder(), async |cloud| {
        let network = cloud.create_network("front", 1).await?;
        let options = InstanceOptions {
            networks: vec![network.id],
            ..InstanceOptions::default()
        };
        let instance = cloud
            .wait_active(cloud.create_instance("steady", &options).await?.id)
            .await?;
        let before = cloud.guest_answers(&instance).await?;
        let pids = (
            cloud.hv1().pids_of("qemu-system-x86_64")?,
            cloud.hv1().pids_of("dnsmasq")?,
            cloud.hv1().pids_of("berth-metadata")?,
        );
        assert_eq!(pids.2.len(), 1);

        let log = cloud.site.dir().join("ping.log");
        let address = TestCloud::address_of(&instance)?.to_string();
        let argv = ["ping", "-n", "-i", "0.02", &address];
        let mut ping = cloud
            .hv1()
            .start_in_network(network.id, &argv, &log)
            .await?;
        replies(&log, 25).await?;

        cloud.hv1_mut().terminate_agent().await?;
        replies(&log, 25).await?;
        a_new_agent_looks(cloud, &instance).await?;

        cloud.hv1_mut().kill_agent()?;
        replies(&log, 25).await?;
        a_new_agent_looks(cloud, &instance).await?;
        replies(&log, 25).await?;

        interrupt(&ping)?;
        wait_for("ping to end", Duration::from_secs(5), async || {
            Ok(Seen::when(ping.exited()?.is_some(), "it runs"))
        })
        .await?;
        no_reply_is_missing(&std::fs::read_to_string(&log)?);
        let now = (
            cloud.hv1().pids_of("qemu-system-x86_64")?,
            cloud.hv1().pids_of("dnsmasq")?,
            cloud.hv1().pids_of("berth-metadata")?,
        );
        assert_eq!(
            now, pids,
            "another QEMU, dnsmasq or metadata service than before"
        );
        assert_eq!(
            cloud.guest_answers(&instance).await?.boot_id,
            before.boot_id
        );
        Ok(())
    });
}

/// Waits until so many more replies have come.
async fn replies(log: &std::path::Path, more: usize) -> anyhow::Result<()> {
    let count = || std::fs::read_to_string(log).map(|text| sequence_numbers(&text).len());
    let before = count().unwrap_or_default();
    wait_for(
        &format!("{more} more replies"),
        Duration::from_secs(20),
        async || {
            let now = count()?;
            Ok(Seen::when(now >= before + more, now - before))
        },
    )
    .await
}

/// Starts the agent, and waits until it has confirmed the instance again.
async fn a_new_agent_looks(cloud: &mut TestCloud, instance: &InstanceView) -> anyhow::Result<()> {
    let reports = "berth_scheduler_reports_total";
    // It may report before anybody knows that it is well.
    let before = cloud.scheduler.metric(reports).await?;
    cloud.hv1_mut().spawn_agent().await?;
    cloud.wait_agent_healthy(cloud.hv1()).await?;
    wait_for("a report of the new agent", CONVERGE_LIMIT, async || {
        let now = cloud.scheduler.metric(reports).await?;
        Ok(Seen::when(now > before, now - before))
    })
    .await?;
    cloud.wait_active(instance.id).await.map(drop)
}

fn sequence_numbers(text: &str) -> Vec<u64> {
    text.lines()
        .filter_map(|line| {
            line.split_once("icmp_seq=")?
                .1
                .split(' ')
                .next()?
                .parse()
                .ok()
        })
        .collect()
}

fn no_reply_is_missing(text: &str) {
    let numbers = sequence_numbers(text);
    let last = numbers.last().copied().unwrap_or_default();
    let missing: Vec<u64> = (1..=last)
        .filter(|number| !numbers.contains(number))
        .collect();
    assert!(
        missing.is_empty(),
        "of {last} packets these are lost: {missing:?}"
    );
    assert!(last >= 100, "only {last} packets were sent");
}
