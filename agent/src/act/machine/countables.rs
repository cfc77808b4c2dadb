//! What a machine has that can be counted, besides processors, memory and disk: huge pages, and PCI devices by pool.
//! Read from sysfs, which never waits.

use std::{fs, path::Path, str::FromStr};

use berth_common::{message::heartbeat::ResourceInventory, names::ResourceClass};

/// PCI devices of one kind that instances may have, such as `GPU=10de:1eb8`: counted as `PCI_GPU`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PciPool {
    class: ResourceClass,
    vendor: u16,
    device: u16,
}

/// A text names no pool of PCI devices.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "a PCI pool must be NAME=vendor:device with upper-case NAME and hexadecimal ids, like GPU=10de:1eb8; got {0:?}"
)]
pub struct InvalidPciPool(String);

impl FromStr for PciPool {
    type Err = InvalidPciPool;

    fn from_str(text: &str) -> Result<Self, InvalidPciPool> {
        let invalid = || InvalidPciPool(text.chars().take(80).collect());
        let (name, ids) = text.split_once('=').ok_or_else(invalid)?;
        let (vendor, device) = ids.split_once(':').ok_or_else(invalid)?;
        let id = |digits: &str| {
            let four = digits.len() == 4 && digits.bytes().all(|byte| byte.is_ascii_hexdigit());
            four.then(|| u16::from_str_radix(digits, 16).ok()).flatten()
        };
        Ok(Self {
            class: format!("PCI_{name}").parse().map_err(|_| invalid())?,
            vendor: id(vendor).ok_or_else(invalid)?,
            device: id(device).ok_or_else(invalid)?,
        })
    }
}

/// The huge pages of each size that the kernel has set aside. `root`: usually `/sys/kernel/mm/hugepages`.
#[must_use]
pub fn huge_pages(root: &Path) -> Vec<ResourceInventory> {
    let sizes = entries(root).filter_map(|(name, path)| {
        let size = name.strip_prefix("hugepages-")?.strip_suffix("kB")?;
        let class = format!("HUGEPAGES_{size}K").parse().ok()?;
        let total = number(&path.join("nr_hugepages"), 10)?;
        Some(ResourceInventory { class, total })
    });
    sorted(sizes.filter(|inventory| inventory.total > 0))
}

/// How many devices each pool has. `root`: usually `/sys/bus/pci/devices`. A pool without devices is told too: somebody
/// named it and may wonder.
#[must_use]
pub fn pci_devices(root: &Path, pools: &[PciPool]) -> Vec<ResourceInventory> {
    let found: Vec<(u64, u64)> = entries(root)
        .filter_map(|(_, path)| {
            let id = |name| number(&path.join(name), 16);
            Some((id("vendor")?, id("device")?))
        })
        .collect();
    let counted = pools.iter().map(|pool| {
        let wanted = (u64::from(pool.vendor), u64::from(pool.device));
        let count = found.iter().filter(|ids| **ids == wanted).count();
        ResourceInventory {
            class: pool.class.clone(),
            total: u64::try_from(count).unwrap_or(u64::MAX),
        }
    });
    sorted(counted)
}

/// In a fixed order: a heartbeat that says the same in another order would look like news.
fn sorted(inventories: impl Iterator<Item = ResourceInventory>) -> Vec<ResourceInventory> {
    let mut inventories: Vec<_> = inventories.collect();
    inventories.sort_by(|a, b| a.class.cmp(&b.class));
    inventories
}

/// What is in a folder; nothing where there is none.
pub(super) fn entries(root: &Path) -> impl Iterator<Item = (String, std::path::PathBuf)> {
    fs::read_dir(root)
        .into_iter()
        .flatten()
        .filter_map(Result::ok)
        .filter_map(|entry| Some((entry.file_name().into_string().ok()?, entry.path())))
}

pub(super) fn number(path: &Path, radix: u32) -> Option<u64> {
    let text = fs::read_to_string(path).ok()?;
    let digits = text.trim();
    u64::from_str_radix(digits.strip_prefix("0x").unwrap_or(digits), radix).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn told(inventories: &[ResourceInventory]) -> Vec<(&str, u64)> {
        inventories
            .iter()
            .map(|inventory| (inventory.class.as_str(), inventory.total))
            .collect()
    }

    #[test]
    fn huge_pages_and_pci_devices_are_counted_as_sysfs_has_them() {
        let root = tempfile::tempdir().unwrap();
        let write = |path: &str, text: &str| {
            let path = root.path().join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        };
        write("mm/hugepages-2048kB/nr_hugepages", "512\n");
        write("mm/hugepages-1048576kB/nr_hugepages", "0\n");
        write("mm/other/nr_hugepages", "7\n");
        for (slot, device) in [("0", "0x1eb8"), ("1", "0x1eb8"), ("2", "0x1572")] {
            write(&format!("pci/{slot}/vendor"), "0x10de\n");
            write(&format!("pci/{slot}/device"), &format!("{device}\n"));
        }
        assert_eq!(
            told(&huge_pages(&root.path().join("mm"))),
            [("HUGEPAGES_2048K", 512)]
        );
        let pools: Vec<PciPool> = ["GPU=10de:1eb8", "FPGA=10ee:9038"]
            .iter()
            .map(|pool| pool.parse().unwrap())
            .collect();
        assert_eq!(
            told(&pci_devices(&root.path().join("pci"), &pools)),
            [("PCI_FPGA", 0), ("PCI_GPU", 2)]
        );
        assert!(huge_pages(&root.path().join("none")).is_empty());
    }

    #[test]
    fn a_pool_that_is_none_is_refused_in_words() {
        for wrong in [
            "GPU",
            "gpu=10de:1eb8",
            "GPU=10de",
            "GPU=10de:1eb",
            "GPU=xxxx:1eb8",
            "=1:2",
        ] {
            let error = wrong.parse::<PciPool>().unwrap_err().to_string();
            assert!(error.contains("like GPU=10de:1eb8"), "{error}");
        }
    }
}
