//! Copies on a file system that lets files share blocks: XFS, in a file of the test's own.

use std::os::fd::AsFd;

use berth_agent::{
    act::storage::VolumeWipe,
    decide::{
        snapshot::NewSnapshot,
        volume::{Content, NewVolume},
    },
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
    on_xfs_in(|root, _| work(root));
}

/// Runs it with a directory on an XFS of 512 MiB, and the file that this is in.
fn on_xfs_in<F: Future<Output = ()>>(work: impl FnOnce(PathBuf, PathBuf) -> F + Send + 'static) {
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
        work(mount_point.clone(), disk).await;
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

/// How many blocks of a disk begin with this.
fn blocks_with(disk: &Path, mark: &[u8]) -> usize {
    let mut file = fs::File::open(disk).unwrap();
    let mut buffer = vec![0; 1 << 20];
    let mut found = 0;
    while let Ok(()) = std::io::Read::read_exact(&mut file, &mut buffer) {
        found += buffer
            .chunks_exact(4096)
            .filter(|block| block.starts_with(mark))
            .count();
    }
    found
}

/// How much a file, of which nothing but zeros is left, has on its disk.
fn allocated_of_zeros(file: &mut fs::File) -> u64 {
    let (mut bytes, zeros) = (Vec::new(), vec![0; 1 << 20]);
    std::io::Read::read_to_end(file, &mut bytes).unwrap();
    let metadata = file.metadata().unwrap();
    assert_eq!(u64::try_from(bytes.len()).unwrap(), metadata.len());
    assert!(bytes.chunks(1 << 20).all(|it| *it == zeros[..it.len()]));
    metadata.blocks() * 512
}

#[test]
fn what_a_deleted_volume_shares_is_given_back_and_only_the_rest_is_overwritten() {
    on_xfs_in(|root, disk| async move {
        const SIZE: u64 = 128 * MIB;
        const OWN: u64 = 16 * MIB;
        let host = Host::at(&root, |options| {
            options.volume_wipe = VolumeWipe::Zero;
            // Nothing may take any room.
            options.keep_free.percent = 100;
        });
        let blocks = |size: u64| usize::try_from(size / 4096).unwrap();
        let block = |mark: &[u8]| {
            let mut block = vec![0x5a; 4096];
            block[..mark.len()].copy_from_slice(mark);
            block
        };
        let first: &[u8] = b"what was there first";
        let second: &[u8] = b"what came afterwards";
        let volume = host.new_volume(VolumeFormat::Raw, SIZE, Content::Zeros);
        host.make(&volume).await;
        let open = |volume: &NewVolume| {
            let mut options = fs::OpenOptions::new();
            options.read(true).write(true).open(&volume.path).unwrap()
        };
        let mut whole = open(&volume);
        whole.write_all(&block(first).repeat(blocks(SIZE))).unwrap();
        whole.sync_all().unwrap();
        let copies: Vec<_> = [0; 2]
            .map(|_| {
                let source = Content::Volume(reference(&volume));
                host.new_volume(VolumeFormat::Raw, SIZE, source)
            })
            .into();
        for copy in &copies {
            host.make(copy).await;
        }
        let mut part = open(&copies[0]);
        part.write_all(&block(second).repeat(blocks(OWN))).unwrap();
        part.sync_all().unwrap();
        assert_eq!(
            [first, second].map(|mark| blocks_with(&disk, mark)),
            [blocks(SIZE), blocks(OWN)]
        );

        // There is not even room for what the two share.
        let filler = fs::File::create(root.join("filler")).unwrap();
        let how = nix::fcntl::FallocateFlags::empty();
        let most = i64::try_from(room(&root) - SIZE / 2).unwrap();
        nix::fcntl::fallocate(&filler, how, 0, most).unwrap();
        let mut part = fs::File::open(&copies[0].path).unwrap();
        host.remove_volume(copies[0].id).await;
        let allocated = allocated_of_zeros(&mut part);
        assert_eq!(allocated, OWN, "its own was overwritten where it was");
        assert_eq!(
            [first, second].map(|mark| blocks_with(&disk, mark)),
            [blocks(SIZE), 0]
        );

        // Of two that share all, and are deleted at once, one has it last: everything is overwritten.
        let mut whole = fs::File::open(&volume.path).unwrap();
        let mut last = fs::File::open(&copies[1].path).unwrap();
        tokio::join!(
            host.remove_volume(volume.id),
            host.remove_volume(copies[1].id)
        );
        let left = [&mut whole, &mut last].map(allocated_of_zeros);
        assert_eq!(left[0] + left[1], SIZE);
        assert_eq!(blocks_with(&disk, first), 0);
    });
}
