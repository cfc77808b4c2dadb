//! libvirt absent at the start, killed, restarted, hanging: the agent says so and carries on; guests and other hosts do not notice.

use std::time::Duration;

use anyhow::{bail, ensure};
use berth_common::document::DesiredPower;
use berth_common::ids::InstanceId;
use berth_common::message::{
    placement::SchedulerHints,
    view::{HostState, VmState},
};
use berth_tests::{
    TestCloud,
    cloud::{CONVERGE_LIMIT, InstanceOptions},
    lab::Libvirtd,
    wait::{Seen, wait_for},
    with_cloud,
};

const NOTICE_LIMIT: Duration = Duration::from_secs(40);
/// A few deadlines have to pass, of which the usual ones are 10 and 30 seconds.
const HANG_LIMIT: Duration = Duration::from_secs(120);
/// By how many seconds the ill host's last heartbeat may be older than the other one's; each sends one a second here. One that waited
/// for libvirt would be older by 10 seconds or more. On a busy machine all come late, not one alone.
const LATER_LIMIT: u64 = 8;
/// How many seconds old the other one's may be.
const LATE_LIMIT: u64 = 30;

#[test]
fn an_agent_without_libvirt_says_so_waits_and_leaves_running_guests_alone() {
    let builder = TestCloud::builder().libvirtd(Libvirtd::Absent);
    with_cloud(builder, async |cloud| {
        libvirt_is_missed(cloud).await?;
        // What is asked for meanwhile waits for libvirt.
        let network = cloud.create_network("front", 1).await?;
        let options = InstanceOptions {
            networks: vec![network.id],
            ..InstanceOptions::default()
        };
        let waiting = cloud.create_instance("waiting", &options).await?;
        cloud.hv1().start_libvirtd().await?;
        libvirt_is_back(cloud).await?;
        let instance = cloud.wait_active(waiting.id).await?;
        let before = cloud.guest_answers(&instance).await?;
        let qemu = cloud.hv1().pids_of("qemu-system-x86_64")?;

        cloud.hv1().kill_libvirtd().await?;
        libvirt_is_missed(cloud).await?;
        assert_eq!(
            cloud.show(instance.id).await?.vm_state,
            VmState::Active,
            "what is not seen is not gone"
        );
        cloud.hv1().start_libvirtd().await?;
        libvirt_is_back(cloud).await?;
        cloud.wait_active(instance.id).await?;
        assert_eq!(
            cloud.hv1().pids_of("qemu-system-x86_64")?,
            qemu,
            "another QEMU than before"
        );
        assert_eq!(
            cloud.guest_answers(&instance).await?.boot_id,
            before.boot_id
        );

        // And new work is done as ever.
        let options = InstanceOptions {
            power: DesiredPower::Stopped,
            ..InstanceOptions::default()
        };
        let next = cloud.create_instance("next", &options).await?;
        cloud
            .wait_state(next.id, VmState::Stopped, CONVERGE_LIMIT)
            .await?;
        Ok(())
    });
}

#[test]
fn a_libvirt_that_hangs_is_not_asked_any_more_and_all_goes_on_seconds_after_it_is_back() {
    with_cloud(TestCloud::builder().agents(2), async |cloud| {
        let network = cloud.create_network("front", 1).await?;
        let options = InstanceOptions {
            networks: vec![network.id],
            ..InstanceOptions::default()
        };
        let created = create_on(cloud, "hv1", "web-1", &options).await?;
        let instance = cloud.wait_active(created).await?;
        let before = cloud.guest_answers(&instance).await?;
        signal_libvirtd(cloud, "-STOP").await?;
        let hung = tokio::select! {
            late = heartbeats_come(cloud) => late,
            hung = the_others_go_on_while_it_hangs(cloud, &options) => hung,
        };
        signal_libvirtd(cloud, "-CONT").await?;
        let waiting = hung?;
        let closed = "berth_agent_libvirt_breaker{state=\"closed\"} 1";
        wait_for(
            "libvirt to be asked again",
            Duration::from_secs(20),
            async || {
                let metrics = TestCloud::agent_metrics(cloud.hv1()).await?;
                let shown = lines_with(&metrics, "libvirt_breaker");
                Ok(Seen::when(metrics.contains(closed), shown))
            },
        )
        .await?;
        libvirt_is_back(cloud).await?;
        cloud
            .wait_state(waiting, VmState::Stopped, CONVERGE_LIMIT)
            .await?;
        let after = cloud.guest_answers(&instance).await?;
        assert_eq!(after.boot_id, before.boot_id);
        Ok(())
    });
}

/// An instance for this host.
async fn create_on(
    cloud: &TestCloud,
    host: &str,
    name: &str,
    options: &InstanceOptions,
) -> anyhow::Result<InstanceId> {
    let mut request = cloud.instance_request(name, options)?;
    request.hints = SchedulerHints {
        host: Some(host.to_owned()),
        ..SchedulerHints::default()
    };
    Ok(cloud.call(&request).await?.id)
}

/// Ends only when one is late: then it tells how long ago each host had its last one.
async fn heartbeats_come<T>(cloud: &TestCloud) -> anyhow::Result<T> {
    let late = wait_for("a late heartbeat", Duration::MAX, async || {
        let hosts = cloud.hosts().await?;
        let age = |name: &str| {
            let mut hosts = hosts.iter().filter(|host| host.name.as_str() == name);
            hosts.find_map(|host| host.last_heartbeat_seconds)
        };
        let is_down = hosts.iter().any(|host| host.state != HostState::Up);
        let is_late = match (age("hv1"), age("hv2")) {
            (Some(ill), Some(well)) => ill > well.saturating_add(LATER_LIMIT) || well > LATE_LIMIT,
            _ => true,
        };
        let late = (is_down || is_late).then_some(hosts);
        Ok(late.map_or_else(|| Seen::NotYet(String::new()), Seen::Done))
    });
    bail!("a heartbeat is late: {:?}", late.await?)
}

/// An instance of another host is built meanwhile. Answers one of the ill host, which waits.
async fn the_others_go_on_while_it_hangs(
    cloud: &TestCloud,
    options: &InstanceOptions,
) -> anyhow::Result<InstanceId> {
    let other = create_on(cloud, "hv2", "web-2", options).await?;
    let waiting = it_is_not_asked_any_more(cloud, options).await?;
    let other = cloud.wait_active(other).await?;
    cloud.guest_answers(&other).await?;
    let host = cloud.host("hv2").await?;
    ensure!(host.health.iter().all(|part| part.ok), "{host:?}");
    Ok(waiting)
}

/// Waits until it says so everywhere. Documents are taken and heartbeats sent meanwhile.
async fn it_is_not_asked_any_more(
    cloud: &TestCloud,
    options: &InstanceOptions,
) -> anyhow::Result<InstanceId> {
    let options = InstanceOptions {
        power: DesiredPower::Stopped,
        ..options.clone()
    };
    let waiting = create_on(cloud, "hv1", "waiting", &options).await?;
    let words = "does not answer since";
    wait_for("libvirt not to be asked any more", HANG_LIMIT, async || {
        let (status, body) = TestCloud::agent_healthz(cloud.hv1()).await?;
        let host = cloud.host("hv1").await?;
        let metrics = TestCloud::agent_metrics(cloud.hv1()).await?;
        let part = host.health.iter().find(|part| part.part == "libvirt");
        let told = part
            .and_then(|part| part.reason.as_ref())
            .is_some_and(|reason| reason.contains(words));
        let mut parts = host.health.iter();
        let others_well = parts.all(|part| part.ok || part.part == "libvirt");
        let is_open = !metrics.contains("berth_agent_libvirt_breaker{state=\"closed\"} 1");
        let is_so = status == 503 && body.contains(words) && told && others_well && is_open;
        let shown = lines_with(&metrics, "libvirt_");
        Ok(Seen::when(is_so, (body, host, shown)))
    })
    .await?;
    Ok(waiting)
}

fn lines_with(text: &str, words: &str) -> Vec<String> {
    let lines = text.lines().filter(|line| line.contains(words));
    lines.map(str::to_owned).collect()
}

async fn signal_libvirtd(cloud: &TestCloud, signal: &str) -> anyhow::Result<()> {
    let pids = cloud.hv1().pids_of("libvirtd")?;
    let pids: Vec<String> = pids.iter().map(u32::to_string).collect();
    let mut argv = vec!["kill", signal];
    argv.extend(pids.iter().map(String::as_str));
    cloud.hv1().text(&argv).await.map(drop)
}

#[test]
fn instances_run_again_after_a_power_cut() {
    with_cloud(TestCloud::builder(), async |cloud| {
        let network = cloud.create_network("front", 1).await?;
        let options = InstanceOptions {
            networks: vec![network.id],
            ..InstanceOptions::default()
        };
        let instance = cloud
            .wait_active(cloud.create_instance("phoenix", &options).await?.id)
            .await?;
        let before = cloud.guest_answers(&instance).await?;
        cloud.hv1_mut().power_cut()?;
        cloud.hv1_mut().boot().await?;
        cloud.hv1().start_libvirtd().await?;
        cloud.hv1_mut().spawn_agent().await?;
        let after = wait_for("the guest to run again", CONVERGE_LIMIT, async || {
            let status = cloud.guest_answers(&instance).await?;
            Ok(Seen::when(status.boot_id != before.boot_id, status))
        });
        after.await?;
        cloud.wait_active(instance.id).await?;
        Ok(())
    });
}

/// Waits until the agent's own health and its heartbeat both name libvirt.
async fn libvirt_is_missed(cloud: &TestCloud) -> anyhow::Result<()> {
    wait_for("the agent to miss libvirt", NOTICE_LIMIT, async || {
        let (status, body) = TestCloud::agent_healthz(cloud.hv1()).await?;
        let host = cloud.host("hv1").await?;
        let part = host.health.iter().find(|part| part.part == "libvirt");
        let told = part.is_some_and(|part| !part.ok && part.reason.is_some());
        Ok(Seen::when(
            status == 503 && body.contains("libvirt") && told,
            (body, host.health),
        ))
    })
    .await
}

async fn libvirt_is_back(cloud: &TestCloud) -> anyhow::Result<()> {
    wait_for(
        "the agent to have libvirt again",
        NOTICE_LIMIT,
        async || {
            let (status, body) = TestCloud::agent_healthz(cloud.hv1()).await?;
            let host = cloud.host("hv1").await?;
            let well = host.health.iter().any(|part| part.part == "libvirt")
                && host.health.iter().all(|part| part.ok);
            Ok(Seen::when(status == 200 && well, (body, host.health)))
        },
    )
    .await
}
