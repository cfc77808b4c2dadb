//! Copies on a file system that lets files share blocks: XFS, in a file of the test's own.

use std::os::fd::AsFd;

use berth_agent::decide::{
    snapshot::NewSnapshot,
    volume::{Content, NewVolume},
};
use berth_common::{
    document::{VolumeFormat, VolumeRef},
    ids::SnapshotId,
};
use nix::{
    fcntl::{FcntlArg, fcntl},
    libc,
};

use super::{
    snapshots::{of, stored},
    volumes::{FORMATS, check_content, run},
    *,
};

/// Runs it with a directory on an XFS of 512 MiB.
fn on_xfs<F: Future<Output = ()>>(work: impl FnOnce(PathBuf) -> F + Send + 'static) {
    let directory = tempfile::tempdir().unwrap();
    let disk = directory_path(&directory).join("disk");
    let file = fs::File::create(&disk).unwrap();
    file.set_len(512 * MIB).unwrap();
    let must = |program: &str, args: &[&str], paths: &[&Path]| {
        let run = Command::new(program).args(args).args(paths).output();
        let output = run.unwrap_or_else(|error| panic!("{program}: {error}"));
        assert!(output.status.success(), "{program}: {output:?}");
    };
    must("mkfs.xfs", &["-q", "-m", "reflink=1"], &[&disk]);
    // In the namespace of its own that the thread has.
    on_a_small_file_system("1m", move |mount_point| async move {
        must("mount", &["-o", "loop"], &[&disk, &mount_point]);
        work(mount_point.clone()).await;
        must("umount", &["--lazy"], &[&mount_point]);
    });
}

fn reference(volume: &NewVolume) -> VolumeRef {
    VolumeRef {
        pool: volume.pool.clone(),
        id: volume.id,
        format: volume.format,
    }
}

/// How often `qemu-img` copied.
fn copies(host: &Host) -> usize {
    let calls = host.calls();
    calls
        .iter()
        .filter(|call| call.starts_with("convert"))
        .count()
}

/// Checks that next to nothing was taken since so much was free. XFS gives back what was removed in its own time.
async fn takes_nothing(root: &Path, free: u64) {
    wait_for("room that is shared", || room(root) + MIB > free).await;
}

#[test]
fn what_is_stored_alike_shares_its_blocks() {
    on_xfs(|root| async move {
        let host = Host::at(&root, |_| ());
        let content = noise(4 * MIB);
        let image = host.cached(&content).await;
        for format in FORMATS {
            let volume = host.new_volume(format, 64 * MIB, Content::Image(image.clone()));
            host.make(&volume).await;
            let (free, before) = (room(&root), copies(&host));
            for size in [64, 96] {
                let source = Content::Volume(reference(&volume));
                let copy = host.new_volume(format, size * MIB, source);
                host.make(&copy).await;
                assert_eq!(copies(&host), before);
                let metadata = fs::metadata(&copy.path).unwrap();
                assert_eq!((metadata.mode() & 0o7777, metadata.uid()), (0o600, 0));
                check_content(&host, &copy, &content);
                takes_nothing(&root, free).await;
                // From now on each is its own.
                if format == VolumeFormat::Raw {
                    fs::OpenOptions::new()
                        .write(true)
                        .open(&copy.path)
                        .and_then(|mut file| file.write_all(b"other"))
                        .unwrap();
                    check_content(&host, &volume, &content);
                }
            }
            let other = FORMATS.into_iter().find(|it| *it != format).unwrap();
            let source = Content::Volume(reference(&volume));
            let copy = host.new_volume(other, 64 * MIB, source);
            host.make(&copy).await;
            check_content(&host, &copy, &content);
            assert_eq!(copies(&host), before + 1);
        }
        // A raw image is bytes like others.
        let bytes = noise(3 * MIB);
        let url = format!("file://{}", host.file("raw", &bytes).display());
        let image = super::image(&url, &bytes, ImageFormat::Raw);
        host.fetch(&image).await.unwrap();
        let before = copies(&host);
        let volume = host.new_volume(VolumeFormat::Raw, 8 * MIB, Content::Image(image));
        host.make(&volume).await;
        check_content(&host, &volume, &bytes);
        assert_eq!(copies(&host), before);
    });
}

#[test]
fn a_snapshot_of_a_qcow2_volume_shares_its_blocks_and_so_does_a_volume_of_it() {
    on_xfs(|root| async move {
        let host = Host::at(&root, |_| ());
        let content = noise(4 * MIB);
        let image = host.cached(&content).await;
        let volume = host.new_volume(VolumeFormat::Qcow2, 64 * MIB, Content::Image(image));
        host.make(&volume).await;
        let (free, before) = (room(&root), copies(&host));
        let id = SnapshotId::new();
        let snapshot = NewSnapshot {
            id,
            path: host.paths.snapshot_file(id),
            volume: reference(&volume),
        };
        let create = StorageStep::CreateSnapshot(snapshot);
        host.step(create).await.unwrap();
        host.step(StorageStep::MarkSnapshot(stored(id)))
            .await
            .unwrap();
        host.remove_volume(volume.id).await;
        let source = Content::Snapshot(of(id));
        let copy = host.new_volume(VolumeFormat::Qcow2, 96 * MIB, source);
        host.make(&copy).await;
        check_content(&host, &copy, &content);
        assert_eq!(copies(&host), before);
        takes_nothing(&root, free).await;
    });
}

#[test]
fn what_a_copy_would_leave_out_is_not_shared() {
    on_xfs(|root| async move {
        let host = Host::at(&root, |_| ());
        let content = noise(4 * MIB);
        let image = host.cached(&content).await;
        let kept = |volume: &NewVolume| {
            run(&["snapshot", "-c", "kept"], &[&volume.path]);
        };
        // Longer than the disk and all tables of it, though nothing is there.
        let padded = |volume: &NewVolume| {
            let file = fs::OpenOptions::new().write(true).open(&volume.path);
            file.unwrap().set_len(200 * MIB).unwrap();
        };
        let ways: [&dyn Fn(&NewVolume); 2] = [&kept, &padded];
        for change in ways {
            let source = Content::Image(image.clone());
            let volume = host.new_volume(VolumeFormat::Qcow2, 64 * MIB, source);
            host.make(&volume).await;
            change(&volume);
            let before = copies(&host);
            let source = Content::Volume(reference(&volume));
            let copy = host.new_volume(VolumeFormat::Qcow2, 64 * MIB, source);
            host.make(&copy).await;
            assert_eq!(copies(&host), before + 1);
            check_content(&host, &copy, &content);
            assert_eq!(run(&["snapshot", "-l"], &[&copy.path]), "");
            assert!(fs::metadata(&copy.path).unwrap().len() < 16 * MIB);
        }
    });
}

#[test]
fn what_a_guest_may_write_to_is_not_shared() {
    on_xfs(|root| async move {
        let host = Host::at(&root, |_| ());
        let content = noise(4 * MIB);
        let image = host.cached(&content).await;
        let volume = host.new_volume(VolumeFormat::Raw, 8 * MIB, Content::Image(image));
        host.make(&volume).await;
        let before = copies(&host);
        // As QEMU locks what it may write to, and shares with others that do.
        let file = fs::File::open(&volume.path).unwrap();
        let lock = libc::flock {
            l_type: i16::try_from(libc::F_RDLCK).unwrap(),
            l_whence: 0,
            l_start: 101,
            l_len: 1,
            l_pid: 0,
        };
        fcntl(file.as_fd(), FcntlArg::F_OFD_SETLK(&lock)).unwrap();
        let source = || Content::Volume(reference(&volume));
        let copy = host.new_volume(VolumeFormat::Raw, 8 * MIB, source());
        let make = StorageStep::CreateVolume(copy.clone());
        let refused = host.step(make).await;
        let says = "Failed to get shared \"write\" lock";
        fails(refused, FaultCode::Volume, true, &[says]);
        assert_eq!(copies(&host), before + 1);
        drop(file);
        // A process that another test starts just now has all files of this one open until it runs its program.
        let other = fs::File::options()
            .read(true)
            .write(true)
            .open(&volume.path)
            .unwrap();
        wait_for("the lock to be gone", || {
            let mut asked = lock;
            asked.l_type = i16::try_from(libc::F_WRLCK).unwrap();
            fcntl(other.as_fd(), FcntlArg::F_OFD_GETLK(&mut asked)).unwrap();
            i32::from(asked.l_type) == libc::F_UNLCK
        })
        .await;
        host.make(&copy).await;
        check_content(&host, &copy, &content);
        assert_eq!(copies(&host), before + 1);
    });
}
