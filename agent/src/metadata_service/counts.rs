//! Requests that said of themselves who they are from. Nothing becomes of what they say; they are counted, and the counts written
//! to a small file for the agent, which may be stopped meanwhile.
//!
//! A guest can ask as often as it likes: the file is written at most once every few seconds, and has only addresses that are known.
//! Counts begin anew with each start.

use std::{
    cell::RefCell,
    fs::{self, DirBuilder},
    io,
    net::IpAddr,
    os::unix::fs::{DirBuilderExt as _, lchown},
    path::{Path, PathBuf},
    time::Duration,
};

use berth_common::ids::InstanceId;
use nix::unistd::User;
use tokio::{sync::Notify, time::sleep};

use crate::decide::metadata::{Forged, ForgedCounts, Sources};

/// The directory in that of the network that the service may write to.
const DIRECTORY: &str = "metadata-counts";
/// The file in it.
const FILE: &str = "forged.json";
/// The pause after the file was written: a guest can ask as often as it likes.
pub(super) const WRITE_PAUSE: Duration = Duration::from_secs(5);

/// Where the counts of a network's service are, by the directory of the network.
#[must_use]
pub fn file(network: &Path) -> PathBuf {
    network.join(DIRECTORY).join(FILE)
}

/// Makes the directory, for this user to write to, without what a service before has counted.
pub(super) fn prepare(network: &Path, user: &User) -> io::Result<()> {
    let directory = network.join(DIRECTORY);
    match fs::remove_dir_all(&directory) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    DirBuilder::new().mode(0o700).create(&directory)?;
    lchown(directory, Some(user.uid.as_raw()), Some(user.gid.as_raw()))
}

/// What was counted, and where it is written.
#[derive(Debug)]
pub(super) struct Counts {
    path: PathBuf,
    forged: RefCell<ForgedCounts>,
    /// There is more than was written.
    changed: Notify,
}

impl Counts {
    pub(super) fn new(path: PathBuf) -> Self {
        Self {
            path,
            forged: RefCell::default(),
            changed: Notify::new(),
        }
    }

    /// One more from this address.
    pub(super) fn note(&self, source: IpAddr, instance: InstanceId) {
        let none = Forged {
            instance,
            requests: 0,
        };
        let mut forged = self.forged.borrow_mut();
        let forged = forged.entry(source).or_insert(none);
        if forged.instance != instance {
            *forged = none;
        }
        forged.requests = forged.requests.saturating_add(1);
        self.changed.notify_one();
    }

    /// Writes the file at once, so that whoever reads it knows that it is counted, and then when there is more to write. It never
    /// ends; `failed` is told what went wrong, and it is tried again.
    pub(super) async fn keep_written(
        &self,
        sources: impl Fn() -> io::Result<Option<Sources>>,
        failed: impl Fn(&io::Error),
    ) {
        loop {
            if let Err(error) =
                sources().and_then(|sources| self.write(&sources.unwrap_or_default()))
            {
                failed(&error);
                self.changed.notify_one();
            }
            sleep(WRITE_PAUSE).await;
            self.changed.notified().await;
        }
    }

    /// Replaces the file, without those that are not here any more. It is not forced onto the disk: a power cut ends the service too.
    fn write(&self, sources: &Sources) -> io::Result<()> {
        let mut forged = self.forged.borrow_mut();
        forged.retain(|source, forged| sources.get(source) == Some(&forged.instance));
        let new = self.path.with_extension("new");
        fs::write(&new, serde_json::to_vec(&*forged)?)?;
        fs::rename(new, &self.path)
    }
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;

    use super::*;

    fn written(counts: &Counts) -> Option<ForgedCounts> {
        let bytes = fs::read(&counts.path).ok()?;
        Some(serde_json::from_slice(&bytes).unwrap())
    }

    #[tokio::test(start_paused = true)]
    async fn a_flood_is_counted_whole_and_written_rarely() {
        let directory = tempfile::tempdir().unwrap();
        let counts = Counts::new(directory.path().join(FILE));
        let [known, gone] = [1, 2].map(|n| IpAddr::from([10, 0, 0, n]));
        let [instance, other] = [(); 2].map(|()| InstanceId::new());
        let sources = RefCell::new(Sources::from([(known, instance), (gone, other)]));
        let writes = Cell::new(0);
        let fails = Cell::new(0);
        let writing = counts.keep_written(
            || {
                writes.set(writes.get() + 1);
                Ok(Some(sources.borrow().clone()))
            },
            |_| fails.set(fails.get() + 1),
        );
        let asking = async {
            sleep(Duration::from_millis(1)).await;
            assert_eq!(written(&counts), Some(ForgedCounts::new()));
            for _ in 0..60_000 {
                counts.note(known, instance);
                counts.note(gone, other);
                sleep(Duration::from_millis(1)).await;
            }
            // Nobody has this address any more.
            sources.borrow_mut().remove(&gone);
            counts.note(known, instance);
            sleep(WRITE_PAUSE * 2).await;
            assert!(writes.get() <= 14, "{}", writes.get());
            let expected = |instance, requests| {
                Some(ForgedCounts::from([(known, Forged { instance, requests })]))
            };
            assert_eq!(written(&counts), expected(instance, 60_001));
            // Without more, nothing is written.
            let before = writes.get();
            sleep(WRITE_PAUSE * 100).await;
            assert_eq!((writes.get(), fails.get()), (before, 0));
            // The address is another's now.
            sources.borrow_mut().insert(known, other);
            counts.note(known, other);
            sleep(Duration::from_millis(1)).await;
            assert_eq!(written(&counts), expected(other, 1));
            // What cannot be written is written later.
            fs::create_dir(directory.path().join("forged.new")).unwrap();
            counts.note(known, other);
            sleep(WRITE_PAUSE * 2).await;
            assert_eq!(written(&counts), expected(other, 1));
            assert!(fails.get() > 0);
            fs::remove_dir(directory.path().join("forged.new")).unwrap();
            sleep(WRITE_PAUSE * 2).await;
            assert_eq!(written(&counts), expected(other, 2));
        };
        tokio::select! {
            () = writing => {}
            () = asking => {}
        }
    }
}
