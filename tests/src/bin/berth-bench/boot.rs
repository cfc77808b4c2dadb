//! Boot overhead: from the request to the moment at which libvirt reports the guest running, beside the same by hand.
//!
//! By hand is `qemu-img create` and `virsh create` with the domain that berth defines, on the same hypervisor, with the
//! same cached image and the same bridge, which is there for both. Both moments are those of libvirt's own event.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anyhow::Context as _;
use berth_common::{ids::InstanceId, message::view::InstanceView};
use berth_tests::{
    TestCloud,
    cloud::InstanceOptions,
    wait::{Seen, wait_for},
    with_cloud,
};

use crate::print;

/// How long a guest may take to run.
const LIMIT: Duration = Duration::from_secs(60);

/// Measures in turns, and prints the medians.
pub(crate) fn run(pairs: usize) -> anyhow::Result<()> {
    // The agent looks around as seldom as it does by default.
    let builder = TestCloud::builder().agent_config("host.resync_seconds", 10);
    with_cloud(builder, async |cloud| {
        let lab = Lab::new(cloud).await?;
        let (mut berth, mut by_hand) = (Vec::new(), Vec::new());
        for pair in 0..pairs {
            if pair % 2 == 0 {
                berth.push(lab.berth(cloud).await?);
                by_hand.push(lab.by_hand(cloud).await?);
            } else {
                by_hand.push(lab.by_hand(cloud).await?);
                berth.push(lab.berth(cloud).await?);
            }
        }
        let (berth_ms, by_hand_ms) = (median(&mut berth), median(&mut by_hand));
        print(&format!(
            "bench boot berth_ms={berth_ms:.0} by_hand_ms={by_hand_ms:.0} ratio={:.2} pairs={pairs} berth_ms_least={:.0} \
             berth_ms_most={:.0} by_hand_ms_least={:.0} by_hand_ms_most={:.0}",
            berth_ms / by_hand_ms,
            berth.first().copied().unwrap_or_default(),
            berth.last().copied().unwrap_or_default(),
            by_hand.first().copied().unwrap_or_default(),
            by_hand.last().copied().unwrap_or_default(),
        ));
        Ok(())
    });
    Ok(())
}

/// The middle one; sorts them.
fn median(values: &mut [f64]) -> f64 {
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied().unwrap_or_default()
}

/// What both ways share.
struct Lab {
    options: InstanceOptions,
    events: std::path::PathBuf,
    model: Model,
    _watcher: berth_tests::lab::Service,
}

/// The domain that berth made, and what is other for each.
struct Model {
    instance: InstanceView,
    xml: String,
    backing: String,
}

impl Lab {
    /// With the image in the cache and the network built.
    async fn new(cloud: &TestCloud) -> anyhow::Result<Self> {
        let network = cloud.create_network("front", 1).await?;
        let options = InstanceOptions {
            networks: vec![network.id],
            ..InstanceOptions::default()
        };
        let instance = cloud
            .wait_active(cloud.create_instance("model", &options).await?.id)
            .await?;
        let hypervisor = cloud.hv1();
        let xml = hypervisor
            .text(&["virsh", "dumpxml", "--inactive", &domain(instance.id)])
            .await?;
        let backing = xml
            .split_once("<backingStore")
            .and_then(|(_, rest)| rest.split_once("<source file='"))
            .and_then(|(_, rest)| rest.split_once('\''))
            .map(|(path, _)| path.to_owned())
            .context("the domain's disk has no image below it")?;
        let events = cloud.site.dir().join("events.log");
        let argv = [
            "virsh",
            "event",
            "--event",
            "lifecycle",
            "--loop",
            "--timestamp",
        ];
        let watcher = hypervisor.start_watching(&argv, &events).await?;
        Ok(Self {
            options,
            events,
            model: Model {
                instance,
                xml,
                backing,
            },
            _watcher: watcher,
        })
    }

    /// Milliseconds from the request until libvirt says that the guest was started.
    async fn berth(&self, cloud: &TestCloud) -> anyhow::Result<f64> {
        let begin = now()?;
        let instance = cloud.create_instance("measured", &self.options).await?;
        let end = self.started(&domain(instance.id)).await?;
        cloud.wait_active(instance.id).await?;
        cloud.delete_and_wait(instance.id).await?;
        Ok(millis(begin, end))
    }

    /// Milliseconds from the first command until libvirt says that the guest was started.
    async fn by_hand(&self, cloud: &TestCloud) -> anyhow::Result<f64> {
        let hypervisor = cloud.hv1();
        let id = InstanceId::new();
        let folder = hypervisor.state_dir().join("by-hand");
        std::fs::create_dir_all(&folder)?;
        let inside = "/var/lib/berth/by-hand";
        std::fs::write(folder.join("domain.xml"), self.model.domain(id, inside))?;
        // What prints the time first is part of neither.
        let script = format!(
            "date +%s%N; qemu-img create -q -f qcow2 -F qcow2 -b {} {inside}/disk.qcow2 1G && virsh -q create \
             {inside}/domain.xml >/dev/null",
            self.model.backing
        );
        let begin: u64 = hypervisor
            .text(&["sh", "-c", &script])
            .await?
            .trim()
            .parse()?;
        let end = self.started(&domain(id)).await?;
        hypervisor
            .text(&["virsh", "-q", "destroy", &domain(id)])
            .await?;
        std::fs::remove_dir_all(&folder)?;
        Ok(millis(Duration::from_nanos(begin), end))
    }

    /// When libvirt said that a domain was started, since the epoch.
    async fn started(&self, domain: &str) -> anyhow::Result<Duration> {
        let wanted = format!("for domain '{domain}': Started");
        wait_for(&format!("{domain} to be started"), LIMIT, async || {
            let text = std::fs::read_to_string(&self.events)?;
            let line = text.lines().find(|line| line.contains(&wanted));
            match line.and_then(|line| line.split_once(": event ")) {
                Some((time, _)) => Ok(Seen::Done(parse(time)?)),
                None => Ok(Seen::NotYet(text)),
            }
        })
        .await
    }
}

impl Model {
    /// The same domain for another instance, with its files in a folder.
    fn domain(&self, id: InstanceId, folder: &str) -> String {
        let instance = self.instance.id.to_string();
        let files = format!("/var/lib/berth/instances/{instance}");
        let mut xml = self
            .xml
            .replace(
                &format!("{files}/disk0.qcow2"),
                &format!("{folder}/disk.qcow2"),
            )
            .replace(&files, folder)
            .replace(&instance, &id.to_string());
        for port in &self.instance.ports {
            xml = xml.replace(&port.mac_address.to_string(), "52:54:00:be:47:01");
        }
        // libvirt chooses a name for the tap where none is given.
        if let Some(begin) = xml.find("<target dev='bt")
            && let Some(length) = xml.get(begin..).and_then(|rest| rest.find("/>"))
        {
            xml.replace_range(begin..begin + length + "/>".len(), "");
        }
        xml
    }
}

fn domain(id: InstanceId) -> String {
    format!("berth-{id}")
}

fn now() -> anyhow::Result<Duration> {
    Ok(SystemTime::now().duration_since(UNIX_EPOCH)?)
}

fn millis(begin: Duration, end: Duration) -> f64 {
    end.saturating_sub(begin).as_secs_f64() * 1000.0
}

/// `2026-11-26 17:40:00.123+0000` since the epoch.
fn parse(time: &str) -> anyhow::Result<Duration> {
    let parsed = chrono::DateTime::parse_from_str(time.trim(), "%Y-%m-%d %H:%M:%S%.f%z")
        .with_context(|| format!("{time:?} is no time"))?;
    Ok(Duration::from_millis(u64::try_from(
        parsed.timestamp_millis(),
    )?))
}
