//! The instance file: TOML that describes an instance to create, documented by `docs/instance.sample.toml`.
//!
//! Pure: a text becomes a request, or a list of **all** its mistakes with file, line, key and what would be
//! right. It reads no file and sends nothing.

mod config_drive;
mod hints;
mod reader;

use std::{collections::BTreeSet, fmt, net::IpAddr, path::Path};

use berth_common::{
    config::{Mistake, closest},
    document::{ConfigDrive, DesiredPower, Flavor, ImageFormat, ImageRef, OnCrash},
    ids::InstanceId,
    message::{
        placement::SchedulerHints,
        request::{
            BlockDevice, InstanceCreate, NetworkAttachment, PlacementPlace,
            default_stop_timeout_seconds,
        },
    },
    names::{
        InstanceName, InvalidText, MacAddress, NetworkName, PortName, ProjectName,
        SecurityGroupName,
    },
    units::{DiskGb, MemoryMb, Vcpus},
};
use reader::{Field, Reader, Section};
use toml::de::DeTable;

/// Ports of an instance at most.
const MAX_NETWORKS: usize = 8;
/// The key of the root disk's size.
const DISK: &str = "disk_gb";
/// How long a guest may take to power off, in seconds: at most an hour.
const MAX_STOP_TIMEOUT_SECONDS: u32 = 3600;
/// Every key, for suggestions across sections.
const ALL_KEYS: [&str; 36] = [
    "name",
    "project",
    "vcpus",
    "memory_mb",
    "disk_gb",
    "power",
    "stop_timeout_seconds",
    "on_crash",
    "image.url",
    "image.sha256",
    "image.format",
    "networks.network",
    "networks.ip_address",
    "networks.mac_address",
    "networks.port",
    "networks.security_groups",
    "networks.port_security",
    "networks",
    "hints.availability_zone",
    "hints.host",
    "hints.same_host",
    "hints.different_host",
    "hints.server_group",
    "hints.architecture",
    "hints.virt_type",
    "hints.properties",
    "hints.resources",
    "hints",
    "config_drive.user_data",
    "config_drive.public_keys",
    "config_drive.metadata",
    "config_drive",
    "guest_data.user_data",
    "guest_data.public_keys",
    "guest_data.metadata",
    "guest_data",
];

/// What the command line says over the file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Overrides {
    /// The new instance's id.
    pub(crate) id: InstanceId,
    /// `--name`.
    pub(crate) name: Option<InstanceName>,
    /// `--project`.
    pub(crate) project: Option<ProjectName>,
    /// `--volume`: what it boots from instead of an image.
    pub(crate) volume: Option<BlockDevice>,
}

/// All mistakes of one instance file.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) struct FileMistakes(pub(crate) Vec<Mistake>);

impl fmt::Display for FileMistakes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0.len() {
            1 => write!(f, "1 mistake in the instance file:")?,
            n => write!(f, "{n} mistakes in the instance file:")?,
        }
        for (index, mistake) in self.0.iter().enumerate() {
            write!(f, "\n  {}. {mistake}", index + 1)?;
        }
        Ok(())
    }
}

/// Reads the text of an instance file; `file` is its name, for the mistakes.
pub(crate) fn parse(
    file: &Path,
    text: &str,
    overrides: Overrides,
) -> Result<InstanceCreate, FileMistakes> {
    let needs = Needs::Instance {
        name: overrides.name,
        boot: match overrides.volume {
            Some(_) => Boot::Volume,
            None => Boot::Image,
        },
    };
    let (parts, mistakes) = read(file, text, needs);
    let image = parts.image.filter(|_| overrides.volume.is_none());
    let boots = image.is_some() || overrides.volume.is_some();
    match (parts.name, parts.flavor) {
        (Some(name), Some(flavor)) if boots && mistakes.is_empty() => Ok(InstanceCreate {
            id: overrides.id,
            name,
            project: overrides.project.or(parts.project).unwrap_or_default(),
            flavor,
            image,
            block_devices: overrides.volume.into_iter().collect(),
            networks: parts.networks,
            power: parts.power.unwrap_or_default(),
            stop_timeout_seconds: parts
                .stop_timeout_seconds
                .unwrap_or_else(default_stop_timeout_seconds),
            hints: parts.hints,
            config_drive: parts.config_drive,
            guest_data: parts.guest_data,
            on_crash: parts.on_crash.unwrap_or_default(),
        }),
        _ => Err(FileMistakes(mistakes)),
    }
}

/// Reads what placement needs to know of an instance. The other parts may be missing; where they are there, they must be right.
pub(crate) fn parse_placement(
    file: &Path,
    text: &str,
    project: Option<ProjectName>,
) -> Result<PlacementPlace, FileMistakes> {
    let (parts, mistakes) = read(file, text, Needs::Placement);
    match parts.flavor {
        Some(flavor) if mistakes.is_empty() => Ok(PlacementPlace {
            project: project.or(parts.project).unwrap_or_default(),
            flavor,
            hints: parts.hints,
            networks: parts.networks,
        }),
        _ => Err(FileMistakes(mistakes)),
    }
}

/// What a file must have.
#[derive(Debug, PartialEq, Eq)]
enum Needs {
    /// Whatever an instance needs.
    Instance {
        /// The name that the command line gives.
        name: Option<InstanceName>,
        /// What it boots from.
        boot: Boot,
    },
    /// A size.
    Placement,
}

/// What an instance boots from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Boot {
    /// The file's image.
    Image,
    /// A volume that the command line names: neither an image is needed, nor the size of a disk.
    Volume,
}

/// What a file has.
struct Parts {
    name: Option<InstanceName>,
    project: Option<ProjectName>,
    flavor: Option<Flavor>,
    image: Option<ImageRef>,
    networks: Vec<NetworkAttachment>,
    power: Option<DesiredPower>,
    stop_timeout_seconds: Option<u32>,
    hints: SchedulerHints,
    config_drive: Option<ConfigDrive>,
    guest_data: Option<ConfigDrive>,
    on_crash: Option<OnCrash>,
}

fn read(file: &Path, text: &str, needs: Needs) -> (Parts, Vec<Mistake>) {
    let (table, syntax) = DeTable::parse_recoverable(text);
    let mut reader = Reader::new(file, text, &syntax);
    let mut root = Section::root(table.get_ref());
    let boot = match &needs {
        Needs::Instance { boot, .. } => Some(*boot),
        Needs::Placement => None,
    };
    let parts = Parts {
        name: name(&mut reader, &mut root, needs),
        project: reader
            .text(&mut root, "project", word::<ProjectName>)
            .value(),
        flavor: flavor(&mut reader, &mut root, boot),
        image: if boot == Some(Boot::Image) || root.has("image") {
            image(&mut reader, &mut root)
        } else {
            None
        },
        networks: networks(&mut reader, &mut root),
        power: power(&mut reader, &mut root),
        stop_timeout_seconds: reader
            .integer(
                &mut root,
                "stop_timeout_seconds",
                &(1..=MAX_STOP_TIMEOUT_SECONDS),
                " seconds",
            )
            .value(),
        on_crash: on_crash(&mut reader, &mut root),
        hints: hints::read(&mut reader, &mut root),
        config_drive: config_drive::read(&mut reader, &mut root, "config_drive"),
        guest_data: config_drive::read(&mut reader, &mut root, "guest_data"),
    };
    reader.end(&root, &ALL_KEYS);
    (parts, reader.finish())
}

fn power<'t>(reader: &mut Reader<'t>, root: &mut Section<'t>) -> Option<DesiredPower> {
    const POWER: [(&str, DesiredPower); 2] = [
        ("running", DesiredPower::Running),
        ("stopped", DesiredPower::Stopped),
    ];
    reader
        .text(root, "power", |text| one_of(text, &POWER))
        .value()
}

fn on_crash<'t>(reader: &mut Reader<'t>, root: &mut Section<'t>) -> Option<OnCrash> {
    const ON_CRASH: [(&str, OnCrash); 2] = [
        (OnCrash::Restart.as_str(), OnCrash::Restart),
        (OnCrash::Stop.as_str(), OnCrash::Stop),
    ];
    reader
        .text(root, "on_crash", |text| one_of(text, &ON_CRASH))
        .value()
}

fn name<'t>(reader: &mut Reader<'t>, root: &mut Section<'t>, needs: Needs) -> Option<InstanceName> {
    let in_file = reader.text(root, "name", word::<InstanceName>);
    let Needs::Instance { name: given, .. } = needs else {
        return in_file.value();
    };
    if in_file == Field::Absent && given.is_none() {
        reader.missing(
            root,
            "name",
            "set it at the top of the file, like name = \"web-1\", or give --name",
        );
    }
    given.or(in_file.value())
}

fn flavor<'t>(
    reader: &mut Reader<'t>,
    root: &mut Section<'t>,
    boot: Option<Boot>,
) -> Option<Flavor> {
    let mut size = |name: &'static str, most: u64, unit: &str, example: &str| {
        let size = reader.integer(root, name, &(1..=most), unit);
        if name == DISK && size == Field::Absent && boot == Some(Boot::Volume) {
            return Some(0);
        }
        if size == Field::Absent {
            let range = format!("must be an integer from 1 to {most}{unit}");
            reader.missing(
                root,
                name,
                &format!("{range}; set it at the top of the file, like {name} = {example}"),
            );
        }
        size.value()
    };
    let vcpus = size("vcpus", Vcpus::MAX.get(), "", "1");
    let memory_mb = size("memory_mb", MemoryMb::MAX.get(), " (MiB)", "512");
    let disk_gb = size(DISK, DiskGb::MAX.get(), " (GiB)", "10");
    Some(Flavor {
        vcpus: Vcpus::new(vcpus?).ok()?,
        memory_mb: MemoryMb::new(memory_mb?).ok()?,
        disk_gb: DiskGb::new(disk_gb?).ok()?,
    })
}

fn image<'t>(reader: &mut Reader<'t>, root: &mut Section<'t>) -> Option<ImageRef> {
    const URL: &str = "must be an absolute path on the hypervisor, file:///absolute/path, http://… or https://…, of at \
                       most 2048 printable characters without spaces";
    const FORMAT: [(&str, ImageFormat); 5] = [
        ("qcow2", ImageFormat::Qcow2),
        ("raw", ImageFormat::Raw),
        ("vmdk", ImageFormat::Vmdk),
        ("vdi", ImageFormat::Vdi),
        ("vhdx", ImageFormat::Vhdx),
    ];
    if !root.has("image") {
        reader.missing(
            root,
            "image",
            "write a section [image] with url, sha256 and format",
        );
    }
    let mut section = reader.section(root, "image")?;

    let url = reader.text(&mut section, "url", |text| {
        let url = if text.starts_with('/') {
            format!("file://{text}")
        } else {
            text.to_owned()
        };
        url.parse().map_err(|_: InvalidText| URL.to_owned())
    });
    if url == Field::Absent {
        reader.missing(&section, "url", URL);
    }
    let sha256 = reader.text(&mut section, "sha256", |text| {
        text.parse()
            .map_err(|error: InvalidText| format!("{}: {SHA256_CURE}", error.expected))
    });
    if sha256 == Field::Absent {
        reader.missing(
            &section,
            "sha256",
            &format!("berth checks every image against it: {SHA256_CURE}"),
        );
    }
    let format = reader.text(&mut section, "format", |text| one_of(text, &FORMAT));
    if format == Field::Absent {
        let right = "must be \"qcow2\", \"raw\", \"vmdk\", \"vdi\" or \"vhdx\" (`qemu-img info FILE` tells which); \
                     berth never guesses it";
        reader.missing(&section, "format", right);
    }
    reader.end(&section, &ALL_KEYS);
    Some(ImageRef {
        url: url.value()?,
        sha256: sha256.value()?,
        format: format.value()?,
    })
}

const SHA256_CURE: &str = "run `sha256sum FILE` on a copy you trust and write its first word here";

/// The most security groups of a port.
const MAX_GROUPS: usize = 16;
/// Whether a guest is held to its addresses and its groups.
const SECURITY: [(&str, bool); 2] = [("enabled", true), ("disabled", false)];

fn networks<'t>(reader: &mut Reader<'t>, root: &mut Section<'t>) -> Vec<NetworkAttachment> {
    let mut sections = reader.sections(root, "networks");
    reader.at_most(root, "networks", sections.len(), MAX_NETWORKS);
    let mut macs = BTreeSet::new();
    let mut addresses = BTreeSet::new();
    let mut attachments = Vec::new();
    for section in &mut sections {
        let network = reader.text(section, "network", word::<NetworkName>);
        let port = reader.text(section, "port", word::<PortName>);
        if network == Field::Absent && port == Field::Absent {
            reader.missing(
                section,
                "network",
                "must be the name or the id of a network",
            );
        }
        let ip_address = reader.text(section, "ip_address", |text| {
            text.parse::<IpAddr>()
                .map_err(|_| "must be an IP address, like \"10.0.0.10\"".to_owned())
        });
        let mac_address = reader.text(section, "mac_address", word::<MacAddress>);
        let has_groups = section.has("security_groups");
        let groups = reader.texts(section, "security_groups", MAX_GROUPS, |text| {
            word::<SecurityGroupName>(text).map(String::from)
        });
        let security = reader.text(section, "port_security", |text| one_of(text, &SECURITY));
        reader.end(section, &ALL_KEYS);

        let given = port != Field::Absent;
        let network = network.value().map(String::from);
        let port = port.value().map(String::from);
        let (ip_address, mac_address) = (ip_address.value(), mac_address.value());
        let security = security.value();
        let more = [
            ("network", network.is_some()),
            ("ip_address", ip_address.is_some()),
            ("mac_address", mac_address.is_some()),
            ("security_groups", has_groups),
            ("port_security", security.is_some()),
        ];
        for (key, _) in more.into_iter().filter(|(_, is_there)| given && *is_there) {
            let what = "must not stand beside port, which has it already".to_owned();
            reader.reject(section, key, what);
        }
        if let Some(mac) = mac_address
            && !macs.insert(mac)
        {
            reader.reject(
                section,
                "mac_address",
                format!("must be of one network only; found {mac} again"),
            );
        }
        if let (Some(network), Some(address)) = (&network, ip_address)
            && !addresses.insert((network.clone(), address))
        {
            let what = format!("must be of one port of the network only; found {address} again");
            reader.reject(section, "ip_address", what);
        }
        let is_named = network.is_some() || port.is_some();
        attachments.extend(is_named.then(|| NetworkAttachment {
            network: network.unwrap_or_default(),
            port,
            ip_address,
            mac_address,
            security_groups: has_groups.then_some(groups),
            port_security_enabled: security,
        }));
    }
    attachments
}

/// A text with a grammar of its own; the refusal says what the grammar is.
fn word<T: std::str::FromStr<Err = InvalidText>>(text: &str) -> Result<T, String> {
    text.parse()
        .map_err(|error: InvalidText| error.expected.to_owned())
}

fn one_of<T: Clone>(text: &str, words: &[(&str, T)]) -> Result<T, String> {
    if let Some((_, value)) = words.iter().find(|(word, _)| *word == text) {
        return Ok(value.clone());
    }
    let all: Vec<String> = words
        .iter()
        .map(|(word, _)| format!("\"{word}\""))
        .collect();
    let hint = closest(text, words.iter().map(|(word, _)| *word))
        .map(|near| format!(" (did you mean \"{near}\"?)"))
        .unwrap_or_default();
    let choice = match all.as_slice() {
        [others @ .., last] if !others.is_empty() => format!("{} or {last}", others.join(", ")),
        all => all.concat(),
    };
    Err(format!("must be {choice}{hint}"))
}

#[cfg(test)]
mod tests;
