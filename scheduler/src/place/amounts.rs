//! Amounts of the three resources that every host has and every instance takes: vCPUs, memory, disk.

use std::fmt;

use berth_common::message::view::Resources;

/// A resource that every host has.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Resource {
    /// Virtual CPUs.
    Vcpus,
    /// Memory in MiB.
    MemoryMb,
    /// Disk in GiB.
    DiskGb,
}

impl Resource {
    /// All of them, in the order in which they are asked.
    pub const ALL: [Self; 3] = [Self::Vcpus, Self::MemoryMb, Self::DiskGb];

    /// Its amount in a set of resources.
    #[must_use]
    pub const fn of(self, resources: &Resources) -> u64 {
        match self {
            Self::Vcpus => resources.vcpus.get(),
            Self::MemoryMb => resources.memory_mb.get(),
            Self::DiskGb => resources.disk_gb.get(),
        }
    }
}

impl fmt::Display for Resource {
    /// The unit, as it stands after a number.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Vcpus => "vCPU",
            Self::MemoryMb => "MB of memory",
            Self::DiskGb => "GB of disk",
        })
    }
}

/// One number for each [`Resource`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) struct PerResource<T> {
    pub(super) vcpus: T,
    pub(super) memory_mb: T,
    pub(super) disk_gb: T,
}

impl<T: Copy> PerResource<T> {
    /// One number for each, from a function.
    pub(super) fn from_fn(mut number: impl FnMut(Resource) -> T) -> Self {
        Self {
            vcpus: number(Resource::Vcpus),
            memory_mb: number(Resource::MemoryMb),
            disk_gb: number(Resource::DiskGb),
        }
    }

    /// The number of one of them.
    pub(super) const fn get(&self, resource: Resource) -> T {
        match resource {
            Resource::Vcpus => self.vcpus,
            Resource::MemoryMb => self.memory_mb,
            Resource::DiskGb => self.disk_gb,
        }
    }
}

/// Text for people: `4 vCPU, 8192 MB of memory, 20 GB of disk`.
#[derive(Debug, Clone, Copy)]
pub(super) struct Words<'a>(pub(super) &'a Resources);

impl fmt::Display for Words<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, resource) in Resource::ALL.into_iter().enumerate() {
            let comma = if index == 0 { "" } else { ", " };
            write!(f, "{comma}{} {resource}", resource.of(self.0))?;
        }
        Ok(())
    }
}
