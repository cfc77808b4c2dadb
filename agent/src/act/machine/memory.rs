//! What the kernel says of a machine's memory: how much could be had, what KSM shares, huge pages. Read from procfs and
//! sysfs, which never wait.

use std::{fs, path::Path};

use berth_common::units::ByteCount;
use nix::unistd::{SysconfVar, sysconf};

use super::{Machine, countables};

/// A machine's memory.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Memory {
    /// What the kernel manages.
    pub total: ByteCount,
    /// What could be had without swapping.
    pub available: ByteCount,
    /// What is shared by merging equal pages; `None`: this kernel cannot.
    pub ksm: Option<Ksm>,
    /// Huge pages, by size.
    pub huge_pages: Vec<HugePages>,
}

/// What kernel samepage merging has done.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Ksm {
    /// Memory that is there once and stands for several pages (`pages_shared`).
    pub shared: ByteCount,
    /// Memory that this saves (`pages_sharing`).
    pub saved: ByteCount,
}

/// Huge pages of one size.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct HugePages {
    /// Their size.
    pub size: ByteCount,
    /// How many the kernel has set aside.
    pub total: u64,
    /// How many of them nobody uses.
    pub free: u64,
}

impl Memory {
    /// Looks at the machine whose `/proc` and `/sys` are below `root`: usually `/`.
    #[must_use]
    pub fn look(root: &Path) -> Self {
        let meminfo = fs::read_to_string(root.join("proc/meminfo")).unwrap_or_default();
        let machine = Machine::of_meminfo(&meminfo);
        Self {
            total: machine.memory_total,
            available: machine.memory_available,
            ksm: ksm(&root.join("sys/kernel/mm/ksm")),
            huge_pages: huge_pages(&root.join("sys/kernel/mm/hugepages")),
        }
    }
}

fn ksm(folder: &Path) -> Option<Ksm> {
    let page = sysconf(SysconfVar::PAGE_SIZE).ok()??;
    let page = u64::try_from(page).ok()?;
    let bytes = |name: &str| {
        let pages = countables::number(&folder.join(name), 10)?;
        Some(ByteCount::clamped(pages.saturating_mul(page)))
    };
    Some(Ksm {
        shared: bytes("pages_shared")?,
        saved: bytes("pages_sharing")?,
    })
}

fn huge_pages(folder: &Path) -> Vec<HugePages> {
    let sizes = countables::entries(folder).filter_map(|(name, path)| {
        let kib: u64 = name
            .strip_prefix("hugepages-")?
            .strip_suffix("kB")?
            .parse()
            .ok()?;
        Some(HugePages {
            size: ByteCount::clamped(kib.saturating_mul(1024)),
            total: countables::number(&path.join("nr_hugepages"), 10)?,
            free: countables::number(&path.join("free_hugepages"), 10)?,
        })
    });
    let mut sizes: Vec<_> = sizes.collect();
    sizes.sort();
    sizes
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_is_told_as_the_kernel_has_it() {
        let root = tempfile::tempdir().unwrap();
        let write = |path: &str, text: &str| {
            let path = root.path().join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        };
        write("proc/meminfo", "MemTotal: 2048 kB\nMemAvailable: 1024 kB\n");
        assert_eq!(
            Memory::look(root.path()),
            Memory {
                total: ByteCount::clamped(2 << 20),
                available: ByteCount::clamped(1 << 20),
                ..Memory::default()
            }
        );
        write("sys/kernel/mm/ksm/pages_shared", "10\n");
        write("sys/kernel/mm/ksm/pages_sharing", "30\n");
        write(
            "sys/kernel/mm/hugepages/hugepages-2048kB/nr_hugepages",
            "8\n",
        );
        write(
            "sys/kernel/mm/hugepages/hugepages-2048kB/free_hugepages",
            "5\n",
        );
        write(
            "sys/kernel/mm/hugepages/hugepages-64kB/nr_hugepages",
            "none",
        );
        let memory = Memory::look(root.path());
        let ksm = memory.ksm.unwrap();
        assert_eq!(ksm.saved.get(), 3 * ksm.shared.get());
        assert!(ksm.shared.get() >= 10 * 4096);
        let pages = HugePages {
            size: ByteCount::clamped(2 << 20),
            total: 8,
            free: 5,
        };
        assert_eq!(memory.huge_pages, [pages]);
        assert!(Memory::look(Path::new("/")).total > ByteCount::ZERO);
    }
}
