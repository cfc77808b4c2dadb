//! What an operator may choose about storage. Every bound has its unit and a reason.

use std::{collections::BTreeMap, path::PathBuf, str::FromStr, time::Duration};

use berth_common::{names::PoolName, units::ByteCount};
use ipnet::IpNet;

use super::KeepFree;
use crate::decide::{
    domain_xml::DEVICES,
    lvm::LvmName,
    pool::{FilesPlace, PoolPlace},
};

/// Bounds and places of the storage.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StorageOptions {
    /// The `qemu-img` to run, by name or absolute path.
    pub qemu_img: PathBuf,
    /// The `xorriso` to run, by name or absolute path.
    pub xorriso: PathBuf,
    /// The user that `qemu-img` runs as: one without rights, because it reads what strangers made. Of the host's files it
    /// sees what it reads and what it writes.
    pub qemu_img_user: String,
    /// Files and directories that it sees besides those and the system's programs and libraries, as they are on the host.
    /// Only a `qemu_img` that lies elsewhere, or is a script, needs any.
    pub qemu_img_sees: Vec<PathBuf>,
    /// `file://` images must not come from below these directories: an instance must not read what belongs to
    /// others. The directories of disks and images themselves are always among them. Elsewhere only files that
    /// everybody may read are images.
    pub not_below: Vec<PathBuf>,
    /// Addresses that images may be fetched from by `http://` and `https://` although they are this host's own or next to it.
    pub image_url_allow: Vec<IpNet>,
    /// Certificate authorities for `https://`, as one PEM file; where it is absent, Mozilla's list is used.
    pub ca_bundle: PathBuf,
    /// The largest image file that is fetched.
    pub max_image: ByteCount,
    /// What downloads and copies leave free for the disks of guests.
    pub keep_free: KeepFree,
    /// How many downloads run at once: more would only share the same link and disk.
    pub parallel_downloads: usize,
    /// How long a name lookup, and a connection, may take.
    pub connect_timeout: Duration,
    /// How long a server may be silent.
    pub read_timeout: Duration,
    /// How long one download may take in all.
    pub download_deadline: Duration,
    /// How often one download that broke off is continued.
    pub max_resumes: u32,
    /// How long is waited before it is continued for the first time; each time it is so much longer.
    pub resume_pause: Duration,
    /// How long the bytes of a download that broke off are kept for a later one.
    pub partial_max_age: Duration,
    /// How long an image stays that nothing uses.
    pub image_max_age: Duration,
    /// How many redirects are followed.
    pub max_redirects: u32,
    /// How many threads work on files at once: enough for a host, and a bound when its disk hangs.
    pub file_threads: usize,
    /// How long a small piece of work on files may take before it counts as hung.
    pub file_deadline: Duration,
    /// How long converting one image may take.
    pub convert_deadline: Duration,
    /// How long making one disk may take.
    pub create_deadline: Duration,
    /// How many volumes are copied at once: more would only share the same disk.
    pub parallel_copies: usize,
    /// How long copying one volume may take.
    pub copy_deadline: Duration,
    /// What happens to the bytes of a volume that is deleted.
    pub volume_wipe: VolumeWipe,
    /// The `lvm` to run, by name or absolute path.
    pub lvm: PathBuf,
    /// The `blkdiscard` to run, by name or absolute path.
    pub blkdiscard: PathBuf,
    /// The storage pools besides `local`.
    pub pools: BTreeMap<PoolName, PoolOptions>,
}

/// A storage pool besides `local`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum PoolOptions {
    /// Files on a disk of its own.
    Dir(DirPoolOptions),
    /// Logical volumes.
    Lvm(LvmPoolOptions),
}

impl PoolOptions {
    /// What it is made of, and where that is.
    #[must_use]
    pub fn place(&self) -> PoolPlace {
        match self {
            Self::Dir(dir) => PoolPlace::Files(dir.files()),
            Self::Lvm(lvm) => match &lvm.thin_pool {
                None => PoolPlace::Devices(lvm.devices()),
                Some(_) => PoolPlace::ThinDevices(lvm.devices()),
            },
        }
    }
}

/// A storage pool of files.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DirPoolOptions {
    /// Its directory, which berth never makes: where its disk is mounted.
    pub path: PathBuf,
}

impl DirPoolOptions {
    /// Where its files are.
    #[must_use]
    pub fn files(&self) -> FilesPlace {
        FilesPlace::below(&self.path)
    }
}

/// A storage pool of logical volumes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LvmPoolOptions {
    /// The volume group.
    pub volume_group: LvmName,
    /// The thin pool in it; without one volumes are thick.
    pub thin_pool: Option<LvmName>,
}

impl LvmPoolOptions {
    /// The directory of its block devices.
    #[must_use]
    pub fn devices(&self) -> PathBuf {
        PathBuf::from(DEVICES).join(self.volume_group.as_str())
    }
}

/// What happens to the bytes of a volume that is deleted, before its file is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum VolumeWipe {
    /// Nothing: the file system gives its blocks to others, who read zeros there.
    #[default]
    None,
    /// They are overwritten with zeros, wherever the file has any that no other file shares. Of little use where the file system
    /// writes to other blocks than those it replaces.
    Zero,
    /// The file system is told that they are not needed, and tells the disk if it is mounted with `discard`.
    Discard,
}

/// The text names no rule for wiping.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("not a way to wipe a volume; possible are \"none\", \"zero\" and \"discard\"")]
pub struct UnknownWipe;

impl FromStr for VolumeWipe {
    type Err = UnknownWipe;

    fn from_str(text: &str) -> Result<Self, UnknownWipe> {
        match text {
            "none" => Ok(Self::None),
            "zero" => Ok(Self::Zero),
            "discard" => Ok(Self::Discard),
            _ => Err(UnknownWipe),
        }
    }
}

impl Default for StorageOptions {
    fn default() -> Self {
        Self {
            qemu_img: PathBuf::from("qemu-img"),
            xorriso: PathBuf::from("xorriso"),
            qemu_img_user: "nobody".to_owned(),
            qemu_img_sees: Vec::new(),
            not_below: Vec::new(),
            image_url_allow: Vec::new(),
            ca_bundle: PathBuf::from("/etc/ssl/certs/ca-certificates.crt"),
            max_image: ByteCount::clamped(1 << 40),
            keep_free: KeepFree::default(),
            parallel_downloads: 4,
            connect_timeout: Duration::from_secs(10),
            read_timeout: Duration::from_secs(30),
            download_deadline: Duration::from_secs(3600),
            max_resumes: 5,
            resume_pause: Duration::from_secs(1),
            partial_max_age: Duration::from_secs(24 * 3600),
            image_max_age: Duration::from_secs(30 * 24 * 3600),
            max_redirects: 5,
            file_threads: 16,
            file_deadline: Duration::from_secs(60),
            convert_deadline: Duration::from_secs(3600),
            create_deadline: Duration::from_secs(60),
            parallel_copies: 2,
            copy_deadline: Duration::from_secs(4 * 3600),
            volume_wipe: VolumeWipe::None,
            lvm: PathBuf::from("lvm"),
            blkdiscard: PathBuf::from("blkdiscard"),
            pools: BTreeMap::new(),
        }
    }
}
