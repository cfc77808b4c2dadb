//! A disk that is full to the last byte must not keep the agent from what would empty it. On a small file system of
//! the test's own; needs root.

#![expect(
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "in a test, a panic is a failed assertion"
)]

use std::{
    fs::{self, File},
    io::{ErrorKind, Write},
    path::Path,
};

use berth_agent::{
    inbox::journal::{Journal, Taken},
    state::StateDir,
};
use berth_common::{
    document::{Desired, Document},
    ids::NetworkId,
    units::Generation,
};
use nix::{
    mount::{MsFlags, mount},
    sched::{CloneFlags, unshare},
};

/// Runs the work in a mount namespace of its own with a small file system, on a thread that ends with it.
fn on_a_small_file_system(work: impl FnOnce(&Path) + Send) {
    let mount_point = tempfile::tempdir().unwrap();
    let path = mount_point.path();
    let none = None::<&str>;
    let there = move || {
        unshare(CloneFlags::CLONE_NEWNS).expect("tests run as root");
        mount(none, "/", none, MsFlags::MS_REC | MsFlags::MS_PRIVATE, none).unwrap();
        let (kind, size) = (Some("tmpfs"), Some("size=16m"));
        mount(Some("berth-test"), path, kind, MsFlags::empty(), size).unwrap();
        work(path);
    };
    std::thread::scope(|scope| scope.spawn(there).join()).unwrap();
}

/// Takes all the space there is.
fn fill_up(directory: &Path, name: &str) {
    let mut file = File::create(directory.join(name)).unwrap();
    let error = loop {
        if let Err(error) = file.write_all(&[1; 4096]) {
            break error;
        }
    };
    assert_eq!(error.kind(), ErrorKind::StorageFull);
}

fn is_full(directory: &Path) -> bool {
    fs::write(directory.join("probe"), [1; 4096]).is_err()
}

#[test]
fn the_tombstone_that_would_empty_a_full_disk_is_taken() {
    on_a_small_file_system(|path| {
        let mut state = StateDir::open(path).unwrap();
        let (host, ballast) = (state.host_id(), state.ballast().clone());
        let (journal, _) = Journal::open(&state.journal(), host, ballast).unwrap();
        fill_up(path, "filler");
        assert!(is_full(path));
        let tombstone = Document::Network(Desired {
            id: NetworkId::new(),
            generation: Generation(1),
            host_id: host,
            spec: None,
        });
        assert_eq!(journal.put(tombstone).unwrap(), Taken::New);
        assert!(!path.join("ballast").exists());

        // It is kept again when there is room, and not before.
        fill_up(path, "more");
        state.mend().unwrap();
        assert!(!path.join("ballast").exists());
        fs::remove_file(path.join("filler")).unwrap();
        state.mend().unwrap();
        assert!(path.join("ballast").exists());
    });
}

#[test]
fn a_start_that_cannot_be_counted_is_a_start() {
    on_a_small_file_system(|path| {
        drop(StateDir::open(path).unwrap());
        fs::remove_file(path.join("ballast")).unwrap();
        fill_up(path, "filler");
        let mut state = StateDir::open(path).unwrap();
        assert_eq!(state.session(), 2);
        assert!(state.session_error().is_some());
        assert!(state.mend().is_err());
        fs::remove_file(path.join("filler")).unwrap();
        state.mend().unwrap();
        assert!(state.session_error().is_none());
        drop(state);
        assert_eq!(StateDir::open(path).unwrap().session(), 3);
    });
}
