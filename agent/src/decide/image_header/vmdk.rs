//! The VMDK sparse extent, as VMware's "Virtual Disk Format 5.0" (hosted sparse extents, stream-optimized compressed
//! sparse extents, the disk descriptor) defines it. All numbers are little endian.
//!
//! The descriptor is a text that can name any file or device of the host as an extent or as a parent. So only the two
//! kinds that are one file are accepted, their descriptor must lie in that file and name one extent, and nothing that
//! QEMU would look for behind the descriptor's end (it reads on to its own fixed length) may name a parent.

use super::{
    Judgement, Refusal, SECTOR, Window,
    window::{Piece, field, within},
};

const FORMAT: &str = "VMDK";
/// The first bytes of a sparse extent.
pub(super) const MAGIC: [u8; 4] = *b"KDMV";
/// One sector holds the header.
const HEADER_BYTES: usize = 512;
/// Where QEMU looks for the descriptor, whatever the header says: in sector 1, so it must be there.
const DESCRIPTOR_SECTOR: u64 = 1;
/// How much QEMU reads there, in bytes, whatever the header says.
const QEMU_READS: usize = 20 * 512;
/// A descriptor is at most so long, in sectors; those in use have 20.
const MAX_DESCRIPTOR_SECTORS: u64 = 128;
/// An `end of the file` mark in place of the grain directory: it is named by a second header at the end.
const DIRECTORY_AT_END: u64 = u64::MAX;
/// Footer marker, footer, end-of-stream marker: one sector each.
const FOOTER_BYTES: usize = 3 * 512;
/// The type of the marker before the footer.
const FOOTER_MARKER: u32 = 3;
/// Entries of a grain table, the same in all images.
const TABLE_ENTRIES: u64 = 512;
/// Grains of 4 KiB to 1 MiB; those in use have 64 KiB.
const MIN_GRAIN: u64 = 8;
const MAX_GRAIN: u64 = 2048;
/// No parent, in the descriptor.
const NO_PARENT: &str = "ffffffff";
const VERSIONS: std::ops::RangeInclusive<u32> = 1..=3;

/// Size of the disk, in bytes.
pub(super) fn virtual_size<W: Window>(window: &mut W) -> Result<u64, Judgement<W::Error>> {
    let length = window.length();
    let head = Piece::read(window, FORMAT, "header", 0, HEADER_BYTES)?;
    let header = Header::of(&head);
    header.check()?;
    descriptor(window, &header)?;
    let header = if header.directory == DIRECTORY_AT_END {
        footer(window, &header)?
    } else {
        header
    };

    let entries = header.capacity.div_ceil(header.grain * TABLE_ENTRIES);
    let directory_bytes = entries * 4;
    let behind = |sector: u64| sector > DESCRIPTOR_SECTOR;
    let place = |name, sector: u64| {
        field(FORMAT, name, sector, behind(sector), || {
            "behind the descriptor".to_owned()
        })?;
        within(
            FORMAT,
            name,
            sector.saturating_mul(SECTOR),
            directory_bytes,
            length,
        )
    };
    place("grain directory", header.directory)?;
    if header.flags & HAS_REDUNDANT != 0 {
        place("second grain directory", header.second_directory)?;
    }
    within(
        FORMAT,
        "metadata",
        header.overhead.saturating_mul(SECTOR),
        0,
        length,
    )?;
    Ok(header.capacity.saturating_mul(SECTOR))
}

const HAS_REDUNDANT: u32 = 1 << 1;
/// Valid newline test, redundant table, zeroed grains, compressed grains, markers.
const KNOWN_FLAGS: u32 = 0b111 | 1 << 16 | 1 << 17;

/// The fields of `SparseExtentHeader`; sizes and places in sectors.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Header {
    version: u32,
    flags: u32,
    capacity: u64,
    grain: u64,
    descriptor: u64,
    descriptor_size: u64,
    table_entries: u32,
    second_directory: u64,
    directory: u64,
    overhead: u64,
    compression: u16,
}

impl Header {
    fn of(head: &Piece) -> Self {
        Self {
            version: head.u32(4),
            flags: head.u32(8),
            capacity: head.u64(12),
            grain: head.u64(20),
            descriptor: head.u64(28),
            descriptor_size: head.u64(36),
            table_entries: head.u32(44),
            second_directory: head.u64(48),
            directory: head.u64(56),
            overhead: head.u64(64),
            compression: head.u16(77),
        }
    }

    fn check<E>(&self) -> Result<(), Judgement<E>> {
        let field = |name, value: u64, valid, expected: &str| {
            field(FORMAT, name, value, valid, || expected.to_owned())
        };
        let known = VERSIONS.contains(&self.version);
        field("version", self.version.into(), known, "1 to 3")?;
        let known = self.flags & !KNOWN_FLAGS == 0;
        field(
            "flags",
            self.flags.into(),
            known,
            "made of bits 0, 1, 2, 16 and 17",
        )?;
        // With 0, QEMU takes the descriptor's word for everything, extents in other files included.
        field("capacity", self.capacity, self.capacity != 0, "above 0")?;
        let sane = self.grain.is_power_of_two() && (MIN_GRAIN..=MAX_GRAIN).contains(&self.grain);
        field(
            "grain size",
            self.grain,
            sane,
            "a power of two from 8 to 2048 sectors",
        )?;
        let usual = u64::from(self.table_entries) == TABLE_ENTRIES;
        field(
            "entries per grain table",
            self.table_entries.into(),
            usual,
            "512",
        )?;
        let embedded = self.descriptor == DESCRIPTOR_SECTOR;
        field(
            "offset of the descriptor",
            self.descriptor,
            embedded,
            "1: it must be in the file",
        )?;
        let bounded = (1..=MAX_DESCRIPTOR_SECTORS).contains(&self.descriptor_size);
        field(
            "size of the descriptor",
            self.descriptor_size,
            bounded,
            "1 to 128 sectors",
        )?;
        let known = self.compression <= 1;
        field(
            "compression",
            self.compression.into(),
            known,
            "0, or 1 for deflate",
        )
    }
}

/// The header at the end of a stream-optimized image, which counts in place of the first one: it must say the same,
/// but for where the grain directory is.
fn footer<W: Window>(window: &mut W, header: &Header) -> Result<Header, Judgement<W::Error>> {
    let length = window.length();
    field(
        FORMAT,
        "length",
        length,
        length.is_multiple_of(SECTOR),
        || "a multiple of 512".to_owned(),
    )?;
    let count = u64::try_from(FOOTER_BYTES).unwrap_or(u64::MAX);
    let at = length.saturating_sub(count);
    let tail = Piece::read(window, FORMAT, "footer", at, FOOTER_BYTES)?;
    let broken = || Refusal::Broken {
        format: FORMAT,
        what: "the header at its end does not repeat the one at its beginning",
    };
    if tail.u32(12) != FOOTER_MARKER || tail.array::<4>(512) != MAGIC {
        return Err(broken().into());
    }
    let at_end = Piece::read(window, FORMAT, "footer", at + SECTOR, HEADER_BYTES)?;
    let footer = Header::of(&at_end);
    let same = Header {
        directory: header.directory,
        second_directory: header.second_directory,
        flags: header.flags,
        ..footer
    };
    if same != *header || footer.flags & !KNOWN_FLAGS != 0 || footer.directory == DIRECTORY_AT_END {
        return Err(broken().into());
    }
    Ok(footer)
}

/// The descriptor names this file as its only extent, and no parent.
fn descriptor<W: Window>(window: &mut W, header: &Header) -> Result<(), Judgement<W::Error>> {
    let stated = usize::try_from(header.descriptor_size * SECTOR).unwrap_or(usize::MAX);
    let at = DESCRIPTOR_SECTOR * SECTOR;
    let left = window.length().saturating_sub(at);
    let seen = stated.max(QEMU_READS.min(usize::try_from(left).unwrap_or(usize::MAX)));
    let piece = Piece::read(window, FORMAT, "descriptor", at, seen)?;
    if contains(piece.bytes(), b"parentfilenamehint") {
        let name = text(piece.bytes()).lines().find_map(|line| {
            let (key, value) = line.split_once('=')?;
            (key.trim().eq_ignore_ascii_case("parentFileNameHint"))
                .then(|| value.trim().trim_matches('"').chars().take(200).collect())
        });
        return Err(Refusal::Parent {
            format: FORMAT,
            name,
        }
        .into());
    }
    let stated = piece.bytes().get(..stated).unwrap_or_default();
    let text = text(stated);
    let mut kind = None;
    let mut extents = 0_usize;
    for line in text.lines().map(str::trim) {
        if line.is_empty() || line.starts_with('#') {
            continue;
        }
        if is_extent(line) {
            extents += 1;
            let own = extents == 1 && is_own_extent(line, header.capacity);
            if !own {
                return Err(Refusal::Extent {
                    line: line.chars().take(200).collect(),
                }
                .into());
            }
            continue;
        }
        let Some((key, value)) = line.split_once('=') else {
            return Err(Refusal::Extent {
                line: line.chars().take(200).collect(),
            }
            .into());
        };
        let value = value.trim().trim_matches('"');
        match key.trim().to_ascii_lowercase().as_str() {
            "parentcid" if !value.eq_ignore_ascii_case(NO_PARENT) => {
                return Err(Refusal::Parent {
                    format: FORMAT,
                    name: None,
                }
                .into());
            }
            "createtype" => kind = Some(value.to_owned()),
            _ => {}
        }
    }
    match kind.as_deref() {
        Some("monolithicSparse" | "streamOptimized") if extents == 1 => Ok(()),
        Some("monolithicSparse" | "streamOptimized") | None => Err(Refusal::Broken {
            format: FORMAT,
            what: "its descriptor names no type or no extent",
        }
        .into()),
        Some(kind) => Err(Refusal::Kind {
            format: FORMAT,
            found: format!("type {:?}", kind.chars().take(60).collect::<String>()),
            expected: "\"monolithicSparse\" or \"streamOptimized\", which are one file",
        }
        .into()),
    }
}

/// The text up to the first zero byte.
fn text(bytes: &[u8]) -> String {
    let end = bytes.iter().position(|byte| *byte == 0);
    String::from_utf8_lossy(bytes.get(..end.unwrap_or(bytes.len())).unwrap_or_default())
        .replace('\r', "\n")
}

/// Whether these letters, given in lower case, are anywhere in the bytes.
fn contains(bytes: &[u8], letters: &[u8]) -> bool {
    bytes
        .windows(letters.len())
        .any(|window| window.eq_ignore_ascii_case(letters))
}

/// A line that begins like an extent: an access mode.
fn is_extent(line: &str) -> bool {
    let first = line.split_ascii_whitespace().next().unwrap_or_default();
    ["RW", "RDONLY", "NOACCESS"]
        .iter()
        .any(|mode| first.eq_ignore_ascii_case(mode))
}

/// `RW <sectors> SPARSE "<name>"`: the file itself. The name is the one it had where it was made, and QEMU does not
/// look at it; one with a path in it is no name of a file beside its descriptor.
fn is_own_extent(line: &str, capacity: u64) -> bool {
    let Some((facts, name)) = line.split_once('"') else {
        return false;
    };
    let mut facts = facts.split_ascii_whitespace();
    let sectors = |text: Option<&str>| text.and_then(|text| text.parse::<u64>().ok());
    facts.next().is_some_and(|mode| mode == "RW")
        && sectors(facts.next()) == Some(capacity)
        && facts.next() == Some("SPARSE")
        && facts.next().is_none()
        && name
            .strip_suffix('"')
            .is_some_and(|name| !name.is_empty() && !name.contains(['"', '/']))
}
