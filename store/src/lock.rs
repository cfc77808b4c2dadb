//! One scheduler for each SQLite file.
//!
//! A lock of the operating system on a file beside the database. It belongs to the open file, so it ends with the
//! process, however that ends. The file stays: removing it would let two processes hold locks on two files of the
//! same name. On PostgreSQL and MariaDB nothing is locked, see `leadership.rs`.

use std::{
    ffi::OsString,
    fs::{File, OpenOptions, TryLockError},
    path::{Path, PathBuf},
};

use crate::error::StoreError;

/// The right to be the only scheduler on a SQLite file; dropping it gives it up.
#[derive(Debug)]
#[must_use = "the lock is held only as long as this value lives"]
pub struct ExclusiveLock {
    #[expect(dead_code, reason = "it is the lock as long as it is open")]
    file: File,
}

impl ExclusiveLock {
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
            Ok(()) => Ok(Self { file }),
            Err(TryLockError::WouldBlock) => Err(StoreError::Locked {
                what: format!(
                    "{} is locked; use PostgreSQL or MariaDB for a standby",
                    path.display()
                ),
            }),
            Err(TryLockError::Error(source)) => Err(failed(source)),
        }
    }
}

fn lock_path(database: &Path) -> PathBuf {
    let mut path = OsString::from(database);
    path.push(".lock");
    PathBuf::from(path)
}
