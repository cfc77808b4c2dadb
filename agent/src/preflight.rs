//! Checks at start whether this machine can be a hypervisor: all findings at once, each with what to do about it.
//!
//! It leaves nothing behind: the kernel is tried in a network namespace that vanishes with its thread. An absent
//! libvirt is a finding, but not a reason to stop: the agent waits for it.

use std::{
    collections::BTreeMap,
    env, fmt, fs,
    net::{IpAddr, Shutdown},
    os::unix::{fs::MetadataExt as _, net::UnixStream},
    path::{Path, PathBuf},
    sync::mpsc,
    thread,
    time::{Duration, Instant},
};

use berth_common::names::PoolName;
use nix::{
    ifaddrs::getifaddrs,
    sched::{CloneFlags, unshare},
    sys::{socket::SockaddrStorage, statvfs::statvfs},
};
use rtnetlink::{LinkBridge, LinkVeth, new_connection};

use crate::{
    act::{
        command::PATH,
        libvirt::{Address, KvmEvidence, VirtTypeChoice},
        machine::{Measure as _, ThisMachine},
        net::features::Features,
        storage::{
            LvmPoolOptions, PoolOptions, StorageOptions, check_dir_pools, check_lvm_pool,
            check_qemu_img, seen_with_the_system,
        },
    },
    config::{Config, NetworkConfig},
    decide::{instance::Paths, network::uplink::Feature},
};

/// Programs the agent runs, Debian's packages of them, and how bad it is when they are missing.
const PROGRAMS: [(&str, &str, Severity); 4] = [
    ("qemu-img", "qemu-utils", Severity::Fatal),
    ("dnsmasq", "dnsmasq-base", Severity::Fatal),
    ("nft", "nftables", Severity::Fatal),
    // Instances without a config drive do without.
    ("xorriso", "xorriso", Severity::Warning),
];
/// The kernel's door to the processor's virtualisation.
const KVM: &str = "/dev/kvm";
/// Below this, the next image does not fit.
const LITTLE_SPACE: u64 = 2 << 30;
/// How long all disks of storage pools together have to answer: systemd waits longer for the agent.
const POOLS_ANSWER: Duration = Duration::from_secs(10);
/// Bits of `CapEff` in `/proc/self/status` (capabilities(7)).
const CAP_NET_ADMIN: u32 = 12;
const CAP_SYS_ADMIN: u32 = 21;

/// How bad a finding is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Severity {
    /// Worth knowing.
    Note,
    /// The agent starts, but something will not work.
    Warning,
    /// The agent cannot do its work.
    Fatal,
}

/// One fact about this machine.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Finding {
    /// How bad it is.
    pub severity: Severity,
    /// What was found.
    pub what: String,
    /// What to do about it.
    pub fix: Option<String>,
}

/// All findings, the worst first.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Findings(Vec<Finding>);

/// This machine cannot be a hypervisor.
#[derive(Debug, thiserror::Error)]
#[error("this machine is not ready to be a hypervisor:\n{0}")]
pub struct NotReady(pub Findings);

impl Findings {
    fn add(&mut self, severity: Severity, what: impl Into<String>, fix: Option<&str>) {
        self.0.push(Finding {
            severity,
            what: what.into(),
            fix: fix.map(str::to_owned),
        });
    }

    /// All of them, the worst first.
    #[must_use]
    pub fn all(&self) -> &[Finding] {
        &self.0
    }

    /// Logs all of them.
    ///
    /// # Errors
    /// [`NotReady`] with all of them if one is fatal.
    pub fn judge(self) -> Result<(), NotReady> {
        for finding in &self.0 {
            let fix = finding.fix.as_deref().unwrap_or_default();
            match finding.severity {
                Severity::Note => tracing::info!("preflight: {}", finding.what),
                Severity::Warning => tracing::warn!(fix, "preflight: {}", finding.what),
                Severity::Fatal => tracing::error!(fix, "preflight: {}", finding.what),
            }
        }
        if self
            .0
            .iter()
            .any(|finding| finding.severity == Severity::Fatal)
        {
            Err(NotReady(self))
        } else {
            Ok(())
        }
    }
}

impl fmt::Display for Findings {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (position, finding) in self.0.iter().enumerate() {
            let word = match finding.severity {
                Severity::Note => "note   ",
                Severity::Warning => "warning",
                Severity::Fatal => "FATAL  ",
            };
            if position > 0 {
                f.write_str("\n")?;
            }
            write!(f, "  {word} {}", finding.what)?;
            if let Some(fix) = &finding.fix {
                write!(f, "\n          → {fix}")?;
            }
        }
        Ok(())
    }
}

/// Looks at this machine. Blocks for a moment.
#[must_use]
pub fn check(config: &Config, features: &Features) -> Findings {
    let mut findings = Findings::default();
    check_rights(&mut findings);
    check_programs(&mut findings);
    check_metadata_program(&mut findings, &config.metadata_program);
    check_tun(&mut findings);
    check_kernel(&mut findings);
    check_networks(&mut findings, &config.network, features);
    check_confinement(&mut findings, config);
    check_space(&mut findings, &config.state_dir);
    check_pools(&mut findings, config);
    check_libvirt(&mut findings, &config.libvirt_uri);
    check_virtualisation(&mut findings, config.virt_type, KvmEvidence::gather());
    check_kvm_rights(&mut findings);
    let machine = ThisMachine::default().measure();
    findings.add(
        Severity::Note,
        format!(
            "{} processors, {} MB of memory (MemTotal of /proc/meminfo)",
            machine.cpus,
            machine.memory_total.whole_mb().get()
        ),
        None,
    );
    findings
        .0
        .sort_by_key(|finding| std::cmp::Reverse(finding.severity));
    findings
}

/// libvirt asks QEMU for its abilities once and keeps the answer, unless root sees a KVM that QEMU's user does not:
/// then it asks again at every call.
fn check_kvm_rights(findings: &mut Findings) {
    if let Ok(node) = fs::metadata(KVM)
        && !is_open_to_a_group(&node)
    {
        let what = format!(
            "{KVM} is open to root alone: libvirt then asks QEMU for its abilities anew at every call, which takes \
             seconds each time"
        );
        let fix = "do what udev does on a usual machine: chgrp kvm /dev/kvm; chmod 660 /dev/kvm";
        findings.add(Severity::Warning, what, Some(fix));
    }
}

/// Whether anybody but root may use a device.
fn is_open_to_a_group(node: &fs::Metadata) -> bool {
    const GROUP: u32 = 0o060;
    const OTHERS: u32 = 0o006;
    let mode = node.mode();
    mode & OTHERS == OTHERS || (mode & GROUP == GROUP && node.gid() != 0)
}

fn check_rights(findings: &mut Findings) {
    let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
    let missing: Vec<&str> = [
        (CAP_NET_ADMIN, "CAP_NET_ADMIN"),
        (CAP_SYS_ADMIN, "CAP_SYS_ADMIN"),
    ]
    .into_iter()
    .filter(|(bit, _)| !has_capability(&status, *bit))
    .map(|(_, name)| name)
    .collect();
    if !missing.is_empty() {
        let what = format!(
            "the agent lacks {}, so it can make neither links nor namespaces",
            missing.join(" and ")
        );
        findings.add(
            Severity::Fatal,
            what,
            Some("run it as root, as the systemd unit does"),
        );
    } else if !nix::unistd::geteuid().is_root() {
        let what = "the agent does not run as root: disks belong to root, and libvirt must be told to let this user in";
        findings.add(
            Severity::Warning,
            what,
            Some("run it as root, as the systemd unit does"),
        );
    }
}

/// Whether `/proc/self/status` shows an effective capability.
fn has_capability(status: &str, bit: u32) -> bool {
    let mask = status.lines().find_map(|line| line.strip_prefix("CapEff:"));
    mask.and_then(|hex| u64::from_str_radix(hex.trim(), 16).ok())
        .is_some_and(|mask| mask >> bit & 1 == 1)
}

fn check_programs(findings: &mut Findings) {
    for (program, package, severity) in PROGRAMS {
        if find(program, env::split_paths(PATH)).is_none() {
            let fix = format!("install it (on Debian: apt-get install {package})");
            findings.add(
                severity,
                format!("there is no `{program}` in {PATH}"),
                Some(&fix),
            );
        }
    }
}

fn check_metadata_program(findings: &mut Findings, program: &Path) {
    if !program.is_file() {
        findings.add(
            Severity::Fatal,
            format!(
                "there is no {}, so guests could not ask for their metadata",
                program.display()
            ),
            Some("install berth-metadata beside berth-agent, or say with network.metadata_program where it is"),
        );
    }
}

fn find(program: &str, mut directories: impl Iterator<Item = PathBuf>) -> Option<PathBuf> {
    directories.find_map(|directory| Some(directory.join(program)).filter(|path| path.is_file()))
}

fn check_tun(findings: &mut Findings) {
    if let Err(error) = fs::OpenOptions::new()
        .read(true)
        .write(true)
        .open("/dev/net/tun")
    {
        findings.add(
            Severity::Fatal,
            format!("/dev/net/tun does not open ({error}), so guests get no network"),
            Some("load the module `tun`; in a container, pass the device in"),
        );
    }
}

fn check_kernel(findings: &mut Findings) {
    let tried = std::thread::Builder::new()
        .name("preflight".to_owned())
        .spawn(try_links);
    let result = tried
        .map_err(|error| format!("no thread: {error}"))
        .and_then(|thread| {
            thread
                .join()
                .unwrap_or_else(|_| Err("the check panicked".to_owned()))
        });
    if let Err(reason) = result {
        findings.add(
            Severity::Fatal,
            format!("the kernel does not make what networks need: {reason}"),
            Some("use a kernel with network namespaces, bridges and veth pairs, and root rights"),
        );
    }
}

/// What networks that reach beyond this host need. One that cannot be built keeps nobody from the others.
fn check_networks(findings: &mut Findings, config: &NetworkConfig, features: &Features) {
    for (feature, lack) in features.lacks() {
        let wanted = match feature {
            Feature::Vlan => !config.nics.is_empty(),
            Feature::Vxlan => config.tunnel_ip.is_some(),
            Feature::Nat | Feature::StatefulFilter => true,
        };
        let severity = if wanted {
            Severity::Warning
        } else {
            Severity::Note
        };
        findings.add(severity, lack, None);
    }
    for (physical, nic) in &config.nics {
        if !Path::new("/sys/class/net").join(nic.as_str()).exists() {
            let what =
                format!("there is no NIC {nic}, which physical network {physical} is to be on");
            let fix =
                "correct network.physical_networks; until then no network on it can be built here";
            findings.add(Severity::Warning, what, Some(fix));
        }
    }
    if let Some(local) = config.tunnel_ip {
        let own = match getifaddrs() {
            Ok(mut all) => all.any(|found| {
                found
                    .address
                    .and_then(|address| ip_of(&address))
                    .is_some_and(|address| address == local)
            }),
            Err(errno) => {
                let what = format!("the addresses of this host could not be listed: {errno}");
                findings.add(Severity::Warning, what, None);
                return;
            }
        };
        if !own {
            let what = format!("network.tunnel_ip is {local}, which is no address of this host");
            let fix = "set it to the address that the other hosts reach this one by; until then no VXLAN can be built here";
            findings.add(Severity::Warning, what, Some(fix));
        }
    }
}

fn ip_of(address: &SockaddrStorage) -> Option<IpAddr> {
    let v4 = address
        .as_sockaddr_in()
        .map(|address| IpAddr::V4(address.ip()));
    v4.or_else(|| {
        let v6 = address.as_sockaddr_in6()?;
        Some(IpAddr::V6(v6.ip()))
    })
}

/// Makes a bridge and a veth pair in a network namespace of this thread's own; all of it goes with the thread.
fn try_links() -> Result<(), String> {
    unshare(CloneFlags::CLONE_NEWNET).map_err(|errno| format!("a network namespace: {errno}"))?;
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|error| format!("a runtime: {error}"))?;
    runtime.block_on(async {
        let (connection, handle, _) =
            new_connection().map_err(|error| format!("a netlink socket: {error}"))?;
        let driver = tokio::spawn(connection);
        let links = handle.link();
        let bridge = links.add(LinkBridge::new("bt-try").build()).execute().await;
        let veth = links
            .add(LinkVeth::new("bt-try0", "bt-try1").build())
            .execute()
            .await;
        driver.abort();
        bridge.map_err(|error| format!("a bridge: {error}"))?;
        veth.map_err(|error| format!("a veth pair: {error}"))
    })
}

/// Whether `qemu-img` can be kept from everything but its files: it is never run otherwise.
fn check_confinement(findings: &mut Findings, config: &Config) {
    let options = StorageOptions {
        qemu_img_user: config.qemu_img_user.clone(),
        ..StorageOptions::default()
    };
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build();
    let checked = runtime
        .map_err(|error| format!("whether qemu-img can be confined could not be tried: {error}"))
        .and_then(|runtime| runtime.block_on(check_qemu_img(&options)));
    if let Err(reason) = checked {
        let fix = "disks and volumes are only made by a qemu-img without rights: that takes a program in the system's own \
                   directories, the user it says, root rights, and a kernel of 5.12 or newer with mount, network and IPC \
                   namespaces that a container does not keep from the agent";
        findings.add(Severity::Fatal, reason, Some(fix));
    }
    check_unseen(findings, &config.state_dir, "host.state_dir");
}

/// Disks must not lie where every `qemu-img` sees them: nothing else keeps it from those of others.
fn check_unseen(findings: &mut Findings, place: &Path, key: &str) {
    add_seen(findings, place, seen_with_the_system(place), key);
}

fn add_seen(findings: &mut Findings, place: &Path, seen: Option<&str>, key: &str) {
    if let Some(directory) = seen {
        let what = format!(
            "{} lies in {directory}, where qemu-img sees the system's programs and libraries, and so all disks",
            place.display()
        );
        let fix = format!("set {key} to a directory elsewhere, below /var/lib or /srv say");
        findings.add(Severity::Fatal, what, Some(&fix));
    }
}

fn check_space(findings: &mut Findings, state_dir: &Path) {
    match statvfs(state_dir) {
        Ok(status) => {
            let free = status
                .blocks_available()
                .saturating_mul(status.fragment_size());
            let what = format!("{} MB are free in {}", free >> 20, state_dir.display());
            if free < LITTLE_SPACE {
                let fix = "make room, or set host.state_dir to a larger file system";
                findings.add(Severity::Warning, format!("only {what}"), Some(fix));
            } else {
                findings.add(Severity::Note, what, None);
            }
        }
        Err(errno) => findings.add(
            Severity::Fatal,
            format!("{} cannot be used: {errno}", state_dir.display()),
            Some("make it, or set host.state_dir"),
        ),
    }
}

/// The storage pools that are configured. One that cannot be used keeps nobody from what lies elsewhere.
fn check_pools(findings: &mut Findings, config: &Config) {
    check_dirs(findings, config);
    let pools = config.pools.iter();
    let pools: BTreeMap<&PoolName, &LvmPoolOptions> = pools
        .filter_map(|(name, pool)| match pool {
            PoolOptions::Lvm(lvm) => Some((name, lvm)),
            PoolOptions::Dir(_) => None,
        })
        .collect();
    if pools.is_empty() {
        return;
    }
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build();
    let runtime = match runtime {
        Ok(runtime) => runtime,
        Err(error) => {
            let what = format!("the storage pools could not be looked at: {error}");
            findings.add(Severity::Warning, what, None);
            return;
        }
    };
    for (name, pool) in pools {
        let group = pool.volume_group.as_str();
        let checked = runtime.block_on(check_lvm_pool(name, pool, &StorageOptions::default()));
        match checked {
            Ok(()) => findings.add(
                Severity::Note,
                format!("storage pool {name}: volume group {group}"),
                None,
            ),
            Err(reason) => {
                let fix = format!(
                    "make the volume group {group} (vgcreate {group} DEVICE), install lvm2 and thin-provisioning-tools, or \
                     take [storage.pools.{name}] out of the configuration; until then nothing in this pool works"
                );
                findings.add(Severity::Warning, reason, Some(&fix));
            }
        }
    }
}

/// The same for those that are directories.
fn check_dirs(findings: &mut Findings, config: &Config) {
    let options = StorageOptions {
        pools: config.pools.clone(),
        ..StorageOptions::default()
    };
    let mut places = BTreeMap::new();
    let mut looks = Vec::new();
    for (name, check) in check_dir_pools(&Paths::below(&config.state_dir), &options) {
        let Some(PoolOptions::Dir(dir)) = config.pools.get(&name) else {
            continue;
        };
        let place = dir.path.clone();
        places.insert(name.clone(), place.clone());
        // All that the disk is asked.
        let look = move || (check(), seen_with_the_system(&place));
        looks.push((name, look));
    }
    for (name, answer) in in_time(looks, POOLS_ANSWER) {
        let Some(place) = places.get(&name) else {
            continue;
        };
        let Some((checked, seen)) = answer else {
            add_hung(findings, &name, place, POOLS_ANSWER);
            continue;
        };
        match checked {
            Ok(()) => {
                let what = format!("storage pool {name}: {}", place.display());
                findings.add(Severity::Note, what, None);
            }
            Err(reason) => {
                let fix = format!(
                    "do that, or take [storage.pools.{name}] out of the configuration; until then nothing in this pool works"
                );
                findings.add(Severity::Warning, reason, Some(&fix));
            }
        }
        add_seen(findings, place, seen, &format!("storage.pools.{name}.path"));
    }
}

/// A disk that hangs keeps nobody from starting: everything else works.
fn add_hung(findings: &mut Findings, name: &PoolName, place: &Path, after: Duration) {
    let what = format!(
        "storage pool {name}: {} did not answer within {} s: its disk, or the server it is on, hangs",
        place.display(),
        after.as_secs()
    );
    let fix = "see what it waits for; until it answers nothing in this pool works, and then all goes on by itself";
    findings.add(Severity::Warning, what, Some(fix));
}

/// What each look answers until then, on a thread of its own. `None`: nothing; its thread goes on until it ends.
fn in_time<T: Send + 'static>(
    looks: Vec<(PoolName, impl FnOnce() -> T + Send + 'static)>,
    limit: Duration,
) -> Vec<(PoolName, Option<T>)> {
    let until = Instant::now() + limit;
    let begin = |(name, look)| (name, begin(look));
    let begun: Vec<_> = looks.into_iter().map(begin).collect();
    let end = |(name, answer): (PoolName, mpsc::Receiver<T>)| {
        let left = until.saturating_duration_since(Instant::now());
        (name, answer.recv_timeout(left).ok())
    };
    begun.into_iter().map(end).collect()
}

/// Looks on a thread of its own.
fn begin<T: Send + 'static>(look: impl FnOnce() -> T + Send + 'static) -> mpsc::Receiver<T> {
    let (sender, answer) = mpsc::channel();
    let look = move || {
        // Whoever asked ran out of patience.
        let _ = sender.send(look());
    };
    let begun = thread::Builder::new()
        .name("preflight".to_owned())
        .spawn(look);
    if let Err(error) = begun {
        tracing::warn!(%error, "a storage pool could not be looked at");
    }
    answer
}

fn check_libvirt(findings: &mut Findings, address: &Address) {
    let answers = address
        .sockets()
        .any(|path| match UnixStream::connect(path) {
            Ok(stream) => {
                // It was only to see whether somebody is there.
                let _ = stream.shutdown(Shutdown::Both);
                true
            }
            Err(_) => false,
        });
    if !answers {
        let sockets: Vec<_> = address
            .sockets()
            .map(|path| path.display().to_string())
            .collect();
        findings.add(
            Severity::Warning,
            format!("libvirt does not run: nobody listens at {}", sockets.join(" or ")),
            Some("systemctl start libvirtd; until then the agent waits, and running guests are left alone"),
        );
    }
}

fn check_virtualisation(findings: &mut Findings, choice: VirtTypeChoice, evidence: KvmEvidence) {
    let lack = match (evidence.device_opens, evidence.processor_has_it) {
        (true, true) => None,
        (false, true) => Some("/dev/kvm does not open"),
        (true, false) => Some("the processor shows neither vmx nor svm, although /dev/kvm opens"),
        (false, false) => {
            Some("the processor shows neither vmx nor svm, and /dev/kvm does not open")
        }
    };
    match (choice, lack) {
        (VirtTypeChoice::Auto | VirtTypeChoice::Kvm, None) => {
            findings.add(Severity::Note, "guests run on KVM", None);
        }
        (VirtTypeChoice::Auto, Some(lack)) => findings.add(
            Severity::Warning,
            format!("guests are emulated by QEMU, which is slow: {lack}"),
            Some("switch virtualisation on in the firmware (or for this virtual machine), and load kvm_intel or kvm_amd"),
        ),
        (VirtTypeChoice::Kvm, Some(lack)) => findings.add(
            Severity::Warning,
            format!("libvirt.virt_type is \"kvm\", but {lack}: guests may hang for ever"),
            Some("set libvirt.virt_type = \"auto\" unless you know better"),
        ),
        (VirtTypeChoice::Qemu, _) => {
            findings.add(Severity::Note, "guests are emulated by QEMU, as libvirt.virt_type says", None);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;

    fn virtualisation(
        choice: VirtTypeChoice,
        device_opens: bool,
        processor_has_it: bool,
    ) -> Finding {
        let mut findings = Findings::default();
        check_virtualisation(
            &mut findings,
            choice,
            KvmEvidence {
                device_opens,
                processor_has_it,
            },
        );
        findings.0.remove(0)
    }

    #[test]
    fn emulation_is_said_with_its_reason() {
        assert_eq!(
            virtualisation(VirtTypeChoice::Auto, true, true).severity,
            Severity::Note
        );
        let finding = virtualisation(VirtTypeChoice::Auto, true, false);
        assert!(
            finding.what.contains("neither vmx nor svm, although"),
            "{finding:?}"
        );
        assert_eq!(
            virtualisation(VirtTypeChoice::Kvm, false, true).severity,
            Severity::Warning
        );
        assert_eq!(
            virtualisation(VirtTypeChoice::Qemu, false, false).severity,
            Severity::Note
        );
    }

    #[test]
    fn a_disk_that_hangs_keeps_nobody_waiting_for_ever() {
        let (answer, hangs) = mpsc::channel::<()>();
        let looks: Vec<(PoolName, Box<dyn FnOnce() -> bool + Send>)> = vec![
            (
                "hung".parse().unwrap(),
                Box::new(move || hangs.recv().is_ok()),
            ),
            ("well".parse().unwrap(), Box::new(|| true)),
        ];
        let began = Instant::now();
        let told = in_time(looks, Duration::from_secs(1));
        assert!(began.elapsed() < Duration::from_secs(60));
        let told: Vec<_> = told
            .iter()
            .map(|(name, answer)| (name.as_str(), *answer))
            .collect();
        assert_eq!(told, [("hung", None), ("well", Some(true))]);
        drop(answer);

        let mut findings = Findings::default();
        let limit = Duration::from_secs(10);
        add_hung(
            &mut findings,
            &"hung".parse().unwrap(),
            Path::new("/srv/hung"),
            limit,
        );
        let text = findings.to_string();
        assert!(text.contains("/srv/hung did not answer"), "{text}");
        findings.judge().unwrap();
    }

    #[test]
    fn what_networks_lack_is_found() {
        let config = NetworkConfig {
            nics: [("physnet1".parse().unwrap(), "no-such-nic".parse().unwrap())].into(),
            tunnel_ip: Some(IpAddr::from([192, 0, 2, 77])),
            ..NetworkConfig::default()
        };
        let mut findings = Findings::default();
        check_networks(&mut findings, &config, &Features::default());
        let text = findings.to_string();
        assert!(
            text.contains("no-such-nic") && text.contains("192.0.2.77"),
            "{text}"
        );
        let mut findings = Findings::default();
        let config = NetworkConfig {
            tunnel_ip: Some(IpAddr::from([127, 0, 0, 1])),
            ..NetworkConfig::default()
        };
        check_networks(&mut findings, &config, &Features::default());
        assert_eq!(findings.all(), []);
    }

    #[test]
    fn what_the_kernel_lacks_is_a_warning_where_the_configuration_needs_it() {
        let kernel = Features::without([Feature::Vlan, Feature::Vxlan, Feature::StatefulFilter]);
        let found = |config: &NetworkConfig| {
            let mut findings = Findings::default();
            check_networks(&mut findings, config, &kernel);
            let about = |finding: &Finding| {
                let names = ["VLANs (802.1Q)", "VXLANs", "connection tracking in bridges"];
                let name = names.into_iter().find(|it| finding.what.contains(it));
                (name.unwrap(), finding.severity)
            };
            findings.all().iter().map(about).collect::<BTreeMap<_, _>>()
        };
        assert_eq!(
            found(&NetworkConfig::default()),
            BTreeMap::from([
                ("VLANs (802.1Q)", Severity::Note),
                ("VXLANs", Severity::Note),
                ("connection tracking in bridges", Severity::Warning),
            ])
        );
        let config = NetworkConfig {
            // Of any NIC that is there.
            nics: [("physnet1".parse().unwrap(), "lo".parse().unwrap())].into(),
            tunnel_ip: Some(IpAddr::from([127, 0, 0, 1])),
            ..NetworkConfig::default()
        };
        let severities: Vec<_> = found(&config).into_values().collect();
        assert_eq!(severities, [Severity::Warning; 3]);
    }

    #[test]
    fn capabilities_are_read_from_the_effective_set() {
        let status = "CapPrm:\t0000000000000000\nCapEff:\t0000000000201000\n";
        assert!(has_capability(status, CAP_NET_ADMIN) && has_capability(status, CAP_SYS_ADMIN));
        assert!(!has_capability(
            "CapPrm:\t000001ffffffffff\nCapEff:\t0\n",
            CAP_NET_ADMIN
        ));
        assert!(!has_capability("", CAP_NET_ADMIN));
    }

    #[test]
    fn one_fatal_finding_is_enough_and_all_are_told() {
        let mut findings = Findings::default();
        findings.add(Severity::Note, "a", None);
        findings.add(Severity::Fatal, "b", Some("c"));
        let text = findings.judge().unwrap_err().to_string();
        assert!(
            text.contains("note    a") && text.contains("FATAL   b\n          → c"),
            "{text}"
        );
    }

    #[test]
    fn disks_where_every_qemu_img_sees_them_are_fatal() {
        let mut findings = Findings::default();
        check_unseen(&mut findings, Path::new("/var"), "host.state_dir");
        assert_eq!(findings.all(), []);
        check_unseen(&mut findings, Path::new("/usr/lib"), "host.state_dir");
        assert_eq!(findings.0.remove(0).severity, Severity::Fatal);
    }

    #[test]
    fn programs_are_found_where_they_are() {
        let directory = tempfile::tempdir().unwrap();
        fs::write(directory.path().join("qemu-img"), b"").unwrap();
        let directories = || [PathBuf::from("/nowhere"), directory.path().to_owned()].into_iter();
        assert!(find("qemu-img", directories()).is_some());
        assert!(find("dnsmasq", directories()).is_none());
    }
}
