//! The qcow2 header, as QEMU's `docs/interop/qcow2.txt` defines it. All numbers are big endian.

use std::ops::Range;

use berth_common::units::ByteCount;

use super::SECTOR;

/// The first bytes of every qcow2 image.
pub(super) const MAGIC: [u8; 4] = *b"QFI\xfb";

const V2_HEADER: u64 = 72;
const V3_HEADER: u64 = 104;
/// QEMU's own bounds: clusters of 512 bytes to 2 MiB.
const CLUSTER_BITS: Range<u32> = 9..22;
/// QEMU's own bound on the L1 table: 32 MiB of 8-byte entries.
const MAX_L1_ENTRIES: u32 = 4 << 20;
/// QEMU's own bound on the refcount table: 8 MiB.
const MAX_REFCOUNT_TABLE: u64 = 8 << 20;
/// QEMU's own bound on internal snapshots.
const MAX_SNAPSHOTS: u32 = 65_536;
/// Refcounts of at most 64 bits.
const MAX_REFCOUNT_ORDER: u32 = 6;

const DIRTY: u64 = 1;
const CORRUPT: u64 = 1 << 1;
const EXTERNAL_DATA: u64 = 1 << 2;
const COMPRESSION_TYPE: u64 = 1 << 3;
const EXTENDED_L2: u64 = 1 << 4;

const EXT_END: u32 = 0;
const EXT_BACKING_FORMAT: u32 = 0xe279_2aca;
const EXT_ENCRYPTION: u32 = 0x0537_be77;
const EXT_DATA_FILE: u32 = 0x4441_5441;

/// How much of the header tells the virtual size, and whether the data is elsewhere, in bytes.
pub const SIZED: usize = 80;

/// The virtual size of a disk that this host made itself, of version 3; `None`: it is none, or its data would be in
/// another file. QEMU had it open, so its header is believed only as far as nothing else is opened for it.
#[must_use]
pub fn own_size(head: &[u8]) -> Option<ByteCount> {
    let number = |range: Range<usize>| Some(u64::from_be_bytes(head.get(range)?.try_into().ok()?));
    let is_version_3 = head.get(4..8) == Some(&3_u32.to_be_bytes());
    let is_own =
        head.starts_with(&MAGIC) && is_version_3 && number(72..SIZED)? & EXTERNAL_DATA == 0;
    number(24..32).filter(|_| is_own).map(ByteCount::clamped)
}

/// How much of the header tells of the snapshots in an image, in bytes.
pub const COUNTED: usize = 64;

/// How many snapshots there are in an image; `None`: this does not begin as one.
#[must_use]
pub fn internal_snapshots(head: &[u8]) -> Option<u32> {
    let count: [u8; 4] = head.get(60..COUNTED)?.try_into().ok()?;
    head.starts_with(&MAGIC)
        .then_some(u32::from_be_bytes(count))
}

/// How much of the header tells of the backing file, in bytes.
pub(super) const BACKING_BYTES: usize = 20;
/// QEMU's own bound on the name of a backing file, in bytes.
const MAX_BACKING_NAME: u32 = 1023;

/// Where the name of the backing file lies, and how long it is.
pub(super) fn backing_name(head: &[u8]) -> Option<(u64, usize)> {
    if !head.starts_with(&MAGIC) {
        return None;
    }
    let at = u64::from_be_bytes(head.get(8..16)?.try_into().ok()?);
    let count = u32::from_be_bytes(head.get(16..20)?.try_into().ok()?);
    let sane = at != 0 && (1..=MAX_BACKING_NAME).contains(&count);
    Some((at, usize::try_from(count).ok()?)).filter(|_| sane)
}

/// Why a qcow2 image is not accepted.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Qcow2Refusal {
    /// The file ends within its own header or tables.
    #[error(
        "the qcow2 image is cut off: its {part} ends at byte {needed}, and the file has {length} bytes"
    )]
    Truncated {
        /// What does not fit.
        part: &'static str,
        /// Where it would end.
        needed: u64,
        /// Length of the file.
        length: u64,
    },
    /// An unknown version.
    #[error("the qcow2 image has version {0}; versions 2 and 3 are accepted")]
    Version(u32),
    /// It names a backing file.
    #[error(
        "the qcow2 image names a backing file{}; an image must stand alone: flatten it with \
         `qemu-img convert -O qcow2`",
        quoted(name.as_deref())
    )]
    BackingFile {
        /// The name, if it could be read.
        name: Option<String>,
    },
    /// It names a format of a backing file.
    #[error(
        "the qcow2 image states a backing format; an image must stand alone: flatten it with \
         `qemu-img convert -O qcow2`"
    )]
    BackingFormat,
    /// Its data are in another file.
    #[error(
        "the qcow2 image keeps its data in an external data file{}; an image must stand alone: convert it with \
         `qemu-img convert -O qcow2`",
        quoted(name.as_deref())
    )]
    DataFile {
        /// The name, if the header has one.
        name: Option<String>,
    },
    /// It is encrypted.
    #[error("the qcow2 image is encrypted; only plain images are accepted")]
    Encrypted,
    /// It was not closed properly.
    #[error(
        "the qcow2 image is marked as not closed properly (dirty); repair it with `qemu-img check -r all` and publish \
         the result"
    )]
    Dirty,
    /// QEMU found it broken.
    #[error("the qcow2 image is marked as corrupt; make it anew from a good copy")]
    Corrupt,
    /// It needs something that is not known to be safe.
    #[error(
        "the qcow2 image needs unknown features (incompatible bits {0:#x}); convert it with `qemu-img convert -O qcow2`"
    )]
    UnknownFeatures(u64),
    /// A field of the header makes no sense.
    #[error("the qcow2 header is broken: {field} is {value}, and it must be {expected}")]
    Field {
        /// The field, by its name in QEMU's specification.
        field: &'static str,
        /// What it says.
        value: u64,
        /// What would be right.
        expected: String,
    },
    /// A header extension does not fit.
    #[error(
        "the qcow2 header is broken: the extension at byte {at} (type {kind:#x}) claims {length} bytes, which do not fit"
    )]
    Extension {
        /// Where it starts.
        at: u64,
        /// Its type.
        kind: u32,
        /// Its stated length.
        length: u32,
    },
    /// The list of extensions does not end in the bytes that are inspected.
    #[error("the qcow2 header is broken: its extensions do not end within {0} bytes")]
    EndlessExtensions(u64),
}

fn quoted(name: Option<&str>) -> String {
    name.map_or_else(String::new, |name| format!(" ({name:?})"))
}

/// The bytes at hand, with reads that cannot leave them.
struct Head<'a> {
    bytes: &'a [u8],
    length: u64,
}

impl<'a> Head<'a> {
    fn slice(&self, part: &'static str, at: u64, count: u64) -> Result<&'a [u8], Qcow2Refusal> {
        let end = at.saturating_add(count);
        usize::try_from(at)
            .ok()
            .zip(usize::try_from(end).ok())
            .and_then(|(at, end)| self.bytes.get(at..end))
            .ok_or(Qcow2Refusal::Truncated {
                part,
                needed: end,
                length: self.length,
            })
    }

    fn u32(&self, part: &'static str, at: u64) -> Result<u32, Qcow2Refusal> {
        let bytes = self.slice(part, at, 4)?;
        Ok(bytes
            .iter()
            .fold(0, |number, byte| (number << 8) | u32::from(*byte)))
    }

    fn u64(&self, part: &'static str, at: u64) -> Result<u64, Qcow2Refusal> {
        let bytes = self.slice(part, at, 8)?;
        Ok(bytes
            .iter()
            .fold(0, |number, byte| (number << 8) | u64::from(*byte)))
    }

    /// A name in the header, for a message; hostile bytes are shown escaped by its reader.
    fn text(&self, at: u64, count: u64) -> Option<String> {
        let bytes = self.slice("name", at, count.min(1023)).ok()?;
        Some(String::from_utf8_lossy(bytes).into_owned())
    }
}

/// Checks the header of a file that starts with [`MAGIC`]; returns the size of the disk in it.
pub(super) fn virtual_size(bytes: &[u8], length: u64) -> Result<u64, Qcow2Refusal> {
    let head = Head { bytes, length };
    head.slice("header", 0, V2_HEADER)?;
    let header_end = match head.u32("header", 4)? {
        2 => V2_HEADER,
        3 => {
            head.slice("header", 0, V3_HEADER)?;
            u64::from(head.u32("header", 100)?)
        }
        version => return Err(Qcow2Refusal::Version(version)),
    };
    stands_alone(&head)?;
    if head.u32("header", 4)? == 3 {
        features(&head, header_end)?;
    }
    let cluster = cluster_size(&head)?;
    field(
        "header_length",
        header_end,
        header_end <= cluster && header_end.is_multiple_of(8),
        || format!("a multiple of 8 of at most {cluster}"),
    )?;
    extensions(&head, header_end, cluster)?;
    let size = disk_size(&head)?;
    tables(&head, cluster, size)?;
    Ok(size)
}

fn field(
    field: &'static str,
    value: u64,
    valid: bool,
    expected: impl FnOnce() -> String,
) -> Result<(), Qcow2Refusal> {
    if valid {
        Ok(())
    } else {
        Err(Qcow2Refusal::Field {
            field,
            value,
            expected: expected(),
        })
    }
}

/// No backing file, no encryption.
fn stands_alone(head: &Head<'_>) -> Result<(), Qcow2Refusal> {
    let backing_at = head.u64("header", 8)?;
    let backing_length = head.u32("header", 16)?;
    if backing_at != 0 || backing_length != 0 {
        let name = if backing_at == 0 {
            None
        } else {
            head.text(backing_at, backing_length.into())
        };
        return Err(Qcow2Refusal::BackingFile { name });
    }
    match head.u32("header", 32)? {
        0 => Ok(()),
        _ => Err(Qcow2Refusal::Encrypted),
    }
}

/// The fields that version 3 added.
fn features(head: &Head<'_>, header_end: u64) -> Result<(), Qcow2Refusal> {
    field("header_length", header_end, header_end >= V3_HEADER, || {
        format!("at least {V3_HEADER}")
    })?;
    let incompatible = head.u64("header", 72)?;
    let known = DIRTY | CORRUPT | EXTERNAL_DATA | COMPRESSION_TYPE | EXTENDED_L2;
    if incompatible & !known != 0 {
        return Err(Qcow2Refusal::UnknownFeatures(incompatible & !known));
    }
    if incompatible & EXTERNAL_DATA != 0 {
        return Err(Qcow2Refusal::DataFile {
            name: data_file_name(head, header_end),
        });
    }
    if incompatible & CORRUPT != 0 {
        return Err(Qcow2Refusal::Corrupt);
    }
    if incompatible & DIRTY != 0 {
        return Err(Qcow2Refusal::Dirty);
    }
    let order = head.u32("header", 96)?;
    field(
        "refcount_order",
        order.into(),
        order <= MAX_REFCOUNT_ORDER,
        || format!("at most {MAX_REFCOUNT_ORDER}"),
    )?;
    if header_end > V3_HEADER {
        // 0: zlib; 1: zstd, which must be announced by its bit.
        let compression = head
            .slice("header", V3_HEADER, 1)?
            .first()
            .copied()
            .unwrap_or_default();
        let announced = incompatible & COMPRESSION_TYPE != 0;
        let valid = matches!((compression, announced), (0, false) | (1, true));
        field("compression_type", compression.into(), valid, || {
            "0, or 1 together with its feature bit".to_owned()
        })?;
    }
    Ok(())
}

fn cluster_size(head: &Head<'_>) -> Result<u64, Qcow2Refusal> {
    let bits = head.u32("header", 20)?;
    field(
        "cluster_bits",
        bits.into(),
        CLUSTER_BITS.contains(&bits),
        || format!("{} to {}", CLUSTER_BITS.start, CLUSTER_BITS.end - 1),
    )?;
    Ok(1 << bits)
}

fn disk_size(head: &Head<'_>) -> Result<u64, Qcow2Refusal> {
    let size = head.u64("header", 24)?;
    field(
        "size",
        size,
        size != 0 && size.is_multiple_of(SECTOR),
        || format!("a multiple of {SECTOR} above 0"),
    )?;
    Ok(size)
}

/// One header extension.
struct Extension {
    at: u64,
    kind: u32,
    length: u32,
}

impl Extension {
    fn read(head: &Head<'_>, at: u64) -> Result<Self, Qcow2Refusal> {
        Ok(Self {
            at,
            kind: head.u32("header extensions", at)?,
            length: head.u32("header extensions", at + 4)?,
        })
    }

    fn data(&self) -> u64 {
        self.at + 8
    }

    fn next(&self) -> u64 {
        self.data() + u64::from(self.length).next_multiple_of(8)
    }
}

/// Walks the extensions: they must end within the first cluster, and none may point elsewhere.
fn extensions(head: &Head<'_>, start: u64, cluster: u64) -> Result<(), Qcow2Refusal> {
    let mut at = start;
    let window = u64::try_from(head.bytes.len()).unwrap_or(u64::MAX);
    while at < cluster {
        // A 512-byte cluster can be filled to its last byte without an end mark; QEMU accepts that, too.
        if at + 8 > window && window < head.length {
            return Err(Qcow2Refusal::EndlessExtensions(window));
        }
        let extension = Extension::read(head, at)?;
        let next = extension.next();
        match extension.kind {
            EXT_END => return Ok(()),
            _ if next > cluster => {
                return Err(Qcow2Refusal::Extension {
                    at,
                    kind: extension.kind,
                    length: extension.length,
                });
            }
            EXT_BACKING_FORMAT => return Err(Qcow2Refusal::BackingFormat),
            EXT_ENCRYPTION => return Err(Qcow2Refusal::Encrypted),
            EXT_DATA_FILE => {
                let name = head.text(extension.data(), extension.length.into());
                return Err(Qcow2Refusal::DataFile { name });
            }
            _ => at = next,
        }
    }
    Ok(())
}

/// The name of the external data file, for the message.
fn data_file_name(head: &Head<'_>, start: u64) -> Option<String> {
    let window = u64::try_from(head.bytes.len()).ok()?;
    let mut at = start;
    while at < window {
        let extension = Extension::read(head, at).ok()?;
        match extension.kind {
            EXT_END => return None,
            EXT_DATA_FILE => return head.text(extension.data(), extension.length.into()),
            _ => at = extension.next(),
        }
    }
    None
}

/// The tables that QEMU reads when it opens the image lie within the file.
fn tables(head: &Head<'_>, cluster: u64, size: u64) -> Result<(), Qcow2Refusal> {
    let l1_entries = head.u32("header", 36)?;
    // An L2 table is one cluster of 8-byte entries; with extended L2 an entry takes 16 bytes.
    let extended = head.u32("header", 4)? == 3 && head.u64("header", 72)? & EXTENDED_L2 != 0;
    let entry_bytes = if extended { 16 } else { 8 };
    let bytes_per_l1_entry = cluster.saturating_mul(cluster / entry_bytes);
    let needed = size.div_ceil(bytes_per_l1_entry);
    let enough = u64::from(l1_entries) >= needed && l1_entries <= MAX_L1_ENTRIES;
    field("l1_size", l1_entries.into(), enough, || {
        format!("{needed} to {MAX_L1_ENTRIES} for a disk of {size} bytes in clusters of {cluster}")
    })?;
    table(
        head,
        "L1 table",
        "l1_table_offset",
        head.u64("header", 40)?,
        u64::from(l1_entries) * 8,
        cluster,
    )?;

    let refcount_clusters = u64::from(head.u32("header", 56)?);
    let refcount_bytes = refcount_clusters * cluster;
    let sane = refcount_clusters > 0 && refcount_bytes <= MAX_REFCOUNT_TABLE;
    field("refcount_table_clusters", refcount_clusters, sane, || {
        format!("1 to {}", MAX_REFCOUNT_TABLE / cluster)
    })?;
    table(
        head,
        "refcount table",
        "refcount_table_offset",
        head.u64("header", 48)?,
        refcount_bytes,
        cluster,
    )?;

    let snapshots = head.u32("header", 60)?;
    field(
        "nb_snapshots",
        snapshots.into(),
        snapshots <= MAX_SNAPSHOTS,
        || format!("at most {MAX_SNAPSHOTS}"),
    )?;
    if snapshots > 0 {
        // A snapshot takes at least 40 bytes.
        let bytes = u64::from(snapshots) * 40;
        table(
            head,
            "snapshot table",
            "snapshots_offset",
            head.u64("header", 64)?,
            bytes,
            cluster,
        )?;
    }
    Ok(())
}

fn table(
    head: &Head<'_>,
    part: &'static str,
    name: &'static str,
    at: u64,
    bytes: u64,
    cluster: u64,
) -> Result<(), Qcow2Refusal> {
    field(
        name,
        at,
        at >= cluster && at.is_multiple_of(cluster),
        || format!("a multiple of the cluster size {cluster} behind the header"),
    )?;
    let needed = at.saturating_add(bytes);
    if needed > head.length {
        return Err(Qcow2Refusal::Truncated {
            part,
            needed,
            length: head.length,
        });
    }
    Ok(())
}
