//! Placement, as a pure function: no I/O, no clock, no async.
//!
//! [`place`] runs the filters of [`filter`] over every host, scores those that remain with [`weigh`], and
//! answers with the best host, or with how many hosts each filter removed and the nearest miss in numbers.
//! The same snapshot gives the same answer, in whatever order the hosts are listed.

pub mod filter;
pub mod weigh;

use std::{collections::BTreeMap, fmt};

use berth_common::{
    document::Flavor,
    ids::HostId,
    message::view::{AllocationRatios, Resources},
    names::HostName,
    units::{DiskGb, MemoryMb, Vcpus},
};

pub use filter::{FilterName, Rejection};

/// What is asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Request {
    /// The size of the instance.
    pub flavor: Flavor,
}

/// A host as placement sees it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Candidate {
    /// Its id.
    pub id: HostId,
    /// Its name.
    pub name: HostName,
    /// Whether its operator lets it get new instances.
    pub enabled: bool,
    /// Whether its heartbeats arrive.
    pub alive: bool,
    /// What exists.
    pub total: Resources,
    /// What is kept for the host itself.
    pub reserved: Resources,
    /// How much may be claimed for each unit that exists.
    pub ratios: AllocationRatios,
    /// What is claimed, plus what foreign domains take.
    pub used: Resources,
}

impl Candidate {
    /// `(total − reserved) × ratio`: the most that may ever be claimed.
    #[must_use]
    pub fn capacity(&self) -> Resources {
        let rest = self.total.saturating_sub(self.reserved);
        Resources {
            vcpus: Vcpus::clamped(self.ratios.cpu.apply(rest.vcpus.get())),
            memory_mb: MemoryMb::clamped(self.ratios.ram.apply(rest.memory_mb.get())),
            disk_gb: DiskGb::clamped(self.ratios.disk.apply(rest.disk_gb.get())),
        }
    }

    /// What may still be claimed.
    #[must_use]
    pub fn free(&self) -> Resources {
        self.capacity().saturating_sub(self.used)
    }
}

/// The host that was chosen.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Decision {
    /// Its id.
    pub host_id: HostId,
    /// Its name.
    pub host: HostName,
}

/// No host fits: the reasons, in numbers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NoValidHost {
    /// What was asked for.
    pub request: Request,
    /// How many hosts there are.
    pub hosts: usize,
    /// How many hosts each filter removed, in the order of the filters.
    pub removed: BTreeMap<FilterName, usize>,
    /// The host that got furthest, and what it lacked.
    pub nearest: Option<(HostName, Rejection)>,
}

impl fmt::Display for NoValidHost {
    /// For people, on one line, naming hosts: `No valid host was found for 4 vCPU, 8192 MB, 20 GB: 2 hosts; ram
    /// removed 1, enabled removed 1; nearest miss hv1: needs 8192 MB of memory, 512 MB free of 4096 MB`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Flavor {
            vcpus,
            memory_mb,
            disk_gb,
        } = self.request.flavor;
        write!(
            f,
            "No valid host was found for {vcpus}, {memory_mb} of memory, {disk_gb} of disk: "
        )?;
        match self.hosts {
            0 => return f.write_str("no host has ever sent a heartbeat"),
            1 => f.write_str("1 host")?,
            hosts => write!(f, "{hosts} hosts")?,
        }
        for (filter, count) in &self.removed {
            write!(f, "; {filter} removed {count}")?;
        }
        if let Some((host, rejection)) = &self.nearest {
            write!(f, "; nearest miss {host}: {rejection}")?;
        }
        Ok(())
    }
}

/// Chooses a host for a request.
///
/// # Errors
/// [`NoValidHost`] when every host was removed by some filter.
pub fn place(request: Request, candidates: &[Candidate]) -> Result<Decision, NoValidHost> {
    let mut removed = BTreeMap::new();
    let mut nearest: Option<(&Candidate, FilterName, Rejection)> = None;
    let mut best: Option<(weigh::Score, &Candidate)> = None;

    for candidate in candidates {
        match filter::check(request, candidate) {
            Ok(()) => {
                let score = weigh::score(candidate);
                let better = best.as_ref().is_none_or(|(best_score, best)| {
                    (score, best.id) > (*best_score, candidate.id)
                });
                if better {
                    best = Some((score, candidate));
                }
            }
            Err((name, rejection)) => {
                *removed.entry(name).or_insert(0) += 1;
                let nearer = nearest
                    .as_ref()
                    .is_none_or(|(other, other_name, other_rejection)| {
                        let rank = (
                            name,
                            std::cmp::Reverse(rejection.missing()),
                            std::cmp::Reverse(candidate.id),
                        );
                        let other = (
                            *other_name,
                            std::cmp::Reverse(other_rejection.missing()),
                            std::cmp::Reverse(other.id),
                        );
                        rank > other
                    });
                if nearer {
                    nearest = Some((candidate, name, rejection));
                }
            }
        }
    }
    match best {
        Some((_, host)) => Ok(Decision {
            host_id: host.id,
            host: host.name.clone(),
        }),
        None => Err(NoValidHost {
            request,
            hosts: candidates.len(),
            removed,
            nearest: nearest.map(|(host, _, rejection)| (host.name.clone(), rejection)),
        }),
    }
}

#[cfg(test)]
mod tests;
