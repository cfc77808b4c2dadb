//! What the domains of a fake host have used: guests work when they are told to, and begin anew when they are started.

use std::collections::{BTreeMap, BTreeSet};

use berth_common::{ids::InstanceId, units::ByteCount};
use uuid::Uuid;

use super::domains::Domains;
use crate::decide::{
    domain::DomainConfig,
    usage::{Activity, DiskUsage, DomainUsage, MemoryUsage, NicUsage, Traffic, Transfer},
};

/// Whether something else is done to a domain at the moment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Busy {
    /// It is: libvirt tells only what it knows without QEMU.
    Yes,
    /// It is not.
    No,
}

#[derive(Debug, Clone, Default)]
pub(super) struct Workloads {
    done: BTreeMap<Uuid, Done>,
    busy: BTreeSet<Uuid>,
}

/// What one start of a domain has done.
#[derive(Debug, Clone, Copy, Default)]
struct Done {
    run: u32,
    work: Activity,
}

impl Workloads {
    pub(super) fn work(&mut self, domains: &Domains, uuid: Uuid, work: Activity) {
        if domains.on().iter().any(|(on, ..)| *on == uuid) {
            let mut done = self.done_by(domains, uuid);
            done.work = done.work.and(work);
            self.done.insert(uuid, done);
        }
    }

    pub(super) fn set_busy(&mut self, uuid: Uuid, busy: Busy) {
        match busy {
            Busy::Yes => self.busy.insert(uuid),
            Busy::No => self.busy.remove(&uuid),
        };
    }

    pub(super) fn measure(&self, domains: &Domains) -> Vec<DomainUsage> {
        let on = domains.on().into_iter();
        on.map(|(uuid, memory, config)| {
            let done = self.done_by(domains, uuid);
            let memory = ByteCount::from_mb(memory);
            let known = DomainUsage {
                uuid,
                run: Some(done.run),
                cpu: Some(done.work.cpu.unwrap_or_default()),
                memory: MemoryUsage {
                    maximum: Some(memory),
                    balloon: Some(memory),
                    ..MemoryUsage::default()
                },
                nics: nics(config, done.work),
                ..DomainUsage::default()
            };
            if self.busy.contains(&uuid) {
                return known;
            }
            DomainUsage {
                memory: MemoryUsage {
                    // A fake guest takes all it was given, and has no driver for the balloon.
                    resident: Some(memory),
                    ..known.memory
                },
                disks: disks(config, done.work),
                ..known
            }
        })
        .collect()
    }

    /// What this start of a domain has done: nothing that an earlier one did.
    fn done_by(&self, domains: &Domains, uuid: Uuid) -> Done {
        let lives = InstanceId::try_from(uuid).map(|id| domains.lives(id));
        let run = lives.map_or(0, |lives| lives.starts.saturating_add(lives.restores));
        let done = self.done.get(&uuid).filter(|done| done.run == run);
        done.copied().unwrap_or(Done {
            run,
            work: Activity::default(),
        })
    }
}

/// All work is that of the first disk. A foreign domain has one.
fn disks(config: Option<&DomainConfig>, work: Activity) -> BTreeMap<String, DiskUsage> {
    let targets = match config {
        Some(config) => config
            .disks
            .iter()
            .map(|disk| disk.target.clone())
            .collect(),
        None => vec!["vda".to_owned()],
    };
    let first = DiskUsage {
        read: Some(work.read.unwrap_or_default()),
        written: Some(work.written.unwrap_or_default()),
    };
    let idle = DiskUsage {
        read: Some(Transfer::default()),
        written: Some(Transfer::default()),
    };
    targets.into_iter().zip(worked_on(first, idle)).collect()
}

/// All work is that of the first NIC. A foreign domain has one.
fn nics(config: Option<&DomainConfig>, work: Activity) -> BTreeMap<usize, NicUsage> {
    let count = config.map_or(1, |config| config.nics.len());
    let first = NicUsage {
        tap: String::new(),
        received: Some(work.received.unwrap_or_default()),
        sent: Some(work.sent.unwrap_or_default()),
    };
    let idle = NicUsage {
        tap: String::new(),
        received: Some(Traffic::default()),
        sent: Some(Traffic::default()),
    };
    let tap = |position: usize| {
        let nic = config.and_then(|config| config.nics.get(position));
        nic.map_or_else(|| format!("vnet{position}"), |nic| nic.tap.clone())
    };
    (0..count)
        .zip(worked_on(first, idle))
        .map(|(position, nic)| {
            let tap = tap(position);
            (position, NicUsage { tap, ..nic })
        })
        .collect()
}

/// The first does all the work.
fn worked_on<T: Clone>(first: T, idle: T) -> impl Iterator<Item = T> {
    std::iter::once(first).chain(std::iter::repeat(idle))
}
