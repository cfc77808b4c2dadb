//! The journal: every document this host was sent, one file each, written before the delivery is acknowledged.
//!
//! ```text
//!   <journal>/instance-<uuid>.json    {"document": …, "gone_at": null | time}
//!   <journal>/corrupt/…               files that could not be read, moved aside for people to look at
//! ```
//!
//! A file is replaced as a whole or not at all. A tombstone that was carried out is kept for a while, so that an
//! older document that comes late cannot bring the resource back. When the disk is full, the ballast is given up: the
//! next document may be the tombstone that frees the disk.
//!
//! Changing the journal and opening it block on the disk; call that from threads that may. Looking into it never does.

use std::{
    collections::BTreeMap,
    fs, io,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use berth_common::{
    document::{Document, DocumentKey},
    ids::HostId,
    units::Generation,
};
use chrono::{DateTime, TimeDelta, Utc};
use serde::{Deserialize, Serialize};

use crate::{
    act::storage::atomic::{remove_durably, sync_directory, write_atomically},
    state::ballast::Ballast,
};

/// How long a tombstone that was carried out is kept. No message waits that long anywhere.
pub const KEEP_TOMBSTONES: TimeDelta = TimeDelta::days(7);
/// Where unreadable files go.
const CORRUPT: &str = "corrupt";
/// The largest file that is read: far above any document, far below what would hurt.
const MAX_FILE: u64 = 8 << 20;

/// The journal could not be read or written.
#[derive(Debug, thiserror::Error)]
#[error("cannot {operation} {}", path.display())]
pub struct JournalError {
    operation: &'static str,
    path: PathBuf,
    #[source]
    source: io::Error,
}

/// One document of the journal.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    /// The document.
    pub document: Arc<Document>,
    /// Of tombstones: when it was carried out.
    pub gone_at: Option<DateTime<Utc>>,
}

/// A file of the journal.
#[derive(Debug, Serialize, Deserialize)]
struct Record {
    document: Arc<Document>,
    #[serde(default)]
    gone_at: Option<DateTime<Utc>>,
}

/// What became of a document that was offered.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Taken {
    /// It is on disk now.
    New,
    /// The journal has this very document already.
    Same,
    /// The journal has a later generation.
    Older {
        /// The one it has.
        journalled: Generation,
    },
}

/// All documents of this host, in memory and on disk.
#[derive(Debug)]
pub struct Journal {
    directory: PathBuf,
    ballast: Ballast,
    /// Held from the decision to change something until it is on disk and in memory.
    writing: Mutex<()>,
    /// Held for a moment only, never while the disk works.
    entries: Mutex<BTreeMap<DocumentKey, Entry>>,
}

impl Journal {
    /// Reads the journal of a host. Files that make no sense are moved aside and listed; they are never an error,
    /// because the scheduler sends everything again when an agent starts.
    ///
    /// # Errors
    /// The directory cannot be read.
    pub fn open(
        directory: &Path,
        host: HostId,
        ballast: Ballast,
    ) -> Result<(Self, Vec<PathBuf>), JournalError> {
        let failed = |source| JournalError {
            operation: "read the journal in",
            path: directory.to_owned(),
            source,
        };
        let mut entries = BTreeMap::new();
        let mut corrupt = Vec::new();
        for item in fs::read_dir(directory).map_err(failed)? {
            let path = item.map_err(failed)?.path();
            let name = path
                .file_name()
                .unwrap_or_default()
                .to_string_lossy()
                .into_owned();
            if !fs::symlink_metadata(&path).map_err(failed)?.is_file() {
                continue;
            }
            if name.starts_with('.') {
                // What a killed agent was writing; its delivery was not acknowledged.
                fs::remove_file(&path).map_err(failed)?;
                continue;
            }
            match read(&path, &name, host) {
                Ok(entry) => {
                    entries.insert(entry.document.key(), entry);
                }
                Err(reason) => {
                    let aside = set_aside(directory, &path, &name, &reason, &ballast)?;
                    corrupt.push(aside);
                }
            }
        }
        Ok((
            Self {
                directory: directory.to_owned(),
                ballast,
                writing: Mutex::new(()),
                entries: Mutex::new(entries),
            },
            corrupt,
        ))
    }

    /// Writes a document down, unless the journal has it or a later one. When this returns `Ok`, what is in the
    /// journal survives a power cut. One of the same generation that says something else is as good as a later one: a
    /// scheduler that lost its last moments counts on from where it remembers.
    ///
    /// # Errors
    /// It could not be written; then the journal is as before.
    pub fn put(&self, document: Document) -> Result<Taken, JournalError> {
        let key = document.key();
        let _writing = self.writing();
        if let Some(entry) = self.get(key) {
            let journalled = entry.document.generation();
            if document.generation() < journalled {
                return Ok(Taken::Older { journalled });
            }
            if document == *entry.document {
                return Ok(Taken::Same);
            }
        }
        let entry = Entry {
            document: Arc::new(document),
            gone_at: None,
        };
        self.write(key, &entry)?;
        self.entries().insert(key, entry);
        Ok(Taken::New)
    }

    /// Notes that a tombstone was carried out, unless a later document has come since.
    ///
    /// # Errors
    /// It could not be written; the tombstone is then carried out again after the next start, which is harmless.
    pub fn mark_gone(
        &self,
        key: DocumentKey,
        generation: Generation,
        at: DateTime<Utc>,
    ) -> Result<(), JournalError> {
        let _writing = self.writing();
        let Some(entry) = self.get(key) else {
            return Ok(());
        };
        if entry.document.generation() != generation
            || !entry.document.is_tombstone()
            || entry.gone_at.is_some()
        {
            return Ok(());
        }
        let entry = Entry {
            gone_at: Some(at),
            ..entry
        };
        self.write(key, &entry)?;
        self.entries().insert(key, entry);
        Ok(())
    }

    /// Forgets tombstones that were carried out long ago; tells which.
    ///
    /// # Errors
    /// A file could not be removed.
    pub fn prune(&self, now: DateTime<Utc>) -> Result<Vec<DocumentKey>, JournalError> {
        let _writing = self.writing();
        let is_old = |entry: &Entry| entry.gone_at.is_some_and(|at| now - at > KEEP_TOMBSTONES);
        let old: Vec<DocumentKey> = self
            .entries()
            .iter()
            .filter(|(_, entry)| is_old(entry))
            .map(|(key, _)| *key)
            .collect();
        for key in &old {
            let path = self.path(*key);
            remove_durably(&path).map_err(|source| JournalError {
                operation: "remove",
                path,
                source,
            })?;
            self.entries().remove(key);
        }
        Ok(old)
    }

    /// All documents.
    #[must_use]
    pub fn all(&self) -> Vec<Entry> {
        self.entries().values().cloned().collect()
    }

    /// The document of a resource.
    #[must_use]
    pub fn get(&self, key: DocumentKey) -> Option<Entry> {
        self.entries().get(&key).cloned()
    }

    /// How many documents there are.
    #[must_use]
    pub fn len(&self) -> usize {
        self.entries().len()
    }

    /// Whether there is none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.entries().is_empty()
    }

    /// What it guards is on disk and in `entries`, both always whole, so a poisoned one is as good as any.
    fn writing(&self) -> MutexGuard<'_, ()> {
        self.writing.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Nothing that runs under this lock can panic half-way, so a poisoned one is as good as any.
    fn entries(&self) -> MutexGuard<'_, BTreeMap<DocumentKey, Entry>> {
        self.entries.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn path(&self, key: DocumentKey) -> PathBuf {
        self.directory.join(file_name(key))
    }

    fn write(&self, key: DocumentKey, entry: &Entry) -> Result<(), JournalError> {
        let path = self.path(key);
        let record = Record {
            document: Arc::clone(&entry.document),
            gone_at: entry.gone_at,
        };
        serde_json::to_vec(&record)
            .map_err(io::Error::other)
            .and_then(|bytes| self.ballast.spend(|| write_atomically(&path, &bytes)))
            .map_err(|source| JournalError {
                operation: "write",
                path,
                source,
            })
    }
}

fn file_name(key: DocumentKey) -> String {
    format!("{}-{}.json", key.kind, key.id)
}

/// Reads one file; the error is for people.
fn read(path: &Path, name: &str, host: HostId) -> Result<Entry, String> {
    let size = fs::metadata(path).map_err(|error| error.to_string())?.len();
    if size > MAX_FILE {
        return Err(format!("it has {size} bytes"));
    }
    let bytes = fs::read(path).map_err(|error| error.to_string())?;
    let record: Record = serde_json::from_slice(&bytes).map_err(|error| error.to_string())?;
    let key = record.document.key();
    if file_name(key) != name {
        return Err(format!("it is about {key}"));
    }
    if record.document.host_id() != host {
        return Err(format!("it is for host {}", record.document.host_id()));
    }
    Ok(Entry {
        document: record.document,
        gone_at: record.gone_at,
    })
}

/// Moves an unreadable file out of the way.
fn set_aside(
    directory: &Path,
    path: &Path,
    name: &str,
    reason: &str,
    ballast: &Ballast,
) -> Result<PathBuf, JournalError> {
    let aside = directory.join(CORRUPT);
    let target = aside.join(format!("{}-{name}", Utc::now().timestamp_millis()));
    ballast
        .spend(|| fs::create_dir_all(&aside).and_then(|()| fs::rename(path, &target)))
        .and_then(|()| sync_directory(directory))
        .map_err(|source| JournalError {
            operation: "move aside",
            path: path.to_owned(),
            source,
        })?;
    tracing::error!(
        file = %path.display(), moved_to = %target.display(), reason,
        "a file of the journal is corrupt; it was moved aside, and the scheduler will send its document again"
    );
    Ok(target)
}

#[cfg(test)]
mod tests {
    use berth_common::{
        document::{Desired, Kind, NetworkSpec, NetworkType},
        ids::NetworkId,
    };

    use super::*;

    fn tombstone(id: NetworkId, host: HostId, generation: u64) -> Document {
        Document::Network(Desired {
            id,
            generation: Generation(generation),
            host_id: host,
            spec: None,
        })
    }

    fn network(id: NetworkId, host: HostId, generation: u64) -> Document {
        Document::Network(Desired {
            id,
            generation: Generation(generation),
            host_id: host,
            spec: Some(NetworkSpec {
                name: "net".parse().unwrap(),
                project: "default".parse().unwrap(),
                network_type: NetworkType::Local,
                mtu: 1500,
                subnets: Vec::new(),
                ports: Vec::new(),
                physical_network: None,
                segmentation_id: None,
                remote_ports: Vec::new(),
                security_groups: Vec::new(),
                group_members: std::collections::BTreeMap::new(),
            }),
        })
    }

    fn open(directory: &Path, host: HostId) -> Result<(Journal, Vec<PathBuf>), JournalError> {
        Journal::open(directory, host, Ballast::of(directory))
    }

    fn names(directory: &Path) -> Vec<String> {
        let entries = fs::read_dir(directory).unwrap();
        entries
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect()
    }

    #[test]
    fn only_later_generations_replace_what_is_there() {
        let directory = tempfile::tempdir().unwrap();
        let (id, host) = (NetworkId::new(), HostId::new());
        let (journal, _) = open(directory.path(), host).unwrap();
        assert_eq!(journal.put(tombstone(id, host, 2)).unwrap(), Taken::New);
        assert_eq!(journal.put(tombstone(id, host, 2)).unwrap(), Taken::Same);
        assert_eq!(
            journal.put(tombstone(id, host, 1)).unwrap(),
            Taken::Older {
                journalled: Generation(2)
            }
        );
        assert_eq!(journal.put(tombstone(id, host, 3)).unwrap(), Taken::New);
        let (again, corrupt) = open(directory.path(), host).unwrap();
        assert_eq!(again.all(), journal.all());
        assert!(corrupt.is_empty());
        assert_eq!(names(directory.path()), [format!("network-{id}.json")]);
    }

    #[test]
    fn another_document_of_the_same_generation_replaces_what_is_there() {
        let directory = tempfile::tempdir().unwrap();
        let (id, host) = (NetworkId::new(), HostId::new());
        let (journal, _) = open(directory.path(), host).unwrap();
        let gone = tombstone(id, host, 2);
        let key = gone.key();
        journal.put(gone.clone()).unwrap();
        journal.mark_gone(key, Generation(2), Utc::now()).unwrap();
        let other = network(id, host, 2);
        assert_eq!(journal.put(other.clone()).unwrap(), Taken::New);
        assert_eq!(journal.put(other.clone()).unwrap(), Taken::Same);
        // The pass over the tombstone ends only now.
        journal.mark_gone(key, Generation(2), Utc::now()).unwrap();
        let (again, _) = open(directory.path(), host).unwrap();
        let entry = again.get(key).unwrap();
        assert_eq!((*entry.document).clone(), other);
        assert_eq!(entry.gone_at, None);
    }

    #[test]
    fn looking_into_the_journal_does_not_wait_for_the_disk() {
        let directory = tempfile::tempdir().unwrap();
        let (id, host) = (NetworkId::new(), HostId::new());
        let (journal, _) = open(directory.path(), host).unwrap();
        let document = tombstone(id, host, 1);
        let key = document.key();
        journal.put(document).unwrap();
        let journal = &journal;
        std::thread::scope(|scope| {
            let at_work = journal.writing();
            let (done, looked) = std::sync::mpsc::channel();
            scope.spawn(move || {
                let found = journal.get(key).is_some();
                done.send((found, journal.len(), journal.all().len()))
                    .unwrap();
            });
            let seen = looked.recv_timeout(std::time::Duration::from_secs(10));
            drop(at_work);
            assert_eq!(seen, Ok((true, 1, 1)));
        });
    }

    #[test]
    fn a_tombstone_is_kept_for_a_week_after_it_was_carried_out() {
        let directory = tempfile::tempdir().unwrap();
        let (id, host, now) = (NetworkId::new(), HostId::new(), Utc::now());
        let key = DocumentKey {
            kind: Kind::Network,
            id: id.as_uuid(),
        };
        let (journal, _) = open(directory.path(), host).unwrap();
        journal.put(tombstone(id, host, 2)).unwrap();
        assert!(
            journal.prune(now + TimeDelta::days(99)).unwrap().is_empty(),
            "it was not carried out"
        );
        journal.mark_gone(key, Generation(1), now).unwrap();
        assert_eq!(
            journal.get(key).unwrap().gone_at,
            None,
            "another generation"
        );
        journal.mark_gone(key, Generation(2), now).unwrap();
        let (journal, _) = open(directory.path(), host).unwrap();
        assert!(journal.prune(now + TimeDelta::days(6)).unwrap().is_empty());
        assert_eq!(
            journal.put(tombstone(id, host, 1)).unwrap(),
            Taken::Older {
                journalled: Generation(2)
            }
        );
        assert_eq!(journal.prune(now + TimeDelta::days(8)).unwrap(), [key]);
        assert!(names(directory.path()).is_empty());
    }

    #[test]
    fn what_makes_no_sense_is_moved_aside_and_the_rest_is_read() {
        let directory = tempfile::tempdir().unwrap();
        let (id, host) = (NetworkId::new(), HostId::new());
        let (journal, _) = open(directory.path(), host).unwrap();
        journal.put(tombstone(id, host, 1)).unwrap();
        let other = NetworkId::new();
        fs::write(
            directory.path().join(format!("network-{other}.json")),
            b"{\"document\": {\"ki",
        )
        .unwrap();
        fs::write(directory.path().join("instance-x.json"), b"\0\0\0\0").unwrap();
        let mine = fs::read(directory.path().join(format!("network-{id}.json"))).unwrap();
        fs::write(
            directory
                .path()
                .join(format!("network-{}.json", NetworkId::new())),
            mine,
        )
        .unwrap();
        fs::write(directory.path().join(".new-1-network"), b"half").unwrap();
        let (journal, corrupt) = open(directory.path(), host).unwrap();
        assert_eq!((journal.len(), corrupt.len()), (1, 3), "{corrupt:?}");
        assert_eq!(names(&directory.path().join(CORRUPT)).len(), 3);
        let (_, corrupt) = open(directory.path(), host).unwrap();
        assert!(corrupt.is_empty());
    }

    #[test]
    fn the_journal_of_another_host_is_not_ours() {
        let directory = tempfile::tempdir().unwrap();
        let host = HostId::new();
        let (journal, _) = open(directory.path(), host).unwrap();
        journal.put(tombstone(NetworkId::new(), host, 1)).unwrap();
        let (journal, corrupt) = open(directory.path(), HostId::new()).unwrap();
        assert!(journal.is_empty());
        assert_eq!(corrupt.len(), 1);
    }
}
