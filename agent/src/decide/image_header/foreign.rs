//! Knows disk formats by their first bytes, as QEMU's own probing does, to tell people what they have and to keep
//! such content out of "raw" images. Nothing is ever *used* as a format because it was recognized here.

/// A format that was recognized.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Found {
    /// For people, with its article.
    pub(super) name: &'static str,
    /// Whether a program that probes would open it as that format.
    pub(super) probed: bool,
}

/// The name of VDI, whose mark is not at the beginning.
pub(super) const VDI: &str = "a VDI image";

/// Offset, bytes, name.
const DISK_FORMATS: &[(usize, &[u8], &str)] = &[
    (0, b"QFI\xfb\x00\x00\x00\x01", "a qcow image of version 1"),
    (0, b"QFI\xfb", "a qcow2 image"),
    (0, b"QED\0", "a QED image"),
    (0, b"KDMV", "a VMDK image"),
    (0, b"COWD", "a VMDK image"),
    (0, b"# Disk DescriptorFile", "a VMDK descriptor"),
    (0x40, b"\x7f\x10\xda\xbe", VDI),
    (0, b"vhdxfile", "a VHDX image"),
    (0, b"conectix", "a VHD image"),
    (0, b"LUKS\xba\xbe", "a LUKS-encrypted image"),
    (0, b"WithoutFreeSpace", "a Parallels image"),
    (0, b"WithouFreSpacExt", "a Parallels image"),
    (0, b"Bochs Virtual HD Image", "a Bochs image"),
    (
        0,
        b"#!/bin/sh\n#V2.0 Format\nmodprobe cloop",
        "a cloop image",
    ),
];

/// What people hand in by mistake; harmless on a raw disk.
const OTHERS: &[(usize, &[u8], &str)] = &[
    (0, b"\x1f\x8b\x08", "a gzip archive (unpack it first)"),
    (0, b"\xfd7zXZ\0", "an xz archive (unpack it first)"),
    (0, b"\x28\xb5\x2f\xfd", "a zstd archive (unpack it first)"),
    (0, b"BZh", "a bzip2 archive (unpack it first)"),
    (0, b"PK\x03\x04", "a zip archive (unpack it first)"),
    (0x8001, b"CD001", "an ISO 9660 image"),
    (510, b"\x55\xaa", "a raw image with a boot sector"),
    (0, b"<!DOCTYPE html", "a web page"),
    (0, b"<html", "a web page"),
];

/// What the first bytes say; `None`: nothing that is known.
pub(super) fn recognize(head: &[u8]) -> Option<Found> {
    let find = |table: &[(usize, &[u8], &'static str)], probed| {
        table
            .iter()
            .find(|(offset, magic, _)| {
                head.get(*offset..)
                    .is_some_and(|rest| rest.starts_with(magic))
            })
            .map(|(_, _, name)| Found { name, probed })
    };
    find(DISK_FORMATS, true)
        .or_else(|| {
            is_vmdk_text(head).then_some(Found {
                name: "a VMDK descriptor",
                probed: true,
            })
        })
        .or_else(|| find(OTHERS, false))
}

/// QEMU takes any text for a VMDK descriptor whose first line that is neither blank nor a comment is
/// `version=1`, `2` or `3`; spaces and letter case are read generously here.
fn is_vmdk_text(head: &[u8]) -> bool {
    head.split(|byte| *byte == b'\n')
        .map(<[u8]>::trim_ascii)
        .find(|line| !line.is_empty() && !line.starts_with(b"#"))
        .is_some_and(|line| {
            line.get(..8)
                .is_some_and(|start| start.eq_ignore_ascii_case(b"version="))
        })
}
