//! The VDI header, version 1.1, as VirtualBox's `VDICore.h` and QEMU's `block/vdi.c` define it. All numbers are little
//! endian.
//!
//! A VDI image has no names of other files, but it can say by id that it is the difference to another one; such an
//! image is refused.

use super::{
    Judgement, Refusal, SECTOR, Window,
    window::{Piece, field, within},
};

const FORMAT: &str = "VDI";
/// Text, signature and header: all that QEMU reads of it.
const HEADER_BYTES: usize = 512;
/// The signature, behind 64 bytes of text.
const SIGNATURE: u32 = 0xbeda_107f;
/// Version 1.1, the only one in use since 2006.
const VERSION: u32 = 0x0001_0001;
/// The only size of blocks that VirtualBox writes and QEMU reads.
const BLOCK_BYTES: u64 = 1 << 20;
/// An entry of the map of blocks.
const MAP_ENTRY_BYTES: u64 = 4;
const DYNAMIC: u32 = 1;
const STATIC: u32 = 2;
const NO_ID: [u8; 16] = [0; 16];

/// Size of the disk, in bytes.
pub(super) fn virtual_size<W: Window>(window: &mut W) -> Result<u64, Judgement<W::Error>> {
    let length = window.length();
    let head = Piece::read(window, FORMAT, "header", 0, HEADER_BYTES)?;
    let field = |name, value: u64, valid, expected: &str| {
        field(FORMAT, name, value, valid, || expected.to_owned())
    };
    let is_vdi = head.u32(0x40) == SIGNATURE;
    field("signature", head.u32(0x40).into(), is_vdi, "0xbeda107f")?;
    let version = head.u32(0x44);
    field(
        "version",
        version.into(),
        version == VERSION,
        "0x10001 (1.1)",
    )?;
    let kind = head.u32(0x4c);
    if !matches!(kind, DYNAMIC | STATIC) {
        return Err(Refusal::Kind {
            format: FORMAT,
            found: format!("type {kind} (3: undo, 4: difference)"),
            expected: "a dynamic (1) or fixed (2) image that stands alone",
        }
        .into());
    }
    // The id of the image it links to, and the id of the image it is the difference to.
    for at in [0x1a8, 0x1b8] {
        if head.array::<16>(at) != NO_ID {
            return Err(Refusal::Parent {
                format: FORMAT,
                name: None,
            }
            .into());
        }
    }

    let sector = u64::from(head.u32(0x168));
    field("sector size", sector, sector == SECTOR, "512")?;
    let block = u64::from(head.u32(0x178));
    field("block size", block, block == BLOCK_BYTES, "1048576")?;
    let extra = u64::from(head.u32(0x17c));
    field("block extra data", extra, extra == 0, "0")?;
    let size = head.u64(0x170);
    let blocks = u64::from(head.u32(0x180));
    let whole = size != 0 && size.is_multiple_of(SECTOR);
    field("disk size", size, whole, "a multiple of 512 above 0")?;
    let enough = blocks == size.div_ceil(BLOCK_BYTES);
    field(
        "number of blocks",
        blocks,
        enough,
        "the disk's size in blocks of 1 MiB",
    )?;
    let allocated = u64::from(head.u32(0x184));
    field(
        "number of allocated blocks",
        allocated,
        allocated <= blocks,
        "at most the number of blocks",
    )?;

    let map = u64::from(head.u32(0x154));
    let data = u64::from(head.u32(0x158));
    let map_bytes = blocks * MAP_ENTRY_BYTES;
    let behind_header = map >= u64::try_from(HEADER_BYTES).unwrap_or(u64::MAX);
    let placed = behind_header && map.is_multiple_of(SECTOR);
    field(
        "offset of the block map",
        map,
        placed,
        "a multiple of 512 behind the header",
    )?;
    let placed = data.is_multiple_of(SECTOR) && data >= map + map_bytes;
    field(
        "offset of the data",
        data,
        placed,
        "a multiple of 512 behind the block map",
    )?;
    within(FORMAT, "block map", map, map_bytes, length)?;
    // The last block may be cut off where the disk ends.
    let data_bytes = (allocated * BLOCK_BYTES).min(size.max(1).next_multiple_of(SECTOR));
    within(FORMAT, "data", data, data_bytes, length)?;
    Ok(size)
}
