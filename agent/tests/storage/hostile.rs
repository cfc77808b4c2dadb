//! Files that a QEMU which a guest has taken over changes after they were inspected: it has them open still. A header that
//! then names another file of the host reaches `qemu-img`, and nothing more: it sees no other file.

use berth_agent::{
    act::storage::check_qemu_img,
    decide::{
        snapshot::NewSnapshot,
        volume::{Content, LargerVolume, NewVolume},
    },
};
use berth_common::{
    document::{VolumeFormat, VolumeRef},
    ids::SnapshotId,
};

use super::{
    snapshots::{of, stored},
    volumes::{check_content, meanwhile, run, slow_qemu_img},
    *,
};

/// QEMU's user on Debian.
const QEMU: u32 = 64055;

/// Headers that name another file: as the one below, and as the one that has the data.
fn hostile_headers(directory: &Path, secret: &Path) -> Vec<(&'static str, PathBuf)> {
    let (backing, data) = (directory.join("backing"), directory.join("data"));
    let create = ["create", "-q", "-f", "qcow2"];
    let below = [&create[..], &["-F", "raw", "-b"]].concat();
    run(
        &[&below[..], &[secret.to_str().unwrap()]].concat(),
        &[&backing],
    );
    // Making one writes to its file, so that is another one, with as long a name.
    let name = secret.to_str().unwrap();
    let decoy = name.replace("secret", "decoys");
    let option = format!("data_file={decoy},data_file_raw=on");
    let args = [&create[..], &["-o", &option, data.to_str().unwrap(), "8M"]].concat();
    run(&args, &[]);
    let mut header = fs::read(&data).unwrap();
    let at = header
        .windows(decoy.len())
        .position(|bytes| bytes == decoy.as_bytes())
        .unwrap();
    header[at..at + name.len()].copy_from_slice(name.as_bytes());
    fs::write(&data, header).unwrap();
    vec![("backing", backing), ("data", data)]
}

/// What a QEMU that has the file open does.
fn overwrite(path: &Path, bytes: &[u8]) {
    let mut file = fs::OpenOptions::new().write(true).open(path).unwrap();
    file.write_all(bytes).unwrap();
    file.set_len(u64::try_from(bytes.len()).unwrap()).unwrap();
}

fn reference(volume: &NewVolume) -> VolumeRef {
    VolumeRef {
        pool: volume.pool.clone(),
        id: volume.id,
        format: volume.format,
    }
}

impl Host {
    fn snapshot_of(&self, volume: &NewVolume) -> NewSnapshot {
        let id = SnapshotId::new();
        NewSnapshot {
            id,
            path: self.paths.snapshot_file(id),
            volume: reference(volume),
        }
    }
}

/// Not a test of its own: the process that [`a_header_that_is_changed_late_opens_nothing_else`] watches.
#[tokio::test]
#[ignore = "another test runs it under strace, with its environment"]
async fn betrayed() {
    let (Ok(root), Ok(headers)) = (
        std::env::var("BERTH_TEST_ROOT"),
        std::env::var("BERTH_TEST_HEADERS"),
    ) else {
        return;
    };
    let host = Host::at(Path::new(&root), |_| ());
    let headers: Vec<(String, PathBuf)> = serde_json::from_str(&headers).unwrap();
    let disk_image = own_image(&host, "disk", MIB);
    host.fetch(&disk_image).await.unwrap();
    let disk = host.plan(InstanceId::new(), &disk_image, 8 * MIB);
    host.create(&disk).await.unwrap();
    let volume = host.new_volume(VolumeFormat::Qcow2, 8 * MIB, Content::Zeros);
    host.make(&volume).await;
    let snapshot = host.snapshot_of(&volume);
    let create = StorageStep::CreateSnapshot(snapshot.clone());
    host.step(create).await.unwrap();
    let mark = StorageStep::MarkSnapshot(stored(snapshot.id));
    host.step(mark).await.unwrap();

    slow_qemu_img(&host, "", "exec /usr/bin/qemu-img \"$@\"");
    let copy = |content| host.new_volume(VolumeFormat::Raw, 8 * MIB, content);
    for (what, header) in headers {
        let from_volume = copy(Content::Volume(reference(&volume)));
        let from_snapshot = copy(Content::Snapshot(of(snapshot.id)));
        let larger = LargerVolume {
            pool: volume.pool.clone(),
            id: volume.id,
            path: volume.path.clone(),
            format: volume.format,
            size: ByteCount::clamped(9 * MIB),
        };
        let larger_disk = LargerDisk {
            instance: disk.instance,
            name: disk.name,
            path: disk.path.clone(),
            format: disk.format,
            size: ByteCount::clamped(9 * MIB),
        };
        let steps = [
            (&volume.path, StorageStep::CreateVolume(from_volume)),
            (
                &volume.path,
                StorageStep::CreateSnapshot(host.snapshot_of(&volume)),
            ),
            (&snapshot.path, StorageStep::CreateVolume(from_snapshot)),
            (&volume.path, StorageStep::GrowVolume(larger)),
            (&disk.path, StorageStep::GrowDisk(larger_disk)),
        ];
        let hostile = fs::read(&header).unwrap();
        for (path, step) in steps {
            let good = fs::read(path).unwrap();
            let result = meanwhile(&host, step.clone(), || overwrite(path, &hostile)).await;
            overwrite(path, &good);
            match (&step, &*what) {
                // It is told that there is nothing below.
                (StorageStep::GrowDisk(_), "backing") => result.unwrap(),
                _ => {
                    let text = chain(&result.expect_err("it must fail"));
                    assert!(
                        text.contains("No such file or directory"),
                        "{step:?}: {text}"
                    );
                }
            }
        }
    }
    assert_eq!(names(&host.paths.volumes).len(), 1);
    assert_eq!(names(&host.paths.snapshots).len(), 1);
}

#[test]
fn a_header_that_is_changed_late_opens_nothing_else() {
    let directory = tempfile::tempdir().unwrap();
    let place = directory_path(&directory);
    fs::set_permissions(&place, fs::Permissions::from_mode(0o711)).unwrap();
    let secret = place.join("secret");
    fs::write(&secret, noise(MIB)).unwrap();
    fs::set_permissions(&secret, fs::Permissions::from_mode(0o600)).unwrap();
    let headers = hostile_headers(&place, &secret);
    let log = place.join("strace.log");
    let status = Command::new("strace")
        .args(["-f", "-qq", "-s", "4096", "-e"])
        .args(["trace=open,openat,openat2,creat", "-o"])
        .arg(&log)
        .arg(std::env::current_exe().unwrap())
        .args(["--exact", "hostile::betrayed", "--ignored"])
        .env("BERTH_TEST_ROOT", place.join("host"))
        .env(
            "BERTH_TEST_HEADERS",
            serde_json::to_string(&headers).unwrap(),
        )
        .status()
        .expect("strace is installed");
    assert!(status.success(), "{status}");
    let text = fs::read_to_string(&log).unwrap();
    let tried: Vec<&str> = text
        .lines()
        .filter(|line| line.contains("secret"))
        .collect();
    assert!(tried.len() >= 9, "strace saw too little: {tried:#?}");
    for line in tried {
        assert!(line.contains("ENOENT"), "{line}");
    }
    assert_eq!(fs::read(&secret).unwrap(), noise(MIB));
}

#[tokio::test]
async fn a_qemu_img_that_would_not_be_seen_is_told_at_start() {
    let directory = tempfile::tempdir().unwrap();
    let place = directory_path(&directory);
    fs::set_permissions(&place, fs::Permissions::from_mode(0o711)).unwrap();
    let program = place.join("qemu-img");
    install(&program, "#!/bin/sh\n");
    let mut options = StorageOptions {
        qemu_img: program.clone(),
        ..StorageOptions::default()
    };
    let told = check_qemu_img(&options).await.unwrap_err();
    for part in [program.to_str().unwrap(), "/usr/bin", "Install it"] {
        assert!(told.contains(part), "{told}");
    }
    options.qemu_img_sees.push(place);
    check_qemu_img(&options).await.unwrap();
    // What is not there at all is another finding.
    options.qemu_img = "/nowhere/qemu-img".into();
    check_qemu_img(&options).await.unwrap();
}

#[tokio::test]
async fn whose_a_file_is_does_not_matter_and_stays() {
    let host = Host::new();
    let content = noise(4 * MIB);
    let image = host.cached(&content).await;
    for format in volumes::FORMATS {
        let volume = host.new_volume(format, 8 * MIB, Content::Image(image.clone()));
        host.make(&volume).await;
        for (more, owner, mode) in [(1, 0, 0o600), (2, QEMU, 0o600), (3, QEMU, 0o400)] {
            std::os::unix::fs::chown(&volume.path, Some(owner), Some(owner)).unwrap();
            fs::set_permissions(&volume.path, fs::Permissions::from_mode(mode)).unwrap();
            let whose = || {
                let found = fs::metadata(&volume.path).unwrap();
                (found.uid(), found.gid(), found.mode() & 0o7777)
            };
            let copy = host.new_volume(
                VolumeFormat::Qcow2,
                12 * MIB,
                Content::Volume(reference(&volume)),
            );
            host.make(&copy).await;
            check_content(&host, &copy, &content);
            let larger = LargerVolume {
                pool: volume.pool.clone(),
                id: volume.id,
                path: volume.path.clone(),
                format,
                size: ByteCount::clamped((8 + more) * MIB),
            };
            host.step(StorageStep::GrowVolume(larger)).await.unwrap();
            assert_eq!(whose(), (owner, owner, mode));
        }
    }
}
