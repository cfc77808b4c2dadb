//! Where the journals of simulated agents are: a directory that was asked for and stays, or one that ends with the
//! simulation.

use std::{
    fs::DirBuilder,
    io,
    os::unix::fs::DirBuilderExt,
    path::{Path, PathBuf},
};

use uuid::Uuid;

/// Files in memory, where there are such: a thousand journals shall not measure a disk.
const IN_MEMORY: &str = "/dev/shm";

/// A directory. Dropping a temporary one removes it with all that is in it.
#[derive(Debug)]
pub(super) struct Scratch {
    path: PathBuf,
    temporary: bool,
}

impl Scratch {
    /// This directory, made if it is missing.
    pub(super) fn keep(path: &Path) -> io::Result<Self> {
        DirBuilder::new().recursive(true).mode(0o700).create(path)?;
        Ok(Self {
            path: path.to_owned(),
            temporary: false,
        })
    }

    /// A new directory, in memory if possible.
    pub(super) fn temporary() -> io::Result<Self> {
        let memory = PathBuf::from(IN_MEMORY);
        let parent = if memory.is_dir() {
            memory
        } else {
            std::env::temp_dir()
        };
        let path = parent.join(format!("berth-agent-sim-{}", Uuid::new_v4().simple()));
        DirBuilder::new().mode(0o700).create(&path)?;
        Ok(Self {
            path,
            temporary: true,
        })
    }

    /// Where it is.
    pub(super) fn path(&self) -> &Path {
        &self.path
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        if self.temporary
            && let Err(error) = std::fs::remove_dir_all(&self.path)
        {
            tracing::warn!(%error, path = %self.path.display(), "the journals of a simulation are left");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_temporary_directory_ends_with_its_simulation() {
        let temporary = Scratch::temporary().unwrap();
        let path = temporary.path().to_owned();
        std::fs::create_dir_all(path.join("sim-0001/journal")).unwrap();
        drop(temporary);
        assert!(!path.exists());

        let parent = tempfile::tempdir().unwrap();
        let asked = parent.path().join("sim");
        drop(Scratch::keep(&asked).unwrap());
        assert!(asked.is_dir());
    }
}
