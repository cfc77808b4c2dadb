//! Reads the few facts berth needs out of libvirt's XML of a domain.
//!
//! The domain may be anybody's: what is unknown, malformed or hostile means "not berth's", never an error and
//! never a panic.

use std::{path::PathBuf, str::FromStr};

use berth_common::{
    document::PortLink,
    message::report::RunningSize,
    units::{ByteCount, Generation, MemoryMb, Vcpus},
};
use quick_xml::{
    NsReader, XmlVersion,
    events::{BytesStart, Event},
    name::{Namespace, ResolveResult},
};

use super::METADATA_NAMESPACE;
use crate::decide::{
    domain::{DiskFile, DomainMetadata, NicObserved},
    room,
};

/// Deeper XML than this is nobody's domain.
const MAX_DEPTH: usize = 64;
/// Longer texts than this are no value of berth's.
const MAX_TEXT: usize = 256;

/// What berth needs of a domain's XML.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct DomainFacts {
    /// berth's metadata, if there is exactly one element of it and all of it is valid.
    pub metadata: Option<DomainMetadata>,
    /// Virtual CPUs.
    pub vcpus: Vcpus,
    /// As many as it can have.
    pub vcpus_max: Vcpus,
    /// Memory.
    pub memory_mb: MemoryMb,
    /// As much as it can have, if more can be added to it.
    pub memory_max: Option<MemoryMb>,
    /// In so many pieces.
    pub memory_slots: usize,
    /// The aliases of pieces that were added; empty, of one that has none.
    pub memory_aliases: Vec<String>,
    /// All files it names as disks or below them, as far as it could be read: whoever asks whether a file is in use
    /// is better told too much than too little.
    pub disks: Vec<DiskFile>,
    /// Whether it has the controller that SCSI disks sit behind.
    pub scsi_controller: bool,
    /// Its NICs on bridges, as far as they could be read.
    pub nics: Vec<NicObserved>,
}

impl DomainFacts {
    /// What the XML of a domain that is on says of its guest.
    #[must_use]
    pub fn running(&self) -> RunningSize {
        RunningSize {
            vcpus: self.vcpus,
            vcpus_max: self.vcpus_max,
            memory_mb: self.memory_mb,
            memory_mb_max: self
                .memory_max
                .filter(|_| self.memory_aliases.len() < self.memory_slots)
                .map_or(self.memory_mb, |most| most.max(self.memory_mb)),
            memory_step_mb: room::memory_step(self.memory_mb),
        }
    }
}

/// Reads a domain's XML. Facts that are missing or make no sense are left at their default.
#[must_use]
pub fn read(xml: &str) -> DomainFacts {
    let mut walk = Walk::default();
    let complete = walk.run(xml).is_some();
    DomainFacts {
        metadata: walk
            .draft
            .filter(|_| complete && walk.drafts == 1)
            .and_then(Draft::finish),
        vcpus: walk.vcpus_now.or(walk.vcpus).unwrap_or_default(),
        vcpus_max: walk.vcpus.unwrap_or_default(),
        memory_mb: walk.memory_mb.unwrap_or_default(),
        memory_max: walk.memory_max,
        memory_slots: walk.memory_slots,
        memory_aliases: walk.memory_aliases,
        disks: walk.disks,
        scsi_controller: walk.scsi_controller,
        nics: walk.nics,
    }
}

/// The files that a backup job writes, as far as its XML can be read.
#[must_use]
pub fn read_backup(xml: &str) -> Vec<PathBuf> {
    let mut reader = NsReader::from_str(xml);
    let mut files = Vec::new();
    loop {
        match reader.read_event() {
            Ok(Event::Start(element) | Event::Empty(element))
                if element.local_name().as_ref() == "target" =>
            {
                for place in ["file", "dev"] {
                    files.extend(attribute(&element, place).flatten().map(PathBuf::from));
                }
            }
            Ok(Event::Eof) | Err(_) => return files,
            Ok(_) => {}
        }
    }
}

/// What an element on the way down means.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Place {
    Domain,
    Vcpu,
    Memory {
        unit: u64,
    },
    MaxMemory {
        unit: u64,
    },
    Metadata,
    Devices,
    Piece,
    Disk {
        /// How many files were found before it.
        before: usize,
    },
    Nic,
    Berth,
    Value(Field),
    Elsewhere,
}

/// The values of berth's element.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Field {
    Instance,
    Generation,
    Reboot,
    Digest,
    LeftOff,
}

/// berth's element while it is read.
#[derive(Debug, Default)]
struct Draft {
    instance: Option<String>,
    generation: Option<String>,
    reboot: Option<String>,
    digest: Option<String>,
    left_off: Option<String>,
    /// A value came twice, or held more than text.
    spoilt: bool,
}

impl Draft {
    fn slot(&mut self, field: Field) -> &mut Option<String> {
        match field {
            Field::Instance => &mut self.instance,
            Field::Generation => &mut self.generation,
            Field::Reboot => &mut self.reboot,
            Field::Digest => &mut self.digest,
            Field::LeftOff => &mut self.left_off,
        }
    }

    fn finish(self) -> Option<DomainMetadata> {
        if self.spoilt {
            return None;
        }
        Some(DomainMetadata {
            instance_id: value(&self.instance?)?,
            generation: Generation(value(&self.generation?)?),
            reboot_nonce: match self.reboot {
                Some(nonce) => Some(value(&nonce)?),
                None => None,
            },
            digest: self.digest?,
            left_off: match self.left_off {
                Some(reason) => Some(value(&reason)?),
                None => None,
            },
        })
    }
}

/// A NIC while it is read.
#[derive(Debug, Default)]
struct DraftNic {
    alias: Option<String>,
    mac: Option<String>,
    bridge: Option<String>,
    tap: Option<String>,
    mtu: Option<String>,
    link: Option<String>,
}

impl DraftNic {
    /// `None`: it is on no bridge, or has no tap yet.
    fn finish(self) -> Option<NicObserved> {
        Some(NicObserved {
            alias: self.alias,
            mac_address: value(&self.mac?)?,
            bridge: self.bridge?,
            tap: self.tap?,
            mtu: self.mtu.and_then(|mtu| value(&mtu)),
            link: match self.link.as_deref() {
                Some("down") => PortLink::Down,
                Some(_) | None => PortLink::Up,
            },
        })
    }
}

fn memory(text: &str, unit: u64) -> Option<MemoryMb> {
    let bytes = value::<u64>(text)?.checked_mul(unit)?;
    Some(ByteCount::clamped(bytes).whole_mb())
}

fn value<T: FromStr>(text: &str) -> Option<T> {
    text.trim().parse().ok()
}

#[derive(Debug, Default)]
struct Walk {
    path: Vec<Place>,
    text: String,
    vcpus: Option<Vcpus>,
    vcpus_now: Option<Vcpus>,
    memory_mb: Option<MemoryMb>,
    memory_max: Option<MemoryMb>,
    memory_slots: usize,
    memory_aliases: Vec<String>,
    draft: Option<Draft>,
    drafts: usize,
    disks: Vec<DiskFile>,
    scsi_controller: bool,
    nic: DraftNic,
    nics: Vec<NicObserved>,
}

impl Walk {
    /// Walks the whole text; `None`: it is not well-formed.
    fn run(&mut self, xml: &str) -> Option<()> {
        let mut reader = NsReader::from_str(xml);
        loop {
            let (namespace, event) = reader.read_resolved_event().ok()?;
            let ours = namespace == ResolveResult::Bound(Namespace(METADATA_NAMESPACE));
            let foreign = !ours && namespace != ResolveResult::Unbound;
            match event {
                Event::Start(start) => self.enter(&start, ours, foreign)?,
                Event::Empty(start) => {
                    self.enter(&start, ours, foreign)?;
                    self.leave();
                }
                Event::End(_) => self.leave(),
                Event::Text(text) => self.add_text(&text.xml10_content()),
                Event::CData(text) => self.add_text(&text.xml10_content()),
                // No value of berth's needs an entity.
                Event::GeneralRef(_) => self.spoil(),
                // libvirt never writes one; it could only be there to do harm.
                Event::DocType(_) => return None,
                Event::Comment(_) | Event::Decl(_) | Event::PI(_) => {}
                Event::Eof => return self.path.is_empty().then_some(()),
            }
        }
    }

    fn enter(&mut self, start: &BytesStart<'_>, ours: bool, foreign: bool) -> Option<()> {
        if self.path.len() >= MAX_DEPTH {
            return None;
        }
        let name = start.local_name();
        let name = name.as_ref();
        let place = match (self.path.last(), name) {
            (None, "domain") if !foreign && !ours => Place::Domain,
            (Some(Place::Domain), "vcpu") if !foreign && !ours => {
                self.vcpus_now = attribute(start, "current")?.and_then(|it| value(&it));
                Place::Vcpu
            }
            (Some(Place::Domain), "memory") if !foreign && !ours => {
                Place::Memory { unit: unit(start)? }
            }
            (Some(Place::Domain), "maxMemory") if !foreign && !ours => {
                let slots = attribute(start, "slots")?.and_then(|it| value(&it));
                self.memory_slots = slots.unwrap_or_default();
                Place::MaxMemory { unit: unit(start)? }
            }
            (Some(Place::Devices), "memory") if !foreign && !ours => {
                self.memory_aliases.push(String::new());
                Place::Piece
            }
            (Some(Place::Piece), "alias") => {
                let name = attribute(start, "name")?.unwrap_or_default();
                if let Some(alias) = self.memory_aliases.last_mut() {
                    *alias = name;
                }
                Place::Elsewhere
            }
            (Some(Place::Domain), "metadata") if !foreign && !ours => Place::Metadata,
            (Some(Place::Metadata), "domain") if ours => {
                self.drafts += 1;
                self.draft = Some(Draft::default());
                Place::Berth
            }
            (Some(Place::Berth), "instance") if ours => Place::Value(Field::Instance),
            (Some(Place::Berth), "generation") if ours => Place::Value(Field::Generation),
            (Some(Place::Berth), "reboot") if ours => Place::Value(Field::Reboot),
            (Some(Place::Berth), "digest") if ours => Place::Value(Field::Digest),
            (Some(Place::Berth), "off") if ours => Place::Value(Field::LeftOff),
            (Some(Place::Domain), "devices") if !foreign && !ours => Place::Devices,
            (Some(Place::Devices), "disk") if !foreign && !ours => Place::Disk {
                before: self.disks.len(),
            },
            (Some(Place::Devices), "controller") if !foreign && !ours => {
                let has = |name, value| attribute(start, name).flatten().as_deref() == Some(value);
                self.scsi_controller |=
                    has("type", "scsi") && has("index", "0") && has("model", "virtio-scsi");
                Place::Elsewhere
            }
            (Some(Place::Disk { before }), "target") => {
                let target = attribute(start, "dev")?.unwrap_or_default();
                let files = self.disks.iter_mut().skip(*before);
                files.for_each(|file| file.target.clone_from(&target));
                Place::Elsewhere
            }
            (Some(Place::Devices), "interface") if !foreign && !ours => {
                self.nic = DraftNic::default();
                Place::Nic
            }
            (Some(Place::Nic), part) => {
                match part {
                    "alias" => self.nic.alias = attribute(start, "name")?,
                    "mac" => self.nic.mac = attribute(start, "address")?,
                    "source" => self.nic.bridge = attribute(start, "bridge")?,
                    "target" => self.nic.tap = attribute(start, "dev")?,
                    "mtu" => self.nic.mtu = attribute(start, "size")?,
                    "link" => self.nic.link = attribute(start, "state")?,
                    _ => {}
                }
                Place::Elsewhere
            }
            // Also of what lies below it, or what it is being copied to.
            (Some(_), "source") if self.is_in_disk() => {
                let file = attribute(start, "file")?;
                let device = attribute(start, "dev")?;
                self.disks.extend(file.or(device).map(|path| DiskFile {
                    path: PathBuf::from(path),
                    target: String::new(),
                }));
                Place::Elsewhere
            }
            (Some(Place::Value(_)), _) => {
                self.spoil();
                Place::Elsewhere
            }
            _ => Place::Elsewhere,
        };
        self.text.clear();
        self.path.push(place);
        Some(())
    }

    fn is_in_disk(&self) -> bool {
        self.path
            .iter()
            .any(|place| matches!(place, Place::Disk { .. }))
    }

    fn leave(&mut self) {
        let text = std::mem::take(&mut self.text);
        match self.path.pop() {
            Some(Place::Vcpu) => self.vcpus = value(&text),
            Some(Place::Memory { unit }) => self.memory_mb = memory(&text, unit),
            Some(Place::MaxMemory { unit }) => self.memory_max = memory(&text, unit),
            Some(Place::Nic) => self.nics.extend(std::mem::take(&mut self.nic).finish()),
            Some(Place::Value(field)) => {
                if let Some(draft) = &mut self.draft
                    && draft.slot(field).replace(text).is_some()
                {
                    draft.spoilt = true;
                }
            }
            Some(
                Place::Domain
                | Place::Metadata
                | Place::Devices
                | Place::Piece
                | Place::Disk { .. }
                | Place::Berth
                | Place::Elsewhere,
            )
            | None => {}
        }
    }

    fn add_text(&mut self, text: &str) {
        if !matches!(
            self.path.last(),
            Some(Place::Vcpu | Place::Memory { .. } | Place::MaxMemory { .. } | Place::Value(_))
        ) {
            return;
        }
        if self.text.len() + text.len() > MAX_TEXT {
            self.spoil();
        } else {
            self.text.push_str(text);
        }
    }

    fn spoil(&mut self) {
        if let (Some(Place::Value(_)), Some(draft)) = (self.path.last(), &mut self.draft) {
            draft.spoilt = true;
        }
    }
}

/// The value of an attribute; the outer `None`: it is not well-formed.
fn attribute(start: &BytesStart<'_>, name: &str) -> Option<Option<String>> {
    let Some(attribute) = start.try_get_attribute(name).ok()? else {
        return Some(None);
    };
    let value = attribute.normalized_value(XmlVersion::Explicit1_0).ok()?;
    Some(Some(value.into_owned()))
}

/// Bytes in one unit of a `<memory>` element; libvirt itself always writes KiB, which is also the default.
fn unit(start: &BytesStart<'_>) -> Option<u64> {
    let Some(attribute) = start.try_get_attribute("unit").ok()? else {
        return Some(1 << 10);
    };
    let unit = attribute.normalized_value(XmlVersion::Explicit1_0).ok()?;
    Some(match unit.as_ref() {
        "b" | "bytes" => 1,
        "k" | "KiB" => 1 << 10,
        "M" | "MiB" => 1 << 20,
        "G" | "GiB" => 1 << 30,
        "T" | "TiB" => 1 << 40,
        _ => return None,
    })
}
