//! What domains, the pool and the host use, as Prometheus reads it.
//!
//! Nothing is kept here but the newest figures: a page is written from them when it is asked for. So a series is there
//! exactly as long as its domain is, and what is too old is not shown at all instead of standing still.
//!
//! Only berth's own domains have series of their own, at most [`MOST_DOMAINS`] of them; all others are one sum. Labels
//! are ids, positions, and names of devices that berth chose. The words owners use are on `berth_agent_domain_info`
//! alone, to join with. The label is `instance_id`, because Prometheus itself calls what it reads from `instance`.

mod families;
#[cfg(test)]
mod tests;

use std::{
    collections::{BTreeMap, HashMap},
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use berth_common::{names::PoolName, units::ByteCount};
use prometheus::{
    core::{Collector, Desc},
    proto::{Counter, Gauge, LabelPair, Metric, MetricFamily, MetricType},
};
use tokio::time::Instant;

use self::families::*;

use crate::{
    act::machine::memory::Memory,
    decide::{
        filter::{PortDrops, Reason},
        metadata::PortForged,
        usage::{Activity, ForeignUsage, OwnUsage, Picture, Traffic, Transfer, decimal},
    },
};

/// How many domains have series of their own: more than a host runs. With two disks and two NICs each has 43 series.
pub const MOST_DOMAINS: usize = 1024;

/// How many ports have series of their own: two a domain.
const MOST_PORTS: usize = 2 * MOST_DOMAINS;
/// How many counters of dropped packets are shown: those of so many ports, for all reasons.
const MOST_DROPS: usize = MOST_PORTS * Reason::ALL.len();

/// The newest figures. Clones are handles to the same ones.
#[derive(Debug, Clone, Default)]
pub struct UsageFigures {
    newest: Arc<Mutex<Newest>>,
}

#[derive(Debug, Default)]
struct Newest {
    domains: Option<Fresh<Picture>>,
    pools: Option<Fresh<Vec<Pool>>>,
    memory: Option<Fresh<Memory>>,
    drops: Option<Fresh<Vec<PortDrops>>>,
    tunnel_drops: Option<Fresh<u64>>,
    forged: Option<Fresh<Vec<PortForged>>>,
}

/// A figure that is true until then.
#[derive(Debug)]
struct Fresh<T> {
    until: Instant,
    value: T,
}

impl<T> Fresh<T> {
    fn at(&self, now: Instant) -> Option<&T> {
        (now < self.until).then_some(&self.value)
    }
}

/// The space in a storage pool.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Pool {
    /// Its name: `local`, or one that is configured.
    pub name: PoolName,
    /// All of it.
    pub capacity: ByteCount,
    /// What is used of it, by whomever.
    pub used: ByteCount,
    /// What disks may take once their guests have written them full.
    pub provisioned: ByteCount,
    /// How full the tables of a thin pool are, in percent.
    pub metadata_percent: Option<u8>,
}

impl UsageFigures {
    /// What the domains use; shown for so long. `None`: nobody can tell.
    pub fn domains(&self, picture: Option<Picture>, for_how_long: Duration) {
        self.change(|newest| newest.domains = picture.map(|it| fresh(it, for_how_long)));
    }

    /// The space in those storage pools of which somebody can tell; shown for so long.
    pub fn pools(&self, pools: Vec<Pool>, for_how_long: Duration) {
        self.change(|newest| newest.pools = Some(fresh(pools, for_how_long)));
    }

    /// The host's memory; shown for so long.
    pub fn memory(&self, memory: Memory, for_how_long: Duration) {
        self.change(|newest| newest.memory = Some(fresh(memory, for_how_long)));
    }

    /// What the packet filter dropped; shown for so long. `None`: nobody can tell.
    pub fn drops(&self, drops: Option<Vec<PortDrops>>, for_how_long: Duration) {
        self.change(|newest| newest.drops = drops.map(|it| fresh(it, for_how_long)));
    }

    /// The packets for VXLANs that the packet filter dropped; shown for so long. `None`: nobody can tell, or there is no VXLAN.
    pub fn tunnel_drops(&self, drops: Option<u64>, for_how_long: Duration) {
        self.change(|newest| newest.tunnel_drops = drops.map(|it| fresh(it, for_how_long)));
    }

    /// The requests with identity headers that metadata services got; shown for so long. `None`: nobody can tell.
    pub fn forged(&self, forged: Option<Vec<PortForged>>, for_how_long: Duration) {
        self.change(|newest| newest.forged = forged.map(|it| fresh(it, for_how_long)));
    }

    fn change(&self, change: impl FnOnce(&mut Newest)) {
        change(&mut self.newest.lock().unwrap_or_else(PoisonError::into_inner));
    }

    fn page(&self, now: Instant) -> Page {
        let newest = self.newest.lock().unwrap_or_else(PoisonError::into_inner);
        let mut page = Page::default();
        if let Some(picture) = newest.domains.as_ref().and_then(|it| it.at(now)) {
            for own in picture.own.iter().take(MOST_DOMAINS) {
                page.own(own);
            }
            let unshown = picture.own.len().saturating_sub(MOST_DOMAINS);
            page.count(&UNSHOWN, &[], unshown);
            page.foreign(&picture.foreign);
        }
        let pools = newest.pools.as_ref().and_then(|it| it.at(now));
        for pool in pools.into_iter().flatten() {
            let label = &[pool.name.as_str()];
            page.bytes(&POOL_CAPACITY, label, pool.capacity);
            page.bytes(&POOL_USED, label, pool.used);
            page.bytes(&POOL_PROVISIONED, label, pool.provisioned);
            if let Some(percent) = pool.metadata_percent {
                page.count(&POOL_METADATA, label, usize::from(percent));
            }
        }
        let drops = newest.drops.as_ref().and_then(|it| it.at(now));
        for dropped in drops.into_iter().flatten().take(MOST_DROPS) {
            let [port, instance] = [dropped.port.to_string(), dropped.instance.to_string()];
            let labels = [port.as_str(), instance.as_str(), dropped.reason.as_str()];
            page.put(&PORT_DROPPED, &labels, Some(decimal(dropped.packets)));
        }
        let tunnels = newest.tunnel_drops.as_ref().and_then(|it| it.at(now));
        page.put(&TUNNEL_DROPPED, &[], tunnels.map(|it| decimal(*it)));
        let forged = newest.forged.as_ref().and_then(|it| it.at(now));
        for forged in forged.into_iter().flatten().take(MOST_PORTS) {
            let labels = [forged.port.to_string(), forged.instance.to_string()];
            let labels = labels.each_ref().map(String::as_str);
            page.put(&PORT_FORGED, &labels, Some(decimal(forged.requests)));
        }
        if let Some(memory) = newest.memory.as_ref().and_then(|it| it.at(now)) {
            page.memory(memory);
        }
        page
    }
}

fn fresh<T>(value: T, for_how_long: Duration) -> Fresh<T> {
    Fresh {
        until: Instant::now() + for_how_long,
        value,
    }
}

/// Shows the figures to the registry.
pub struct UsageCollector {
    figures: UsageFigures,
    descs: Vec<Desc>,
}

impl UsageCollector {
    /// Shows these.
    ///
    /// # Errors
    /// A name or a label breaks Prometheus' rules, which no configuration can cause.
    pub fn new(figures: UsageFigures) -> prometheus::Result<Self> {
        let descs = FAMILIES.iter().map(|family| {
            let labels = family.labels.iter().map(|label| (*label).to_owned());
            Desc::new(
                family.name.to_owned(),
                family.help.to_owned(),
                labels.collect(),
                HashMap::new(),
            )
        });
        Ok(Self {
            figures,
            descs: descs.collect::<prometheus::Result<_>>()?,
        })
    }
}

impl Collector for UsageCollector {
    fn desc(&self) -> Vec<&Desc> {
        self.descs.iter().collect()
    }

    fn collect(&self) -> Vec<MetricFamily> {
        self.figures.page(Instant::now()).families()
    }
}

/// What is answered to one question of Prometheus.
#[derive(Default)]
struct Page {
    metrics: BTreeMap<&'static str, Vec<Metric>>,
}

impl Page {
    fn own(&mut self, own: &OwnUsage) {
        let id = own.instance.to_string();
        let id = id.as_str();
        if let Some(label) = &own.label {
            self.count(&INFO, &[id, label.name.as_str(), label.project.as_str()], 1);
        }
        let usage = &own.usage;
        self.seconds(&CPU, &[id], usage.cpu);
        self.put(&CPU_CORES, &[id], own.rates.cpu_cores);
        for (family, bytes) in [
            (&MEMORY_MAXIMUM, usage.memory.maximum),
            (&MEMORY_BALLOON, usage.memory.balloon),
            (&MEMORY_RESIDENT, usage.memory.resident),
            (&GUEST_AVAILABLE, usage.memory.guest_available),
            (&GUEST_UNUSED, usage.memory.guest_unused),
            (&GUEST_USABLE, usage.memory.guest_usable),
        ] {
            self.bytes(family, &[id], bytes);
        }
        for (target, disk) in &usage.disks {
            let labels = [id, target.as_str()];
            self.transfer([&DISK_READ_BYTES, &DISK_READS], &labels, disk.read);
            self.transfer([&DISK_WRITTEN_BYTES, &DISK_WRITES], &labels, disk.written);
        }
        for (position, nic) in &usage.nics {
            let position = position.to_string();
            let labels = [id, position.as_str()];
            self.traffic(RECEIVED, &labels, nic.received);
            self.traffic(SENT, &labels, nic.sent);
            let errors = |traffic: Option<Traffic>| traffic.map(|it| decimal(it.errors));
            self.put(&NIC_RECEIVED_ERRORS, &labels, errors(nic.received));
            self.put(&NIC_SENT_ERRORS, &labels, errors(nic.sent));
            let port = own.label.as_ref().and_then(|it| it.ports.get(&nic.tap));
            if let Some(port) = port {
                self.count(&NIC_PORT, &[id, position.as_str(), &port.to_string()], 1);
            }
        }
        for (direction, rate) in [("read", own.rates.read), ("write", own.rates.written)] {
            let labels = [id, direction];
            self.put(&DISK_BYTES_RATE, &labels, rate.map(|rate| rate.bytes));
            self.put(&DISK_REQUESTS_RATE, &labels, rate.map(|rate| rate.requests));
        }
        for (direction, rate) in [("receive", own.rates.received), ("send", own.rates.sent)] {
            let labels = [id, direction];
            self.put(&NETWORK_BYTES_RATE, &labels, rate.map(|rate| rate.bytes));
            self.put(
                &NETWORK_PACKETS_RATE,
                &labels,
                rate.map(|rate| rate.packets),
            );
        }
    }

    fn foreign(&mut self, foreign: &ForeignUsage) {
        self.count(&FOREIGN, &[], foreign.domains);
        self.bytes(&FOREIGN_BALLOON, &[], foreign.balloon);
        self.bytes(&FOREIGN_RESIDENT, &[], foreign.resident);
        let Activity {
            cpu,
            read,
            written,
            received,
            sent,
        } = foreign.done;
        self.seconds(&FOREIGN_CPU, &[], cpu);
        self.transfer([&FOREIGN_READ_BYTES, &FOREIGN_READS], &[], read);
        self.transfer([&FOREIGN_WRITTEN_BYTES, &FOREIGN_WRITES], &[], written);
        self.traffic(FOREIGN_RECEIVES, &[], received);
        self.traffic(FOREIGN_SENDS, &[], sent);
    }

    fn memory(&mut self, memory: &Memory) {
        self.bytes(&HOST_MEMORY, &[], memory.total);
        self.bytes(&HOST_AVAILABLE, &[], memory.available);
        self.bytes(&KSM_SHARED, &[], memory.ksm.map(|ksm| ksm.shared));
        self.bytes(&KSM_SAVED, &[], memory.ksm.map(|ksm| ksm.saved));
        for pages in &memory.huge_pages {
            let size = pages.size.get().to_string();
            self.put(&HUGE_PAGES, &[&size], Some(decimal(pages.total)));
            self.put(&HUGE_PAGES_FREE, &[&size], Some(decimal(pages.free)));
        }
    }

    fn transfer(&mut self, to: [&Family; 2], labels: &[&str], transfer: Option<Transfer>) {
        let [bytes, requests] = to;
        self.put(bytes, labels, transfer.map(|it| decimal(it.bytes)));
        self.put(requests, labels, transfer.map(|it| decimal(it.requests)));
    }

    fn traffic(&mut self, to: [&Family; 3], labels: &[&str], traffic: Option<Traffic>) {
        let [bytes, packets, drops] = to;
        self.put(bytes, labels, traffic.map(|it| decimal(it.bytes)));
        self.put(packets, labels, traffic.map(|it| decimal(it.packets)));
        self.put(drops, labels, traffic.map(|it| decimal(it.drops)));
    }

    fn seconds(&mut self, family: &Family, labels: &[&str], time: Option<Duration>) {
        self.put(family, labels, time.map(|time| time.as_secs_f64()));
    }

    fn bytes(&mut self, family: &Family, labels: &[&str], bytes: impl Into<Option<ByteCount>>) {
        self.put(family, labels, bytes.into().map(|it| decimal(it.get())));
    }

    fn count(&mut self, family: &Family, labels: &[&str], count: usize) {
        let count = u64::try_from(count).unwrap_or(u64::MAX);
        self.put(family, labels, Some(decimal(count)));
    }

    /// Adds a series. What is not known has none.
    fn put(&mut self, family: &Family, labels: &[&str], value: Option<f64>) {
        let Some(value) = value else {
            return;
        };
        let pairs = family.labels.iter().zip(labels).map(|(name, value)| {
            let mut pair = LabelPair::default();
            pair.set_name((*name).to_owned());
            pair.set_value((*value).to_owned());
            pair
        });
        let mut metric = Metric::from_label(pairs.collect());
        match family.kind {
            MetricType::COUNTER => {
                let mut counter = Counter::default();
                counter.set_value(value);
                metric.set_counter(counter);
            }
            _ => {
                let mut gauge = Gauge::default();
                gauge.set_value(value);
                metric.set_gauge(gauge);
            }
        }
        self.metrics.entry(family.name).or_default().push(metric);
    }

    fn families(mut self) -> Vec<MetricFamily> {
        let families = FAMILIES.iter().filter_map(|family| {
            let metrics = self.metrics.remove(family.name)?;
            let mut told = MetricFamily::default();
            told.set_name(family.name.to_owned());
            told.set_help(family.help.to_owned());
            told.set_field_type(family.kind);
            told.set_metric(metrics);
            Some(told)
        });
        families.collect()
    }
}
