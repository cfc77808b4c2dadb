//! A hypervisor of its own for a test: virtlogd and libvirtd in private namespaces, with private `/run`,
//! `/etc/libvirt` and `/var/lib/libvirt`, reached through a socket in a temporary directory.
//!
//! The namespaces hang on one process. When that is killed, or when the test's thread ends in whatever way, the
//! kernel ends everything in them: daemons, guests, links and mounts.

use std::{
    fs,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use berth_agent::act::libvirt::Address;
use tempfile::TempDir;

/// Longer than anything here takes on a busy machine.
pub(crate) const LIMIT: Duration = Duration::from_secs(90);

/// What the first process of the namespaces does. It also waits for orphans, as an init must.
const INIT: &str = r#"
set -e
dir=$1
mount --make-rprivate /
for private in /run /var/lib/libvirt /var/cache/libvirt /var/log/libvirt /etc/libvirt; do
    mount -t tmpfs -o mode=755 tmpfs "$private"
done
# A /dev without kvm: libvirt probes QEMU anew before every other call where /dev/kvm opens for root alone.
mkdir /run/dev
mount -t tmpfs -o mode=755 dev /run/dev
mkdir /run/dev/net /run/dev/pts /run/dev/shm
for node in fd stdin stdout stderr null zero full random urandom tty ptmx net/tun; do
    cp -a "/dev/$node" "/run/dev/$node"
done
mount --bind /dev/pts /run/dev/pts
umount --lazy --recursive /dev
mount --move /run/dev /dev
rmdir /run/dev
mkdir -p /run/libvirt /run/lock /var/lib/libvirt/qemu /var/lib/libvirt/boot /var/log/libvirt/qemu "$dir/socket"
chown libvirt-qemu /var/lib/libvirt/qemu
printf '%s\n' 'cgroup_controllers = []' 'security_driver = "none"' >/etc/libvirt/qemu.conf
printf '%s\n' "unix_sock_dir = \"$dir/socket\"" 'auth_unix_rw = "none"' 'auth_unix_ro = "none"' \
    "host_uuid = \"$(cat /proc/sys/kernel/random/uuid)\"" >/etc/libvirt/libvirtd.conf
hostname berth-test
ip link set lo up
virtlogd -d
libvirtd -d
sleep infinity &
while :; do wait -n || true; done
"#;

/// A private hypervisor; dropping it ends it.
pub(crate) struct Hypervisor {
    directory: TempDir,
    namespaces: Child,
}

impl Hypervisor {
    /// Starts one and waits until its libvirtd answers.
    pub(crate) fn start() -> Self {
        let directory = tempfile::Builder::new()
            .prefix("berth-hv-")
            .tempdir()
            .unwrap();
        // QEMU runs as a user of its own and has to reach its disks.
        fs::set_permissions(directory.path(), fs::Permissions::from_mode(0o755)).unwrap();
        let log = fs::File::create(directory.path().join("log")).unwrap();
        let namespaces = Command::new("setpriv")
            .args([
                "--pdeathsig",
                "KILL",
                "unshare",
                "--mount",
                "--net",
                "--uts",
                "--ipc",
                "--pid",
            ])
            .args([
                "--fork",
                "--kill-child",
                "--mount-proc",
                "bash",
                "-c",
                INIT,
                "init",
            ])
            .arg(directory.path())
            .stdin(Stdio::null())
            .stdout(log.try_clone().unwrap())
            .stderr(log)
            .spawn()
            .expect("setpriv and unshare (util-linux) are needed, and root");
        let mut hypervisor = Self {
            directory,
            namespaces,
        };
        let socket = hypervisor.socket();
        wait_for("libvirtd to listen", || {
            if let Some(status) = hypervisor.namespaces.try_wait().unwrap() {
                panic!(
                    "the hypervisor did not start ({status}): {}",
                    hypervisor.log()
                );
            }
            socket
                .exists()
                .then_some(())
                .ok_or_else(|| hypervisor.log())
        });
        hypervisor.wait_libvirtd();
        hypervisor
    }

    /// A directory that both the test and the hypervisor see.
    pub(crate) fn path(&self) -> &Path {
        self.directory.path()
    }

    /// Where its libvirtd is reached.
    pub(crate) fn uri(&self) -> String {
        format!("qemu+unix:///system?socket={}", self.socket().display())
    }

    /// The same, as the agent knows it.
    pub(crate) fn address(&self) -> Address {
        self.uri().parse().unwrap()
    }

    fn socket(&self) -> PathBuf {
        self.path().join("socket/libvirt-sock")
    }

    fn log(&self) -> String {
        fs::read_to_string(self.path().join("log")).unwrap_or_default()
    }

    /// The first process of the namespaces, as the machine counts.
    fn init(&self) -> String {
        let unshare = self.namespaces.id();
        let children =
            fs::read_to_string(format!("/proc/{unshare}/task/{unshare}/children")).unwrap();
        children
            .split_whitespace()
            .next()
            .expect("the namespaces are gone")
            .to_owned()
    }

    /// Runs a command inside and gives back what it printed.
    pub(crate) fn run(&self, argv: &[&str]) -> String {
        self.try_run(argv).unwrap_or_else(|error| panic!("{error}"))
    }

    /// As [`Self::run`], where it may fail.
    pub(crate) fn try_run(&self, argv: &[&str]) -> Result<String, String> {
        let output = Command::new("nsenter")
            .args([
                "--target",
                &self.init(),
                "--mount",
                "--net",
                "--uts",
                "--ipc",
                "--pid",
                "--",
            ])
            .args(argv)
            .stdin(Stdio::null())
            .output()
            .unwrap();
        if !output.status.success() {
            let stderr = String::from_utf8_lossy(&output.stderr);
            return Err(format!("{argv:?}: {}: {stderr}", output.status));
        }
        Ok(String::from_utf8(output.stdout).unwrap())
    }

    /// Runs `virsh` inside.
    pub(crate) fn virsh(&self, arguments: &[&str]) -> String {
        let uri = self.uri();
        self.run(&[&["virsh", "--quiet", "--connect", &uri], arguments].concat())
    }

    /// A bridge for guests.
    pub(crate) fn add_bridge(&self, name: &str) {
        self.run(&["ip", "link", "add", name, "type", "bridge"]);
        self.run(&["ip", "link", "set", name, "up"]);
    }

    /// Sends libvirtd a signal, by its pid.
    pub(crate) fn signal_libvirtd(&self, signal: &str) {
        let pid = self.run(&["cat", "/run/libvirtd.pid"]);
        self.run(&["kill", "-s", signal, pid.trim()]);
    }

    /// Ends libvirtd on the spot.
    pub(crate) fn kill_libvirtd(&self) {
        let pid = self.run(&["cat", "/run/libvirtd.pid"]);
        self.run(&["kill", "-s", "KILL", pid.trim()]);
        let entry = format!("/proc/{}", pid.trim());
        // Its entry vanishes when init has waited for it.
        wait_for("libvirtd to end", || {
            // It may vanish while it is looked for: one question, one answer.
            match self.try_run(&["test", "-e", &entry]) {
                Ok(_) => Err(format!("{entry} is there")),
                Err(_) => Ok(()),
            }
        });
    }

    /// Starts libvirtd again. It may take a moment until it answers.
    pub(crate) fn start_libvirtd(&self) {
        self.run(&["libvirtd", "-d"]);
    }

    /// Waits until libvirtd answers: it listens some time before.
    pub(crate) fn wait_libvirtd(&self) {
        let uri = self.uri();
        wait_for("libvirtd to answer", || {
            self.try_run(&["virsh", "--quiet", "--connect", &uri, "list", "--all"])
        });
    }

    /// Process ids of the QEMUs of berth's domains, as the namespaces count.
    pub(crate) fn qemu_pids(&self) -> String {
        self.run(&[
            "find",
            "/run/libvirt/qemu",
            "-name",
            "berth-*.pid",
            "-exec",
            "cat",
            "{}",
            "+",
        ])
    }
}

impl Drop for Hypervisor {
    fn drop(&mut self) {
        // With the first process ends the namespaces' everything.
        let _ = self.namespaces.kill();
        let _ = self.namespaces.wait();
    }
}

/// The guest all tests boot; made once, then taken from the cache.
pub(crate) fn guest_image() -> PathBuf {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap();
    let status = Command::new(root.join("scripts/guest-image.sh"))
        .stdout(Stdio::null())
        .status()
        .unwrap();
    assert!(status.success(), "scripts/guest-image.sh: {status}");
    root.join(".cache/guest/berth-guest.qcow2")
}

/// Looks again and again until there is what is waited for, and tells what was seen last if it never is.
pub(crate) fn wait_for<T>(what: &str, mut look: impl FnMut() -> Result<T, String>) -> T {
    let start = Instant::now();
    loop {
        match look() {
            Ok(value) => return value,
            Err(seen) if start.elapsed() > LIMIT => panic!("waited for {what}; last seen: {seen}"),
            Err(_) => std::thread::sleep(Duration::from_millis(50)),
        }
    }
}
