//! Processors and memory of a machine, as measured just now. It needs no libvirt, and never waits for one.

use std::fs;

use berth_common::units::ByteCount;
use nix::unistd::{SysconfVar, sysconf};

/// Processors and memory of a machine.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Machine {
    /// Processors that are online.
    pub cpus: u64,
    /// `MemTotal` of `/proc/meminfo`: what the kernel manages on all NUMA nodes together. (libvirt's own figure may
    /// be that of one node only.)
    pub memory_total: ByteCount,
    /// `MemAvailable`: what could be had without swapping.
    pub memory_available: ByteCount,
}

impl Machine {
    fn of_meminfo(text: &str) -> Self {
        let kib = |key: &str| {
            let line = text
                .lines()
                .find_map(|line| line.strip_prefix(key)?.strip_prefix(':'));
            line.and_then(|rest| rest.split_whitespace().next()?.parse::<u64>().ok())
                .unwrap_or_default()
        };
        let bytes = |key| ByteCount::clamped(kib(key).saturating_mul(1024));
        Self {
            cpus: 0,
            memory_total: bytes("MemTotal"),
            memory_available: bytes("MemAvailable"),
        }
    }
}

/// How a machine is measured. It may not wait: heartbeats depend on it.
pub trait Measure: Send + Sync {
    /// Looks at it.
    fn measure(&self) -> Machine;
}

/// The machine that this process runs on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ThisMachine;

impl Measure for ThisMachine {
    fn measure(&self) -> Machine {
        let cpus = sysconf(SysconfVar::_NPROCESSORS_ONLN)
            .ok()
            .flatten()
            .and_then(|count| u64::try_from(count).ok());
        Machine {
            cpus: cpus.unwrap_or(1),
            ..Machine::of_meminfo(&fs::read_to_string("/proc/meminfo").unwrap_or_default())
        }
    }
}

#[cfg(test)]
mod tests {
    use berth_common::units::MemoryMb;

    use super::*;

    #[test]
    fn meminfo_is_read() {
        let machine = Machine::of_meminfo(
            "MemTotal:       24000000 kB\nMemFree: 5 kB\nMemAvailable:   20000000 kB\n",
        );
        assert_eq!(machine.memory_total.whole_mb(), MemoryMb::clamped(23_437));
        assert_eq!(
            machine.memory_available.whole_mb(),
            MemoryMb::clamped(19_531)
        );
        let this = ThisMachine.measure();
        assert!(this.cpus >= 1);
        assert!(this.memory_total > this.memory_available);
    }
}
