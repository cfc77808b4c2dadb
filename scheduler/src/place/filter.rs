//! The filters, in the order in which they are asked; each says no with numbers.

use std::fmt;

use berth_common::message::view::Resources;

use super::{Candidate, Request};

/// The filters, in order. A host that fails a later one came nearer to fitting.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum FilterName {
    /// The host is enabled by its operator.
    Enabled,
    /// The host's heartbeats arrive.
    Alive,
    /// vCPUs, with overcommit.
    Cpu,
    /// Memory, with overcommit.
    Ram,
    /// Disk, with overcommit.
    Disk,
}

impl fmt::Display for FilterName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Enabled => "enabled",
            Self::Alive => "alive",
            Self::Cpu => "cpu",
            Self::Ram => "ram",
            Self::Disk => "disk",
        })
    }
}

/// Why a host does not fit.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Rejection {
    /// It is disabled.
    Disabled,
    /// Its heartbeats do not arrive.
    Down,
    /// It is physically too small: overcommit is of the sum, never of one instance.
    LargerThanHost {
        /// What of it (`vCPU`, `MB of memory`, `GB of disk`).
        what: &'static str,
        /// What was asked for.
        needed: u64,
        /// What the host has, less what is reserved.
        physical: u64,
    },
    /// It has too little left.
    Full {
        /// What of it.
        what: &'static str,
        /// What was asked for.
        needed: u64,
        /// What may still be claimed.
        free: u64,
        /// What may be claimed in all: `(total − reserved) × ratio`.
        capacity: u64,
    },
}

impl Rejection {
    /// How much was missing, in the unit of what was missing.
    #[must_use]
    pub fn missing(&self) -> u64 {
        match self {
            Self::Disabled | Self::Down => 0,
            Self::LargerThanHost {
                needed, physical, ..
            } => needed.saturating_sub(*physical),
            Self::Full { needed, free, .. } => needed.saturating_sub(*free),
        }
    }
}

impl fmt::Display for Rejection {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Disabled => f.write_str("it is disabled"),
            Self::Down => f.write_str("its heartbeats do not arrive"),
            Self::LargerThanHost {
                what,
                needed,
                physical,
            } => {
                write!(
                    f,
                    "needs {needed} {what}, the whole host has {physical} (one instance is never overcommitted)"
                )
            }
            Self::Full {
                what,
                needed,
                free,
                capacity,
            } => {
                write!(
                    f,
                    "needs {needed} {what}, {free} free of {capacity}, {} missing",
                    self.missing()
                )
            }
        }
    }
}

/// Asks every filter in order.
///
/// # Errors
/// The first filter that says no, and why.
pub fn check(request: Request, host: &Candidate) -> Result<(), (FilterName, Rejection)> {
    enabled(host).map_err(|rejection| (FilterName::Enabled, rejection))?;
    alive(host).map_err(|rejection| (FilterName::Alive, rejection))?;
    for (name, part) in [
        (FilterName::Cpu, &CPU),
        (FilterName::Ram, &RAM),
        (FilterName::Disk, &DISK),
    ] {
        fits(request, host, part).map_err(|rejection| (name, rejection))?;
    }
    Ok(())
}

fn enabled(host: &Candidate) -> Result<(), Rejection> {
    if host.enabled {
        Ok(())
    } else {
        Err(Rejection::Disabled)
    }
}

fn alive(host: &Candidate) -> Result<(), Rejection> {
    if host.alive {
        Ok(())
    } else {
        Err(Rejection::Down)
    }
}

/// One part of [`Resources`], with its unit.
struct Part {
    what: &'static str,
    of: fn(&Resources) -> u64,
}

const CPU: Part = Part {
    what: "vCPU",
    of: |resources| resources.vcpus.get(),
};
const RAM: Part = Part {
    what: "MB of memory",
    of: |resources| resources.memory_mb.get(),
};
const DISK: Part = Part {
    what: "GB of disk",
    of: |resources| resources.disk_gb.get(),
};

/// Whether one resource suffices: physically for this instance, and with overcommit for all of them.
fn fits(request: Request, host: &Candidate, part: &Part) -> Result<(), Rejection> {
    let needed = (part.of)(&Resources::from(request.flavor));
    let physical = (part.of)(&host.total.saturating_sub(host.reserved));
    if needed > physical {
        return Err(Rejection::LargerThanHost {
            what: part.what,
            needed,
            physical,
        });
    }
    let free = (part.of)(&host.free());
    if needed > free {
        let capacity = (part.of)(&host.capacity());
        return Err(Rejection::Full {
            what: part.what,
            needed,
            free,
            capacity,
        });
    }
    Ok(())
}
