//! VHDX, as Microsoft's open specification \[MS-VHDX\] defines it: headers, region table, metadata. All numbers are
//! little endian.
//!
//! An image that is the difference to a parent is refused, and so is one with a log: replaying it would be writing to
//! the image by the word of a stranger, which is the business of the tool that made it.

use super::{
    Judgement, Refusal, SECTOR, Window,
    window::{Piece, field, within},
};

const FORMAT: &str = "VHDX";
/// The first bytes of every VHDX image.
pub(super) const MAGIC: [u8; 8] = *b"vhdxfile";
const HEADERS: [u64; 2] = [64 << 10, 128 << 10];
const HEADER_BYTES: usize = 4096;
/// The first of two copies; it is the one QEMU reads.
const REGIONS_AT: u64 = 192 << 10;
const REGIONS_BYTES: usize = 64 << 10;
const METADATA_TABLE_BYTES: usize = 64 << 10;
/// The specification's own bound on entries of both tables.
const MAX_ENTRIES: u32 = 2047;
/// Everything after the first megabyte lies at megabytes.
const MIB: u64 = 1 << 20;
/// The specification's own bounds on blocks.
const MAX_BLOCK: u64 = 256 << 20;
const REQUIRED: u32 = 1;
const META_REQUIRED: u32 = 1 << 2;
const NO_ID: [u8; 16] = [0; 16];

/// The ids of regions and items, in the order of bytes in the file.
const BAT: [u8; 16] = guid(0x2dc2_7766, 0xf623, 0x4200, 0x9d64_115e_9bfd_4a08);
const METADATA: [u8; 16] = guid(0x8b7c_a206, 0x4790, 0x4b9a, 0xb8fe_575f_050f_886e);
const FILE_PARAMETERS: [u8; 16] = guid(0xcaa1_6737, 0xfa36, 0x4d43, 0xb3b6_33f0_aa44_e76b);
const DISK_SIZE: [u8; 16] = guid(0x2fa5_4224, 0xcd1b, 0x4876, 0xb211_5dbe_d83b_f4b8);
const PAGE_83: [u8; 16] = guid(0xbeca_12ab, 0xb2e6, 0x4523, 0x93ef_c309_e000_c746);
const LOGICAL_SECTOR: [u8; 16] = guid(0x8141_bf1d, 0xa96f, 0x4709, 0xba47_f233_a8fa_ab5f);
const PHYSICAL_SECTOR: [u8; 16] = guid(0xcda3_48c7, 0x445d, 0x4471, 0x9cc9_e988_5251_c556);
const PARENT_LOCATOR: [u8; 16] = guid(0xa8d3_5f2d, 0xb30b, 0x454d, 0xabf7_d3d8_4834_ab0c);

/// A GUID as it lies in a file: three numbers in little endian, and eight bytes.
const fn guid(a: u32, b: u16, c: u16, d: u64) -> [u8; 16] {
    let ([a0, a1, a2, a3], [b0, b1], [c0, c1]) =
        (a.to_le_bytes(), b.to_le_bytes(), c.to_le_bytes());
    let [d0, d1, d2, d3, d4, d5, d6, d7] = d.to_be_bytes();
    [
        a0, a1, a2, a3, b0, b1, c0, c1, d0, d1, d2, d3, d4, d5, d6, d7,
    ]
}

/// Size of the disk, in bytes.
pub(super) fn virtual_size<W: Window>(window: &mut W) -> Result<u64, Judgement<W::Error>> {
    let length = window.length();
    log_is_empty(window)?;
    let regions = regions(window)?;
    let metadata = metadata(window, regions.metadata)?;
    let size = metadata.disk_size;
    let whole = size != 0 && size.is_multiple_of(metadata.sector);
    field(FORMAT, "disk size", size, whole, || {
        format!("a multiple of {} above 0", metadata.sector)
    })?;
    // One entry for each block, and one for each chunk's bitmap between them.
    let chunk = (1 << 23) * metadata.sector / metadata.block;
    let blocks = size.div_ceil(metadata.block);
    let entries = blocks.saturating_add(blocks.saturating_sub(1) / chunk.max(1));
    let needed = entries.saturating_mul(8);
    field(
        FORMAT,
        "length of the block table",
        regions.bat.length,
        regions.bat.length >= needed,
        || format!("at least {needed} for a disk of {size} bytes"),
    )?;
    within(
        FORMAT,
        "block table",
        regions.bat.at,
        regions.bat.length,
        length,
    )?;
    Ok(size)
}

/// Of two headers, the intact one with the higher number counts; it must name no log.
fn log_is_empty<W: Window>(window: &mut W) -> Result<(), Judgement<W::Error>> {
    let mut current: Option<(u64, Piece)> = None;
    for at in HEADERS {
        let head = Piece::read(window, FORMAT, "header", at, HEADER_BYTES)?;
        let intact = head.array::<4>(0) == *b"head" && has_its_sum(&head);
        let number = head.u64(8);
        if intact && current.as_ref().is_none_or(|(best, _)| number > *best) {
            current = Some((number, head));
        }
    }
    let Some((_, head)) = current else {
        return Err(Refusal::Broken {
            format: FORMAT,
            what: "neither of its two headers is intact",
        }
        .into());
    };
    if head.array::<16>(48) != NO_ID {
        return Err(Refusal::DirtyLog.into());
    }
    let version = head.u16(66);
    field(FORMAT, "version", version.into(), version == 1, || {
        "1".to_owned()
    })
}

/// A part of the file.
#[derive(Debug, Clone, Copy)]
struct Region {
    at: u64,
    length: u64,
}

struct Regions {
    bat: Region,
    metadata: Region,
}

fn regions<W: Window>(window: &mut W) -> Result<Regions, Judgement<W::Error>> {
    let length = window.length();
    let table = Piece::read(window, FORMAT, "region table", REGIONS_AT, REGIONS_BYTES)?;
    if table.array::<4>(0) != *b"regi" || !has_its_sum(&table) {
        return Err(Refusal::Broken {
            format: FORMAT,
            what: "its region table is not intact",
        }
        .into());
    }
    let (mut bat, mut metadata) = (None, None);
    for entry in entries(&table, table.u32(8), 16)? {
        let region = Region {
            at: table.u64(entry + 16),
            length: u64::from(table.u32(entry + 24)),
        };
        let slot = match table.array::<16>(entry) {
            BAT => &mut bat,
            METADATA => &mut metadata,
            _ if table.u32(entry + 28) & REQUIRED != 0 => return Err(unknown("region")),
            _ => continue,
        };
        let placed = region.at >= MIB && region.at.is_multiple_of(MIB);
        field(FORMAT, "offset of a region", region.at, placed, || {
            "a multiple of 1 MiB above 0".to_owned()
        })?;
        within(FORMAT, "region", region.at, region.length, length)?;
        if slot.replace(region).is_some() {
            return Err(twice());
        }
    }
    match (bat, metadata) {
        (Some(bat), Some(metadata)) => Ok(Regions { bat, metadata }),
        _ => Err(Refusal::Broken {
            format: FORMAT,
            what: "it has no block table or no metadata",
        }
        .into()),
    }
}

/// What the metadata say.
struct Metadata {
    block: u64,
    sector: u64,
    disk_size: u64,
}

fn metadata<W: Window>(window: &mut W, region: Region) -> Result<Metadata, Judgement<W::Error>> {
    let table = Piece::read(window, FORMAT, "metadata", region.at, METADATA_TABLE_BYTES)?;
    if table.array::<8>(0) != *b"metadata" {
        return Err(Refusal::Broken {
            format: FORMAT,
            what: "its metadata are not intact",
        }
        .into());
    }
    let (mut parameters, mut disk_size, mut sector) = (None, None, None);
    for entry in entries(&table, table.u16(10).into(), 32)? {
        let id = table.array::<16>(entry);
        let (slot, count) = match id {
            FILE_PARAMETERS => (&mut parameters, 8),
            DISK_SIZE => (&mut disk_size, 8),
            LOGICAL_SECTOR => (&mut sector, 4),
            PAGE_83 | PHYSICAL_SECTOR => continue,
            PARENT_LOCATOR => {
                return Err(Refusal::Parent {
                    format: FORMAT,
                    name: None,
                }
                .into());
            }
            _ if table.u32(entry + 24) & META_REQUIRED != 0 => {
                return Err(unknown("metadata item"));
            }
            _ => continue,
        };
        let offset = u64::from(table.u32(entry + 16));
        let fits = offset >= u64::try_from(METADATA_TABLE_BYTES).unwrap_or(u64::MAX)
            && offset.saturating_add(8) <= region.length;
        field(FORMAT, "offset of a metadata item", offset, fits, || {
            format!("65536 to {}", region.length.saturating_sub(8))
        })?;
        let item = Piece::read(window, FORMAT, "metadata item", region.at + offset, count)?;
        if slot.replace(item).is_some() {
            return Err(twice());
        }
    }
    let (Some(parameters), Some(disk_size), Some(sector)) = (parameters, disk_size, sector) else {
        return Err(Refusal::Broken {
            format: FORMAT,
            what: "its metadata lack the sizes of the disk, its blocks or its sectors",
        }
        .into());
    };
    // Bit 0: blocks stay allocated (a fixed image); bit 1: there is a parent.
    let bits = parameters.u32(4);
    if bits & 0b10 != 0 {
        return Err(Refusal::Parent {
            format: FORMAT,
            name: None,
        }
        .into());
    }
    let block = u64::from(parameters.u32(0));
    let sane = block.is_power_of_two() && (MIB..=MAX_BLOCK).contains(&block);
    field(FORMAT, "block size", block, sane, || {
        "a power of two from 1 to 256 MiB".to_owned()
    })?;
    let sector = u64::from(sector.u32(0));
    field(
        FORMAT,
        "sector size",
        sector,
        matches!(sector, SECTOR | 4096),
        || "512 or 4096".to_owned(),
    )?;
    Ok(Metadata {
        block,
        sector,
        disk_size: disk_size.u64(0),
    })
}

/// Where the entries of a table start, which have 32 bytes each.
fn entries<E>(
    table: &Piece,
    count: u32,
    first: usize,
) -> Result<impl Iterator<Item = usize> + use<E>, Judgement<E>> {
    let room = table.bytes().len().saturating_sub(first) / 32;
    let bounded = count <= MAX_ENTRIES && usize::try_from(count).is_ok_and(|count| count <= room);
    field(
        FORMAT,
        "number of entries of a table",
        count.into(),
        bounded,
        || format!("at most {MAX_ENTRIES}"),
    )?;
    let count = usize::try_from(count).unwrap_or_default();
    Ok((0..count).map(move |index| first + index * 32))
}

fn unknown<E>(what: &'static str) -> Judgement<E> {
    Refusal::Kind {
        format: FORMAT,
        found: format!("an unknown {what} that it says is required"),
        expected: "a fixed or dynamic image of version 1",
    }
    .into()
}

fn twice<E>() -> Judgement<E> {
    Refusal::Broken {
        format: FORMAT,
        what: "it names the same part twice",
    }
    .into()
}

/// Whether the CRC-32C in bytes 4 to 8 is that of all bytes, with these four as zeros.
fn has_its_sum(piece: &Piece) -> bool {
    let zeros = [0_u8; 4];
    let (before, rest) = piece.bytes().split_at(piece.bytes().len().min(4));
    let after = rest.get(4..).unwrap_or_default();
    let all = before.iter().chain(&zeros).chain(after);
    piece.u32(4) == crc32c(all)
}

/// CRC-32C (Castagnoli; RFC 3720, appendix B.4), bit by bit: a few tables per image are no reason for a faster one.
fn crc32c<'a>(bytes: impl Iterator<Item = &'a u8>) -> u32 {
    !bytes.fold(u32::MAX, |crc, byte| {
        (0..8).fold(crc ^ u32::from(*byte), |crc, _| {
            (crc >> 1) ^ (0x82f6_3b78 & 0_u32.wrapping_sub(crc & 1))
        })
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_sum_is_the_one_of_the_standard() {
        assert_eq!(crc32c(b"123456789".iter()), 0xe306_9283);
        assert_eq!(crc32c([0; 32].iter()), 0x8a91_36aa);
    }
}
