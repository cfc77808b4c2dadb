//! An operating system lock beside a SQLite database: one scheduler for each file.
//!
//! The lock belongs to the open file, so it ends with the process, however that ends. The file stays: removing
//! it would let two processes hold locks on two files of the same name.

use std::{
    ffi::OsString,
    fs::{File, OpenOptions, TryLockError},
    path::{Path, PathBuf},
};

use crate::error::StoreError;

/// The right to be the only scheduler on a database; dropping it gives it up.
///
/// PostgreSQL and MariaDB serve several schedulers, so for them it holds nothing.
#[derive(Debug)]
#[must_use = "the lock is held only as long as this value lives"]
pub struct ExclusiveLock {
    _file: Option<File>,
}

impl ExclusiveLock {
    /// For databases that need none.
    pub(crate) fn nothing() -> Self {
        Self { _file: None }
    }

    /// Locks `<database>.lock`.
    pub(crate) fn beside(database: &Path) -> Result<Self, StoreError> {
        // By its real name: a database that is reached through two links is still one.
        let database = database
            .canonicalize()
            .map_err(|source| StoreError::LockFile {
                path: database.into(),
                source,
            })?;
        let path = lock_path(&database);
        let failed = |source| StoreError::LockFile {
            path: path.clone(),
            source,
        };
        let file = OpenOptions::new()
            .create(true)
            .truncate(false)
            .write(true)
            .open(&path)
            .map_err(failed)?;
        match file.try_lock() {
            Ok(()) => Ok(Self { _file: Some(file) }),
            Err(TryLockError::WouldBlock) => Err(StoreError::Locked { path }),
            Err(TryLockError::Error(source)) => Err(failed(source)),
        }
    }
}

fn lock_path(database: &Path) -> PathBuf {
    let mut path = OsString::from(database);
    path.push(".lock");
    PathBuf::from(path)
}
