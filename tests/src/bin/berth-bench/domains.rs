//! What the agent takes of its host while many guests run there: resident memory, and processor time when nothing is
//! asked of it.

use std::time::Duration;

use anyhow::Context as _;
use berth_common::message::view::VmState;
use berth_tests::{
    TestCloud,
    cloud::InstanceOptions,
    image,
    wait::{Seen, wait_for},
    with_cloud,
};

use crate::{cpu::Process, print};

/// How long all guests may take to run, and to be gone: each is emulated.
const LIMIT: Duration = Duration::from_secs(300);

/// Starts the guests, watches the agent, and prints the figures.
pub(crate) fn run(count: usize, watched: Duration) -> anyhow::Result<()> {
    // As by default, and not as tests have it.
    let builder = TestCloud::builder()
        .agent_config("host.heartbeat_seconds", 10)
        .agent_config("host.resync_seconds", 10)
        .scheduler_config("placement.cpu_allocation_ratio", 64)
        .scheduler_config("placement.disk_allocation_ratio", 64);
    with_cloud(builder, async |cloud| {
        let network = cloud.create_network("front", 1).await?;
        let options = InstanceOptions {
            networks: vec![network.id],
            memory_mb: 64,
            // What a guest does is nothing to the agent, and many that boot take minutes.
            image: Some(image::that_halts(cloud.site.dir())?),
            ..InstanceOptions::default()
        };
        for index in 0..count {
            cloud
                .create_instance(&format!("guest-{index}"), &options)
                .await?;
        }
        let what = format!("{count} guests to run");
        wait_for(&what, LIMIT, async || {
            let instances = cloud.instances().await?;
            if let Some(ill) = instances
                .iter()
                .find(|view| view.vm_state == VmState::Error)
            {
                return Ok(Seen::Never(format!("{}: {:?}", ill.name, ill.fault)));
            }
            let active = instances
                .iter()
                .filter(|view| view.vm_state == VmState::Active && view.task_state.is_none())
                .count();
            Ok(Seen::when(active == count, format!("{active} run")))
        })
        .await?;
        let pid = cloud.hv1().agent_pid()?;
        let process: Process = format!("agent={pid}").parse()?;
        let before = process.used()?;
        tokio::time::sleep(watched).await;
        let used = process.used()?.saturating_sub(before);
        print(&format!(
            "bench agent domains={count} rss_mib={:.1} idle_cpu_pct={:.2} seconds={} rss_peak_mib={:.1} rss_anon_mib={:.1} rss_file_mib={:.1}",
            memory(pid, "VmRSS:")?,
            100.0 * used.as_secs_f64() / watched.as_secs_f64(),
            watched.as_secs(),
            memory(pid, "VmHWM:")?,
            memory(pid, "RssAnon:")?,
            memory(pid, "RssFile:")?,
        ));
        cloud.delete_all().await?;
        // None may be left when the cloud is ended: that deletes what it finds.
        wait_for("all guests to be gone", LIMIT, async || {
            let left = cloud.instances().await?.len();
            Ok(Seen::when(left == 0, format!("{left} are left")))
        })
        .await
    });
    Ok(())
}

/// A line of proc_pid_status(5) in MiB.
fn memory(pid: i32, line: &str) -> anyhow::Result<f64> {
    let text = std::fs::read_to_string(format!("/proc/{pid}/status"))?;
    let kib = text
        .lines()
        .find_map(|text| text.strip_prefix(line)?.split_whitespace().next())
        .with_context(|| format!("a status without {line}"))?;
    Ok(kib.parse::<f64>()? / 1024.0)
}
