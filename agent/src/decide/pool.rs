//! Where a storage pool keeps what is in it, and what that is: files in two directories, or block devices in one.
//!
//! That is another question than whether a pool is `local`: files may lie on a disk of their own, and then nothing of them is
//! taken of the host's disk.

use std::path::PathBuf;

use berth_common::{
    document::VolumeFormat,
    ids::{SnapshotId, VolumeId},
    names::PoolName,
};

/// What a storage pool besides `local` is made of, and where that is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum PoolPlace {
    /// Files in directories of berth's own.
    Files(FilesPlace),
    /// Block devices in this directory, of which each has all its room.
    Devices(PathBuf),
    /// Block devices in this directory, which take room when they are written to: a snapshot shares what it holds with its
    /// volume.
    ThinDevices(PathBuf),
}

impl PoolPlace {
    /// Where its block devices are, if it has any.
    #[must_use]
    pub const fn devices(&self) -> Option<&PathBuf> {
        match self {
            Self::Devices(directory) | Self::ThinDevices(directory) => Some(directory),
            Self::Files(_) => None,
        }
    }

    /// Where its files are, if it has any.
    #[must_use]
    pub const fn files(&self) -> Option<&FilesPlace> {
        match self {
            Self::Files(place) => Some(place),
            Self::Devices(_) | Self::ThinDevices(_) => None,
        }
    }
}

/// Where a storage pool of files keeps them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FilesPlace {
    /// One file per volume below this.
    pub volumes: PathBuf,
    /// One file per snapshot below this.
    pub snapshots: PathBuf,
}

impl FilesPlace {
    /// Those below a directory.
    #[must_use]
    pub fn below(root: &std::path::Path) -> Self {
        Self {
            volumes: root.join("volumes"),
            snapshots: root.join("snapshots"),
        }
    }

    /// A volume.
    #[must_use]
    pub fn volume(&self, id: VolumeId, format: VolumeFormat) -> PathBuf {
        self.volumes.join(format!("{id}.{}", format.as_str()))
    }

    /// A snapshot.
    #[must_use]
    pub fn snapshot(&self, id: SnapshotId) -> PathBuf {
        self.snapshots.join(format!("{id}.qcow2"))
    }

    /// The file that a hypervisor writes a snapshot into. No sweep removes it: a job may still be at it.
    #[must_use]
    pub fn partial_snapshot(&self, id: SnapshotId) -> PathBuf {
        self.snapshots.join(format!(".live-{id}.qcow2"))
    }
}

/// What says which disk a storage pool of files is on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PoolMark {
    /// The pool.
    pub pool: PoolName,
    /// Made at random when the pool was used first.
    pub id: String,
}

/// What the mark says first, for people.
const TEXT: &str =
    "This directory is a storage pool of berth. Without this file berth uses nothing in it.\n";
/// What begins the line with the pool's name.
const POOL: &str = "Storage pool: ";
/// What begins the line with the id.
const ID: &str = "Id: ";

impl PoolMark {
    /// As it is written.
    #[must_use]
    pub fn text(&self) -> String {
        format!("{TEXT}{POOL}{}\n{ID}{}\n", self.pool, self.id)
    }

    /// Reads it; `None`: it says something else.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        let line = |begin: &str| text.lines().find_map(|line| line.strip_prefix(begin));
        let id = line(ID).filter(|id| !id.is_empty())?;
        Some(Self {
            pool: line(POOL)?.parse().ok()?,
            id: id.to_owned(),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mark_is_read_as_it_was_written_and_nothing_else_is_one() {
        let mark = PoolMark {
            pool: "ssd".parse().unwrap(),
            id: "1f".to_owned(),
        };
        assert_eq!(PoolMark::parse(&mark.text()), Some(mark.clone()));
        for text in [
            "",
            "Storage pool: ssd\n",
            "Id: 1f\n",
            "Storage pool: ssd\nId: \n",
            "Storage pool: A/B\nId: 1f\n",
        ] {
            assert_eq!(PoolMark::parse(text), None, "{text:?}");
        }
    }
}
