//! The disks an instance has of its own: what they are called on the host, which there shall be, and which go.
//!
//! ```text
//!   disk0.qcow2               the disk that was made with the instance
//!   disk0-2-<nonce>.qcow2     the one that took its place by the second rebuild
//!   rescue-<nonce>.qcow2      what it boots from while it is rescued
//!   config.iso, config-2-<nonce>.iso   the config drive that belongs to each of the disks
//! ```
//!
//! A name says which wish the file was made for, so nothing about it has to be remembered: a file is made once, whoever
//! asks how often, and what an older wish made is never taken for it. The old one goes last: when all that shall be there is,
//! and no domain names it, neither the definition nor the guest that runs.

use std::{
    collections::BTreeSet,
    fmt,
    path::{Path, PathBuf},
};

use berth_common::{
    document::{DiskFormat, DiskSource, ImageRef, Incarnation, InstanceSpec},
    ids::{InstanceId, Nonce},
    message::report::{BootDisk, Fault, FaultCode, PowerState},
    units::ByteCount,
};

use super::{
    DiskPlan, HostFacts, LargerDisk, Observed, OldFile, Paths, Step, StorageStep, image_of, power,
};
use crate::decide::domain::{DomainObserved, DomainStep, OffReason};

/// Which of an instance's disks it is: what its file is called.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum DiskName {
    /// One of its own.
    Own {
        /// Its position.
        index: u8,
        /// Which of those that were there one after the other.
        incarnation: Option<Incarnation>,
    },
    /// What it is rescued with.
    Rescue(Nonce),
}

const SUFFIX: &str = ".qcow2";
const OWN: &str = "disk";
const RESCUE: &str = "rescue-";

impl DiskName {
    /// The disk that is made with the instance.
    #[must_use]
    pub const fn first(index: u8) -> Self {
        Self::Own {
            index,
            incarnation: None,
        }
    }

    /// The name of its file.
    #[must_use]
    pub fn file_name(self, format: DiskFormat) -> String {
        let DiskFormat::Qcow2 = format;
        match self {
            Self::Own { index, incarnation } => {
                format!("{OWN}{index}{}{SUFFIX}", ending(incarnation))
            }
            Self::Rescue(nonce) => format!("{RESCUE}{nonce}{SUFFIX}"),
        }
    }

    /// What has this file name, if it is a disk.
    #[must_use]
    pub fn parse(file_name: &str) -> Option<Self> {
        let stem = file_name.strip_suffix(SUFFIX)?;
        let name = match stem.strip_prefix(RESCUE) {
            Some(nonce) => Self::Rescue(nonce.parse().ok()?),
            None => {
                let rest = stem.strip_prefix(OWN)?;
                let digits = rest.split_once('-').map_or(rest, |(digits, _)| digits);
                Self::Own {
                    index: digits.parse().ok()?,
                    incarnation: parse_ending(rest.strip_prefix(digits)?)?,
                }
            }
        };
        // One way to write it: `disk00` is nobody's.
        (name.file_name(DiskFormat::Qcow2) == file_name).then_some(name)
    }
}

impl fmt::Display for DiskName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Own { index, .. } => write!(f, "disk {index}"),
            Self::Rescue(_) => f.write_str("the rescue disk"),
        }
    }
}

/// The name of the config drive that belongs to a root disk.
#[must_use]
pub(super) fn config_drive_name(incarnation: Option<Incarnation>) -> String {
    format!("config{}.iso", ending(incarnation))
}

/// Whose config drive has this file name, if it is one.
#[must_use]
pub fn parse_config_drive(file_name: &str) -> Option<Option<Incarnation>> {
    let stem = file_name.strip_suffix(".iso")?;
    let incarnation = parse_ending(stem.strip_prefix("config")?)?;
    (config_drive_name(incarnation) == file_name).then_some(incarnation)
}

fn ending(incarnation: Option<Incarnation>) -> String {
    incarnation.map_or_else(String::new, |it| format!("-{}-{}", it.number, it.nonce))
}

fn parse_ending(ending: &str) -> Option<Option<Incarnation>> {
    if ending.is_empty() {
        return Some(None);
    }
    let (number, nonce) = ending.strip_prefix('-')?.split_once('-')?;
    Some(Some(Incarnation {
        number: number.parse().ok()?,
        nonce: nonce.parse().ok()?,
    }))
}

/// What a domain boots from, as the report tells it; the disk that was made with the instance needs no telling.
#[must_use]
pub fn boot_disk(domain: &DomainObserved) -> Option<BootDisk> {
    let disks = &domain.disks;
    let disks = if disks.live.is_empty() {
        &disks.kept
    } else {
        &disks.live
    };
    disks
        .iter()
        .filter(|disk| disk.target == "vda")
        .filter_map(|disk| DiskName::parse(disk.path.file_name()?.to_str()?))
        .find_map(|name| match name {
            DiskName::Own { incarnation, .. } => {
                incarnation.map(|incarnation| BootDisk::Rebuilt(incarnation.nonce))
            }
            DiskName::Rescue(nonce) => Some(BootDisk::Rescue(nonce)),
        })
}

/// A disk that an instance shall have of its own.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct OwnDisk<'a> {
    pub(super) name: DiskName,
    /// Which of the guest's disks it is.
    pub(super) position: u8,
    pub(super) size: ByteCount,
    pub(super) format: DiskFormat,
    pub(super) image: &'a ImageRef,
    pub(super) serial: String,
}

impl OwnDisk<'_> {
    fn path(&self, id: InstanceId, paths: &Paths) -> PathBuf {
        paths.disk(id, self.name, self.format)
    }
}

/// The disks of its own that an instance shall have, in the guest's order: a rescue disk comes first.
pub(super) fn own(spec: &InstanceSpec) -> Vec<OwnDisk<'_>> {
    let rescue = spec.rescue.as_ref().map(|rescue| OwnDisk {
        name: DiskName::Rescue(rescue.nonce),
        position: 0,
        size: ByteCount::from_gb(rescue.size_gb.unwrap_or(spec.flavor.disk_gb)),
        format: DiskFormat::Qcow2,
        image: &rescue.image,
        serial: "rescue".to_owned(),
    });
    let after = u8::from(rescue.is_some());
    let own = spec.disks.iter().map(|disk| OwnDisk {
        name: DiskName::Own {
            index: disk.index,
            incarnation: disk.incarnation,
        },
        position: disk.index.saturating_add(after),
        size: ByteCount::from_gb(disk.size_gb),
        format: disk.format,
        image: image_of(&disk.source),
        serial: format!("disk{}", disk.index),
    });
    rescue.into_iter().chain(own).collect()
}

/// The images that an instance's own disks are made from.
pub fn images(spec: &InstanceSpec) -> impl Iterator<Item = &ImageRef> {
    let of_disks = spec.disks.iter().map(|disk| match &disk.source {
        DiskSource::Image(image) => image,
    });
    of_disks.chain(spec.rescue.iter().map(|rescue| &rescue.image))
}

/// Which of the root disks that were one after the other an instance shall have.
pub(super) fn incarnation(spec: &InstanceSpec) -> Option<Incarnation> {
    spec.disks.first().and_then(|disk| disk.incarnation)
}

/// A disk on the host that is newer than the one that shall be there: it is never replaced by what was before it.
pub(super) fn newer(spec: &InstanceSpec, observed: &Observed) -> Option<Fault> {
    let number = |of: Option<Incarnation>| of.map_or(0, |it| it.number);
    let (wanted, there) = spec.disks.iter().find_map(|disk| {
        let there = observed.files.disks.iter().find_map(|name| match name {
            DiskName::Own { index, incarnation }
                if *index == disk.index
                    && *incarnation != disk.incarnation
                    && number(*incarnation) >= number(disk.incarnation) =>
            {
                Some(number(*incarnation))
            }
            DiskName::Own { .. } | DiskName::Rescue(_) => None,
        });
        Some((number(disk.incarnation), there?))
    })?;
    Some(Fault {
        code: FaultCode::ForeignObject,
        message: format!(
            "its root disk on the host has the number {there}, and the document is of an older one with the number {wanted} (was \
             the scheduler's database restored?); it was left as it is: rebuild the instance to have a new disk"
        ),
    })
}

/// The disks that are not there. One that vanished from under a domain is never made anew: that would look like
/// success and be a loss of data. A domain that does not name it yet has never had it.
pub(super) fn missing(
    id: InstanceId,
    spec: &InstanceSpec,
    observed: &Observed,
    host: &HostFacts,
) -> Result<Vec<DiskPlan>, Fault> {
    let plan = |disk: OwnDisk<'_>| {
        let path = disk.path(id, &host.paths);
        let had = observed.domain.as_ref().is_some_and(|domain| {
            matches!(
                disk.name,
                DiskName::Own {
                    incarnation: None,
                    ..
                }
            ) || names(domain, &path)
        });
        if had {
            return Err(Fault {
                code: FaultCode::Hypervisor,
                message: format!("{} is missing on the host ({})", disk.name, path.display()),
            });
        }
        Ok(DiskPlan {
            instance: id,
            name: disk.name,
            path,
            size: disk.size,
            format: disk.format,
            image: disk.image.clone(),
        })
    };
    own(spec)
        .into_iter()
        .filter(|disk| !observed.files.disks.contains(&disk.name))
        .map(plan)
        .collect()
}

/// The disks that are to become larger while no guest has them. One that sleeps knows them as they are.
pub(super) fn small(
    id: InstanceId,
    spec: &InstanceSpec,
    observed: &Observed,
    host: &HostFacts,
) -> Vec<Step> {
    let in_use = observed.domain.as_ref().is_some_and(|domain| {
        !power::is_off(domain) || domain.off_reason == Some(OffReason::Saved)
    });
    if in_use {
        return Vec::new();
    }
    let grow = |disk: OwnDisk<'_>| {
        Step::Storage(StorageStep::GrowDisk(LargerDisk {
            instance: id,
            name: disk.name,
            path: disk.path(id, &host.paths),
            format: disk.format,
            size: disk.size,
        }))
    };
    too_small(spec, observed).map(grow).collect()
}

/// The same for a guest that is on: QEMU makes the file larger, and tells the guest.
pub(super) fn small_live(
    id: InstanceId,
    spec: &InstanceSpec,
    domain: &DomainObserved,
    observed: &Observed,
    host: &HostFacts,
) -> Vec<DomainStep> {
    if !matches!(domain.power_state, PowerState::Running | PowerState::Paused) {
        return Vec::new();
    }
    let grow = |disk: OwnDisk<'_>| {
        let path = disk.path(id, &host.paths);
        let live = domain.disks.live.iter().find(|file| file.path == path)?;
        Some(DomainStep::GrowDisk {
            instance: id,
            disk: live.clone(),
            size: disk.size,
        })
    };
    too_small(spec, observed).filter_map(grow).collect()
}

/// Those that never grow are never too small: a rescue disk is gone soon.
fn too_small<'a>(spec: &'a InstanceSpec, observed: &Observed) -> impl Iterator<Item = OwnDisk<'a>> {
    own(spec).into_iter().filter(|disk| {
        let size = observed.files.sizes.get(&disk.name);
        matches!(disk.name, DiskName::Own { .. }) && size.is_some_and(|size| *size < disk.size)
    })
}

/// The files of wishes that are over: once all that shall be there is, and no domain names them.
pub(super) fn old_files(
    id: InstanceId,
    spec: &InstanceSpec,
    observed: &Observed,
    host: &HostFacts,
) -> Vec<Step> {
    let wanted: BTreeSet<DiskName> = own(spec).into_iter().map(|disk| disk.name).collect();
    let drive = incarnation(spec);
    let has_drive = spec.config_drive.is_none() || observed.files.config_drives.contains(&drive);
    if !wanted.is_subset(&observed.files.disks) || !has_drive {
        return Vec::new();
    }
    let disks = observed.files.disks.difference(&wanted);
    let disks = disks.map(|name| name.file_name(DiskFormat::Qcow2));
    let drives = observed.files.config_drives.iter();
    let drives = drives
        .filter(|it| **it != drive)
        .map(|it| config_drive_name(*it));
    let free = |name: &String| {
        let path = host.paths.instance(id).join(name);
        !observed
            .domain
            .as_ref()
            .is_some_and(|domain| names(domain, &path))
    };
    disks
        .chain(drives)
        .filter(free)
        .map(|name| Step::Storage(StorageStep::RemoveOldFile(OldFile { instance: id, name })))
        .collect()
}

/// Whether a domain names a file, in its definition or for the guest that runs.
fn names(domain: &DomainObserved, path: &Path) -> bool {
    let disks = domain.disks.live.iter().chain(&domain.disks.kept);
    disks.into_iter().any(|disk| disk.path == path)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_name_says_which_disk_it_is_and_is_read_back() {
        let nonce: Nonce = "0191e7a0-7c1f-7b5e-9d2a-3f6f5f0c2a11".parse().unwrap();
        let second = Some(Incarnation { number: 2, nonce });
        for (name, file) in [
            (DiskName::first(0), "disk0.qcow2".to_owned()),
            (DiskName::first(12), "disk12.qcow2".to_owned()),
            (
                DiskName::Own {
                    index: 0,
                    incarnation: second,
                },
                format!("disk0-2-{nonce}.qcow2"),
            ),
            (DiskName::Rescue(nonce), format!("rescue-{nonce}.qcow2")),
        ] {
            assert_eq!(name.file_name(DiskFormat::Qcow2), file);
            assert_eq!(DiskName::parse(&file), Some(name));
        }
        for drive in [None, second] {
            assert_eq!(parse_config_drive(&config_drive_name(drive)), Some(drive));
        }
        for wrong in [
            "disk.qcow2",
            "disk00.qcow2",
            "disk+1.qcow2",
            "disk256.qcow2",
            "disk0-.qcow2",
            "disk0-2.qcow2",
            "disk0-2-x.qcow2",
            "rescue-.qcow2",
            ".tmp-disk0-ab",
            "console.log",
        ] {
            assert_eq!(DiskName::parse(wrong), None, "{wrong}");
        }
        assert_eq!(parse_config_drive("config-.iso"), None);
        assert_eq!(parse_config_drive("disk0.qcow2"), None);
    }
}
