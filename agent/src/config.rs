//! The agent's configuration: `/etc/berth/agent.toml` and the environment.
//!
//! It reads and checks texts only; whether the host fits them is [`crate::preflight`]'s question.

mod network;

use std::{
    collections::BTreeMap,
    net::{Ipv4Addr, SocketAddr, SocketAddrV4},
    path::{Path, PathBuf},
    str::FromStr,
    time::Duration,
};

use berth_common::{
    config::{ConfigErrors, Reader, Secret, parse},
    names::{HostName, PoolName},
    telemetry::{http, logging::LogConfig},
};
use ipnet::IpNet;

pub use network::NetworkConfig;

use crate::{
    act::{
        libvirt::{Address, VirtTypeChoice},
        machine::countables::PciPool,
        net::metadata::default_program,
        storage::{DirPoolOptions, LvmPoolOptions, PoolOptions, VolumeWipe},
    },
    decide::{domain_xml::DEVICES, image_server::ALLOW_KEY, lvm::LvmName, room::RoomToGrow},
};

/// Everything the agent can be told.
#[derive(Debug, Clone)]
pub struct Config {
    /// `bus.url`: the broker and its vhost.
    pub bus_url: Secret<String>,
    /// `host.name`: the name of this host and of its queue; the machine's host name unless it is given.
    pub host_name: HostName,
    /// `host.state_dir`: where identity, journal, images and disks are.
    pub state_dir: PathBuf,
    /// `host.heartbeat_seconds`: how often the scheduler hears of this host.
    pub heartbeat_every: Duration,
    /// `host.resync_seconds`: how often everything on the host is looked at again.
    pub resync_every: Duration,
    /// `network`: what its networks go out by.
    pub network: NetworkConfig,
    /// `host.pci_pools`: the PCI devices that instances may have.
    pub pci_pools: Vec<PciPool>,
    /// `libvirt.uri`.
    pub libvirt_uri: Address,
    /// `libvirt.virt_type`: `auto`, `kvm` or `qemu`.
    pub virt_type: VirtTypeChoice,
    /// `libvirt.room_to_grow`: whether guests are started so that they can get more while they are on.
    pub room_to_grow: RoomToGrow,
    /// `storage.qemu_img_user`: the user without rights that `qemu-img` runs as.
    pub qemu_img_user: String,
    /// `storage.image_url_allow`: where images may come from although it is the host itself, or next to it.
    pub image_url_allow: Vec<IpNet>,
    /// `storage.image_cache_max_age_days`: how long an image stays in the cache that nothing uses.
    pub image_cache_max_age: Duration,
    /// `storage.volume_wipe`: `none`, `zero` or `discard`.
    pub volume_wipe: VolumeWipe,
    /// `storage.pools.NAME`: the storage pools besides `local`.
    pub pools: BTreeMap<PoolName, PoolOptions>,
    /// `network.metadata_program`: what tells guests their metadata.
    pub metadata_program: PathBuf,
    /// `limits.concurrent_operations`: how many instances are worked on at once, and how many
    /// networks.
    pub concurrent_operations: usize,
    /// `telemetry.listen`: where `/metrics` and `/healthz` are served.
    pub listen: SocketAddr,
    /// `log`.
    pub log: LogConfig,
}

/// Where the configuration is unless the command line says otherwise.
pub const DEFAULT_PATH: &str = "/etc/berth/agent.toml";
/// Where the state is unless the configuration says otherwise.
pub const DEFAULT_STATE_DIR: &str = "/var/lib/berth";
const DAY: Duration = Duration::from_secs(24 * 3600);
const DEFAULT_LISTEN: SocketAddr = SocketAddr::V4(SocketAddrV4::new(Ipv4Addr::LOCALHOST, 9782));

impl Config {
    /// Reads the file and the environment.
    ///
    /// # Errors
    /// All mistakes at once.
    pub fn load(path: &Path) -> Result<Self, ConfigErrors> {
        let machine = nix::unistd::gethostname()
            .ok()
            .and_then(|name| name.into_string().ok());
        Self::read(
            Reader::from_file_and_env(path, std::env::vars_os(), "BERTH")?,
            machine.as_deref(),
        )
    }

    /// Takes the configuration out of a reader; `machine` is the machine's own host name.
    ///
    /// # Errors
    /// All mistakes at once.
    pub fn read(mut c: Reader, machine: Option<&str>) -> Result<Self, ConfigErrors> {
        let bus_url = c.required("bus.url", parse::secret(parse::url(&["amqp", "amqps"])));
        let host_name = c
            .maybe(
                "host.name",
                parse::from_str("a host name such as hv1.example.org"),
            )
            .or_else(|| machine_name(&mut c, machine));
        let state_dir = c.optional(
            "host.state_dir",
            parse::absolute_path,
            PathBuf::from(DEFAULT_STATE_DIR),
        );
        let heartbeat_every = c.optional(
            "host.heartbeat_seconds",
            parse::seconds(1..=60),
            Duration::from_secs(10),
        );
        let resync_every = c.optional(
            "host.resync_seconds",
            parse::seconds(1..=3600),
            Duration::from_secs(10),
        );
        let network = NetworkConfig::read(&mut c);
        let pci_pools = c.optional(
            "host.pci_pools",
            parse::list(parse::from_str("a pool such as GPU=10de:1eb8")),
            Vec::new(),
        );
        let libvirt_uri = c.optional(
            "libvirt.uri",
            parse::from_str("a libvirt of this host"),
            Address::default(),
        );
        let virt_type = c.optional(
            "libvirt.virt_type",
            parse::from_str("\"auto\", \"kvm\" or \"qemu\""),
            VirtTypeChoice::Auto,
        );
        let room_to_grow = if c.optional("libvirt.room_to_grow", parse::boolean, true) {
            RoomToGrow::Given
        } else {
            RoomToGrow::Withheld
        };
        let qemu_img_user = c.optional(
            "storage.qemu_img_user",
            parse::non_empty,
            "nobody".to_owned(),
        );
        let image_url_allow = c.optional(
            ALLOW_KEY,
            parse::list(parse::from_str(
                "a range of addresses such as 127.0.0.1/32 or fd00::/64",
            )),
            Vec::new(),
        );
        let image_cache_max_age_days = c.optional(
            "storage.image_cache_max_age_days",
            parse::integer(1..=3650),
            30_u32,
        );
        let volume_wipe = c.optional(
            "storage.volume_wipe",
            parse::from_str("\"none\", \"zero\" or \"discard\""),
            VolumeWipe::None,
        );
        let pools = read_pools(&mut c, &state_dir);
        let metadata_program = c.optional(
            "network.metadata_program",
            parse::absolute_path,
            default_program(),
        );
        let concurrent_operations = c.optional(
            "limits.concurrent_operations",
            parse::integer(1..=64),
            4_usize,
        );
        let listen = http::read_listen(&mut c, DEFAULT_LISTEN);
        let log = LogConfig::read(&mut c);
        c.finish(|| {
            Some(Self {
                bus_url: bus_url?,
                host_name: host_name?,
                state_dir,
                heartbeat_every,
                resync_every,
                network,
                pci_pools,
                libvirt_uri,
                virt_type,
                room_to_grow,
                qemu_img_user,
                image_url_allow,
                image_cache_max_age: DAY * image_cache_max_age_days,
                volume_wipe,
                pools,
                metadata_program,
                concurrent_operations,
                listen,
                log,
            })
        })
    }
}

/// The storage pools: `[storage.pools.NAME]` with `type = "dir"` and `path`, or with `type = "lvm"`, `volume_group` and, for
/// thin volumes, `thin_pool`. Each directory, volume group, or thin pool, is one pool only: what is claimed of it must not be
/// claimed twice.
fn read_pools(c: &mut Reader, state_dir: &Path) -> BTreeMap<PoolName, PoolOptions> {
    let mut pools = BTreeMap::<PoolName, PoolOptions>::new();
    for text in c.names_of("storage.pools") {
        let key = format!("storage.pools.{text}");
        let name = match text.parse::<PoolName>() {
            Ok(name) if name.is_local() => Err(
                "must have another name: local is the pool of files that every host has".to_owned(),
            ),
            Ok(name) => Ok(name),
            Err(error) => Err(error.to_string()),
        };
        let read = read_pool(c, &key);
        let name = match name {
            Ok(name) => name,
            Err(mistake) => {
                c.reject(&key, mistake);
                continue;
            }
        };
        let Some(pool) = read else {
            continue;
        };
        let clash = match &pool {
            PoolOptions::Lvm(_) => {
                let mut others = pools.iter();
                let same = others.find(|(_, other)| **other == pool);
                same.map(|(other, _)| {
                    let what = format!("must not be what the pool {other} is already");
                    ("volume_group", what)
                })
            }
            PoolOptions::Dir(dir) => {
                let what = bad_place(&dir.path, state_dir, &pools);
                what.map(|what| ("path", what))
            }
        };
        match clash {
            Some((word, what)) => c.reject(&format!("{key}.{word}"), what),
            None => {
                pools.insert(name, pool);
            }
        }
    }
    pools
}

/// One storage pool, with everything that is wrong in its section by itself; `None`: something is.
fn read_pool(c: &mut Reader, key: &str) -> Option<PoolOptions> {
    const LVM_NAME: &str = "a name of LVM's, such as vg0";
    const LVM_WORDS: [&str; 2] = ["volume_group", "thin_pool"];
    let at = |word: &str| format!("{key}.{word}");
    match c.required(&at("type"), parse::from_str("\"dir\" or \"lvm\"")) {
        Some(PoolType::Dir) => {
            let path = c.required(&at("path"), parse::absolute_path);
            let strange = LVM_WORDS.map(|word| {
                let given = c.maybe(&at(word), parse::non_empty).is_some();
                if given {
                    let what = "does not belong to a pool of type \"dir\": that has a path only";
                    c.reject(&at(word), what);
                }
                given
            });
            let path = path.filter(|_| !strange.contains(&true))?;
            // As libvirt will tell it.
            let path = path.components().collect();
            Some(PoolOptions::Dir(DirPoolOptions { path }))
        }
        Some(PoolType::Lvm) => {
            let volume_group = c.required(&at("volume_group"), parse::from_str(LVM_NAME));
            let thin_pool = c.maybe(&at("thin_pool"), parse::from_str(LVM_NAME));
            if c.maybe(&at("path"), parse::non_empty).is_some() {
                let what = "does not belong to a pool of type \"lvm\": that has a volume_group, and \
                            perhaps a thin_pool";
                c.reject(&at("path"), what);
                return None;
            }
            Some(PoolOptions::Lvm(LvmPoolOptions {
                volume_group: volume_group?,
                thin_pool,
            }))
        }
        // What its words shall mean is not known; those that have a meaning at all are checked.
        None => {
            c.maybe(&at("path"), parse::absolute_path);
            for word in LVM_WORDS {
                c.maybe(&at(word), parse::from_str::<LvmName>(LVM_NAME));
            }
            None
        }
    }
}

/// Directories of the kernel's, in which there are no disks. What is in the first is taken for a block device.
const NO_DISKS: [&str; 3] = [DEVICES, "/proc", "/sys"];

/// Why a pool of files cannot be at a path.
fn bad_place(
    path: &Path,
    state_dir: &Path,
    pools: &BTreeMap<PoolName, PoolOptions>,
) -> Option<String> {
    let touches = |other: &Path| path.starts_with(other) || other.starts_with(path);
    if touches(state_dir) {
        return Some(format!(
            "must be neither above nor below host.state_dir ({}), nor it: that is the pool local",
            state_dir.display()
        ));
    }
    if let Some(kernel) = NO_DISKS.iter().find(|it| path.starts_with(it)) {
        return Some(format!("must not be in {kernel}, which is no disk"));
    }
    pools.iter().find_map(|(name, pool)| match pool {
        PoolOptions::Dir(other) if touches(&other.path) => Some(format!(
            "must be neither above nor below that of the pool {name} ({}), nor it",
            other.path.display()
        )),
        PoolOptions::Dir(_) | PoolOptions::Lvm(_) => None,
    })
}

/// What a storage pool is made of, as far as it can be configured.
#[derive(Debug, Clone, Copy)]
enum PoolType {
    Dir,
    Lvm,
}

/// The text names no type of a storage pool.
#[derive(Debug, thiserror::Error)]
#[error("no type of a storage pool")]
struct UnknownPoolType;

impl FromStr for PoolType {
    type Err = UnknownPoolType;

    fn from_str(text: &str) -> Result<Self, UnknownPoolType> {
        match text {
            "dir" => Ok(Self::Dir),
            "lvm" => Ok(Self::Lvm),
            _ => Err(UnknownPoolType),
        }
    }
}

/// The machine's host name, if it can name a queue.
fn machine_name(c: &mut Reader, machine: Option<&str>) -> Option<HostName> {
    match machine.map(str::parse::<HostName>) {
        Some(Ok(name)) => Some(name),
        Some(Err(error)) => {
            c.reject(
                "host.name",
                format!("must be given, because the machine's own name cannot be used: {error}"),
            );
            None
        }
        None => {
            c.reject(
                "host.name",
                "must be given, because the machine has no name",
            );
            None
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::decide::pool::{FilesPlace, PoolPlace};

    fn read(text: &str, machine: Option<&str>) -> Result<Config, String> {
        Config::read(Reader::from_text("agent.toml", text, [], "BERTH"), machine)
            .map_err(|error| error.to_string())
    }

    #[test]
    fn one_line_is_enough() {
        let config = read(
            "[bus]\nurl = \"amqp://berth:pw@127.0.0.1/berth\"\n",
            Some("hv1"),
        )
        .unwrap();
        assert_eq!(config.host_name.as_str(), "hv1");
        assert_eq!(config.state_dir, Path::new("/var/lib/berth"));
        assert_eq!(config.virt_type, VirtTypeChoice::Auto);
        assert_eq!(config.room_to_grow, RoomToGrow::Given);
        assert_eq!(config.volume_wipe, VolumeWipe::None);
        assert_eq!(config.heartbeat_every, Duration::from_secs(10));
        assert_eq!(config.listen.port(), 9782);
        assert_eq!(config.qemu_img_user, "nobody");
        assert_eq!(config.image_url_allow, []);
        assert_eq!(config.image_cache_max_age, 30 * DAY);
    }

    #[test]
    fn all_mistakes_are_told_at_once() {
        let text = "[host]\nname = \"a_b\"\nstate_dir = \"berth\"\nheartbeat_seconds = 61\ncolour = 1\n\
                    [libvirt]\nuri = \"qemu+ssh://hv2/system\"\nvirt_type = \"xen\"\n[limits]\nconcurrent_operations = 0\n\
                    [storage]\nqemu_img_user = \"\"\nimage_cache_max_age_days = 0\nvolume_wipe = \"twice\"\n";
        let errors = read(text, Some("hv1")).unwrap_err();
        for key in [
            "bus.url",
            "host.name",
            "state_dir",
            "heartbeat_seconds",
            "colour",
            "a libvirt of this host",
            "virt_type",
            "volume_wipe",
            "concurrent_operations",
            "qemu_img_user",
            "image_cache_max_age_days",
        ] {
            assert!(errors.contains(key), "{key} is missing in:\n{errors}");
        }
    }

    const BUS: &str = "[bus]\nurl = \"amqp://berth:pw@127.0.0.1/berth\"\n";

    #[test]
    fn room_to_grow_can_be_withheld() {
        let read = |value: &str| {
            let text = format!("{BUS}[libvirt]\nroom_to_grow = {value}\n");
            read(&text, Some("hv1")).map(|config| config.room_to_grow)
        };
        assert_eq!(read("false").unwrap(), RoomToGrow::Withheld);
        assert_eq!(read("true").unwrap(), RoomToGrow::Given);
        assert!(read("2").unwrap_err().contains("libvirt.room_to_grow"));
    }

    #[test]
    fn where_images_may_come_from_besides_is_a_list_of_ranges() {
        let read = |value: &str| {
            let text = format!("{BUS}[storage]\nimage_url_allow = {value}\n");
            read(&text, Some("hv1")).map(|config| config.image_url_allow)
        };
        let found = read("[\"127.0.0.1/32\", \"fe80::/64\"]").unwrap();
        let expected: [IpNet; 2] = [
            "127.0.0.1/32".parse().unwrap(),
            "fe80::/64".parse().unwrap(),
        ];
        assert_eq!(found, expected);
        let error = read("[\"localhost\"]").unwrap_err();
        assert!(error.contains("127.0.0.1/32"), "{error}");
    }

    #[test]
    fn pools_are_read_by_name() {
        let text = "[storage.pools.fast]\ntype = \"lvm\"\nvolume_group = \"vg0\"\n\
                    [storage.pools.thin]\ntype = \"lvm\"\nvolume_group = \"vg0\"\nthin_pool = \"tp\"\n\
                    [storage.pools.ssd]\ntype = \"dir\"\npath = \"/srv/ssd/\"\n";
        let config = read(&format!("{BUS}{text}"), Some("hv1")).unwrap();
        let names: Vec<&str> = config.pools.keys().map(PoolName::as_str).collect();
        assert_eq!(names, ["fast", "ssd", "thin"]);
        let places = ["/dev/vg0", "/dev/vg0", "/srv/ssd"].map(PathBuf::from);
        let [fast, thin, ssd] = places;
        let expected = [
            PoolPlace::Devices(fast),
            PoolPlace::Files(FilesPlace::below(&ssd)),
            PoolPlace::ThinDevices(thin),
        ];
        let found = config.pools.values().map(PoolOptions::place);
        assert!(found.eq(expected));
        assert!(read(BUS, Some("hv1")).unwrap().pools.is_empty());
    }

    #[test]
    fn all_mistakes_of_all_pools_are_told_at_once() {
        let text = "[storage.pools.local]\ntype = \"lvm\"\nvolume_group = \"vg0\"\n\
                    [storage.pools.Big]\ntype = \"lvm\"\nvolume_group = \"vg0\"\n\
                    [storage.pools.a]\ntype = \"zfs\"\nvolume_group = \"../vg\"\nthin = \"x\"\n\
                    [storage.pools.b]\ntype = \"lvm\"\n\
                    [storage.pools.c]\ntype = \"lvm\"\nvolume_group = \"vg1\"\n\
                    [storage.pools.d]\ntype = \"lvm\"\nvolume_group = \"vg1\"\n";
        let errors = read(&format!("{BUS}{text}"), Some("hv1")).unwrap_err();
        for part in [
            "local is the pool of files",
            "lower-case",
            "pools.a.type",
            "pools.a.volume_group",
            "thin",
            "pools.b.volume_group",
            "what the pool c is already",
        ] {
            assert!(errors.contains(part), "{part} is missing in:\n{errors}");
        }
    }

    #[test]
    fn all_mistakes_of_all_pools_of_files_are_told_at_once() {
        let text = "[host]\nstate_dir = \"/srv/berth/state\"\n\
                    [storage.pools.a]\ntype = \"dir\"\n\
                    [storage.pools.b]\ntype = \"dir\"\npath = \"srv/b\"\n\
                    [storage.pools.c]\ntype = \"dir\"\npath = \"/srv/c\"\nvolume_group = \"vg0\"\nthin_pool = \"tp\"\n\
                    [storage.pools.d]\ntype = \"lvm\"\nvolume_group = \"vg0\"\npath = \"/srv/d\"\n\
                    [storage.pools.e]\ntype = \"dir\"\npath = \"/srv/e\"\n\
                    [storage.pools.f]\ntype = \"dir\"\npath = \"/srv//e/\"\n\
                    [storage.pools.g]\ntype = \"dir\"\npath = \"/srv/e/g\"\n\
                    [storage.pools.h]\ntype = \"dir\"\npath = \"/srv\"\n\
                    [storage.pools.i]\ntype = \"dir\"\npath = \"/srv/berth/state/i\"\n\
                    [storage.pools.j]\ntype = \"dir\"\npath = \"/srv/berth/state\"\n\
                    [storage.pools.k]\ntype = \"dir\"\npath = \"/dev/shm\"\n\
                    [storage.pools.l]\ntype = \"dir\"\npath = \"/srv/e/../l\"\n\
                    [storage.pools.m]\ntype = \"zfs\"\npath = \"m\"\n\
                    [storage.pools.local]\ntype = \"dir\"\npath = \"/srv/local\"\n";
        let errors = read(&format!("{BUS}{text}"), Some("hv1")).unwrap_err();
        for (key, part) in [
            ("a.path", ""),
            ("b.path", "an absolute path"),
            (
                "c.volume_group",
                "does not belong to a pool of type \"dir\"",
            ),
            ("c.thin_pool", "does not belong to a pool of type \"dir\""),
            ("d.path", "does not belong to a pool of type \"lvm\""),
            ("f.path", "that of the pool e (/srv/e)"),
            ("g.path", "that of the pool e (/srv/e)"),
            ("h.path", "host.state_dir (/srv/berth/state)"),
            ("i.path", "host.state_dir (/srv/berth/state)"),
            ("j.path", "host.state_dir (/srv/berth/state)"),
            ("k.path", "/dev"),
            ("l.path", "without \"..\""),
            ("m.type", "\"dir\" or \"lvm\""),
            ("m.path", "an absolute path"),
            ("local", "local is the pool of files"),
        ] {
            let key = format!("storage.pools.{key}");
            let found = errors
                .lines()
                .any(|line| line.contains(&key) && line.contains(part));
            assert!(found, "{key} ({part}) is missing in:\n{errors}");
        }
        assert!(!errors.contains("pools.e"), "{errors}");
    }

    #[test]
    fn a_machine_without_a_usable_name_must_be_given_one() {
        let text = "[bus]\nurl = \"amqp://berth:pw@127.0.0.1/berth\"\n";
        assert!(
            read(text, Some("my_laptop"))
                .unwrap_err()
                .contains("host.name")
        );
        assert!(read(text, None).unwrap_err().contains("host.name"));
    }
}
