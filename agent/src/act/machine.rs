//! What a machine is made of, as measured just now. It needs no libvirt, and never waits for one.

pub mod countables;
pub mod memory;

use std::{fs, net::IpAddr, path::Path};

use berth_common::{
    message::heartbeat::{NetworkCapabilities, ResourceInventory},
    names::PhysicalNetworkName,
    units::ByteCount,
};
use nix::unistd::{SysconfVar, sysconf};

use countables::PciPool;

use super::net::features::Features;
use crate::decide::network::uplink::Feature;

/// What a machine is made of.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Machine {
    /// Processors that are online.
    pub cpus: u64,
    /// `MemTotal` of `/proc/meminfo`: what the kernel manages on all NUMA nodes together. (libvirt's own figure may
    /// be that of one node only.)
    pub memory_total: ByteCount,
    /// `MemAvailable`: what could be had without swapping.
    pub memory_available: ByteCount,
    /// What can be counted besides.
    pub countables: Vec<ResourceInventory>,
    /// The physical networks it is plugged into, by its operator's word.
    pub physical_networks: Vec<PhysicalNetworkName>,
    /// What kinds of networks it can build.
    pub network: NetworkCapabilities,
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
            ..Self::default()
        }
    }
}

/// How a machine is measured. It may not wait: heartbeats depend on it.
pub trait Measure: Send + Sync {
    /// Looks at it.
    fn measure(&self) -> Machine;
}

/// The machine that this process runs on, and what its operator says of it.
#[derive(Debug, Clone, Default)]
pub struct ThisMachine {
    /// The physical networks it is plugged into.
    pub physical_networks: Vec<PhysicalNetworkName>,
    /// The PCI devices that instances may have.
    pub pci_pools: Vec<PciPool>,
    /// Its address for VXLANs.
    pub tunnel_ip: Option<IpAddr>,
    /// What its kernel can.
    pub features: Features,
}

impl Measure for ThisMachine {
    fn measure(&self) -> Machine {
        let cpus = sysconf(SysconfVar::_NPROCESSORS_ONLN)
            .ok()
            .flatten()
            .and_then(|count| u64::try_from(count).ok());
        let mut countables = countables::huge_pages(Path::new("/sys/kernel/mm/hugepages"));
        countables.extend(countables::pci_devices(
            Path::new("/sys/bus/pci/devices"),
            &self.pci_pools,
        ));
        Machine {
            cpus: cpus.unwrap_or(1),
            countables,
            physical_networks: self.physical_networks.clone(),
            network: NetworkCapabilities {
                vlan: self.features.has(Feature::Vlan),
                vxlan: self.features.has(Feature::Vxlan),
                stateful_filter: self.features.has(Feature::StatefulFilter),
                tunnel_ip: self.tunnel_ip,
            },
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
        let this = ThisMachine::default().measure();
        assert!(this.cpus >= 1);
        assert!(this.memory_total > this.memory_available);
    }
}
