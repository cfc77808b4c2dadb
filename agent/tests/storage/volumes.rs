//! Volumes as real files, made and read back with the real `qemu-img`.

use berth_agent::{
    act::storage::VolumeWipe,
    decide::volume::{Content, LargerVolume, NewVolume, VolumeContent, VolumeFile, VolumeFiles},
};
use berth_common::{
    document::{VolumeFormat, VolumeRef},
    ids::VolumeId,
};

use super::*;

const GIB: u64 = 1 << 30;

/// A `qemu-img` that waits between two of its commands until it is told to go on.
pub(super) fn slow_qemu_img(host: &Host, first: &str, then: &str) {
    let wait = "echo here > $here/waits; while ! [ -e $here/go ]; do sleep 0.01; done";
    qemu_img(
        host,
        &format!("here=$(dirname $0)\n{first}\n{wait}\n{then}"),
    );
}

/// Carries out a step, and does something while its `qemu-img`, a slow one, waits.
pub(super) async fn meanwhile(
    host: &Host,
    step: StorageStep,
    work: impl FnOnce(),
) -> Result<(), ActError> {
    let storage = host.storage.clone();
    let running = tokio::spawn(async move { storage.apply(&step, &watch::channel(None).0).await });
    wait_for("the tool", || host.tool("waits").exists()).await;
    work();
    fs::write(host.tool("go"), "").unwrap();
    let result = running.await.unwrap();
    for file in ["waits", "go"] {
        fs::remove_file(host.tool(file)).unwrap();
    }
    result
}

pub(super) const FORMATS: [VolumeFormat; 2] = [VolumeFormat::Qcow2, VolumeFormat::Raw];

impl Host {
    pub(super) fn new_volume(
        &self,
        format: VolumeFormat,
        size: u64,
        content: Content,
    ) -> NewVolume {
        let id = VolumeId::new();
        NewVolume {
            pool: Default::default(),
            id,
            path: self.paths.volume_file(id, format),
            format,
            size: ByteCount::clamped(size),
            content,
        }
    }

    pub(super) async fn step(&self, step: StorageStep) -> Result<(), ActError> {
        self.storage.apply(&step, &watch::channel(None).0).await
    }

    /// Makes and marks a volume.
    pub(super) async fn make(&self, volume: &NewVolume) {
        self.step(StorageStep::CreateVolume(volume.clone()))
            .await
            .unwrap();
        self.step(StorageStep::MarkVolume(volume.id)).await.unwrap();
    }

    async fn grow(&self, volume: &NewVolume, size: u64) -> Result<(), ActError> {
        self.step(StorageStep::GrowVolume(LargerVolume {
            pool: Default::default(),
            id: volume.id,
            path: volume.path.clone(),
            format: volume.format,
            size: ByteCount::clamped(size),
        }))
        .await
    }

    pub(super) async fn found(&self, id: VolumeId) -> VolumeFiles {
        self.storage.observe_volume(id, None).await.unwrap()
    }

    pub(super) async fn remove_volume(&self, id: VolumeId) {
        self.step(StorageStep::RemoveVolume(id)).await.unwrap();
    }

    fn volume_files(&self) -> Vec<String> {
        names(&self.paths.volumes)
    }

    /// An image in the cache with a disk of 4 MiB: a qcow2 of these bytes.
    pub(super) async fn cached(&self, content: &[u8]) -> ImageRef {
        let raw = self.file("content.raw", content);
        let packed = self.root.join("content.qcow2");
        run(&["convert", "-f", "raw", "-O", "qcow2"], &[&raw, &packed]);
        let bytes = fs::read(&packed).unwrap();
        let image = image(
            &format!("file://{}", packed.display()),
            &bytes,
            ImageFormat::Qcow2,
        );
        self.fetch(&image).await.unwrap();
        image
    }
}

pub(super) fn run(args: &[&str], paths: &[&Path]) -> String {
    let output = Command::new("qemu-img")
        .args(args)
        .args(paths)
        .output()
        .unwrap();
    let text = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{text}");
    String::from_utf8(output.stdout).unwrap()
}

/// What `qemu-img` says of a volume's format and size, and that nothing is below it.
fn check_file(volume: &NewVolume, size: u64) {
    let info = run(
        &["info", "--output=json", "-f", volume.format.as_str()],
        &[&volume.path],
    );
    assert!(
        info.contains(&format!("\"virtual-size\": {size}")),
        "{info}"
    );
    assert!(!info.contains("backing"), "{info}");
    let mode = fs::metadata(&volume.path).unwrap().permissions().mode();
    assert_eq!(mode & 0o7777, 0o600);
}

/// The first bytes a guest would read, and that all others are zeros.
pub(super) fn check_content(host: &Host, volume: &NewVolume, expected: &[u8]) {
    let raw = host.root.join("read-back");
    run(
        &["convert", "-f", volume.format.as_str(), "-O", "raw"],
        &[&volume.path, &raw],
    );
    let content = fs::read(&raw).unwrap();
    assert!(content.starts_with(expected), "other bytes than expected");
    let rest = &content[expected.len()..];
    assert!(rest.iter().all(|byte| *byte == 0), "not zeros after it");
    fs::remove_file(raw).unwrap();
}

fn whole(format: VolumeFormat, size: u64) -> VolumeFiles {
    VolumeFiles {
        files: vec![VolumeFile {
            pool: Default::default(),
            format,
            content: VolumeContent::Size(ByteCount::clamped(size)),
        }],
        made: true,
        ..VolumeFiles::default()
    }
}

#[tokio::test]
async fn volumes_are_made_empty_from_images_and_from_each_other_and_grow() {
    let host = Host::new();
    let content = noise(4 * MIB);
    let image = host.cached(&content).await;
    for format in FORMATS {
        let empty = host.new_volume(format, 8 * MIB, Content::Zeros);
        let full = host.new_volume(format, 8 * MIB, Content::Image(image.clone()));
        let source = VolumeRef {
            pool: Default::default(),
            id: full.id,
            format,
        };
        for volume in [&empty, &full] {
            assert!(host.found(volume.id).await.is_empty());
            for _ in 0..2 {
                host.make(volume).await;
                assert_eq!(host.found(volume.id).await, whole(format, 8 * MIB));
            }
            check_file(volume, 8 * MIB);
        }
        check_content(&host, &empty, &[]);
        check_content(&host, &full, &content);
        for other in FORMATS {
            let copy = host.new_volume(other, 12 * MIB, Content::Volume(source.clone()));
            host.make(&copy).await;
            check_file(&copy, 12 * MIB);
            check_content(&host, &copy, &content);
        }
        for _ in 0..2 {
            host.grow(&full, 20 * MIB).await.unwrap();
            assert_eq!(host.found(full.id).await, whole(format, 20 * MIB));
        }
        check_file(&full, 20 * MIB);
        check_content(&host, &full, &content);
        // Never smaller, whatever is asked.
        host.grow(&full, MIB).await.unwrap();
        check_file(&full, 20 * MIB);
        let large = host.new_volume(format, 100 * GIB, Content::Zeros);
        host.make(&large).await;
        let allocated = fs::metadata(&large.path).unwrap().blocks() * 512;
        assert!(allocated < 4 * MIB, "it is sparse: {allocated}");
    }
    let ids = host.storage.volumes_with_files().await.unwrap();
    assert_eq!(ids.len(), 10);
    for id in ids {
        host.remove_volume(id).await;
        host.remove_volume(id).await;
        assert!(host.found(id).await.is_empty());
    }
    assert_eq!(host.volume_files(), [""; 0]);
    // Every call named its format.
    for call in host.calls() {
        assert!(call.contains(" -f "), "{call}");
    }
}

#[tokio::test]
async fn what_does_not_fit_or_is_not_there_is_refused_and_leaves_nothing() {
    let host = Host::new();
    let image = host.cached(&noise(4 * MIB)).await;
    let small = host.new_volume(VolumeFormat::Raw, 2 * MIB, Content::Image(image.clone()));
    fails(
        host.step(StorageStep::CreateVolume(small)).await,
        FaultCode::Volume,
        false,
        &["2097152", "4194304"],
    );
    let other = VolumeRef {
        pool: Default::default(),
        id: VolumeId::new(),
        format: VolumeFormat::Raw,
    };
    let copy = host.new_volume(VolumeFormat::Raw, GIB, Content::Volume(other));
    fails(
        host.step(StorageStep::CreateVolume(copy)).await,
        FaultCode::Volume,
        true,
        &["is not whole on this host"],
    );
    let mut astray = host.new_volume(VolumeFormat::Raw, GIB, Content::Zeros);
    astray.path = host.root.join("elsewhere");
    let belongs = [astray.path.to_str().unwrap(), "belongs at"];
    fails(
        host.step(StorageStep::CreateVolume(astray.clone())).await,
        FaultCode::Internal,
        false,
        &belongs,
    );
    fails(
        host.grow(&astray, 2 * GIB).await,
        FaultCode::Internal,
        false,
        &belongs,
    );
    assert_eq!(host.volume_files(), [""; 0]);
}

#[tokio::test]
async fn the_content_of_a_raw_volume_is_never_taken_for_a_header() {
    let host = Host::new();
    let volume = host.new_volume(VolumeFormat::Raw, 8 * MIB, Content::Zeros);
    host.make(&volume).await;
    // What a hostile guest could write: a qcow2 that names another file.
    let secret = host.file("secret", &noise(MIB));
    let hostile = host.root.join("hostile");
    run(
        &["create", "-q", "-f", "qcow2", "-F", "raw", "-b"],
        &[&secret, &hostile],
    );
    let header = fs::read(&hostile).unwrap();
    let mut content = fs::read(&volume.path).unwrap();
    content[..header.len()].copy_from_slice(&header);
    fs::write(&volume.path, &content).unwrap();
    assert_eq!(
        host.found(volume.id).await,
        whole(VolumeFormat::Raw, 8 * MIB)
    );
    let source = VolumeRef {
        pool: Default::default(),
        id: volume.id,
        format: VolumeFormat::Raw,
    };
    let copy = host.new_volume(
        VolumeFormat::Qcow2,
        8 * MIB,
        Content::Volume(source.clone()),
    );
    host.make(&copy).await;
    check_file(&copy, 8 * MIB);
    check_content(&host, &copy, &header);
    host.grow(&volume, 9 * MIB).await.unwrap();
    assert_eq!(fs::metadata(&volume.path).unwrap().len(), 9 * MIB);
}

#[tokio::test]
async fn a_broken_or_foreign_file_is_told_and_left_alone() {
    let host = Host::new();
    let volume = host.new_volume(VolumeFormat::Qcow2, 8 * MIB, Content::Zeros);
    host.make(&volume).await;
    fs::write(&volume.path, b"no disk at all").unwrap();
    let found = host.found(volume.id).await;
    let VolumeContent::Unreadable(why) = &found.files[0].content else {
        panic!("{found:?}");
    };
    assert!(why.contains("magic number"), "{why}");
    fails(
        host.grow(&volume, 9 * MIB).await,
        FaultCode::Volume,
        true,
        &["is not whole"],
    );
    // A link in its place leads nowhere.
    let target = host.file("target", b"theirs");
    fs::remove_file(&volume.path).unwrap();
    symlink(&target, &volume.path).unwrap();
    for step in [
        StorageStep::CreateVolume(volume.clone()),
        StorageStep::RemoveVolume(volume.id),
    ] {
        let result = host.step(step).await;
        fails(
            result,
            FaultCode::ForeignObject,
            false,
            &["something else has its name"],
        );
    }
    assert_eq!(fs::read(&target).unwrap(), b"theirs");
}

#[tokio::test]
async fn a_deleted_volume_is_wiped_and_a_wipe_that_was_broken_off_goes_on() {
    for wipe in [VolumeWipe::Zero, VolumeWipe::Discard] {
        let host = Host::with(|options| options.volume_wipe = wipe);
        let image = host.cached(&noise(4 * MIB)).await;
        let volume = host.new_volume(VolumeFormat::Raw, 8 * MIB, Content::Image(image));
        host.make(&volume).await;
        // Whoever has the file open sees what became of its bytes.
        let mut file = fs::File::open(&volume.path).unwrap();
        host.remove_volume(volume.id).await;
        let mut content = Vec::new();
        std::io::Read::read_to_end(&mut file, &mut content).unwrap();
        assert_eq!(content.len(), 8 << 20);
        assert!(content.iter().all(|byte| *byte == 0), "{wipe:?}");
        assert_eq!(host.volume_files(), [""; 0]);

        // Killed in the middle: the file has lost its name, the mark is there, and a start sweeps neither.
        host.make(&volume).await;
        let doomed = host.paths.volumes.join(format!(".wipe-{}.raw", volume.id));
        fs::rename(&volume.path, &doomed).unwrap();
        host.storage.sweep().await.unwrap();
        let found = host.found(volume.id).await;
        assert!(found.leaving && found.made && found.files.is_empty());
        assert_eq!(
            host.storage.volumes_with_files().await.unwrap(),
            [volume.id]
        );
        let mut file = fs::File::open(&doomed).unwrap();
        host.remove_volume(volume.id).await;
        let mut content = Vec::new();
        std::io::Read::read_to_end(&mut file, &mut content).unwrap();
        assert!(content.iter().all(|byte| *byte == 0), "{wipe:?}");
        assert_eq!(host.volume_files(), [""; 0]);
    }
}

#[test]
fn a_full_disk_during_a_copy_is_survived() {
    for format in FORMATS {
        on_a_small_file_system("32m", move |root| async move {
            let host = Host::at(&root, |_| ());
            let content = noise(6 * MIB);
            let image = host.cached(&content).await;
            let id = host.new_volume(format, 64 * MIB, Content::Image(image));
            let before = room(&root);
            for file in ["content.raw", "content.qcow2"] {
                fs::remove_file(root.join(file)).unwrap();
            }
            let before = before + 12 * MIB;
            room_again(&root, before).await;

            // Known beforehand.
            let filler = fill_up(&root, 2 * MIB);
            fails(
                host.step(StorageStep::CreateVolume(id.clone())).await,
                FaultCode::DiskFull,
                true,
                &["the image file://", "has room for"],
            );
            fs::remove_file(filler).unwrap();
            room_again(&root, before).await;

            // Somebody takes the room in the middle of the copy: whoever runs, it is not root.
            let taken = host.tool("taken");
            fs::write(&taken, b"").unwrap();
            fs::set_permissions(&taken, fs::Permissions::from_mode(0o666)).unwrap();
            let script = format!(
                "#!/bin/sh\nhead -c 24M /dev/zero > {}\nexec /usr/bin/qemu-img \"$@\"\n",
                taken.display()
            );
            install(&host.tool("qemu-img"), &script);
            fails(
                host.step(StorageStep::CreateVolume(id.clone())).await,
                FaultCode::DiskFull,
                true,
                &["could not make volume", "No space left on device"],
            );
            assert_eq!(host.volume_files(), [""; 0]);
            assert!(host.found(id.id).await.is_empty());
            fs::remove_file(&taken).unwrap();
            room_again(&root, before).await;
            install(
                &host.tool("qemu-img"),
                "#!/bin/sh\nexec /usr/bin/qemu-img \"$@\"\n",
            );
            host.make(&id).await;
            check_file(&id, 64 * MIB);
        });
    }
}

#[test]
fn a_copy_is_broken_off_before_it_takes_what_is_kept_for_guests() {
    on_a_small_file_system("64m", |root| async move {
        let kept = 40 * MIB;
        let host = Host::at(&root, |options| {
            options.keep_free = KeepFree {
                bytes: ByteCount::clamped(kept),
                percent: 0,
            };
        });
        let image = host.cached(&noise(2 * MIB)).await;
        let volume = host.new_volume(VolumeFormat::Raw, 64 * MIB, Content::Image(image));
        // Something of unknown length: it looks small and grows without end.
        let script = "#!/bin/sh\nfor last; do :; done\nhead -c 20M /dev/zero | tr '\\0' x > \"$last\"\nexec sleep 60\n";
        install(&host.tool("qemu-img"), script);
        let started = Instant::now();
        fails(
            host.step(StorageStep::CreateVolume(volume)).await,
            FaultCode::DiskFull,
            true,
            &["copying the image file://", "was stopped", "41943040"],
        );
        assert!(started.elapsed() < LIMIT);
        assert_eq!(host.volume_files(), [""; 0]);
    });
}

#[tokio::test]
async fn a_copy_of_what_is_written_meanwhile_is_thrown_away() {
    let host = Host::new();
    let source = host.new_volume(VolumeFormat::Raw, 4 * MIB, Content::Zeros);
    host.make(&source).await;
    slow_qemu_img(&host, "/usr/bin/qemu-img \"$@\"", "");
    let from = VolumeRef {
        pool: Default::default(),
        id: source.id,
        format: VolumeFormat::Raw,
    };
    let copy = host.new_volume(VolumeFormat::Qcow2, 4 * MIB, Content::Volume(from));
    let write = || {
        let mut file = fs::OpenOptions::new()
            .write(true)
            .open(&source.path)
            .unwrap();
        file.write_all(b"x").unwrap();
    };
    let step = StorageStep::CreateVolume(copy.clone());
    fails(
        meanwhile(&host, step, write).await,
        FaultCode::Volume,
        true,
        &["was written to while it was copied"],
    );
    assert!(host.found(copy.id).await.is_empty());
}

#[tokio::test]
async fn a_volume_whose_disk_is_absent_is_lost_and_not_made_anew() {
    let host = Host::new();
    let volume = host.new_volume(VolumeFormat::Raw, 4 * MIB, Content::Zeros);
    host.make(&volume).await;
    // The file system that holds the volumes is not mounted.
    let away = host.root.join("away");
    fs::rename(&host.paths.volumes, &away).unwrap();
    let found = host.found(volume.id).await;
    assert!(found.made && found.files.is_empty(), "{found:?}");
    fs::rename(&away, &host.paths.volumes).unwrap();
    assert_eq!(host.found(volume.id).await.files.len(), 1);
}

#[tokio::test]
async fn a_volume_that_shall_be_wiped_is_not_gone_before_its_disk_is_back() {
    for wipe in [VolumeWipe::Zero, VolumeWipe::Discard] {
        let host = Host::with(|options| options.volume_wipe = wipe);
        let volume = host.new_volume(VolumeFormat::Raw, 4 * MIB, Content::Zeros);
        host.make(&volume).await;
        let away = host.root.join("away");
        fs::rename(&host.paths.volumes, &away).unwrap();
        fails(
            host.step(StorageStep::RemoveVolume(volume.id)).await,
            FaultCode::Volume,
            true,
            &[
                "shall be wiped, and its file is missing",
                "bring back the disk",
            ],
        );
        fs::rename(&away, &host.paths.volumes).unwrap();
        host.remove_volume(volume.id).await;
        assert!(host.found(volume.id).await.is_empty());
        host.remove_volume(volume.id).await;
    }
}

#[tokio::test]
async fn leftovers_of_volumes_are_swept() {
    let host = Host::new();
    let volume = host.new_volume(VolumeFormat::Raw, 4 * MIB, Content::Zeros);
    host.make(&volume).await;
    for name in [format!(".tmp-{}-abc", volume.id), ".new-abc-x".to_owned()] {
        fs::write(host.paths.volumes.join(name), b"half").unwrap();
    }
    host.storage.sweep().await.unwrap();
    assert_eq!(host.volume_files(), [format!("{}.raw", volume.id)]);
    assert!(host.paths.volume_mark(volume.id).is_file());
}
