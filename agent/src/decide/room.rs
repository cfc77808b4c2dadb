//! How large a guest may become while it is on: what its domain is defined with room for.
//!
//! Room costs the guest, not the host, and only while it runs: about 250 KiB of its memory for each processor it might get,
//! and 64 MiB once where it might get memory above 4 GiB and has none there yet. So there is only as much room as a guest is
//! likely to need, and small guests have none for memory.

use berth_common::{
    document::Flavor,
    units::{MemoryMb, Vcpus},
};

/// How many times as large as it was started a guest may become.
const TIMES: u64 = 4;
/// Even the smallest guest may get so many processors.
const LEAST_VCPUS: u64 = 8;
/// The most that a `q35` machine has without an IOMMU.
const MOST_VCPUS: u64 = 255;
/// Guests that are smaller have no room for memory: what it takes of them once would be too much.
const LEAST_MEMORY_MB: u64 = 1024;
/// With what a machine has beside its memory, this fits below the 40 bits of addresses that QEMU's processors have.
const MOST_MEMORY_MB: u64 = 512 << 10;
/// How often a guest can be given memory.
pub const MEMORY_SLOTS: usize = 16;

/// Linux takes memory in blocks of 128 MiB on x86, and in blocks of 2 GiB of guests whose memory at boot ends at 64 GiB of
/// addresses or above. Some of those addresses are not memory, hence from a little less on.
const LARGE_BLOCKS_FROM_MB: u64 = 60 << 10;

/// A guest of this size is given memory in multiples of this: the block that Linux takes. How much of what it has it booted
/// with is not asked: its blocks may be smaller than that, and never larger.
#[must_use]
pub fn memory_step(guest: MemoryMb) -> MemoryMb {
    MemoryMb::clamped(if guest.get() < LARGE_BLOCKS_FROM_MB {
        128
    } else {
        2048
    })
}

/// Whether guests are started with room to grow (`libvirt.room_to_grow`).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RoomToGrow {
    /// As much as their size and their host allow.
    Given,
    /// They have what they were started with until their next start.
    Withheld,
}

/// The most that a guest may be given while it is on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Room {
    /// Virtual CPUs.
    pub vcpus: Vcpus,
    /// Memory.
    pub memory_mb: MemoryMb,
}

/// What of the host bounds the room of its guests.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct HostSize {
    /// Its processors.
    pub cpus: u64,
    /// Its memory.
    pub memory_mb: MemoryMb,
}

impl Room {
    /// No more than it has.
    #[must_use]
    pub const fn none(vcpus: Vcpus, memory_mb: MemoryMb) -> Self {
        Self { vcpus, memory_mb }
    }

    /// The room of a guest of this size on this host: never more than the host has, never less than the guest has.
    #[must_use]
    pub fn of(flavor: Flavor, arch: &str, host: HostSize) -> Self {
        Self {
            vcpus: vcpus(flavor, arch, host),
            memory_mb: memory(flavor, arch, host),
        }
    }
}

fn vcpus(flavor: Flavor, arch: &str, host: HostSize) -> Vcpus {
    let own = flavor.vcpus.get();
    if !grows(arch) {
        return flavor.vcpus;
    }
    let most = own.saturating_mul(TIMES).max(LEAST_VCPUS);
    Vcpus::clamped(most.min(host.cpus).min(MOST_VCPUS).max(own))
}

fn memory(flavor: Flavor, arch: &str, host: HostSize) -> MemoryMb {
    let own = flavor.memory_mb.get();
    if !grows(arch) || own < LEAST_MEMORY_MB {
        return flavor.memory_mb;
    }
    let most = own.saturating_mul(TIMES).min(host.memory_mb.get());
    let most = most.min(MOST_MEMORY_MB);
    // What is no multiple of a step above it can never be reached.
    let step = memory_step(flavor.memory_mb).get();
    let steps = most.saturating_sub(own) / step;
    MemoryMb::clamped(own.saturating_add(steps.saturating_mul(step)))
}

/// Whether QEMU's machine of this architecture takes processors and memory while it is on, and guests know how.
fn grows(arch: &str) -> bool {
    arch == "x86_64"
}

#[cfg(test)]
mod tests {
    use berth_common::units::DiskGb;

    use super::*;

    fn check_memory(memory_mb: u64, arch: &str, host_mb: u64, expected: u64) {
        let flavor = Flavor {
            vcpus: Vcpus::clamped(1),
            memory_mb: MemoryMb::clamped(memory_mb),
            disk_gb: DiskGb::clamped(1),
        };
        let host = HostSize {
            cpus: 4,
            memory_mb: MemoryMb::clamped(host_mb),
        };
        assert_eq!(Room::of(flavor, arch, host).memory_mb.get(), expected);
    }

    #[test]
    fn there_is_room_for_four_times_the_memory_of_guests_that_can_afford_it() {
        check_memory(64, "x86_64", 65_536, 64);
        check_memory(1023, "x86_64", 65_536, 1023);
        check_memory(1024, "x86_64", 65_536, 4096);
        check_memory(4096, "x86_64", 10_000, 9984);
        check_memory(4096, "x86_64", 2048, 4096);
        check_memory(1100, "x86_64", 65_536, 4300);
        check_memory(15_360, "x86_64", 61_000, 60_928);
        check_memory(61_440, "x86_64", 65_536, 65_536);
        check_memory(61_440, "x86_64", 65_535, 63_488);
        check_memory(400_000, "x86_64", 4_000_000, 522_880);
        check_memory(600_000, "x86_64", 4_000_000, 600_000);
        check_memory(4096, "aarch64", 65_536, 4096);
    }

    fn check(vcpus: u64, arch: &str, cpus: u64, expected: u64) {
        let flavor = Flavor {
            vcpus: Vcpus::clamped(vcpus),
            memory_mb: MemoryMb::clamped(512),
            disk_gb: DiskGb::clamped(1),
        };
        let host = HostSize {
            cpus,
            memory_mb: MemoryMb::clamped(65_536),
        };
        assert_eq!(Room::of(flavor, arch, host).vcpus.get(), expected);
    }

    #[test]
    fn there_is_room_for_four_times_the_processors_and_never_more_than_the_host_has() {
        check(1, "x86_64", 64, 8);
        check(2, "x86_64", 64, 8);
        check(4, "x86_64", 64, 16);
        check(4, "x86_64", 6, 6);
        check(32, "x86_64", 64, 64);
        check(128, "x86_64", 512, 255);
        // More than the host has by overcommit of an older day: room is never less than what there is.
        check(4, "x86_64", 2, 4);
        check(300, "x86_64", 512, 300);
        check(2, "aarch64", 64, 2);
    }
}
