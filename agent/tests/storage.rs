//! The image cache and the disks made from it, on real files, with the real `qemu-img` and a web server of the
//! test's own that misbehaves on demand. Needs root (for a small file system of its own) and `qemu-utils`.

#![allow(
    clippy::unwrap_used,
    clippy::panic,
    reason = "a panic in a test is a failed assertion"
)]

#[path = "storage/dirs.rs"]
mod dirs;
#[path = "storage/hostile.rs"]
mod hostile;
#[path = "storage/reflinks.rs"]
mod reflinks;
#[path = "storage/snapshots.rs"]
mod snapshots;
#[path = "storage/volumes.rs"]
mod volumes;

use std::{
    collections::{BTreeMap, BTreeSet},
    error::Error,
    fs,
    future::Future,
    io::{BufRead, BufReader, Write},
    net::{SocketAddr, TcpListener, TcpStream},
    os::unix::fs::{MetadataExt, PermissionsExt, symlink},
    path::{Path, PathBuf},
    process::Command,
    sync::{
        Arc, Condvar, Mutex,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use berth_agent::{
    act::{
        ActError, Progress, Storage,
        storage::{DirStorage, KeepFree, LvmPoolOptions, PoolOptions, StorageOptions},
    },
    decide::instance::{
        DiskName, DiskPlan, InstanceFiles, LargerDisk, MetadataPlan, OldFile, Paths, StorageStep,
    },
};
use berth_common::{
    document::{DiskFormat, ImageFormat, ImageRef, Incarnation},
    ids::{InstanceId, Nonce},
    message::report::FaultCode,
    names::ImageSha256,
    units::ByteCount,
};
use nix::mount::{MsFlags, mount};
use sha2::{Digest, Sha256};
use tokio::sync::watch;

const LIMIT: Duration = Duration::from_secs(20);
const MIB: u64 = 1 << 20;

// ---------------------------------------------------------------------------------------------------- the harness

/// A host's storage below a directory of its own, with a log of every call of `qemu-img`.
struct Host {
    root: PathBuf,
    paths: Paths,
    storage: DirStorage,
    _directory: Option<tempfile::TempDir>,
}

impl Host {
    fn new() -> Self {
        Self::with(|_| ())
    }

    fn with(change: impl FnOnce(&mut StorageOptions)) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let host = Self::at(&directory_path(&directory), change);
        Self {
            _directory: Some(directory),
            ..host
        }
    }

    fn at(root: &Path, change: impl FnOnce(&mut StorageOptions)) -> Self {
        fs::create_dir_all(root).unwrap();
        // `qemu-img` runs as somebody without rights.
        fs::set_permissions(root, fs::Permissions::from_mode(0o711)).unwrap();
        // What tests put in its place lies here, and what that writes.
        let tools = root.join("tool");
        fs::create_dir_all(&tools).unwrap();
        fs::set_permissions(&tools, fs::Permissions::from_mode(0o777)).unwrap();
        let wrapper = tools.join("qemu-img");
        let log = tools.join("qemu-img.log");
        let script = format!(
            "#!/bin/sh\necho \"$@\" >> {}\nexec /usr/bin/qemu-img \"$@\"\n",
            log.display()
        );
        install(&wrapper, &script);
        fs::write(&log, "").unwrap();
        fs::set_permissions(&log, fs::Permissions::from_mode(0o666)).unwrap();
        let mut options = StorageOptions {
            qemu_img: wrapper,
            qemu_img_sees: vec![tools, "/dev/zero".into(), "/proc".into()],
            connect_timeout: Duration::from_secs(5),
            read_timeout: Duration::from_secs(5),
            max_redirects: 3,
            image_url_allow: vec!["127.0.0.1/32".parse().unwrap()],
            resume_pause: Duration::from_millis(10),
            // Some tests run on small file systems.
            keep_free: KeepFree {
                bytes: ByteCount::clamped(0),
                percent: 0,
            },
            ..StorageOptions::default()
        };
        change(&mut options);
        let pools = options.pools.iter();
        let paths = Paths {
            pools: pools
                .map(|(name, pool)| (name.clone(), pool.place()))
                .collect(),
            ..Paths::below(&root.join("state"))
        };
        let storage = DirStorage::new(paths.clone(), options);
        Self {
            root: root.to_owned(),
            paths,
            storage,
            _directory: None,
        }
    }

    async fn fetch(&self, image: &ImageRef) -> Result<(), ActError> {
        self.storage
            .apply(
                &StorageStep::FetchImage(image.clone()),
                &watch::channel(None).0,
            )
            .await
    }

    async fn create(&self, plan: &DiskPlan) -> Result<(), ActError> {
        self.storage
            .apply(
                &StorageStep::CreateDisk(plan.clone()),
                &watch::channel(None).0,
            )
            .await
    }

    async fn remove(&self, id: InstanceId) -> Result<(), ActError> {
        self.storage
            .apply(&StorageStep::RemoveInstance(id), &watch::channel(None).0)
            .await
    }

    fn plan(&self, instance: InstanceId, image: &ImageRef, size: u64) -> DiskPlan {
        DiskPlan {
            instance,
            name: DiskName::first(0),
            path: self
                .paths
                .disk(instance, DiskName::first(0), DiskFormat::Qcow2),
            size: ByteCount::clamped(size),
            format: DiskFormat::Qcow2,
            image: image.clone(),
        }
    }

    /// How `qemu-img` was called so far.
    fn calls(&self) -> Vec<String> {
        let log = fs::read_to_string(self.tool("qemu-img.log")).unwrap_or_default();
        log.lines().map(str::to_owned).collect()
    }

    /// What lies beside `qemu-img`, where whoever runs it may write.
    fn tool(&self, name: &str) -> PathBuf {
        self.root.join("tool").join(name)
    }

    fn image_files(&self) -> Vec<String> {
        names(&self.paths.images)
    }

    /// A file of the test's own.
    fn file(&self, name: &str, bytes: &[u8]) -> PathBuf {
        let path = self.root.join(name);
        fs::write(&path, bytes).unwrap();
        path
    }
}

/// Makes a program of a script. Another process writes it: what other tests fork here meanwhile would hold it open for
/// writing, and such a file cannot be run.
fn install(program: &Path, script: &str) {
    let text = program.with_extension("text");
    fs::write(&text, script).unwrap();
    let status = std::process::Command::new("install")
        .args(["--mode", "755", "--"])
        .args([&text, program])
        .status()
        .unwrap();
    assert!(status.success(), "{status}");
    fs::remove_file(text).unwrap();
}

fn directory_path(directory: &tempfile::TempDir) -> PathBuf {
    directory.path().canonicalize().unwrap()
}

fn names(directory: &Path) -> Vec<String> {
    let Ok(entries) = fs::read_dir(directory) else {
        return Vec::new();
    };
    let mut names: Vec<_> = entries
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    names.sort_unstable();
    names
}

fn sum(bytes: &[u8]) -> ImageSha256 {
    let hex: String = Sha256::digest(bytes)
        .iter()
        .map(|byte| format!("{byte:02x}"))
        .collect();
    hex.parse().unwrap()
}

fn image(url: &str, bytes: &[u8], format: ImageFormat) -> ImageRef {
    ImageRef {
        url: url.parse().unwrap(),
        sha256: sum(bytes),
        format,
    }
}

/// Bytes of a raw image that do not repeat and start like nothing known.
fn noise(count: u64) -> Vec<u8> {
    let mut state = 0x1234_5678_9abc_def1_u64;
    let mut bytes = Vec::new();
    while u64::try_from(bytes.len()).unwrap() < count {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        bytes.extend_from_slice(&state.to_le_bytes());
    }
    bytes
}

/// A qcow2 image made by the real `qemu-img`.
fn qcow2(host: &Host, args: &[&str]) -> Vec<u8> {
    let path = host.root.join("made.qcow2");
    let status = Command::new("qemu-img")
        .current_dir(&host.root)
        .args(["create", "-q", "-f", "qcow2"])
        .args(args)
        .arg(&path)
        .arg("64M")
        .status()
        .expect("qemu-img is installed");
    assert!(status.success());
    fs::read(path).unwrap()
}

/// An image of another format with this content, made by the real `qemu-img`.
fn converted(host: &Host, content: &[u8], format: ImageFormat, options: &[&str]) -> Vec<u8> {
    let (raw, path) = (
        host.file("content.raw", content),
        host.root.join("made.image"),
    );
    let status = Command::new("qemu-img")
        .args(["convert", "-f", "raw", "-O", format.as_str()])
        .args(options)
        .args([&raw, &path])
        .status()
        .expect("qemu-img is installed");
    assert!(status.success());
    fs::remove_file(raw).unwrap();
    fs::read(path).unwrap()
}

/// What a guest would read from a disk.
fn content_of(disk: &Path) -> Vec<u8> {
    let directory = tempfile::tempdir().unwrap();
    let raw = directory.path().join("raw");
    let status = Command::new("qemu-img")
        .args(["convert", "-f", "qcow2", "-O", "raw"])
        .args([disk, &raw])
        .status()
        .unwrap();
    assert!(status.success());
    fs::read(raw).unwrap()
}

/// The error with its causes, as one text.
fn chain(error: &ActError) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        text = format!("{text}: {cause}");
        source = cause.source();
    }
    text
}

#[track_caller]
fn fails(result: Result<(), ActError>, code: FaultCode, retryable: bool, parts: &[&str]) {
    let error = result.expect_err("must fail");
    let text = chain(&error);
    assert_eq!((error.code, error.retryable), (code, retryable), "{text}");
    for part in parts {
        assert!(text.contains(part), "{text:?} does not say {part:?}");
    }
}

async fn wait_for(what: &str, mut condition: impl FnMut() -> bool) {
    let start = Instant::now();
    while !condition() {
        assert!(start.elapsed() < LIMIT, "waited in vain for: {what}");
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
}

/// Something servers wait at until the test lets them go on.
#[derive(Clone, Default)]
struct Gate(Arc<(Mutex<bool>, Condvar)>);

impl Gate {
    fn open(&self) {
        *self.0.0.lock().unwrap() = true;
        self.0.1.notify_all();
    }

    fn wait(&self) {
        let open = self.0.0.lock().unwrap();
        let (_open, timeout) = self
            .0
            .1
            .wait_timeout_while(open, LIMIT, |open| !*open)
            .unwrap();
        assert!(!timeout.timed_out(), "the gate stayed shut");
    }
}

/// A web server on loopback; every request is answered by the test's function, which gets path and connection.
struct Server {
    address: SocketAddr,
    hits: Arc<AtomicUsize>,
    stop: Arc<AtomicBool>,
}

impl Server {
    fn new(
        answer: impl Fn(&str, &mut TcpStream) -> std::io::Result<()> + Send + Sync + 'static,
    ) -> Self {
        Self::hearing(move |path, _, stream| answer(path, stream))
    }

    /// The same, with the lines of the request's head.
    fn hearing(
        answer: impl Fn(&str, &[String], &mut TcpStream) -> std::io::Result<()> + Send + Sync + 'static,
    ) -> Self {
        Self::at("127.0.0.1:0", answer)
    }

    /// The same, at another address.
    fn at(
        address: &str,
        answer: impl Fn(&str, &[String], &mut TcpStream) -> std::io::Result<()> + Send + Sync + 'static,
    ) -> Self {
        let listener = TcpListener::bind(address).unwrap();
        let address = listener.local_addr().unwrap();
        let (hits, stop) = (
            Arc::new(AtomicUsize::new(0)),
            Arc::new(AtomicBool::new(false)),
        );
        let (counter, stopped, answer) = (Arc::clone(&hits), Arc::clone(&stop), Arc::new(answer));
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                if stopped.load(Ordering::SeqCst) {
                    return;
                }
                let (mut stream, answer, counter) =
                    (stream.unwrap(), Arc::clone(&answer), Arc::clone(&counter));
                std::thread::spawn(move || {
                    let mut lines = BufReader::new(stream.try_clone().unwrap())
                        .lines()
                        .map_while(Result::ok);
                    let Some(request) = lines.next() else { return };
                    let Some(path) = request.split(' ').nth(1).map(str::to_owned) else {
                        return;
                    };
                    let headers: Vec<_> = lines.take_while(|line| !line.is_empty()).collect();
                    counter.fetch_add(1, Ordering::SeqCst);
                    // The client may hang up at any time: that is what some tests are about.
                    let _ = answer(&path, &headers, &mut stream);
                });
            }
        });
        Self {
            address,
            hits,
            stop,
        }
    }

    fn url(&self, path: &str) -> String {
        format!("http://{}{path}", self.address)
    }

    fn hits(&self) -> usize {
        self.hits.load(Ordering::SeqCst)
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::SeqCst);
        let _ = TcpStream::connect(self.address);
    }
}

fn head(stream: &mut TcpStream, status: &str, headers: &str) -> std::io::Result<()> {
    write!(
        stream,
        "HTTP/1.1 {status}\r\nConnection: close\r\n{headers}\r\n"
    )
}

fn whole(stream: &mut TcpStream, body: &[u8]) -> std::io::Result<()> {
    head(
        stream,
        "200 OK",
        &format!("Content-Length: {}\r\n", body.len()),
    )?;
    stream.write_all(body)
}

/// Runs the work in a mount namespace of its own with a small file system, on a thread that ends with it.
fn on_a_small_file_system<F: Future<Output = ()>>(
    size: &str,
    work: impl FnOnce(PathBuf) -> F + Send + 'static,
) {
    let mount_point = tempfile::tempdir().unwrap();
    let path = directory_path(&mount_point);
    let size = format!("size={size}");
    let thread = std::thread::spawn(move || {
        nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWNS).expect("tests run as root");
        let none = None::<&str>;
        mount(none, "/", none, MsFlags::MS_REC | MsFlags::MS_PRIVATE, none).unwrap();
        mount(
            Some("berth-test"),
            &path,
            Some("tmpfs"),
            MsFlags::empty(),
            Some(size.as_str()),
        )
        .unwrap();
        // All threads of the storage are started from this one, and so share its namespace.
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .unwrap();
        runtime.block_on(work(path));
    });
    thread.join().unwrap();
}

/// Fills the file system except for so many bytes; returns the file to remove.
fn fill_up(directory: &Path, leave: u64) -> PathBuf {
    let path = directory.join("filler");
    let size = usize::try_from(room(directory) - leave).unwrap();
    fs::write(&path, vec![1; size]).unwrap();
    path
}

/// The bytes that may still be written.
fn room(directory: &Path) -> u64 {
    let status = nix::sys::statvfs::statvfs(directory).unwrap();
    status.blocks_available() * status.fragment_size()
}

/// Waits until there is as much room as there was, but for some small files. What was removed takes its room for a while
/// yet: a process that another test starts just now has all files of this one open until it runs its program.
async fn room_again(directory: &Path, before: u64) {
    wait_for("the room of removed files", || {
        room(directory) + MIB / 8 >= before
    })
    .await;
}

// ------------------------------------------------------------------------------------------------- the good way

#[tokio::test]
async fn an_image_becomes_a_disk_and_everything_can_be_repeated() {
    let host = Host::new();
    let bytes = qcow2(&host, &[]);
    let image = image(
        &format!("file://{}", host.file("a b.img", &bytes).display()).replace(' ', "%20"),
        &bytes,
        ImageFormat::Qcow2,
    );
    let id = InstanceId::new();
    let plan = host.plan(id, &image, 3 << 30);

    assert!(!host.storage.has_image(&image).await.unwrap());
    assert_eq!(
        host.storage.observe(id).await.unwrap(),
        InstanceFiles::default()
    );
    assert_eq!(host.storage.cached_images().await.unwrap(), []);
    for _ in 0..2 {
        host.fetch(&image).await.unwrap();
        host.create(&plan).await.unwrap();
    }
    assert!(host.storage.has_image(&image).await.unwrap());
    let cached = host.storage.cached_images().await.unwrap();
    assert_eq!(
        cached
            .iter()
            .map(|image| image.name.sha256())
            .collect::<Vec<_>>(),
        [&image.sha256]
    );
    assert_eq!(host.image_files(), [image.sha256.as_str()]);
    let metadata = fs::metadata(host.paths.image(&image)).unwrap();
    assert_eq!((metadata.mode() & 0o7777, metadata.uid()), (0o444, 0));

    let calls = host.calls();
    assert_eq!(calls.len(), 1, "a disk is made once: {calls:?}");
    let cached_path = host.paths.image(&image);
    assert!(
        calls[0].starts_with(&format!(
            "create -q -u -f qcow2 -F qcow2 -b {} -- ./.tmp-disk0-",
            cached_path.display()
        )),
        "{calls:?}"
    );
    let info = Command::new("qemu-img")
        .args(["info", "--output=json"])
        .arg(&plan.path)
        .output()
        .unwrap();
    let info: serde_json::Value = serde_json::from_slice(&info.stdout).unwrap();
    assert_eq!(info["format"], "qcow2");
    assert_eq!(info["virtual-size"], 3_u64 << 30);
    assert_eq!(info["backing-filename"], cached_path.to_str().unwrap());
    assert_eq!(info["backing-filename-format"], "qcow2");

    let files = InstanceFiles {
        directory: true,
        disks: BTreeSet::from([DiskName::first(0)]),
        sizes: BTreeMap::from([(DiskName::first(0), ByteCount::clamped(3 << 30))]),
        config_drives: BTreeSet::new(),
        metadata: None,
    };
    assert_eq!(host.storage.observe(id).await.unwrap(), files);
    assert_eq!(names(&host.paths.instance(id)), ["disk0.qcow2"]);
    assert_eq!(host.storage.instances_with_files().await.unwrap(), [id]);

    // It grows with all that is on it, and its image is not needed for that.
    let grow = |size| {
        StorageStep::GrowDisk(LargerDisk {
            instance: id,
            name: DiskName::first(0),
            path: plan.path.clone(),
            format: plan.format,
            size: ByteCount::clamped(size),
        })
    };
    // More than `qemu-img` may write when it makes a disk: the new tables come behind it.
    let written = Command::new("qemu-io")
        .args(["-f", "qcow2", "-c", "write 0 300M"])
        .arg(&plan.path)
        .output()
        .unwrap();
    assert!(written.status.success(), "{written:?}");
    let elsewhere = host.file("elsewhere", b"");
    fs::rename(&cached_path, &elsewhere).unwrap();
    for size in [5_u64 << 30, 5 << 30, 4 << 30] {
        let step = grow(size);
        host.storage
            .apply(&step, &Progress::new(None))
            .await
            .unwrap();
        let sizes = host.storage.observe(id).await.unwrap().sizes;
        assert_eq!(sizes[&DiskName::first(0)], ByteCount::clamped(5 << 30));
    }
    fs::rename(&elsewhere, &cached_path).unwrap();

    // QEMU had it open. A header that says that its data is in another file makes root open nothing.
    let own = fs::read(&plan.path).unwrap();
    let mut other = own.clone();
    other[79] |= 4;
    fs::write(&plan.path, &other).unwrap();
    assert_eq!(
        host.storage.observe(id).await.unwrap().sizes,
        BTreeMap::new()
    );
    let error = host
        .storage
        .apply(&grow(6 << 30), &Progress::new(None))
        .await
        .unwrap_err();
    assert_eq!(error.code, FaultCode::ForeignObject);
    assert_eq!(fs::read(&plan.path).unwrap(), other);
    fs::write(&plan.path, &own).unwrap();

    for _ in 0..2 {
        host.remove(id).await.unwrap();
        assert_eq!(
            host.storage.observe(id).await.unwrap(),
            InstanceFiles::default()
        );
    }
    assert!(
        host.storage
            .instances_with_files()
            .await
            .unwrap()
            .is_empty()
    );
    assert!(
        host.storage.has_image(&image).await.unwrap(),
        "the image stays"
    );
}

#[tokio::test]
async fn an_instance_directory_lets_qemu_pass_and_make_nothing() {
    let host = Host::new();
    let bytes = noise(MIB);
    let image = image(
        &format!("file://{}", host.file("raw", &bytes).display()),
        &bytes,
        ImageFormat::Raw,
    );
    let id = InstanceId::new();
    host.fetch(&image).await.unwrap();
    host.create(&host.plan(id, &image, 1 << 30)).await.unwrap();
    let is_closed = |id| {
        let made = fs::metadata(host.paths.instance(id)).unwrap();
        (made.mode() & 0o7777, made.uid(), made.gid()) == (0o711, 0, 0)
    };
    assert!(is_closed(id));
    // As an agent before this one left it.
    let mode = fs::Permissions::from_mode(0o1731);
    fs::set_permissions(host.paths.instance(id), mode).unwrap();
    host.storage.sweep().await.unwrap();
    assert!(is_closed(id));
    assert_eq!(
        fs::metadata(&host.paths.instances).unwrap().mode() & 0o777,
        0o711
    );
    assert_eq!(
        fs::metadata(host.paths.disk(id, DiskName::first(0), DiskFormat::Qcow2))
            .unwrap()
            .mode()
            & 0o777,
        0o600
    );
    // One without a disk of its own has the same directory, however often it is made.
    let bare = InstanceId::new();
    for _ in 0..2 {
        let step = StorageStep::CreateDirectory(bare);
        let progress = watch::channel(None).0;
        host.storage.apply(&step, &progress).await.unwrap();
        assert!(is_closed(bare));
    }
}

#[tokio::test]
async fn a_download_tells_how_far_it_is() {
    let host = Host::new();
    let bytes = noise(4 * MIB);
    let (gate, body) = (Gate::default(), bytes.clone());
    let shut = gate.clone();
    let server = Server::new(move |_, stream| {
        head(
            stream,
            "200 OK",
            &format!("Content-Length: {}\r\n", body.len()),
        )?;
        let (first, second) = body.split_at(body.len() / 2);
        stream.write_all(first)?;
        shut.wait();
        stream.write_all(second)
    });
    let image = image(&server.url("/disk.img"), &bytes, ImageFormat::Raw);
    let (progress, mut told) = watch::channel(None);
    let storage = host.storage.clone();
    let wanted = image.clone();
    let fetching = tokio::spawn(async move { storage.fetch_image(&wanted, &progress).await });
    let text = told
        .wait_for(Option::is_some)
        .await
        .unwrap()
        .clone()
        .unwrap();
    assert!(
        text.starts_with("downloading the image, ") && text.ends_with(" %"),
        "{text}"
    );
    wait_for("the partial file", || !host.image_files().is_empty()).await;
    assert!(
        !host.storage.has_image(&image).await.unwrap(),
        "half an image is none"
    );
    host.storage.sweep().await.unwrap();
    assert_eq!(
        host.image_files().len(),
        1,
        "a running download is nobody's leftover"
    );
    gate.open();
    fetching.await.unwrap().unwrap();
    assert!(host.storage.has_image(&image).await.unwrap());
    assert_eq!(fs::read(host.paths.image(&image)).unwrap(), bytes);
    assert_eq!(told.borrow().clone(), None, "nothing is under way any more");
}

#[tokio::test]
async fn zeros_take_no_space() {
    let host = Host::new();
    let mut bytes = vec![0; 16 << 20];
    bytes[..4].copy_from_slice(b"boot");
    let body = bytes.clone();
    let server = Server::new(move |_, stream| whole(stream, &body));
    let image = image(&server.url("/"), &bytes, ImageFormat::Raw);
    host.fetch(&image).await.unwrap();
    let metadata = fs::metadata(host.paths.image(&image)).unwrap();
    assert_eq!(metadata.len(), 16 << 20);
    assert!(
        metadata.blocks() * 512 < MIB,
        "{} blocks",
        metadata.blocks()
    );
    assert_eq!(
        sum(&fs::read(host.paths.image(&image)).unwrap()),
        image.sha256
    );
}

#[tokio::test]
async fn waiters_of_one_image_share_one_download_and_its_outcome() {
    let host = Host::new();
    let bytes = noise(MIB);
    let (gate, body) = (Gate::default(), bytes.clone());
    let shut = gate.clone();
    let server = Server::new(move |path, stream| {
        shut.wait();
        if path == "/good" {
            whole(stream, &body)
        } else {
            head(stream, "404 Not Found", "Content-Length: 0\r\n")
        }
    });
    let good = image(&server.url("/good"), &bytes, ImageFormat::Raw);
    let bad = image(&server.url("/bad"), b"something else", ImageFormat::Raw);
    let start = |image: &ImageRef| {
        let (storage, image) = (host.storage.clone(), image.clone());
        tokio::spawn(async move { storage.fetch_image(&image, &watch::channel(None).0).await })
    };
    let goods: Vec<_> = (0..8).map(|_| start(&good)).collect();
    let bads: Vec<_> = (0..8).map(|_| start(&bad)).collect();
    // The first one may go away: the others still get their image.
    wait_for("both requests", || server.hits() == 2).await;
    goods[0].abort();
    gate.open();
    for (index, waiter) in goods.into_iter().enumerate() {
        match waiter.await {
            Err(aborted) => assert!(index == 0 && aborted.is_cancelled()),
            Ok(result) => result.unwrap(),
        }
    }
    for waiter in bads {
        fails(
            waiter.await.unwrap(),
            FaultCode::ImageUnreachable,
            false,
            &["/bad", "404 (not found)"],
        );
    }
    assert_eq!(server.hits(), 2, "one download for each image");
    fails(
        host.fetch(&bad).await,
        FaultCode::ImageUnreachable,
        false,
        &["404"],
    );
    assert_eq!(
        server.hits(),
        3,
        "an old failure is not the answer to a new request"
    );
    host.fetch(&good).await.unwrap();
    assert_eq!(server.hits(), 3, "a cached image is not fetched");
    assert_eq!(host.image_files(), [good.sha256.as_str()]);
}

#[tokio::test]
async fn one_content_from_two_places_is_fetched_once() {
    let host = Host::new();
    let bytes = noise(MIB);
    let (gate, body) = (Gate::default(), bytes.clone());
    let shut = gate.clone();
    let server = Server::new(move |_, stream| {
        shut.wait();
        whole(stream, &body)
    });
    let images = ["/a", "/b"].map(|path| image(&server.url(path), &bytes, ImageFormat::Raw));
    let both = futures::future::join(host.fetch(&images[0]), host.fetch(&images[1]));
    let (results, ()) = futures::future::join(both, async {
        wait_for("a request", || server.hits() > 0).await;
        gate.open();
    })
    .await;
    results.0.unwrap();
    results.1.unwrap();
    assert_eq!(server.hits(), 1);
}

#[tokio::test]
async fn who_has_to_wait_for_other_downloads_is_told() {
    let host = Host::with(|options| options.parallel_downloads = 1);
    let gate = Gate::default();
    let shut = gate.clone();
    let server = Server::new(move |path, stream| {
        shut.wait();
        whole(stream, path.as_bytes())
    });
    let first = image(&server.url("/first"), b"/first", ImageFormat::Raw);
    let second = image(&server.url("/second"), b"/second", ImageFormat::Raw);
    let (storage, wanted) = (host.storage.clone(), first.clone());
    let one =
        tokio::spawn(async move { storage.fetch_image(&wanted, &watch::channel(None).0).await });
    wait_for("the first request", || server.hits() == 1).await;
    let (progress, mut told) = watch::channel(None);
    let (storage, wanted) = (host.storage.clone(), second.clone());
    let two = tokio::spawn(async move { storage.fetch_image(&wanted, &progress).await });
    let text = told.wait_for(Option::is_some).await.unwrap().clone();
    assert_eq!(
        (text.as_deref(), server.hits()),
        (Some("waiting for other downloads"), 1)
    );
    gate.open();
    one.await.unwrap().unwrap();
    two.await.unwrap().unwrap();
    assert_eq!(host.image_files().len(), 2);
}

#[tokio::test]
async fn a_download_nobody_waits_for_stops_and_leaves_nothing() {
    let host = Host::new();
    let ended = Arc::new(AtomicBool::new(false));
    let flag = Arc::clone(&ended);
    let server = Server::new(move |_, stream| {
        head(stream, "200 OK", "")?;
        let result = (|| loop {
            stream.write_all(&[7; 65536])?
        })();
        flag.store(true, Ordering::SeqCst);
        result
    });
    let endless = image(&server.url("/endless"), b"never", ImageFormat::Raw);
    let storage = host.storage.clone();
    let waiter =
        tokio::spawn(async move { storage.fetch_image(&endless, &watch::channel(None).0).await });
    wait_for("a partial file", || !host.image_files().is_empty()).await;
    waiter.abort();
    assert!(waiter.await.unwrap_err().is_cancelled());
    wait_for("the end of the download", || {
        ended.load(Ordering::SeqCst) && host.image_files().is_empty()
    })
    .await;
}

// ------------------------------------------------------------------------------------------------ eviction

/// Makes an image look as if it was used last so many days ago.
fn last_used(host: &Host, image: &ImageRef, days: u64) {
    let at = std::time::SystemTime::now() - Duration::from_secs(days * 24 * 3600);
    let file = fs::File::open(host.paths.image(image)).unwrap();
    let times = fs::FileTimes::new().set_accessed(at).set_modified(at);
    file.set_times(times).unwrap();
}

fn days_unused(host: &Host, image: &ImageRef) -> u64 {
    let used = fs::metadata(host.paths.image(image))
        .unwrap()
        .accessed()
        .unwrap();
    used.elapsed().unwrap_or_default().as_secs() / (24 * 3600)
}

/// An image from a file of the test's own, with content of its own.
fn own_image(host: &Host, name: &str, size: u64) -> ImageRef {
    let mut bytes = noise(size);
    bytes[..name.len()].copy_from_slice(name.as_bytes());
    let url = format!("file://{}", host.file(name, &bytes).display());
    image(&url, &bytes, ImageFormat::Raw)
}

#[tokio::test]
async fn old_images_go_unless_something_uses_them() {
    let host = Host::new();
    let [used, unused, fresh] = ["used", "unused", "fresh"].map(|name| own_image(&host, name, MIB));
    let vmdk = converted(&host, &noise(MIB), ImageFormat::Vmdk, &[]);
    let vmdk = image(
        &format!("file://{}", host.file("vmdk", &vmdk).display()),
        &vmdk,
        ImageFormat::Vmdk,
    );
    for image in [&used, &unused, &fresh, &vmdk] {
        host.fetch(image).await.unwrap();
    }
    let ids = [InstanceId::new(), InstanceId::new()];
    host.create(&host.plan(ids[0], &used, 1 << 30))
        .await
        .unwrap();
    host.create(&host.plan(ids[1], &vmdk, 1 << 30))
        .await
        .unwrap();
    for image in [&used, &unused, &vmdk] {
        last_used(&host, image, 31);
    }
    last_used(&host, &fresh, 29);
    host.storage.evict_old_images().await.unwrap();
    assert!(!host.storage.has_image(&unused).await.unwrap());
    for image in [&used, &fresh, &vmdk] {
        assert!(host.storage.has_image(image).await.unwrap());
    }
    assert_eq!(host.storage.take_evicted().map(|(_, count)| count), [1, 0]);
    assert_eq!(host.storage.take_evicted().map(|(_, count)| count), [0, 0]);

    // Its last disk has just gone: from now on it grows old.
    host.remove(ids[0]).await.unwrap();
    host.storage.evict_old_images().await.unwrap();
    assert_eq!(days_unused(&host, &used), 0);
    for image in [&used, &fresh] {
        last_used(&host, image, 31);
    }
    // A use counts: a fetch of what is there already.
    host.fetch(&fresh).await.unwrap();
    host.storage.evict_old_images().await.unwrap();
    assert!(!host.storage.has_image(&used).await.unwrap());
    for image in [&fresh, &vmdk] {
        assert!(host.storage.has_image(image).await.unwrap());
    }
    // What cannot be read may lean on anything: nothing is removed then.
    last_used(&host, &fresh, 31);
    fs::rename(&host.paths.instances, host.root.join("away")).unwrap();
    symlink(host.root.join("nowhere"), &host.paths.instances).unwrap();
    let error = host.storage.evict_old_images().await;
    assert_eq!(error.unwrap_err().code, FaultCode::ForeignObject);
    for image in [&fresh, &vmdk] {
        assert!(host.storage.has_image(image).await.unwrap());
    }
}

#[test]
fn images_that_nothing_uses_make_room_for_one_that_is_needed() {
    on_a_small_file_system("16m", |root| async move {
        let host = Host::at(&root, |_| ());
        // The files they come from would take the same room.
        let sources = tempfile::tempdir().unwrap();
        let make = |name: &str, size: u64| {
            let mut bytes = noise(size);
            bytes[..name.len()].copy_from_slice(name.as_bytes());
            let path = sources.path().join(name);
            fs::write(&path, &bytes).unwrap();
            image(
                &format!("file://{}", path.display()),
                &bytes,
                ImageFormat::Raw,
            )
        };
        let (used, older, old) = (
            make("used", 4 * MIB),
            make("older", 4 * MIB),
            make("old", 4 * MIB),
        );
        for image in [&used, &older, &old] {
            host.fetch(image).await.unwrap();
        }
        let id = InstanceId::new();
        host.create(&host.plan(id, &used, 1 << 30)).await.unwrap();
        last_used(&host, &used, 20);
        last_used(&host, &older, 10);
        last_used(&host, &old, 5);
        let needed = make("needed", 6 * MIB);
        host.fetch(&needed).await.unwrap();
        let there = async |image: &ImageRef| host.storage.has_image(image).await.unwrap();
        assert!(there(&used).await && there(&old).await && there(&needed).await);
        assert!(
            !there(&older).await,
            "the one that was not used for longest"
        );
        assert_eq!(host.storage.take_evicted().map(|(_, count)| count), [0, 1]);

        // What would not be enough is not done; and what was fetched just now stays for its disk.
        let huge = make("huge", 9 * MIB);
        fails(
            host.fetch(&huge).await,
            FaultCode::DiskFull,
            true,
            &["has room for"],
        );
        assert!(there(&used).await && there(&old).await && there(&needed).await);

        // A server that does not say how much it sends.
        let body = fs::read(sources.path().join("older")).unwrap();
        let server = Server::new(move |_, stream| {
            head(stream, "200 OK", "")?;
            stream.write_all(&body)
        });
        let again = ImageRef {
            url: server.url("/older").parse().unwrap(),
            ..older
        };
        last_used(&host, &needed, 1);
        fails(
            host.fetch(&again).await,
            FaultCode::DiskFull,
            true,
            &["was stopped"],
        );
        assert!(there(&used).await);
    });
}

/// The law of eviction: at any instant, whatever an overlay leans on is there.
#[test]
fn no_image_goes_while_a_disk_is_made_over_it() {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(4)
        .enable_all()
        .build()
        .unwrap();
    runtime.block_on(async {
        let host = Arc::new(Host::with(|options| options.image_max_age = Duration::ZERO));
        let image = own_image(&host, "image", MIB);
        let stop = Arc::new(AtomicBool::new(false));
        let evicting = {
            let (storage, stop) = (host.storage.clone(), Arc::clone(&stop));
            tokio::spawn(async move {
                while !stop.load(Ordering::SeqCst) {
                    storage.evict_old_images().await.unwrap();
                    tokio::task::yield_now().await;
                }
            })
        };
        let (mut made, mut missed) = (0, 0);
        let start = Instant::now();
        while made < 20 || missed < 1 {
            assert!(start.elapsed() < 3 * LIMIT, "{made} made, {missed} missed");
            host.fetch(&image).await.unwrap();
            let id = InstanceId::new();
            let plan = host.plan(id, &image, 1 << 30);
            match host.create(&plan).await {
                Ok(()) => {
                    made += 1;
                    assert!(plan.path.exists());
                    assert!(
                        host.storage.has_image(&image).await.unwrap(),
                        "its disk leans on nothing"
                    );
                    host.remove(id).await.unwrap();
                }
                Err(error) => {
                    missed += 1;
                    assert!(error.retryable, "{}", chain(&error));
                    assert!(!plan.path.exists());
                }
            }
        }
        stop.store(true, Ordering::SeqCst);
        evicting.await.unwrap();
        assert!(host.storage.take_evicted()[0].1 > 0);
    });
}

/// The same, seen slowly: the disk is half made when eviction comes.
#[tokio::test]
async fn eviction_finds_the_image_of_a_half_made_disk_in_use() {
    let host = Host::with(|options| options.image_max_age = Duration::ZERO);
    let image = own_image(&host, "image", MIB);
    host.fetch(&image).await.unwrap();
    qemu_img(
        &host,
        "echo here >> $(dirname $0)/qemu-img.log; while ! [ -e $(dirname $0)/go ]; do sleep 0.01; done; \
         exec /usr/bin/qemu-img \"$@\"",
    );
    let id = InstanceId::new();
    let plan = host.plan(id, &image, 1 << 30);
    let (storage, step) = (host.storage.clone(), StorageStep::CreateDisk(plan.clone()));
    let making = tokio::spawn(async move { storage.apply(&step, &watch::channel(None).0).await });
    wait_for("the tool", || !host.calls().is_empty()).await;
    host.storage.evict_old_images().await.unwrap();
    assert!(host.storage.has_image(&image).await.unwrap());
    fs::write(host.tool("go"), "").unwrap();
    making.await.unwrap().unwrap();
    host.storage.evict_old_images().await.unwrap();
    assert!(host.storage.has_image(&image).await.unwrap());
    host.remove(id).await.unwrap();
    host.storage.evict_old_images().await.unwrap();
    assert!(!host.storage.has_image(&image).await.unwrap());
}

// ------------------------------------------------------------------------------------------------ continued downloads

/// A web server that knows ranges and closes the connection after so many bytes of body, as often as it is told to.
struct Breaking {
    server: Server,
    asked: Arc<Mutex<Vec<Asked>>>,
    cuts: Arc<AtomicUsize>,
    version: Arc<Mutex<String>>,
}

/// What was asked for: the first byte, and the version it must be of.
type Asked = (usize, Option<String>);

/// How much comes before a cut.
const PART: usize = 300_000;

impl Breaking {
    fn new(body: &[u8], cuts: usize) -> Self {
        let (asked, cuts) = (
            Arc::<Mutex<Vec<_>>>::default(),
            Arc::new(AtomicUsize::new(cuts)),
        );
        let version = Arc::new(Mutex::new("ETag: \"one\"".to_owned()));
        let (heard, left, current) = (Arc::clone(&asked), Arc::clone(&cuts), Arc::clone(&version));
        let body = body.to_vec();
        let server = Server::hearing(move |_, headers, stream| {
            let value = |name: &str| {
                headers.iter().find_map(|line| {
                    let (key, value) = line.split_once(':')?;
                    key.eq_ignore_ascii_case(name)
                        .then(|| value.trim().to_owned())
                })
            };
            let version = current.lock().unwrap().clone();
            let stated = version.split_once(": ").map_or("", |(_, value)| value);
            let first = value("range")
                .and_then(|text| text.strip_prefix("bytes=")?.strip_suffix('-')?.parse().ok())
                .unwrap_or(0_usize);
            let wanted = value("if-range");
            heard.lock().unwrap().push((first, wanted.clone()));
            let same = wanted.as_deref() == Some(stated) && first < body.len();
            let first = if same { first } else { 0 };
            let rest = &body[first..];
            let mut extra = format!("Content-Length: {}\r\n{version}\r\n", rest.len());
            if first > 0 {
                let (last, all) = (body.len() - 1, body.len());
                extra += &format!("Content-Range: bytes {first}-{last}/{all}\r\n");
            }
            head(
                stream,
                if first > 0 {
                    "206 Partial Content"
                } else {
                    "200 OK"
                },
                &extra,
            )?;
            let cut = left
                .fetch_update(Ordering::SeqCst, Ordering::SeqCst, |left| {
                    left.checked_sub(1)
                })
                .is_ok();
            stream.write_all(if cut {
                &rest[..PART.min(rest.len())]
            } else {
                rest
            })
        });
        Self {
            server,
            asked,
            cuts,
            version,
        }
    }

    fn cut(&self, times: usize) {
        self.cuts.store(times, Ordering::SeqCst);
    }

    fn now_has(&self, version: &str) {
        version.clone_into(&mut self.version.lock().unwrap());
    }

    /// What was asked for since the last time.
    fn asked(&self) -> Vec<Asked> {
        std::mem::take(&mut self.asked.lock().unwrap())
    }

    fn firsts(&self) -> Vec<usize> {
        self.asked().into_iter().map(|(first, _)| first).collect()
    }
}

#[tokio::test]
async fn a_download_that_breaks_off_is_continued_where_it_ended() {
    for version in [
        "ETag: \"one\"",
        "Last-Modified: Thu, 26 Nov 2026 10:00:00 GMT",
    ] {
        let host = Host::new();
        // Zeros at every place where it breaks: they are holes, and still there.
        let mut bytes = noise(MIB);
        bytes[PART - 150_000..PART].fill(0);
        let web = Breaking::new(&bytes, 2);
        web.now_has(version);
        let image = image(&web.server.url("/image"), &bytes, ImageFormat::Raw);
        host.fetch(&image).await.unwrap();
        let stated = version.split_once(": ").map(|(_, value)| value.to_owned());
        assert_eq!(
            web.asked(),
            [(0, None), (PART, stated.clone()), (2 * PART, stated)]
        );
        assert_eq!(fs::read(host.paths.image(&image)).unwrap(), bytes);
        assert_eq!(host.image_files(), [image.sha256.as_str()]);
    }
}

#[tokio::test]
async fn another_version_or_a_server_without_ranges_is_fetched_from_the_beginning() {
    let host = Host::with(|options| options.max_resumes = 0);
    let bytes = noise(MIB);
    let web = Breaking::new(&bytes, 1);
    let image = image(&web.server.url("/image"), &bytes, ImageFormat::Raw);
    let broken = ["reading stopped after 300000 bytes of 1048576"];
    fails(
        host.fetch(&image).await,
        FaultCode::ImageUnreachable,
        true,
        &broken,
    );
    // What can be continued stays, with the mark of its version, and a start of the agent leaves it.
    let kept = [
        format!(".partial-{}", image.sha256),
        format!(".partial-{}.from", image.sha256),
    ];
    host.storage.sweep().await.unwrap();
    assert_eq!(host.image_files(), kept);
    assert!(!host.storage.has_image(&image).await.unwrap());
    let mark = fs::read_to_string(host.paths.images.join(&kept[1])).unwrap();
    assert!(!mark.contains("http"), "a URL may hold a password: {mark}");

    web.now_has("ETag: \"two\"");
    web.cut(1);
    fails(
        host.fetch(&image).await,
        FaultCode::ImageUnreachable,
        true,
        &broken,
    );
    web.now_has("ETag: W/\"weak\"");
    web.cut(1);
    fails(
        host.fetch(&image).await,
        FaultCode::ImageUnreachable,
        true,
        &broken,
    );
    assert_eq!(host.image_files(), [""; 0], "nothing could be continued");
    assert_eq!(web.firsts(), [0, PART, PART]);

    // Another server is not asked for the rest of what the first one sent.
    web.now_has("ETag: \"one\"");
    web.cut(1);
    fails(
        host.fetch(&image).await,
        FaultCode::ImageUnreachable,
        true,
        &broken,
    );
    let elsewhere = ImageRef {
        url: web.server.url("/elsewhere").parse().unwrap(),
        ..image.clone()
    };
    host.fetch(&elsewhere).await.unwrap();
    assert_eq!(web.firsts(), [0, 0]);
    assert_eq!(host.image_files(), [image.sha256.as_str()]);
}

#[tokio::test]
async fn what_is_left_of_a_download_is_verified_like_everything_else() {
    let host = Host::with(|options| options.max_resumes = 0);
    let bytes = noise(MIB);
    let web = Breaking::new(&bytes, 1);
    let image = image(&web.server.url("/image"), &bytes, ImageFormat::Raw);
    host.fetch(&image).await.unwrap_err();
    let partial = host.paths.images.join(format!(".partial-{}", image.sha256));
    let mut damaged = fs::read(&partial).unwrap();
    damaged[1000] ^= 1;
    fs::write(&partial, damaged).unwrap();
    host.fetch(&image).await.unwrap();
    assert_eq!(web.firsts(), [0, PART, 0]);
    assert_eq!(fs::read(host.paths.image(&image)).unwrap(), bytes);

    // One whose sum is wrong for good is deleted, however it came together.
    let wrong = ImageRef {
        sha256: sum(b"other"),
        ..image.clone()
    };
    web.cut(1);
    host.fetch(&wrong).await.unwrap_err();
    assert_eq!(host.image_files().len(), 3);
    fails(
        host.fetch(&wrong).await,
        FaultCode::ImageChecksum,
        false,
        &["does not have the sha256"],
    );
    assert_eq!(host.image_files(), [image.sha256.as_str()]);

    // One that nobody went on with for long is swept.
    web.cut(1);
    host.fetch(&wrong).await.unwrap_err();
    let partial = host.paths.images.join(format!(".partial-{}", wrong.sha256));
    let old = std::time::SystemTime::now() - Duration::from_secs(48 * 3600);
    fs::File::options()
        .write(true)
        .open(&partial)
        .unwrap()
        .set_modified(old)
        .unwrap();
    host.storage.sweep().await.unwrap();
    assert_eq!(host.image_files(), [image.sha256.as_str()]);
}

#[tokio::test]
async fn a_killed_agents_download_is_continued() {
    let host = Host::new();
    let bytes = noise(4 * MIB);
    let (gate, body) = (Gate::default(), bytes.clone());
    let (shut, asked) = (gate.clone(), Arc::<Mutex<Vec<String>>>::default());
    let heard = Arc::clone(&asked);
    let server = Server::hearing(move |_, headers, stream| {
        let range = headers
            .iter()
            .find(|line| line.to_lowercase().starts_with("range: bytes="));
        let Some(range) = range else {
            let length = body.len();
            head(
                stream,
                "200 OK",
                &format!("Content-Length: {length}\r\nETag: \"e\"\r\n"),
            )?;
            stream.write_all(&body[..body.len() / 2])?;
            shut.wait();
            return Ok(());
        };
        heard.lock().unwrap().push(range.clone());
        let digits: String = range.chars().filter(char::is_ascii_digit).collect();
        let (first, all): (usize, usize) = (digits.parse().unwrap(), body.len());
        let extra = format!(
            "Content-Range: bytes {first}-{}/{all}\r\nContent-Length: {}\r\n",
            all - 1,
            all - first
        );
        head(stream, "206 Partial Content", &extra)?;
        stream.write_all(&body[first..])
    });
    let image = image(&server.url("/image"), &bytes, ImageFormat::Raw);
    let mut victim = victim_of(&host, &image);
    let partial = host.paths.images.join(format!(".partial-{}", image.sha256));
    wait_for("half of the image", || {
        fs::metadata(&partial).is_ok_and(|file| file.len() >= MIB)
    })
    .await;
    victim.kill().unwrap();
    victim.wait().unwrap();
    gate.open();
    host.storage.sweep().await.unwrap();
    let half = fs::metadata(&partial).unwrap().len();
    host.fetch(&image).await.unwrap();
    assert_eq!(fs::read(host.paths.image(&image)).unwrap(), bytes);
    let asked = asked.lock().unwrap();
    assert_eq!(asked.len(), 1, "{asked:?}");
    assert!(asked[0].ends_with(&format!("bytes={half}-")), "{asked:?}");
    assert_eq!(host.image_files(), [image.sha256.as_str()]);
}

// ------------------------------------------------------------------------------------------------ conversion

#[tokio::test]
async fn images_of_other_tools_become_disks_with_their_content() {
    let host = Host::new();
    let content = noise(3 * MIB);
    for (format, options) in [
        (ImageFormat::Vmdk, &[][..]),
        (ImageFormat::Vmdk, &["-o", "subformat=streamOptimized"]),
        (ImageFormat::Vdi, &[]),
        (ImageFormat::Vdi, &["-o", "static=on"]),
        (ImageFormat::Vhdx, &[]),
        (ImageFormat::Vhdx, &["-o", "subformat=fixed"]),
    ] {
        let bytes = converted(&host, &content, format, options);
        let server = {
            let body = bytes.clone();
            Server::new(move |_, stream| whole(stream, &body))
        };
        let image = image(&server.url("/image"), &bytes, format);
        assert!(!host.storage.has_image(&image).await.unwrap());
        let (progress, _told) = watch::channel(None);
        for _ in 0..2 {
            host.storage.fetch_image(&image, &progress).await.unwrap();
        }
        assert_eq!(server.hits(), 1);
        assert!(host.storage.has_image(&image).await.unwrap());
        let name = format!("{}.{}.qcow2", image.sha256, format.as_str());
        assert!(
            host.image_files().contains(&name),
            "{:?}",
            host.image_files()
        );
        let metadata = fs::metadata(host.paths.image(&image)).unwrap();
        assert_eq!(
            (metadata.mode() & 0o7777, metadata.uid(), metadata.gid()),
            (0o444, 0, 0)
        );
        let id = InstanceId::new();
        let plan = host.plan(id, &image, 16 * MIB);
        host.create(&plan).await.unwrap();
        let disk = content_of(&plan.path);
        assert_eq!(disk.len(), 16 << 20);
        assert!(disk.starts_with(&content), "{format:?} {options:?}");
        let metadata = fs::metadata(&plan.path).unwrap();
        assert_eq!((metadata.mode() & 0o7777, metadata.uid()), (0o600, 0));

        // The same bytes under another name of a format are another image, and not a good one.
        for other in [ImageFormat::Raw, ImageFormat::Qcow2, ImageFormat::Vdi] {
            let lie = ImageRef {
                format: other,
                ..image.clone()
            };
            if other != format {
                assert!(!host.storage.has_image(&lie).await.unwrap());
                fails(
                    host.fetch(&lie).await,
                    FaultCode::ImageRefused,
                    false,
                    &[&format!("declared {}, but it is a", other.as_str())],
                );
            }
        }
    }
    assert_eq!(host.image_files().len(), 6);
    let calls = host.calls();
    assert_eq!(calls.len(), 12, "{calls:?}");
    for call in calls.iter().filter(|call| call.starts_with("convert")) {
        assert!(
            call.contains(" -f v") && call.contains(" -O qcow2 -- ./.partial-"),
            "{call}"
        );
    }
}

/// Replaces `qemu-img` by a script of the test's.
fn qemu_img(host: &Host, script: &str) {
    install(&host.tool("qemu-img"), &format!("#!/bin/sh\n{script}\n"));
}

#[tokio::test]
async fn qemu_img_has_no_rights_and_its_output_is_not_trusted() {
    let host = Host::new();
    let bytes = converted(&host, &noise(MIB), ImageFormat::Vmdk, &[]);
    let image = image(
        &format!("file://{}", host.file("image", &bytes).display()),
        &bytes,
        ImageFormat::Vmdk,
    );
    let log = host.tool("qemu-img.log");
    let other = own_image(&host, "other", MIB);
    host.fetch(&other).await.unwrap();
    qemu_img(
        &host,
        &format!(
            "cat /proc/self/status /proc/self/limits /proc/net/dev > {0}; ls -A . / >> {0} 2>&1; \
             for file; do :; done; echo no image > $file",
            log.display()
        ),
    );
    fails(
        host.fetch(&image).await,
        FaultCode::ImageRefused,
        false,
        &["declared qcow2", "does not start with qcow2's magic number"],
    );
    assert_eq!(host.image_files(), [other.sha256.as_str()]);
    let seen = fs::read_to_string(&log).unwrap();
    let value = |name: &str| {
        let line = seen.lines().find(|line| line.starts_with(name)).unwrap();
        line[name.len()..]
            .split_whitespace()
            .map(str::to_owned)
            .collect::<Vec<_>>()
    };
    let nobody = nix::unistd::User::from_name("nobody").unwrap().unwrap();
    assert_eq!(value("Uid:"), vec![nobody.uid.to_string(); 4], "{seen}");
    assert_eq!(value("Gid:"), vec![nobody.gid.to_string(); 4], "{seen}");
    for set in ["CapPrm:", "CapEff:", "CapBnd:", "CapAmb:"] {
        assert_eq!(value(set), ["0000000000000000"], "{seen}");
    }
    assert_eq!(value("NoNewPrivs:"), ["1"]);
    assert_eq!(value("Max address space")[0], (2_u64 << 30).to_string());
    assert_eq!(value("Max cpu time")[0], "3600");
    assert_eq!(
        value("Max file size")[0],
        (MIB + MIB / 4096 + 4 * MIB).to_string()
    );
    assert_eq!(value("Max core file size")[0], "0");
    // What it reads and what it writes, and not the other image.
    let begins = |prefix: &str| seen.lines().filter(|line| line.starts_with(prefix)).count();
    assert_eq!((begins(".partial-"), begins(".tmp-")), (1, 1), "{seen}");
    assert!(!seen.contains(other.sha256.as_str()), "{seen}");
    assert!(
        seen.lines().any(|line| line == "usr") && !seen.lines().any(|line| line == "root"),
        "{seen}"
    );
    let others = seen
        .lines()
        .filter(|line| line.trim_start().starts_with("eth"));
    assert_eq!(others.count(), 0, "{seen}");

    // One that makes another disk, one that hangs, one that fails, one that is told to be root.
    qemu_img(
        &host,
        "for file; do :; done; exec /usr/bin/qemu-img create -q -f qcow2 $file 77M",
    );
    fails(
        host.fetch(&image).await,
        FaultCode::ImageRefused,
        false,
        &["made a disk of", "and its header states"],
    );
    let impatient = Host::with(|options| options.convert_deadline = Duration::from_secs(3));
    qemu_img(
        &impatient,
        "for file; do :; done; echo half > $file; sleep 600",
    );
    fails(
        impatient.fetch(&image).await,
        FaultCode::Internal,
        true,
        &["could not be converted to qcow2", "was killed after 3 s"],
    );
    assert_eq!(impatient.image_files(), [""; 0]);
    qemu_img(&host, "echo 'the image is damaged' >&2; exit 1");
    fails(
        host.fetch(&image).await,
        FaultCode::ImageRefused,
        false,
        &["could not be converted to qcow2", "the image is damaged"],
    );
    assert_eq!(host.image_files(), [other.sha256.as_str()]);
    for (user, part) in [
        ("root", "must run as a user without rights"),
        ("nosuchuser", "there is no user"),
    ] {
        let other = Host::with(|options| options.qemu_img_user = user.to_owned());
        fails(
            other.fetch(&image).await,
            FaultCode::Internal,
            true,
            &[part],
        );
        assert_eq!(other.calls(), [""; 0]);
    }
    qemu_img(&host, "exec /usr/bin/qemu-img \"$@\"");
    host.fetch(&image).await.unwrap();
}

#[tokio::test]
async fn a_conversion_tells_how_far_it_is_and_stops_when_nobody_waits() {
    let host = Host::new();
    let bytes = converted(&host, &noise(MIB), ImageFormat::Vdi, &[]);
    let image = image(
        &format!("file://{}", host.file("image", &bytes).display()),
        &bytes,
        ImageFormat::Vdi,
    );
    qemu_img(
        &host,
        "printf '    (42.50/100%%)\\r'; sleep 600 & echo $! > $(dirname $0)/qemu-img.log; wait",
    );
    let (progress, mut told) = watch::channel(None);
    let (storage, wanted) = (host.storage.clone(), image.clone());
    let waiter = tokio::spawn(async move { storage.fetch_image(&wanted, &progress).await });
    let told = told.wait_for(|text| text.as_deref() == Some("converting the image, 42 %"));
    tokio::time::timeout(LIMIT, told).await.unwrap().unwrap();
    wait_for("the tool's child", || !host.calls().is_empty()).await;
    waiter.abort();
    assert!(waiter.await.unwrap_err().is_cancelled());
    let child = format!("/proc/{}", host.calls()[0]);
    wait_for("the end of the tool", || !Path::new(&child).exists()).await;
    wait_for("an empty cache", || host.image_files().is_empty()).await;
}

// ------------------------------------------------------------------------------------------------ servers and files

#[tokio::test]
async fn servers_that_fail_are_told_apart() {
    let host = Host::with(|options| {
        // Most servers answer at once, and only for two of them is it waited out.
        options.read_timeout = Duration::from_secs(3);
        options.max_image = ByteCount::clamped(4 * MIB);
    });
    let bytes = noise(MIB);
    let body = bytes.clone();
    let silent = Gate::default();
    let held = silent.clone();
    let server = Server::new(move |path, stream| match path {
        "/missing" => head(stream, "404 Not Found", "Content-Length: 0\r\n"),
        "/private" => head(stream, "403 Forbidden", "Content-Length: 0\r\n"),
        "/down" => head(stream, "503 Service Unavailable", "Content-Length: 0\r\n"),
        "/to-file" => head(
            stream,
            "302 Found",
            "Location: file:///etc/passwd\r\nContent-Length: 0\r\n",
        ),
        "/to-ftp" => head(
            stream,
            "302 Found",
            "Location: ftp://127.0.0.1/x\r\nContent-Length: 0\r\n",
        ),
        "/circle" => head(
            stream,
            "302 Found",
            "Location: /circle\r\nContent-Length: 0\r\n",
        ),
        "/moved" => head(
            stream,
            "301 Moved Permanently",
            "Location: /good\r\nContent-Length: 0\r\n",
        ),
        "/good" => whole(stream, &body),
        "/cut" => {
            head(
                stream,
                "200 OK",
                &format!("Content-Length: {}\r\n", body.len()),
            )?;
            stream.write_all(&body[..1000])
        }
        "/longer" => {
            head(stream, "200 OK", "Content-Length: 1000\r\n")?;
            stream.write_all(&body)
        }
        "/huge" => head(stream, "200 OK", "Content-Length: 99999999999999\r\n"),
        "/endless" => {
            head(stream, "200 OK", "")?;
            loop {
                stream.write_all(&[7; 65536])?;
            }
        }
        "/stalls" => {
            head(
                stream,
                "200 OK",
                &format!("Content-Length: {}\r\n", body.len()),
            )?;
            stream.write_all(&body[..1000])?;
            held.wait();
            Ok(())
        }
        "/silent" => {
            held.wait();
            Ok(())
        }
        _ => stream.write_all(b"this is not HTTP\r\n\r\n"),
    });
    // Nobody listens there, and nobody else can.
    let deaf = tokio::net::TcpSocket::new_v4().unwrap();
    deaf.bind("127.0.0.1:0".parse().unwrap()).unwrap();
    let closed = format!("http://{}/x", deaf.local_addr().unwrap());
    // A server that speaks HTTP where TLS is expected.
    let plain = TcpListener::bind("127.0.0.1:0").unwrap();
    let tls = format!("https://{}/x", plain.local_addr().unwrap());
    let answering = std::thread::spawn(move || {
        let (mut stream, _) = plain.accept().unwrap();
        head(&mut stream, "400 Bad Request", "").unwrap();
        // Until the client hangs up; how it does that is its own affair.
        let _ = std::io::copy(&mut stream, &mut std::io::sink());
    });
    let unreachable = FaultCode::ImageUnreachable;
    for (url, code, retryable, parts) in [
        (
            server.url("/missing"),
            unreachable,
            false,
            &["/missing", "404 (not found)"][..],
        ),
        (
            server.url("/private"),
            unreachable,
            false,
            &["403 (not allowed"],
        ),
        (server.url("/down"), unreachable, true, &["503"]),
        (
            server.url("/to-file"),
            unreachable,
            false,
            &["only http:// and https:// are followed"],
        ),
        (
            server.url("/to-ftp"),
            unreachable,
            false,
            &["only http:// and https:// are followed"],
        ),
        (
            server.url("/circle"),
            unreachable,
            false,
            &["redirects more than 3 times"],
        ),
        (
            server.url("/cut"),
            unreachable,
            true,
            &["reading stopped after 1000 bytes of 1048576"],
        ),
        (
            server.url("/longer"),
            FaultCode::ImageChecksum,
            false,
            &["does not have the sha256"],
        ),
        (
            server.url("/huge"),
            FaultCode::ImageRefused,
            false,
            &["larger than the 4194304 bytes"],
        ),
        (
            server.url("/endless"),
            FaultCode::ImageRefused,
            false,
            &["larger than the 4194304 bytes"],
        ),
        (
            server.url("/stalls"),
            unreachable,
            true,
            &["reading stopped after 1000 bytes"],
        ),
        (
            server.url("/silent"),
            unreachable,
            true,
            &["takes too long"],
        ),
        (
            server.url("/garbage?token=secret"),
            unreachable,
            true,
            &["/garbage?…", "the exchange with the server failed"],
        ),
        (closed, unreachable, true, &["Connection refused"]),
        (
            "http://no-such-host.invalid/x".to_owned(),
            unreachable,
            true,
            &["no-such-host.invalid"],
        ),
        (tls, unreachable, true, &["no trusted TLS connection"]),
    ] {
        let result = host.fetch(&image(&url, &bytes, ImageFormat::Raw)).await;
        let text = chain(result.as_ref().expect_err(&url));
        assert!(!text.contains("secret"), "{text}");
        fails(result, code, retryable, parts);
        assert_eq!(host.image_files(), [""; 0], "{url}");
    }
    answering.join().unwrap();
    silent.open();
    host.fetch(&image(&server.url("/moved"), &bytes, ImageFormat::Raw))
        .await
        .unwrap();
    assert_eq!(host.image_files().len(), 1, "the next request is served");
}

/// A web server with TLS: `openssl` serves one directory until this is dropped.
struct TlsServer {
    process: std::process::Child,
    port: u16,
}

impl TlsServer {
    /// Makes a certificate authority (`ca.pem`) and a server certificate for 127.0.0.1 there, and serves it.
    fn new(directory: &Path) -> Self {
        let openssl = |line: &str| {
            let output = Command::new("openssl")
                .args(line.split(' '))
                .current_dir(directory)
                .output();
            let output = output.expect("openssl is installed");
            assert!(
                output.status.success(),
                "{line}: {}",
                String::from_utf8_lossy(&output.stderr)
            );
        };
        let key = "-newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days 2";
        openssl(&format!(
            "req -x509 {key} -subj /CN=ca -keyout ca.key -out ca.pem"
        ));
        openssl(&format!(
            "req -x509 {key} -subj /CN=leaf -CA ca.pem -CAkey ca.key -keyout leaf.key -out leaf.pem \
             -addext subjectAltName=IP:127.0.0.1 -addext basicConstraints=critical,CA:FALSE"
        ));
        let mut process = Command::new("openssl")
            .args([
                "s_server",
                "-WWW",
                "-accept",
                "127.0.0.1:0",
                "-cert",
                "leaf.pem",
                "-key",
                "leaf.key",
            ])
            .current_dir(directory)
            .stdin(std::process::Stdio::null())
            .stdout(std::process::Stdio::piped())
            .stderr(std::process::Stdio::null())
            .spawn()
            .unwrap();
        let lines = BufReader::new(process.stdout.take().unwrap())
            .lines()
            .map_while(Result::ok);
        let port = lines
            .filter_map(|line| line.strip_prefix("ACCEPT 127.0.0.1:")?.parse().ok())
            .next();
        Self {
            process,
            port: port.expect("openssl s_server says where it listens"),
        }
    }
}

impl Drop for TlsServer {
    fn drop(&mut self) {
        self.process.kill().unwrap();
        self.process.wait().unwrap();
    }
}

#[tokio::test]
async fn https_trusts_the_authorities_of_the_host_and_no_others() {
    let directory = tempfile::tempdir().unwrap();
    let server = TlsServer::new(directory.path());
    let bytes = noise(MIB);
    fs::write(directory.path().join("image"), &bytes).unwrap();
    let image = image(
        &format!("https://127.0.0.1:{}/image", server.port),
        &bytes,
        ImageFormat::Raw,
    );
    fails(
        Host::new().fetch(&image).await,
        FaultCode::ImageUnreachable,
        true,
        &["no trusted TLS connection"],
    );
    let host = Host::with(|options| options.ca_bundle = directory.path().join("ca.pem"));
    host.fetch(&image).await.unwrap();
    assert_eq!(host.image_files(), [image.sha256.as_str()]);
}

#[tokio::test]
async fn other_bytes_than_promised_are_refused_and_what_they_are_is_not_told() {
    let host = Host::new();
    let server = Server::new(|_, stream| whole(stream, b"what is there"));
    let wanted = image(
        &server.url("/image"),
        b"what was promised",
        ImageFormat::Raw,
    );
    let error = host.fetch(&wanted).await.unwrap_err();
    let text = chain(&error);
    assert!(!text.contains(sum(b"what is there").as_str()), "{text}");
    fails(
        Err(error),
        FaultCode::ImageChecksum,
        false,
        &["does not have the sha256", wanted.sha256.as_str()],
    );
    assert_eq!(host.image_files(), [""; 0]);
}

#[tokio::test]
async fn what_listens_for_the_host_alone_is_not_asked_unless_it_is_allowed() {
    let bytes = noise(MIB);
    let body = bytes.clone();
    let server = Server::new(move |_, stream| whole(stream, &body));
    let port = server.address.port();
    let closed = Host::with(|options| options.image_url_allow.clear());
    for host in [
        "127.0.0.1",
        "localhost",
        "0.0.0.0",
        "2130706433",
        "[::ffff:127.0.0.1]",
        "169.254.169.254",
        "[fe80::1]",
        "[::1]",
    ] {
        let image = image(
            &format!("http://{host}:{port}/image"),
            &bytes,
            ImageFormat::Raw,
        );
        fails(
            closed.fetch(&image).await,
            FaultCode::ImageUnreachable,
            false,
            &["storage.image_url_allow"],
        );
    }
    assert_eq!(server.hits(), 0);
    assert_eq!(closed.image_files(), [""; 0]);
    let open = Host::new();
    let image = image(&server.url("/image"), &bytes, ImageFormat::Raw);
    open.fetch(&image).await.unwrap();
    assert_eq!(server.hits(), 1);
}

#[tokio::test]
async fn a_redirect_to_what_listens_for_the_host_alone_is_not_followed() {
    let secret = Server::at("127.0.0.2:0", |_, _, stream| whole(stream, b"secret"));
    let to = format!("Location: {}\r\nContent-Length: 0\r\n", secret.url("/x"));
    let server = Server::new(move |_, stream| head(stream, "302 Found", &to));
    let host = Host::new();
    let image = image(&server.url("/image"), b"secret", ImageFormat::Raw);
    fails(
        host.fetch(&image).await,
        FaultCode::ImageUnreachable,
        false,
        &["127.0.0.2", "storage.image_url_allow"],
    );
    assert_eq!((server.hits(), secret.hits()), (1, 0));
}

#[tokio::test]
async fn the_sum_of_a_file_of_the_host_is_not_told() {
    let host = Host::new();
    let file = host.file("image", b"what is there");
    let wanted = image(
        &format!("file://{}", file.display()),
        b"what was promised",
        ImageFormat::Raw,
    );
    let error = host.fetch(&wanted).await.unwrap_err();
    let text = chain(&error);
    assert!(text.contains(wanted.sha256.as_str()), "{text}");
    assert!(!text.contains(sum(b"what is there").as_str()), "{text}");
    fails(
        Err(error),
        FaultCode::ImageChecksum,
        false,
        &["does not have the sha256"],
    );
    assert_eq!(host.image_files(), [""; 0]);
}

#[tokio::test]
async fn a_file_that_not_everybody_may_read_is_no_image() {
    let host = Host::new();
    let bytes = noise(MIB);
    let file = host.file("secret", &bytes);
    let link = host.root.join("link");
    symlink(&file, &link).unwrap();
    // Who asks knows its sum already, and still does not get it.
    for (path, mode) in [
        (&file, 0o600),
        (&file, 0o640),
        (&file, 0o100),
        (&link, 0o660),
    ] {
        fs::set_permissions(&file, fs::Permissions::from_mode(mode)).unwrap();
        fails(
            host.fetch(&image(
                &format!("file://{}", path.display()),
                &bytes,
                ImageFormat::Raw,
            ))
            .await,
            FaultCode::ImageUnreachable,
            false,
            &["not everybody on this host may read it", "chmod o+r"],
        );
    }
    // Nor does it learn whether it is empty.
    fs::write(&file, b"").unwrap();
    let wanted = image(&format!("file://{}", file.display()), b"", ImageFormat::Raw);
    fails(
        host.fetch(&wanted).await,
        FaultCode::ImageUnreachable,
        false,
        &["chmod o+r"],
    );
    assert_eq!(host.image_files(), [""; 0]);

    fs::write(&file, &bytes).unwrap();
    fs::set_permissions(&file, fs::Permissions::from_mode(0o604)).unwrap();
    let wanted = image(
        &format!("file://{}", link.display()),
        &bytes,
        ImageFormat::Raw,
    );
    host.fetch(&wanted).await.unwrap();
    assert_eq!(host.image_files(), [wanted.sha256.as_str()]);
}

#[tokio::test]
async fn only_regular_files_outside_of_berths_own_are_images() {
    let host = Host::with(|options| options.read_timeout = Duration::from_secs(1));
    let bytes = noise(MIB);
    let good = image(
        &format!("file://{}", host.file("good", &bytes).display()),
        &bytes,
        ImageFormat::Raw,
    );
    host.fetch(&good).await.unwrap();
    let root = &host.root;
    host.file("empty", b"");
    nix::unistd::mkfifo(&root.join("pipe"), nix::sys::stat::Mode::S_IRWXU).unwrap();
    symlink(host.paths.image(&good), root.join("link")).unwrap();
    for (path, code, part) in [
        (
            root.join("absent"),
            FaultCode::ImageUnreachable,
            "cannot open the file: No such file or directory",
        ),
        (
            root.join("empty"),
            FaultCode::ImageUnreachable,
            "it is empty",
        ),
        (
            root.join("pipe"),
            FaultCode::ImageUnreachable,
            "it is a pipe, and an image must be a regular file",
        ),
        (
            root.to_owned(),
            FaultCode::ImageUnreachable,
            "it is a directory",
        ),
        (
            PathBuf::from("/dev/zero"),
            FaultCode::ImageUnreachable,
            "it is a device",
        ),
        (
            PathBuf::from("/proc/self/mounts"),
            FaultCode::ImageUnreachable,
            "it is empty",
        ),
        (
            host.paths.image(&good),
            FaultCode::ImageUnreachable,
            "where berth keeps its own files",
        ),
        (
            root.join("link"),
            FaultCode::ImageUnreachable,
            "where berth keeps its own files",
        ),
    ] {
        let wanted = image(
            &format!("file://{}", path.display()),
            b"other",
            ImageFormat::Raw,
        );
        fails(host.fetch(&wanted).await, code, false, &[part]);
    }
    let host = Host::with(|options| options.not_below = vec![root.clone()]);
    fails(
        host.fetch(&good).await,
        FaultCode::ImageUnreachable,
        false,
        &["berth keeps its own files"],
    );
}

// ------------------------------------------------------------------------------------------------ hostile images

/// A crafted image: its bytes, what it is declared to be, and what the refusal says.
type Hostile = (Vec<u8>, ImageFormat, &'static str);

fn put(image: &mut [u8], at: usize, bytes: &[u8]) {
    image[at..at + bytes.len()].copy_from_slice(bytes);
}

/// Replaces a line of a VMDK's descriptor, which has room.
fn with_descriptor(image: &[u8], from: &str, to: &str) -> Vec<u8> {
    let (start, end) = (512, 512 + 20 * 512);
    let text = std::str::from_utf8(&image[start..end]).unwrap();
    assert!(text.contains(from), "{from:?} in {text:?}");
    let mut text = text.replace(from, to).into_bytes();
    text.resize(end - start, 0);
    let mut image = image.to_vec();
    put(&mut image, start, &text);
    image
}

/// Writes the sum of a VHDX table anew: CRC-32C of its bytes, with zeros in place of the sum.
fn with_sum(image: &mut [u8], at: usize, count: usize) {
    put(image, at + 4, &[0; 4]);
    let crc = !image[at..at + count].iter().fold(u32::MAX, |crc, byte| {
        (0..8).fold(crc ^ u32::from(*byte), |crc, _| {
            if crc & 1 == 1 {
                (crc >> 1) ^ 0x82f6_3b78
            } else {
                crc >> 1
            }
        })
    });
    put(image, at + 4, &crc.to_le_bytes());
}

/// Images that are not what they say, or lead to other files: `secret` is one of the host's own.
fn hostile_images(host: &Host, secret: &Path) -> Vec<Hostile> {
    use ImageFormat::{Qcow2, Raw, Vdi, Vhdx, Vmdk};
    let secret = secret.to_str().unwrap();
    let good_qcow2 = qcow2(host, &[]);
    let changed = |image: &[u8], change: &dyn Fn(&mut Vec<u8>)| {
        let mut image = image.to_vec();
        change(&mut image);
        image
    };
    let content = noise(MIB);
    let [vmdk, vdi, vhdx] = [Vmdk, Vdi, Vhdx].map(|format| converted(host, &content, format, &[]));
    let extent = "RW 2048 SPARSE \"made.image\"";
    let descriptor = format!(
        "# Disk DescriptorFile\nversion=1\nCID=fffffffe\nparentCID=ffffffff\ncreateType=\"monolithicFlat\"\n\
         RW 2048 FLAT \"{secret}\" 0\n"
    );
    let metadata = 3 << 20;
    let mut images = vec![
        (
            qcow2(host, &["-u", "-F", "raw", "-b", secret]),
            Qcow2,
            "names a backing file (\"",
        ),
        (
            qcow2(host, &["-o", "data_file=data"]),
            Qcow2,
            "external data file (\"data\")",
        ),
        (
            good_qcow2.clone(),
            Raw,
            "declared raw, but it is a qcow2 image",
        ),
        (good_qcow2[..300].to_vec(), Qcow2, "cut off"),
        (
            changed(&good_qcow2, &|image| image[79] = 2),
            Qcow2,
            "corrupt",
        ),
        (
            noise(MIB),
            Qcow2,
            "does not start with qcow2's magic number",
        ),
        // A disk of 8 EiB, and one whose tables cannot be in so small a file.
        (
            changed(&good_qcow2, &|image| put(image, 24, &[0x7f, 0xff])),
            Qcow2,
            "l1_size",
        ),
        (
            changed(&good_qcow2, &|image| {
                put(image, 36, &(1_u32 << 21).to_be_bytes())
            }),
            Qcow2,
            "cut off: its L1 table",
        ),
        (
            with_descriptor(&vmdk, extent, &format!("RW 2048 FLAT \"{secret}\" 0")),
            Vmdk,
            "its only extent must be the file itself",
        ),
        (
            with_descriptor(
                &vmdk,
                extent,
                &format!("{extent}\nRW 2048 FLAT \"{secret}\" 0"),
            ),
            Vmdk,
            "its only extent must be the file itself",
        ),
        (
            with_descriptor(
                &vmdk,
                extent,
                &format!("{extent}\nparentFileNameHint=\"{secret}\""),
            ),
            Vmdk,
            "the difference to a parent",
        ),
        // With a capacity of 0, QEMU would believe the descriptor.
        (
            changed(&vmdk, &|image| put(image, 12, &[0; 8])),
            Vmdk,
            "the capacity is 0",
        ),
        (
            descriptor.clone().into_bytes(),
            Vmdk,
            "it is a VMDK descriptor",
        ),
        (
            descriptor.into_bytes(),
            Raw,
            "declared raw, but it is a VMDK descriptor",
        ),
        (vmdk.clone(), Raw, "declared raw, but it is a VMDK image"),
        (vmdk[..4096].to_vec(), Vmdk, "cut off"),
        (vdi.clone(), Vmdk, "declared vmdk, but it is a VDI image"),
        (
            changed(&vdi, &|image| put(image, 0x1b8, &[1; 16])),
            Vdi,
            "the difference to a parent",
        ),
        (
            changed(&vdi, &|image| {
                put(image, 0x170, &(1_u64 << 50).to_le_bytes())
            }),
            Vdi,
            "the number of blocks",
        ),
        (vdi[..700].to_vec(), Vdi, "cut off"),
        (vhdx.clone(), Vdi, "declared vdi, but it is a VHDX image"),
        (vhdx[..1 << 20].to_vec(), Vhdx, "cut off"),
    ];
    // Every header of the VHDX tells of a log; then it has a parent.
    images.push((
        changed(&vhdx, &|image| {
            for at in [64 << 10, 128 << 10] {
                put(image, at + 48, &[5; 16]);
                with_sum(image, at, 4096);
            }
        }),
        Vhdx,
        "its log must be replayed",
    ));
    images.push((
        changed(&vhdx, &|image| {
            let at = metadata + 32 + 16;
            let offset = u32::from_le_bytes(image[at..at + 4].try_into().unwrap());
            image[metadata + usize::try_from(offset).unwrap() + 4] |= 2;
        }),
        Vhdx,
        "the difference to a parent",
    ));
    images
}

#[tokio::test]
async fn hostile_images_are_refused_before_qemu_img_sees_them() {
    let host = Host::new();
    let secret = host.file("secret", &noise(MIB));
    let hostile_images = hostile_images(&host, &secret);
    assert!(hostile_images.len() >= 12);
    for (bytes, format, part) in hostile_images {
        let path = host.file("hostile", &bytes);
        let hostile = image(&format!("file://{}", path.display()), &bytes, format);
        fails(
            host.fetch(&hostile).await,
            FaultCode::ImageRefused,
            false,
            &[part, "/hostile was refused"],
        );
        assert_eq!(host.image_files(), [""; 0]);
        let id = InstanceId::new();
        fails(
            host.create(&host.plan(id, &hostile, 1 << 30)).await,
            FaultCode::Internal,
            true,
            &["not in the cache"],
        );
        assert_eq!(
            host.storage.observe(id).await.unwrap(),
            InstanceFiles::default()
        );
    }
    assert_eq!(host.calls(), [""; 0]);
}

#[tokio::test]
async fn an_image_that_unpacks_to_more_than_is_allowed_is_stopped() {
    let host = Host::with(|options| options.max_image = ByteCount::clamped(8 * MIB));
    let bytes = converted(
        &host,
        &vec![0x55; 64 << 20],
        ImageFormat::Vmdk,
        &["-o", "subformat=streamOptimized"],
    );
    assert!(bytes.len() < 1 << 20, "{} bytes", bytes.len());
    let bomb = image(
        &format!("file://{}", host.file("bomb", &bytes).display()),
        &bytes,
        ImageFormat::Vmdk,
    );
    fails(
        host.fetch(&bomb).await,
        FaultCode::ImageRefused,
        false,
        &["becomes larger than 8388608 bytes"],
    );
    assert_eq!(host.image_files(), [""; 0]);
    assert_eq!(host.calls().len(), 1);
}

/// Not a test of its own: the process that [`nothing_outside_of_the_pool_is_opened`] watches.
#[tokio::test]
#[ignore = "another test runs it under strace, with its environment"]
async fn watched() {
    let (Ok(root), Ok(images)) = (
        std::env::var("BERTH_TEST_ROOT"),
        std::env::var("BERTH_TEST_IMAGES"),
    ) else {
        return;
    };
    let host = Host::at(Path::new(&root), |options| {
        options.qemu_img = PathBuf::from("/usr/bin/qemu-img");
    });
    let images: Vec<ImageRef> = serde_json::from_str(&images).unwrap();
    for image in &images {
        if host.fetch(image).await.is_ok() {
            let plan = host.plan(InstanceId::new(), image, 1 << 30);
            host.create(&plan).await.unwrap();
        }
    }
}

#[test]
fn nothing_outside_of_the_pool_is_opened() {
    let host = Host::new();
    let sources = tempfile::tempdir().unwrap();
    let secret = directory_path(&sources).join("secret");
    fs::write(&secret, noise(MIB)).unwrap();
    let store = |name: String, bytes: &[u8], format| {
        let path = directory_path(&sources).join(name);
        fs::write(&path, bytes).unwrap();
        image(&format!("file://{}", path.display()), bytes, format)
    };
    let mut images = Vec::new();
    for (index, (bytes, format, _)) in hostile_images(&host, &secret).iter().enumerate() {
        images.push(store(format!("hostile{index}"), bytes, *format));
    }
    let hostile = images.len();
    for format in [
        ImageFormat::Qcow2,
        ImageFormat::Vmdk,
        ImageFormat::Vdi,
        ImageFormat::Vhdx,
    ] {
        let bytes = converted(&host, &noise(MIB), format, &[]);
        images.push(store(format!("good-{}", format.as_str()), &bytes, format));
    }
    let log = directory_path(&sources).join("strace.log");
    let status = Command::new("strace")
        .args([
            "-f",
            "-qq",
            "-s",
            "4096",
            "-e",
            "trace=open,openat,openat2,creat",
            "-o",
        ])
        .arg(&log)
        .arg(std::env::current_exe().unwrap())
        .args(["--exact", "watched", "--ignored"])
        .env("BERTH_TEST_ROOT", &host.root)
        .env("BERTH_TEST_IMAGES", serde_json::to_string(&images).unwrap())
        .stdout(std::process::Stdio::null())
        .status()
        .expect("strace is installed");
    assert!(status.success(), "{status}");
    assert_eq!(names(&host.paths.instances).len(), images.len() - hostile);

    let state = host.paths.images.parent().unwrap().to_str().unwrap();
    let source = directory_path(&sources);
    let is_source = |path: &str| {
        images
            .iter()
            .any(|image| image.url.as_str() == format!("file://{path}"))
    };
    // Libraries and what they ask the system, the test's own program, and files of the agent's own choice.
    let system = [
        "/lib/",
        "/lib64/",
        "/usr/lib/",
        "/etc/ld.so",
        "/proc/",
        "/sys/",
        "/dev/null",
        "/dev/urandom",
        "/etc/passwd",
        "/etc/group",
        "/etc/nsswitch.conf",
        "/usr/share/",
        "/etc/localtime",
    ];
    let (mut opened, mut converted) = (0, 0);
    for line in fs::read_to_string(&log).unwrap().lines() {
        let Some(path) = line.split('"').nth(1) else {
            continue;
        };
        assert!(!path.contains("secret"), "{line}");
        // Relative to the directory of images, or of one instance.
        let own = path.starts_with("./.partial-") || path.starts_with("./.tmp-");
        let in_pool = path.starts_with(state) || own;
        let harness = path == host.root.to_str().unwrap()
            || path.starts_with(host.tool("").to_str().unwrap())
            || path.starts_with(env!("CARGO_MANIFEST_DIR"));
        let from_system = system.iter().any(|prefix| path.starts_with(prefix));
        let missing = line.contains("ENOENT");
        // Only shown to a tool that may then open it.
        let from_system = from_system || line.contains("O_PATH");
        assert!(
            in_pool || is_source(path) || from_system || harness || missing,
            "opened outside of {state}, {}: {line}",
            source.display()
        );
        opened += usize::from(in_pool || is_source(path));
        converted += usize::from(own && path.starts_with("./.partial-"));
    }
    assert!(
        opened > images.len() && converted >= 3,
        "{opened} {converted}: strace saw too little"
    );
}

#[tokio::test]
async fn a_cached_image_is_inspected_again_for_every_stated_format() {
    let host = Host::new();
    let bytes = noise(MIB);
    let raw = image(
        &format!("file://{}", host.file("raw", &bytes).display()),
        &bytes,
        ImageFormat::Raw,
    );
    host.fetch(&raw).await.unwrap();
    let lie = ImageRef {
        format: ImageFormat::Qcow2,
        ..raw.clone()
    };
    let id = InstanceId::new();
    fails(
        host.fetch(&lie).await,
        FaultCode::ImageRefused,
        false,
        &["declared qcow2"],
    );
    fails(
        host.create(&host.plan(id, &lie, 1 << 30)).await,
        FaultCode::ImageRefused,
        false,
        &["declared qcow2"],
    );
    assert_eq!(host.calls(), [""; 0]);
    assert!(!host.paths.instance(id).exists());
    assert!(
        host.storage.has_image(&raw).await.unwrap(),
        "the image is still good for others"
    );
    host.create(&host.plan(id, &raw, 1 << 30)).await.unwrap();
}

#[tokio::test]
async fn a_disk_smaller_than_its_image_is_refused_with_the_numbers() {
    let host = Host::new();
    let bytes = qcow2(&host, &[]);
    let image = image(
        &format!("file://{}", host.file("image", &bytes).display()),
        &bytes,
        ImageFormat::Qcow2,
    );
    host.fetch(&image).await.unwrap();
    let id = InstanceId::new();
    let plan = host.plan(id, &image, 32 * MIB);
    let parts = ["33554432 bytes", "67108864 B", "at least 1 GB"];
    fails(
        host.create(&plan).await,
        FaultCode::ImageRefused,
        false,
        &parts,
    );
    let elsewhere = DiskPlan {
        path: host.root.join("disk"),
        ..host.plan(id, &image, 1 << 30)
    };
    fails(
        host.create(&elsewhere).await,
        FaultCode::Internal,
        false,
        &["the plan says"],
    );
    assert!(!host.paths.instance(id).exists());
    assert_eq!(host.calls(), [""; 0]);
}

// ---------------------------------------------------------------------------------------------- trouble on the host

#[test]
fn a_full_disk_during_a_download_is_survived() {
    on_a_small_file_system("16m", |root| async move {
        let host = Host::at(&root, |_| ());
        let bytes = noise(4 * MIB);
        let body = bytes.clone();
        let server = Server::new(move |path, stream| {
            if path == "/stated" {
                return whole(stream, &body);
            }
            // No length: only writing shows that there is no room.
            head(stream, "200 OK", "")?;
            stream.write_all(&body)
        });
        let stated = image(&server.url("/stated"), &bytes, ImageFormat::Raw);
        let unstated = image(&server.url("/unstated"), &bytes, ImageFormat::Raw);
        let before = room(&root);
        let filler = fill_up(&root, 2 * MIB);
        fails(
            host.fetch(&stated).await,
            FaultCode::DiskFull,
            true,
            &["has 4194304 bytes", "has room for 20"],
        );
        // Nothing of a refused download stays promised.
        fails(
            host.fetch(&stated).await,
            FaultCode::DiskFull,
            true,
            &["has room for 20", " 0 are promised"],
        );
        fails(
            host.fetch(&unstated).await,
            FaultCode::DiskFull,
            true,
            &["was stopped", "is full"],
        );
        assert_eq!(host.image_files(), [""; 0]);
        fs::remove_file(filler).unwrap();
        room_again(&root, before).await;
        host.fetch(&unstated).await.unwrap();
        assert_eq!(host.image_files(), [stated.sha256.as_str()]);
    });
}

#[test]
fn an_endless_download_leaves_guests_room_to_grow() {
    on_a_small_file_system("16m", |root| async move {
        for (keep_free, kept) in [((4 * MIB, 1), 4 * MIB), ((MIB, 50), 8 * MIB)] {
            let host = Host::at(&root, |options| {
                options.keep_free = KeepFree {
                    bytes: ByteCount::clamped(keep_free.0),
                    percent: keep_free.1,
                };
            });
            let lowest = Arc::new(Mutex::new(u64::MAX));
            let (seen, watched) = (Arc::clone(&lowest), root.clone());
            let server = Server::new(move |_, stream| {
                head(stream, "200 OK", "")?;
                let piece = noise(MIB / 8);
                loop {
                    stream.write_all(&piece)?;
                    let mut lowest = seen.lock().unwrap();
                    *lowest = room(&watched).min(*lowest);
                }
            });
            let endless = image(&server.url("/"), b"never", ImageFormat::Raw);
            fails(
                host.fetch(&endless).await,
                FaultCode::DiskFull,
                true,
                &["was stopped", &format!("{kept} bytes that are kept free")],
            );
            let lowest = *lowest.lock().unwrap();
            assert!(lowest >= kept, "{lowest} bytes were free, not {kept}");
            assert_eq!(host.image_files(), [""; 0]);
        }
    });
}

#[test]
fn downloads_that_run_count_before_their_bytes_arrive() {
    on_a_small_file_system("16m", |root| async move {
        let host = Host::at(&root, |_| ());
        let bytes = noise(10 * MIB);
        let (gate, body) = (Gate::default(), bytes.clone());
        let opened = gate.clone();
        let server = Server::new(move |path, stream| match path {
            "/slow" => {
                head(
                    stream,
                    "200 OK",
                    &format!("Content-Length: {}\r\n", body.len()),
                )?;
                opened.wait();
                stream.write_all(&body)
            }
            "/other" => whole(stream, &body[1..]),
            _ => {
                head(stream, "200 OK", "")?;
                stream.write_all(&body[2..])
            }
        });
        let slow = image(&server.url("/slow"), &bytes, ImageFormat::Raw);
        let other = image(&server.url("/other"), &bytes[1..], ImageFormat::Raw);
        let unstated = image(&server.url("/unstated"), &bytes[2..], ImageFormat::Raw);
        let before = room(&root);
        let (storage, wanted) = (host.storage.clone(), slow.clone());
        let (progress, mut told) = watch::channel(None);
        let running = tokio::spawn(async move { storage.fetch_image(&wanted, &progress).await });
        // It tells of bytes once its room is promised.
        let started = told.wait_for(|text| text.as_deref() == Some("downloading the image, 0 %"));
        tokio::time::timeout(LIMIT, started).await.unwrap().unwrap();
        let promised = format!("{} are promised to other downloads", 10 * MIB);
        fails(
            host.fetch(&other).await,
            FaultCode::DiskFull,
            true,
            &[&promised],
        );
        fails(
            host.fetch(&unstated).await,
            FaultCode::DiskFull,
            true,
            &["was stopped"],
        );
        room_again(&root, before).await;
        gate.open();
        running.await.unwrap().unwrap();
        assert_eq!(host.image_files(), [slow.sha256.as_str()]);
    });
}

#[test]
fn a_full_disk_while_an_image_is_converted_is_survived() {
    on_a_small_file_system("16m", |root| async move {
        for keep in [0, 2 * MIB] {
            let host = Host::at(&root, |options| {
                options.keep_free.bytes = ByteCount::clamped(keep)
            });
            let sources = tempfile::tempdir().unwrap();
            fs::write(sources.path().join("raw"), vec![0x55; 10 << 20]).unwrap();
            let (raw, vmdk) = (sources.path().join("raw"), sources.path().join("vmdk"));
            let status = Command::new("qemu-img")
                .args([
                    "convert",
                    "-f",
                    "raw",
                    "-O",
                    "vmdk",
                    "-o",
                    "subformat=streamOptimized",
                ])
                .args([&raw, &vmdk])
                .status()
                .unwrap();
            assert!(status.success());
            let bytes = fs::read(&vmdk).unwrap();
            let image = image(
                &format!("file://{}", vmdk.display()),
                &bytes,
                ImageFormat::Vmdk,
            );
            // Room for what is fetched, and for half of what that becomes.
            let before = room(&root);
            let filler = fill_up(&root, 6 * MIB);
            if keep > 0 {
                // One that is slow enough to be seen: it takes what room there is, and stays.
                qemu_img(
                    &host,
                    "for file; do :; done; head -c 5000000 /dev/zero | tr '\\0' x > $file; sleep 600",
                );
            }
            let part = if keep == 0 {
                "No space left on device"
            } else {
                "was stopped"
            };
            fails(host.fetch(&image).await, FaultCode::DiskFull, true, &[part]);
            assert_eq!(host.image_files(), [""; 0]);
            assert!(!host.storage.has_image(&image).await.unwrap());
            fs::remove_file(filler).unwrap();
            room_again(&root, before).await;
            qemu_img(&host, "exec /usr/bin/qemu-img \"$@\"");
            host.fetch(&image).await.unwrap();
            let name = format!("{}.vmdk.qcow2", image.sha256);
            assert_eq!(host.image_files(), [name]);
            fs::remove_dir_all(host.root.join("state")).unwrap();
            room_again(&root, before).await;
        }
    });
}

#[test]
fn a_full_disk_in_the_middle_of_a_download_keeps_no_part_of_it() {
    on_a_small_file_system("16m", |root| async move {
        let host = Host::at(&root, |_| ());
        let bytes = noise(4 * MIB);
        // It could be continued: but its room is what is missing.
        let web = Breaking::new(&bytes, 0);
        let image = image(&web.server.url("/image"), &bytes, ImageFormat::Raw);
        let (gate, body) = (Gate::default(), bytes.clone());
        let opened = gate.clone();
        let server = Server::new(move |_, stream| {
            let length = body.len();
            head(
                stream,
                "200 OK",
                &format!("Content-Length: {length}\r\nETag: \"e\"\r\n"),
            )?;
            stream.write_all(&body[..length / 2])?;
            opened.wait();
            stream.write_all(&body[length / 2..])
        });
        let wanted = ImageRef {
            url: server.url("/image").parse().unwrap(),
            ..image.clone()
        };
        let (storage, slow) = (host.storage.clone(), wanted.clone());
        let before = room(&root);
        let running =
            tokio::spawn(async move { storage.fetch_image(&slow, &watch::channel(None).0).await });
        let partial = host.paths.images.join(format!(".partial-{}", image.sha256));
        wait_for("half of the image", || {
            fs::metadata(&partial).is_ok_and(|file| file.len() == 2 * MIB)
        })
        .await;
        let filler = fill_up(&root, 0);
        gate.open();
        let error = running.await.unwrap().unwrap_err();
        assert_eq!(
            (error.code, error.retryable),
            (FaultCode::DiskFull, true),
            "{}",
            chain(&error)
        );
        assert_eq!(host.image_files(), [""; 0]);
        assert!(!host.storage.has_image(&image).await.unwrap());
        fs::remove_file(filler).unwrap();
        room_again(&root, before).await;
        host.fetch(&image).await.unwrap();
        assert_eq!(host.image_files(), [image.sha256.as_str()]);
    });
}

#[test]
fn a_full_disk_while_a_disk_is_made_is_survived() {
    on_a_small_file_system("16m", |root| async move {
        let host = Host::at(&root, |_| ());
        let bytes = qcow2(&host, &[]);
        let image = image(
            &format!("file://{}", host.file("image", &bytes).display()),
            &bytes,
            ImageFormat::Qcow2,
        );
        host.fetch(&image).await.unwrap();
        let id = InstanceId::new();
        let plan = host.plan(id, &image, 1 << 30);
        // Room for the directory and the log of calls, not for the disk's first tables.
        let before = room(&root);
        let filler = fill_up(&root, 40_960);
        fails(
            host.create(&plan).await,
            FaultCode::DiskFull,
            true,
            &["could not make disk 0", "No space left on device"],
        );
        assert_eq!(names(&host.paths.instance(id)), [""; 0]);
        assert_eq!(
            host.storage.observe(id).await.unwrap().disks,
            BTreeSet::new()
        );
        fs::remove_file(filler).unwrap();
        room_again(&root, before).await;
        host.create(&plan).await.unwrap();
        assert_eq!(names(&host.paths.instance(id)), ["disk0.qcow2"]);
        let (size, used) = host.storage.space().await.unwrap();
        assert_eq!(size.get(), 16 * MIB);
        assert!((MIB / 4..4 * MIB).contains(&used.get()), "{used}");
    });
}

#[tokio::test]
async fn a_qemu_img_that_hangs_or_is_missing_leaves_nothing() {
    let host = Host::with(|options| options.create_deadline = Duration::from_millis(300));
    let bytes = noise(MIB);
    let image = image(
        &format!("file://{}", host.file("raw", &bytes).display()),
        &bytes,
        ImageFormat::Raw,
    );
    host.fetch(&image).await.unwrap();
    let id = InstanceId::new();
    let plan = host.plan(id, &image, 1 << 30);
    // The last argument but one is the file that is to be made.
    install(
        &host.tool("qemu-img"),
        "#!/bin/sh\nfor file; do last=$before; before=$file; done\necho half > $last\nsleep 600\n",
    );
    fails(
        host.create(&plan).await,
        FaultCode::Internal,
        true,
        &["was killed after 0.3 s"],
    );
    assert_eq!(names(&host.paths.instance(id)), [""; 0]);
    fs::remove_file(host.tool("qemu-img")).unwrap();
    fails(
        host.create(&plan).await,
        FaultCode::Internal,
        true,
        &["qemu-img is not installed", "package qemu-utils"],
    );
}

#[tokio::test]
async fn removal_follows_no_link() {
    let host = Host::new();
    fs::create_dir_all(&host.paths.instances).unwrap();
    let precious = host.root.join("precious");
    fs::create_dir(&precious).unwrap();
    fs::write(precious.join("file"), b"keep me").unwrap();

    let linked = InstanceId::new();
    symlink(&precious, host.paths.instance(linked)).unwrap();
    fails(
        host.remove(linked).await,
        FaultCode::ForeignObject,
        false,
        &["something else has its name"],
    );
    assert!(
        host.storage
            .instances_with_files()
            .await
            .unwrap()
            .is_empty()
    );

    let id = InstanceId::new();
    fs::create_dir(host.paths.instance(id)).unwrap();
    symlink(&precious, host.paths.instance(id).join("console.log")).unwrap();
    symlink(
        precious.join("file"),
        host.paths.instance(id).join("disk0.qcow2"),
    )
    .unwrap();
    assert_eq!(
        host.storage.observe(id).await.unwrap(),
        InstanceFiles {
            directory: true,
            disks: BTreeSet::new(),
            sizes: BTreeMap::new(),
            config_drives: BTreeSet::new(),
            metadata: None,
        }
    );
    host.remove(id).await.unwrap();
    assert!(!host.paths.instance(id).exists());
    assert_eq!(fs::read(precious.join("file")).unwrap(), b"keep me");
}

#[tokio::test]
async fn disks_of_several_wishes_lie_side_by_side_and_only_old_ones_are_removed() {
    let host = Host::new();
    let bytes = qcow2(&host, &[]);
    let url = format!("file://{}", host.file("image", &bytes).display());
    let image = image(&url, &bytes, ImageFormat::Qcow2);
    host.fetch(&image).await.unwrap();
    let id = InstanceId::new();
    let first = host.plan(id, &image, 1 << 30);
    let nonce = Nonce::new();
    let rebuilt = DiskName::Own {
        index: 0,
        incarnation: Some(Incarnation { number: 1, nonce }),
    };
    let mut all = vec![first.clone()];
    for name in [rebuilt, DiskName::Rescue(nonce)] {
        all.push(DiskPlan {
            name,
            path: host.paths.disk(id, name, DiskFormat::Qcow2),
            ..first.clone()
        });
    }
    for plan in &all {
        host.create(plan).await.unwrap();
    }
    let found = host.storage.observe(id).await.unwrap();
    let wanted: BTreeSet<DiskName> = all.iter().map(|plan| plan.name).collect();
    assert_eq!((&found.disks, found.sizes.len()), (&wanted, 3));

    let remove = async |name: &str| {
        let step = StorageStep::RemoveOldFile(OldFile {
            instance: id,
            name: name.to_owned(),
        });
        host.storage.apply(&step, &Progress::new(None)).await
    };
    for _ in 0..2 {
        remove("disk0.qcow2").await.unwrap();
        let left = host.storage.observe(id).await.unwrap().disks;
        assert_eq!(left.len(), 2);
    }
    for other in ["console.log", "../../images/x", ".", "disk0.qcow2/x"] {
        let error = remove(other).await.unwrap_err();
        assert_eq!(error.code, FaultCode::ForeignObject, "{other}");
    }
}

// ------------------------------------------------------------------------------------------------ a killed agent

/// Not a test of its own: the process that [`a_killed_agent_leaves_only_what_sweep_removes`] kills. It fetches the
/// image its environment names.
#[tokio::test]
#[ignore = "the victim of another test, which runs it with its environment"]
async fn victim() {
    let (Ok(root), Ok(image)) = (
        std::env::var("BERTH_TEST_ROOT"),
        std::env::var("BERTH_TEST_IMAGE"),
    ) else {
        return;
    };
    let host = Host::at(Path::new(&root), |options| {
        if let Ok(tool) = std::env::var("BERTH_TEST_QEMU_IMG") {
            options.qemu_img = PathBuf::from(tool);
        }
    });
    let image: ImageRef = serde_json::from_str(&image).unwrap();
    host.fetch(&image).await.unwrap();
    panic!("the download ended before it was interrupted");
}

/// Another process that fetches the image.
fn victim_of(host: &Host, image: &ImageRef) -> std::process::Child {
    Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "victim", "--ignored"])
        .env("BERTH_TEST_ROOT", &host.root)
        .env("BERTH_TEST_IMAGE", serde_json::to_string(image).unwrap())
        .stdout(std::process::Stdio::null())
        .spawn()
        .unwrap()
}

#[tokio::test]
async fn a_killed_agent_leaves_only_what_sweep_removes() {
    let host = Host::new();
    let bytes = noise(4 * MIB);
    let (gate, body) = (Gate::default(), bytes.clone());
    let shut = gate.clone();
    let server = Server::new(move |_, stream| {
        head(
            stream,
            "200 OK",
            &format!("Content-Length: {}\r\n", body.len()),
        )?;
        stream.write_all(&body[..body.len() / 2])?;
        shut.wait();
        stream.write_all(&body[body.len() / 2..])
    });
    let image = image(&server.url("/image"), &bytes, ImageFormat::Raw);
    let mut victim = victim_of(&host, &image);
    let partial_bytes = || {
        let files = host.image_files();
        files.first().map_or(0, |name| {
            fs::metadata(host.paths.images.join(name)).map_or(0, |file| file.len())
        })
    };
    wait_for("half of the image", || partial_bytes() >= MIB).await;
    victim.kill().unwrap();
    assert!(!victim.wait().unwrap().success());
    gate.open();

    let left = host.image_files();
    assert!(
        matches!(&left[..], [name] if name.starts_with(&format!(".partial-{}", image.sha256))),
        "{left:?}"
    );
    assert!(!host.storage.has_image(&image).await.unwrap());
    assert_eq!(host.storage.cached_images().await.unwrap(), []);
    // A disk that was being made, too; and what looks like neither stays.
    let id = InstanceId::new();
    fs::create_dir_all(host.paths.instance(id)).unwrap();
    for name in [".tmp-disk0-1", "disk1.qcow2", "console.log"] {
        fs::write(host.paths.instance(id).join(name), b"x").unwrap();
    }
    assert_eq!(
        host.storage.observe(id).await.unwrap().disks,
        BTreeSet::from([DiskName::first(1)])
    );
    for _ in 0..2 {
        host.storage.sweep().await.unwrap();
        assert_eq!(host.image_files(), [""; 0]);
        assert_eq!(
            names(&host.paths.instance(id)),
            ["console.log", "disk1.qcow2"]
        );
    }
    host.fetch(&image).await.unwrap();
    assert_eq!(host.image_files(), [image.sha256.as_str()]);
}

/// Killed while `qemu-img` writes, at any of these points of what it has written.
#[tokio::test]
async fn an_agent_that_is_killed_while_it_converts_leaves_no_image() {
    let host = Host::new();
    let content = noise(MIB);
    let bytes = converted(&host, &content, ImageFormat::Vhdx, &[]);
    let image = image(
        &format!("file://{}", host.file("image", &bytes).display()),
        &bytes,
        ImageFormat::Vhdx,
    );
    for written in ["true", "echo half > $file", "/usr/bin/qemu-img \"$@\""] {
        let script = format!(
            "for file; do :; done; {written}; echo done >> $(dirname $0)/qemu-img.log; exec sleep 600"
        );
        let victim_root = host.root.join("victim");
        fs::create_dir_all(&victim_root).unwrap();
        fs::create_dir_all(victim_root.join("tool")).unwrap();
        let slow = victim_root.join("tool/slow");
        install(&slow, &format!("#!/bin/sh\n{script}\n"));
        let log = victim_root.join("tool/qemu-img.log");
        let mut victim = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "victim", "--ignored"])
            .env("BERTH_TEST_ROOT", &victim_root)
            .env("BERTH_TEST_QEMU_IMG", &slow)
            .env("BERTH_TEST_IMAGE", serde_json::to_string(&image).unwrap())
            .stdout(std::process::Stdio::null())
            .spawn()
            .unwrap();
        wait_for("the tool", || {
            fs::read_to_string(&log).is_ok_and(|text| text.contains("done"))
        })
        .await;
        assert_eq!(working_in(&victim_root).len(), 1);
        victim.kill().unwrap();
        victim.wait().unwrap();
        // It ends with its agent: nobody else would see what it takes of the room of guests.
        wait_for("the end of the tool", || {
            working_in(&victim_root).is_empty()
        })
        .await;
        let after = Host::at(&victim_root, |_| ());
        assert!(!after.storage.has_image(&image).await.unwrap());
        assert!(after.image_files().iter().all(|name| name.starts_with('.')));
        after.storage.sweep().await.unwrap();
        assert_eq!(after.image_files(), [""; 0]);
        after.fetch(&image).await.unwrap();
        let plan = after.plan(InstanceId::new(), &image, 16 * MIB);
        after.create(&plan).await.unwrap();
        assert!(content_of(&plan.path).starts_with(&content));
        fs::remove_dir_all(&victim_root).unwrap();
    }
}

/// The processes that work in a directory or below it.
fn working_in(directory: &Path) -> Vec<i32> {
    let entries = fs::read_dir("/proc").unwrap().filter_map(Result::ok);
    let works_there = entries.filter_map(|entry| {
        let pid = entry.file_name().to_str()?.parse().ok()?;
        let works_in = fs::read_link(entry.path().join("cwd")).ok()?;
        (works_in.starts_with(directory) && is_alive(pid)).then_some(pid)
    });
    works_there.collect()
}

/// Whether a process has not ended.
fn is_alive(pid: i32) -> bool {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    !stat.is_empty() && !stat.contains(") Z ")
}

/// Starts a tool that nobody of here is the parent of, as this user; answers its id.
async fn orphan(program: &Path, user: &str, directory: &Path, argument: &Path) -> i32 {
    let noted = program.with_extension(InstanceId::new().to_string());
    let start =
        "setsid setpriv --reuid \"$1\" --regid \"$1\" --clear-groups \"$2\" \"$3\" \"$4\" &";
    let status = Command::new("sh")
        .current_dir(directory)
        .args(["-c", start, "sh", user])
        .args([program, argument, noted.as_path()])
        .stdout(std::process::Stdio::null())
        .status()
        .unwrap();
    assert!(status.success());
    let mut pid = None;
    wait_for("the tool", || {
        let text = fs::read_to_string(&noted).unwrap_or_default();
        pid = text.strip_suffix('\n').and_then(|id| id.parse().ok());
        pid.is_some()
    })
    .await;
    pid.unwrap()
}

/// As agents did whose tools did not end with them, and as a wrapper does.
#[tokio::test]
async fn what_an_agent_before_left_running_is_ended_before_its_files_are_swept() {
    let host = Host::with(|options| {
        let pool = LvmPoolOptions {
            volume_group: "no-such-group".parse().unwrap(),
            thin_pool: None,
        };
        options
            .pools
            .insert("fast".parse().unwrap(), PoolOptions::Lvm(pool));
    });
    let images = host.paths.images.clone();
    fs::create_dir_all(&images).unwrap();
    let goes_on = "#!/bin/sh\nexec 2>/dev/null\necho $$ > $2\nwhile [ -e $0 ]; do echo more >> $1; sleep 0.01; done\n";
    for name in ["qemu-img", "xorriso"] {
        install(&host.tool(name), goes_on);
    }
    // What changes something is not ended, but waited for.
    let done = host.tool("done");
    let ends = format!(
        "#!/bin/sh\necho $$ > $2\nsleep 1\necho done > {}\n",
        done.display()
    );
    install(&host.tool("lvm"), &ends);
    let volume = Path::new("no-such-group/berth-tmp-1");
    orphan(&host.tool("lvm"), "0", Path::new("/"), volume).await;
    let (qemu_img, xorriso) = (host.tool("qemu-img"), host.tool("xorriso"));
    let (drive, theirs) = (images.join(".tmp-config-1"), host.tool("theirs"));
    let device = Path::new("/dev/no-such-group/berth-tmp-1");
    let ours = [
        orphan(&qemu_img, "65534", Path::new("/"), device).await,
        orphan(&qemu_img, "65534", &images, &theirs).await,
        orphan(&xorriso, "0", Path::new("/"), &drive).await,
    ];
    // That of an agent in a container, with files at the same places.
    let comm = fs::read_to_string("/proc/self/comm").unwrap();
    let agent = host.tool(comm.trim());
    let start =
        "setpriv --reuid 65534 --regid 65534 --clear-groups ${0%/*}/qemu-img $1 ${0%/*}/its &";
    install(
        &agent,
        &format!("#!/bin/sh\nexec 2>/dev/null\n{start}\necho $$ > $2\nwait\n"),
    );
    let agent = orphan(&agent, "0", &images, &theirs).await;
    let mut its = String::new();
    wait_for("the tool of the other agent", || {
        its = fs::read_to_string(host.tool("its")).unwrap_or_default();
        its.ends_with('\n')
    })
    .await;
    // Somebody else's, an operator's, and one that this agent has just started.
    let mut own = Command::new("setpriv")
        .current_dir(&images)
        .args(["--reuid", "65534", "--regid", "65534", "--clear-groups"])
        .args([&qemu_img, &theirs, &host.tool("own")])
        .spawn()
        .unwrap();
    wait_for("the own tool", || host.tool("own").exists()).await;
    let others = [
        orphan(&qemu_img, "65534", &host.root, &theirs).await,
        orphan(&qemu_img, "0", &images, &theirs).await,
        orphan(&xorriso, "0", &images, &theirs).await,
        its.trim().parse().unwrap(),
        agent,
        i32::try_from(own.id()).unwrap(),
    ];
    assert!(drive.exists());
    host.storage.sweep().await.unwrap();
    assert!(done.exists());
    for pid in ours {
        assert!(!is_alive(pid));
    }
    assert_eq!(host.image_files(), [""; 0]);
    for pid in others {
        assert!(is_alive(pid));
        let pid = nix::unistd::Pid::from_raw(pid);
        nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGKILL).unwrap();
    }
    own.wait().unwrap();
}

#[tokio::test]
async fn a_leftover_that_cannot_be_removed_keeps_no_other_and_is_told() {
    let host = Host::new();
    let instance = host.paths.instance(InstanceId::new());
    let paths = &host.paths;
    let directories = [
        &paths.images,
        &paths.volumes,
        &paths.snapshots,
        &paths.metadata,
        &instance,
    ];
    let mut stays = Vec::new();
    for directory in directories {
        fs::create_dir_all(directory).unwrap();
        for name in [".tmp-1", ".new-2"] {
            fs::write(directory.join(name), b"x").unwrap();
        }
        // Whatever its name is, berth makes no such directory.
        let stay = directory.join(".tmp-0");
        fs::create_dir(&stay).unwrap();
        fs::write(stay.join("file"), b"x").unwrap();
        stays.push(stay);
    }
    let told = host.storage.sweep().await.unwrap_err().to_string();
    for stay in &stays {
        let path = stay.display().to_string();
        assert!(told.contains(&path), "{told}");
        assert_eq!(names(stay.parent().unwrap()), [".tmp-0"]);
        fs::remove_dir_all(stay).unwrap();
    }
    host.storage.sweep().await.unwrap();
}

// ------------------------------------------------------------------------------------------------ metadata

/// A file of a group that is not the metadata service's (it was written before the service had its user) is not what it shall be.
#[tokio::test]
async fn metadata_that_the_service_cannot_read_is_written_anew() {
    let host = Host::new();
    let instance = InstanceId::new();
    let plan = MetadataPlan {
        instance,
        content: "{}".to_owned(),
    };
    let step = StorageStep::WriteMetadata(plan);
    let path = host.paths.metadata_file(instance);
    let told = async || host.storage.observe(instance).await.unwrap().metadata;
    host.storage
        .apply(&step, &watch::channel(None).0)
        .await
        .unwrap();
    assert_eq!(told().await.as_deref(), Some("{}"));
    let group = fs::metadata(&path).unwrap().gid();
    std::os::unix::fs::chown(&path, None, Some(group + 1)).unwrap();
    assert_eq!(told().await.as_deref(), Some(""));
    host.storage
        .apply(&step, &watch::channel(None).0)
        .await
        .unwrap();
    assert_eq!(told().await.as_deref(), Some("{}"));
    assert_eq!(fs::metadata(&path).unwrap().gid(), group);
}
