//! What domains use, and what follows from looking twice: counters become what was done in between, and rates.
//!
//! ```text
//!   sample ──┐
//!            ├─▶ activity (reset-proof differences) ──▶ rates per second, sum of the foreign domains
//!   sample ──┘
//! ```
//!
//! Every figure can be missing: a domain that is busy tells less than one that is not, and a guest without a driver
//! for the balloon tells nothing of its memory. What is missing is left out, and never taken for zero.

#[cfg(test)]
mod tests;

use std::{collections::BTreeMap, time::Duration};

use berth_common::{
    document::Document,
    ids::{InstanceId, PortId},
    names::{InstanceName, PoolName, ProjectName},
    units::ByteCount,
};
use uuid::Uuid;

use super::{domain::DomainObserved, names};

/// What a running domain has used since it was started.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct DomainUsage {
    /// libvirt's UUID of it.
    pub uuid: Uuid,
    /// Tells one start of it from the next.
    pub run: Option<u32>,
    /// Processor time, of all its processors and of QEMU itself.
    pub cpu: Option<Duration>,
    /// Its memory.
    pub memory: MemoryUsage,
    /// Its disks by the guest's name for them (`vda`).
    pub disks: BTreeMap<String, DiskUsage>,
    /// Its NICs by position.
    pub nics: BTreeMap<usize, NicUsage>,
}

/// A domain's memory, from outside and as its guest tells.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct MemoryUsage {
    /// What it may have.
    pub maximum: Option<ByteCount>,
    /// What the balloon leaves it.
    pub balloon: Option<ByteCount>,
    /// What of the host's memory its QEMU takes.
    pub resident: Option<ByteCount>,
    /// What the guest's kernel manages.
    pub guest_available: Option<ByteCount>,
    /// What the guest leaves unused.
    pub guest_unused: Option<ByteCount>,
    /// What the guest could give up without swapping.
    pub guest_usable: Option<ByteCount>,
}

/// A disk since its domain was started.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct DiskUsage {
    /// What the guest read.
    pub read: Option<Transfer>,
    /// What the guest wrote.
    pub written: Option<Transfer>,
}

/// A NIC since its domain was started, as its guest sees it.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct NicUsage {
    /// The link that is its end on the host: what tells it from others when some are plugged in and out meanwhile.
    pub tap: String,
    /// What the guest received.
    pub received: Option<Traffic>,
    /// What the guest sent.
    pub sent: Option<Traffic>,
}

/// What went through a disk in one direction.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Transfer {
    /// Bytes.
    pub bytes: u64,
    /// Requests.
    pub requests: u64,
}

/// What went through a NIC in one direction.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Traffic {
    /// Bytes.
    pub bytes: u64,
    /// Packets.
    pub packets: u64,
    /// Packets that were dropped.
    pub drops: u64,
    /// Packets that were spoilt.
    pub errors: u64,
}

/// What a domain did between two looks; `None`: it cannot be told. Also a sum over time and over domains.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Activity {
    /// Processor time.
    pub cpu: Option<Duration>,
    /// What it read from all its disks.
    pub read: Option<Transfer>,
    /// What it wrote to all its disks.
    pub written: Option<Transfer>,
    /// What all its NICs received.
    pub received: Option<Traffic>,
    /// What all its NICs sent.
    pub sent: Option<Traffic>,
}

/// What a domain does per second.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct Rates {
    /// How many processors it keeps busy.
    pub cpu_cores: Option<f64>,
    /// From its disks.
    pub read: Option<TransferRate>,
    /// To its disks.
    pub written: Option<TransferRate>,
    /// To its NICs.
    pub received: Option<TrafficRate>,
    /// From its NICs.
    pub sent: Option<TrafficRate>,
}

/// What goes through disks in one direction.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct TransferRate {
    /// Bytes per second.
    pub bytes: f64,
    /// Requests per second.
    pub requests: f64,
}

/// What goes through NICs in one direction.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct TrafficRate {
    /// Bytes per second.
    pub bytes: f64,
    /// Packets per second.
    pub packets: f64,
}

/// All running domains at one moment.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Sample {
    /// When, on a clock that only goes forward.
    pub at: Duration,
    /// Each domain once.
    pub domains: BTreeMap<Uuid, DomainUsage>,
}

/// What is known of a host's domains after a sample.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Picture {
    /// berth's own, in the order of their ids.
    pub own: Vec<OwnUsage>,
    /// Everybody else's, as one.
    pub foreign: ForeignUsage,
}

/// One of berth's domains.
#[derive(Debug, Clone, PartialEq)]
pub struct OwnUsage {
    /// The instance.
    pub instance: InstanceId,
    /// What its document says of it, if there is one.
    pub label: Option<InstanceLabel>,
    /// What it used.
    pub usage: DomainUsage,
    /// What it did lately; nothing at the first look.
    pub rates: Rates,
}

/// The words people know an instance by.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct InstanceLabel {
    /// The name its owner gave it.
    pub name: InstanceName,
    /// Its owner.
    pub project: ProjectName,
    /// Its ports, by their taps.
    pub ports: BTreeMap<String, PortId>,
}

/// All domains that are not berth's.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct ForeignUsage {
    /// How many run.
    pub domains: usize,
    /// What the balloons leave them.
    pub balloon: Option<ByteCount>,
    /// What of the host's memory they take.
    pub resident: Option<ByteCount>,
    /// What they did since the agent began to look: a sum of differences, so that it never falls when one of them ends.
    pub done: Activity,
}

/// What was seen of a host's domains so far, as far as the next look needs it.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct History {
    last: Option<Sample>,
    foreign: Activity,
}

impl History {
    /// Adds a sample: what it shows, and what was done since the one before. `observed` says whose the domains are; one
    /// that is not in it is left out until it is.
    pub fn add(
        &mut self,
        sample: Sample,
        observed: &[DomainObserved],
        labels: &BTreeMap<InstanceId, InstanceLabel>,
    ) -> Picture {
        let mut picture = Picture::default();
        for domain in observed {
            let Some(usage) = sample.domains.get(&domain.uuid) else {
                continue;
            };
            let done = activity(self.last.as_ref(), usage);
            match &domain.metadata {
                Some(metadata) => picture.own.push(OwnUsage {
                    instance: metadata.instance_id,
                    label: labels.get(&metadata.instance_id).cloned(),
                    usage: usage.clone(),
                    rates: done.per(self.elapsed(&sample)),
                }),
                None => {
                    self.foreign = self.foreign.and(done);
                    picture.foreign.domains += 1;
                    picture.foreign.balloon = sum(picture.foreign.balloon, usage.memory.balloon);
                    picture.foreign.resident = sum(picture.foreign.resident, usage.memory.resident);
                }
            }
        }
        picture.own.sort_by_key(|own| own.instance);
        picture.foreign.done = self.foreign;
        self.last = Some(sample);
        picture
    }

    /// How long ago the last sample was taken. When looks failed in between, rates are those of the whole gap.
    fn elapsed(&self, sample: &Sample) -> Duration {
        let last = self.last.as_ref();
        last.map(|last| sample.at.saturating_sub(last.at))
            .unwrap_or_default()
    }
}

/// What a domain did since the last sample. Nothing is known of what it did before the first one. A domain that was not
/// in the last one was started since, as was one with another run: its counters began at zero.
#[must_use]
pub fn activity(last: Option<&Sample>, now: &DomainUsage) -> Activity {
    let Some(last) = last else {
        return Activity::default();
    };
    let fresh = DomainUsage::default();
    let known = last
        .domains
        .get(&now.uuid)
        .filter(|before| before.run == now.run);
    let start = Start::of(known);
    let before = known.unwrap_or(&fresh);
    let mut done = Activity {
        cpu: between(start, before.cpu, now.cpu),
        ..Activity::default()
    };
    for (target, disk) in &now.disks {
        let known = before.disks.get(target);
        let start = Start::of(known);
        let before = known.copied().unwrap_or_default();
        done.read = sum(done.read, between(start, before.read, disk.read));
        done.written = sum(done.written, between(start, before.written, disk.written));
    }
    for nic in now.nics.values() {
        let known = before.nics.values().find(|known| known.tap == nic.tap);
        let start = Start::of(known);
        let before = known.cloned().unwrap_or_default();
        done.received = sum(done.received, between(start, before.received, nic.received));
        done.sent = sum(done.sent, between(start, before.sent, nic.sent));
    }
    done
}

/// How much space of a storage pool the volumes of these documents may take once their guests have written them full, and
/// the snapshots of such, and of `local` the disks as well.
#[must_use]
pub fn provisioned<'a>(
    documents: impl Iterator<Item = &'a Document>,
    pool: &PoolName,
) -> ByteCount {
    documents
        .map(|document| match document {
            Document::Instance(wish) if pool.is_local() => {
                let disks = wish.spec.iter().flat_map(|spec| &spec.disks);
                disks.map(|disk| ByteCount::from_gb(disk.size_gb)).sum()
            }
            Document::Volume(wish) => {
                let sizes = wish
                    .spec
                    .iter()
                    .filter(|spec| spec.pool == *pool)
                    .map(|spec| ByteCount::from_gb(spec.size_gb));
                sizes.sum()
            }
            Document::Snapshot(wish) => {
                let sizes = wish
                    .spec
                    .iter()
                    .filter(|spec| spec.volume.pool == *pool)
                    .map(|spec| ByteCount::from_gb(spec.size_gb));
                sizes.sum()
            }
            Document::Instance(_) | Document::Network(_) | Document::Router(_) => ByteCount::ZERO,
        })
        .sum()
}

/// What the owners call the instances of these documents.
#[must_use]
pub fn labels<'a>(
    documents: impl Iterator<Item = &'a Document>,
) -> BTreeMap<InstanceId, InstanceLabel> {
    let labelled = documents.filter_map(|document| match document {
        Document::Instance(wish) => wish.spec.as_ref().map(|spec| {
            let label = InstanceLabel {
                name: spec.name.clone(),
                project: spec.project.clone(),
                ports: spec
                    .ports
                    .iter()
                    .map(|port| (names::tap(port.id), port.id))
                    .collect(),
            };
            (wish.id, label)
        }),
        Document::Network(_)
        | Document::Router(_)
        | Document::Snapshot(_)
        | Document::Volume(_) => None,
    });
    labelled.collect()
}

impl Activity {
    /// Both together. What cannot be told of one is what is told of the other.
    #[must_use]
    pub fn and(self, more: Self) -> Self {
        Self {
            cpu: sum(self.cpu, more.cpu),
            read: sum(self.read, more.read),
            written: sum(self.written, more.written),
            received: sum(self.received, more.received),
            sent: sum(self.sent, more.sent),
        }
    }

    /// The same per second, if it was done in this time. No time: nothing can be said.
    #[must_use]
    pub fn per(self, elapsed: Duration) -> Rates {
        if elapsed.is_zero() {
            return Rates::default();
        }
        let seconds = elapsed.as_secs_f64();
        let transfer = |done: Transfer| TransferRate {
            bytes: decimal(done.bytes) / seconds,
            requests: decimal(done.requests) / seconds,
        };
        let traffic = |done: Traffic| TrafficRate {
            bytes: decimal(done.bytes) / seconds,
            packets: decimal(done.packets) / seconds,
        };
        Rates {
            cpu_cores: self.cpu.map(|cpu| cpu.as_secs_f64() / seconds),
            read: self.read.map(transfer),
            written: self.written.map(transfer),
            received: self.received.map(traffic),
            sent: self.sent.map(traffic),
        }
    }
}

/// Whether a counter was there at the last look.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Start {
    /// It was there; if it was not told then, nobody knows how far it had come.
    Before,
    /// It began at zero since.
    Since,
}

impl Start {
    fn of<T>(known: Option<T>) -> Self {
        match known {
            Some(_) => Self::Before,
            None => Self::Since,
        }
    }
}

/// What counts up from zero.
trait Counted: Copy {
    /// Both together.
    fn plus(self, more: Self) -> Self;
    /// What was added since it was `before`; what fell began anew at zero.
    fn since(self, before: Self) -> Self;
}

impl Counted for u64 {
    fn plus(self, more: Self) -> Self {
        self.saturating_add(more)
    }

    fn since(self, before: Self) -> Self {
        self.checked_sub(before).unwrap_or(self)
    }
}

impl Counted for ByteCount {
    fn plus(self, more: Self) -> Self {
        self.saturating_add(more)
    }

    fn since(self, before: Self) -> Self {
        self.saturating_sub(before)
    }
}

impl Counted for Duration {
    fn plus(self, more: Self) -> Self {
        self.saturating_add(more)
    }

    fn since(self, before: Self) -> Self {
        self.checked_sub(before).unwrap_or(self)
    }
}

impl Counted for Transfer {
    fn plus(self, more: Self) -> Self {
        Self {
            bytes: self.bytes.plus(more.bytes),
            requests: self.requests.plus(more.requests),
        }
    }

    fn since(self, before: Self) -> Self {
        Self {
            bytes: self.bytes.since(before.bytes),
            requests: self.requests.since(before.requests),
        }
    }
}

impl Counted for Traffic {
    fn plus(self, more: Self) -> Self {
        Self {
            bytes: self.bytes.plus(more.bytes),
            packets: self.packets.plus(more.packets),
            drops: self.drops.plus(more.drops),
            errors: self.errors.plus(more.errors),
        }
    }

    fn since(self, before: Self) -> Self {
        Self {
            bytes: self.bytes.since(before.bytes),
            packets: self.packets.since(before.packets),
            drops: self.drops.since(before.drops),
            errors: self.errors.since(before.errors),
        }
    }
}

fn between<T: Counted>(start: Start, before: Option<T>, now: Option<T>) -> Option<T> {
    match (start, before) {
        (Start::Before, before) => Some(now?.since(before?)),
        (Start::Since, _) => now,
    }
}

fn sum<T: Counted>(one: Option<T>, other: Option<T>) -> Option<T> {
    match (one, other) {
        (Some(one), Some(other)) => Some(one.plus(other)),
        (one, other) => one.or(other),
    }
}

/// A whole number as Prometheus has it; above 2^53 the last digits are lost.
#[must_use]
pub fn decimal(value: u64) -> f64 {
    let half = |part: u64| f64::from(u32::try_from(part).unwrap_or(u32::MAX));
    half(value >> 32) * 4_294_967_296.0 + half(value & 0xffff_ffff)
}
