//! Images of other tools' formats: made by the real `qemu-img`, then changed byte by byte.

use std::sync::OnceLock;

use super::*;

const MIB: usize = 1 << 20;

/// An image with some content in a disk of 4 MiB.
fn made(format: ImageFormat, option: &str) -> Vec<u8> {
    let directory = tempfile::tempdir().unwrap();
    let raw = directory.path().join("disk.raw");
    let mut content = vec![0_u8; 4 * MIB];
    content[MIB..MIB + 1000].fill(7);
    std::fs::write(&raw, content).unwrap();
    let made = directory.path().join("made");
    let mut command = Command::new("qemu-img");
    command.args(["convert", "-f", "raw", "-O", format.as_str()]);
    if !option.is_empty() {
        command.args(["-o", option]);
    }
    let status = command.args([&raw, &made]).status();
    assert!(status.expect("qemu-img is installed").success());
    std::fs::read(made).unwrap()
}

/// One image of each format and kind, made once.
pub(super) fn samples() -> &'static [(ImageFormat, Vec<u8>)] {
    static SAMPLES: OnceLock<Vec<(ImageFormat, Vec<u8>)>> = OnceLock::new();
    SAMPLES.get_or_init(|| {
        [
            (ImageFormat::Vmdk, ""),
            (ImageFormat::Vmdk, "subformat=streamOptimized"),
            (ImageFormat::Vdi, ""),
            (ImageFormat::Vdi, "static=on"),
            (ImageFormat::Vhdx, ""),
            (ImageFormat::Vhdx, "subformat=fixed"),
        ]
        .map(|(format, option)| (format, made(format, option)))
        .into()
    })
}

/// Where a format keeps what it says about itself.
pub(super) fn header_byte(format: ImageFormat, place: f64) -> usize {
    let ranges: &[(u32, u32)] = match format {
        ImageFormat::Vhdx => &[
            (0, 16),
            (64 << 10, 128),
            (128 << 10, 128),
            (192 << 10, 128),
            (3 << 20, 256),
            ((3 << 20) + (64 << 10), 128),
        ],
        _ => &[(0, 1024)],
    };
    let scaled = place * f64::from(u32::try_from(ranges.len()).unwrap());
    let index = (0..ranges.len())
        .rev()
        .find(|index| scaled >= f64::from(u32::try_from(*index).unwrap()))
        .unwrap_or(0);
    let (start, count) = ranges[index];
    let part = scaled.fract() * f64::from(count);
    let offset = (0..count)
        .rev()
        .find(|at| part >= f64::from(*at))
        .unwrap_or(0);
    usize::try_from(start + offset).unwrap()
}

fn sample(format: ImageFormat) -> Vec<u8> {
    let found = samples().iter().find(|(kind, _)| *kind == format);
    found.unwrap().1.clone()
}

fn judge(format: ImageFormat, image: &[u8]) -> Result<ImageFacts, Refusal> {
    inspect(format, image, u64::try_from(image.len()).unwrap())
}

#[track_caller]
fn refused(format: ImageFormat, change: impl FnOnce(&mut Vec<u8>), expected: &str) {
    let mut image = sample(format);
    change(&mut image);
    let text = judge(format, &image).expect_err(expected).to_string();
    assert!(
        text.contains(expected),
        "{text:?} does not say {expected:?}"
    );
}

fn put(image: &mut [u8], at: usize, bytes: &[u8]) {
    image[at..at + bytes.len()].copy_from_slice(bytes);
}

/// Replaces a text in the VMDK descriptor, which has room.
fn reword(image: &mut [u8], from: &str, to: &str) {
    let end = 512 + 20 * 512;
    let text = String::from_utf8(image[512..end].to_vec()).unwrap();
    assert!(text.contains(from), "{from:?} in {text:?}");
    let mut text = text.replace(from, to).into_bytes();
    text.resize(20 * 512, 0);
    put(image, 512, &text);
}

/// Writes the sum of a VHDX table anew.
fn sum(image: &mut [u8], at: usize, count: usize) {
    put(image, at + 4, &[0; 4]);
    let crc = !image[at..at + count].iter().fold(u32::MAX, |crc, byte| {
        (0..8).fold(crc ^ u32::from(*byte), |crc, _| {
            if crc & 1 == 1 {
                crc >> 1 ^ 0x82f6_3b78
            } else {
                crc >> 1
            }
        })
    });
    put(image, at + 4, &crc.to_le_bytes());
}

#[test]
fn what_qemu_img_makes_is_accepted_with_its_size() {
    for (format, image) in samples() {
        let facts = judge(*format, image).unwrap_or_else(|refusal| panic!("{format:?}: {refusal}"));
        assert_eq!(facts.virtual_size.get(), 4 << 20, "{format:?}");
    }
}

#[test]
fn a_format_is_what_is_declared_and_nothing_else() {
    for (format, image) in samples() {
        for other in [
            ImageFormat::Raw,
            ImageFormat::Qcow2,
            ImageFormat::Vmdk,
            ImageFormat::Vdi,
            ImageFormat::Vhdx,
        ] {
            if other != *format {
                let text = judge(other, image).unwrap_err().to_string();
                let parts = [
                    format!("declared {}, but it is a ", other.as_str()),
                    format!("{} image", format.as_str().to_uppercase()),
                ];
                assert!(parts.iter().all(|part| text.contains(part)), "{text}");
            }
        }
    }
    let text = judge(ImageFormat::Vhdx, &[7; 4096])
        .unwrap_err()
        .to_string();
    assert!(
        text.contains("does not start like one of format vhdx"),
        "{text}"
    );
}

#[test]
fn a_vmdk_that_leads_to_another_file_is_refused() {
    let vmdk = ImageFormat::Vmdk;
    let own = "RW 8192 SPARSE \"made\"";
    for (line, expected) in [
        ("RW 8192 FLAT \"/etc/shadow\" 0", "/etc/shadow"),
        ("RW 8192 SPARSE \"/dev/sda\"", "/dev/sda"),
        ("RW 4096 SPARSE \"made\"", "RW 4096"),
        ("RW 8192 SPARSE \"a\"\nRW 8192 SPARSE \"b\"", "\\\"b\\\""),
        ("RW 8192 SPARSE \"a\"\nrdonly 1 FLAT \"b\" 0", "rdonly 1"),
        ("RW 8192 SPARSE \"a\"\rRW 1 FLAT \"b\" 0", "RW 1 FLAT"),
        ("gibberish", "gibberish"),
        ("", "names no type or no extent"),
    ] {
        refused(vmdk, |image| reword(image, own, line), expected);
    }
    refused(
        vmdk,
        |image| reword(image, "parentCID=ffffffff", "parentCID=12345678"),
        "the difference to a parent",
    );
    let hint = "parentFileNameHint=\"/etc/shadow\"";
    refused(
        vmdk,
        |image| reword(image, own, &format!("{own}\n{hint}")),
        "the difference to a parent (\"/etc/shadow\")",
    );
    // QEMU reads on behind the descriptor's stated end, and behind its end of text.
    refused(
        vmdk,
        |image| {
            put(image, 36, &2_u64.to_le_bytes());
            put(image, 512 + 9000, hint.as_bytes());
        },
        "the difference to a parent",
    );
    for kind in [
        "monolithicFlat",
        "twoGbMaxExtentSparse",
        "vmfs",
        "fullDevice",
    ] {
        refused(
            vmdk,
            |image| reword(image, "monolithicSparse", kind),
            "which are one file",
        );
    }
    let descriptor = sample(vmdk)[512..1024].to_vec();
    let text = judge(vmdk, &descriptor).unwrap_err().to_string();
    assert!(text.contains("it is a VMDK descriptor"), "{text}");
}

#[test]
fn a_vmdk_with_a_header_that_lies_is_refused() {
    let vmdk = ImageFormat::Vmdk;
    // With no capacity, QEMU believes the descriptor.
    refused(vmdk, |image| put(image, 12, &[0; 8]), "the capacity is 0");
    refused(
        vmdk,
        |image| put(image, 12, &[0xff; 8]),
        "its only extent must be the file itself",
    );
    refused(
        vmdk,
        |image| {
            put(image, 12, &(1_u64 << 40).to_le_bytes());
            reword(image, "RW 8192", "RW 1099511627776");
        },
        "its grain directory ends at byte",
    );
    refused(
        vmdk,
        |image| put(image, 20, &3_u64.to_le_bytes()),
        "the grain size is 3",
    );
    refused(
        vmdk,
        |image| put(image, 28, &9_u64.to_le_bytes()),
        "offset of the descriptor is 9",
    );
    refused(
        vmdk,
        |image| put(image, 36, &[0xff; 8]),
        "size of the descriptor",
    );
    refused(
        vmdk,
        |image| put(image, 44, &[1; 4]),
        "entries per grain table",
    );
    refused(vmdk, |image| put(image, 56, &[0x7f; 8]), "cut off");
    refused(
        vmdk,
        |image| put(image, 56, &1_u64.to_le_bytes()),
        "grain directory is 1",
    );
    refused(vmdk, |image| put(image, 4, &[9]), "the version is 9");
    refused(vmdk, |image| put(image, 8, &[0xff; 4]), "the flags");
    refused(
        vmdk,
        |image| image.truncate(4000),
        "cut off: its descriptor",
    );
    refused(vmdk, |image| image.truncate(300), "cut off: its header");
}

#[test]
fn the_footer_of_a_streamed_vmdk_counts_and_must_repeat_the_header() {
    let vmdk = ImageFormat::Vmdk;
    let streamed = |change: fn(&mut Vec<u8>)| {
        let mut image = sample(vmdk);
        let mut footer = image[..512].to_vec();
        put(&mut image, 56, &[0xff; 8]);
        let mut marker = vec![0; 512];
        marker[12] = 3;
        image.extend(marker);
        change(&mut footer);
        image.extend(footer);
        image.extend([0; 512]);
        judge(vmdk, &image).map_err(|refusal| refusal.to_string())
    };
    assert_eq!(streamed(|_| ()).unwrap().virtual_size.get(), 4 << 20);
    let changes: [fn(&mut Vec<u8>); 4] = [
        |footer| put(footer, 12, &[0; 8]),
        |footer| put(footer, 28, &[2]),
        |footer| put(footer, 0, b"nope"),
        |footer| put(footer, 56, &[0xff; 8]),
    ];
    for change in changes {
        let text = streamed(change).unwrap_err();
        assert!(text.contains("does not repeat"), "{text}");
    }
    let text = streamed(|footer| put(footer, 56, &(1_u64 << 40).to_le_bytes())).unwrap_err();
    assert!(text.contains("cut off: its grain directory"), "{text}");
}

#[test]
fn a_vdi_that_is_a_difference_or_lies_is_refused() {
    let vdi = ImageFormat::Vdi;
    for kind in [3_u8, 4, 0] {
        refused(vdi, |image| put(image, 0x4c, &[kind]), "stands alone");
    }
    refused(
        vdi,
        |image| put(image, 0x1b8, &[1; 16]),
        "the difference to a parent",
    );
    refused(
        vdi,
        |image| put(image, 0x1a8, &[1; 16]),
        "the difference to a parent",
    );
    refused(vdi, |image| put(image, 0x44, &[0]), "the version");
    refused(vdi, |image| put(image, 0x170, &[0xff; 8]), "the disk size");
    refused(
        vdi,
        |image| put(image, 0x170, &(1_u64 << 50).to_le_bytes()),
        "the number of blocks",
    );
    refused(
        vdi,
        |image| {
            put(image, 0x170, &(1_u64 << 50).to_le_bytes());
            put(image, 0x180, &(1_u32 << 30).to_le_bytes());
        },
        "behind the block map",
    );
    refused(
        vdi,
        |image| put(image, 0x180, &[0; 4]),
        "the number of blocks",
    );
    refused(
        vdi,
        |image| put(image, 0x184, &[9]),
        "the number of allocated blocks",
    );
    refused(vdi, |image| put(image, 0x178, &[1]), "the block size");
    refused(vdi, |image| put(image, 0x17c, &[1]), "block extra data");
    refused(vdi, |image| put(image, 0x168, &[1]), "the sector size");
    refused(
        vdi,
        |image| put(image, 0x154, &[0; 4]),
        "offset of the block map",
    );
    refused(
        vdi,
        |image| put(image, 0x158, &[0; 4]),
        "offset of the data",
    );
    refused(vdi, |image| image.truncate(MIB), "cut off: its data");
    refused(vdi, |image| image.truncate(300), "cut off: its header");
}

#[test]
fn a_vhdx_with_a_parent_or_a_log_is_refused() {
    let vhdx = ImageFormat::Vhdx;
    const META: usize = 3 * MIB;
    let with_log = |image: &mut Vec<u8>, at: usize| {
        put(image, at + 48, &[5; 16]);
        sum(image, at, 4096);
    };
    let current = {
        let image = sample(vhdx);
        let number = |at: usize| u64::from_le_bytes(image[at + 8..at + 16].try_into().unwrap());
        if number(64 << 10) > number(128 << 10) {
            64 << 10
        } else {
            128 << 10
        }
    };
    refused(
        vhdx,
        |image| with_log(image, current),
        "its log must be replayed",
    );
    let mut old = sample(vhdx);
    with_log(&mut old, (192 << 10) - current);
    assert!(judge(vhdx, &old).is_ok(), "the other header does not count");
    refused(
        vhdx,
        |image| {
            image[current + 100] = 1;
            with_log(image, (192 << 10) - current);
        },
        "its log must be replayed",
    );
    refused(
        vhdx,
        |image| {
            image[(64 << 10) + 100] = 1;
            image[(128 << 10) + 100] = 1;
        },
        "neither of its two headers",
    );
    // The entries of the metadata: the first is the file parameters; has-parent is bit 1 of its second word.
    let item = {
        let image = sample(vhdx);
        let at = META + 32 + 16;
        META + usize::try_from(u32::from_le_bytes(image[at..at + 4].try_into().unwrap())).unwrap()
    };
    refused(
        vhdx,
        |image| image[item + 4] |= 2,
        "the difference to a parent",
    );
    let locator = [
        0x2d, 0x5f, 0xd3, 0xa8, 0x0b, 0xb3, 0x4d, 0x45, 0xab, 0xf7, 0xd3, 0xd8, 0x48, 0x34, 0xab,
        0x0c,
    ];
    refused(
        vhdx,
        |image| {
            let count = usize::from(image[META + 10]);
            put(image, META + 32 + 32 * count, &locator);
            image[META + 10] += 1;
        },
        "the difference to a parent",
    );
    refused(
        vhdx,
        |image| put(image, META + 32, &[9; 16]),
        "unknown metadata item",
    );
    refused(
        vhdx,
        |image| put(image, item, &[0, 0, 0, 0]),
        "the block size is 0",
    );
    refused(
        vhdx,
        |image| put(image, META + 10, &[0xff; 2]),
        "number of entries",
    );
    refused(
        vhdx,
        |image| put(image, META, b"nope"),
        "metadata are not intact",
    );
    refused(
        vhdx,
        |image| put(image, 192 << 10, b"nope"),
        "region table is not intact",
    );
    refused(
        vhdx,
        |image| {
            put(image, (192 << 10) + 16, &[9; 16]);
            image[(192 << 10) + 16 + 28] = 1;
            sum(image, 192 << 10, 64 << 10);
        },
        "unknown region",
    );
    refused(
        vhdx,
        |image| {
            put(image, (192 << 10) + 32, &(1_u64 << 50).to_le_bytes());
            sum(image, 192 << 10, 64 << 10);
        },
        "cut off: its region",
    );
    refused(vhdx, |image| image.truncate(100_000), "cut off");
}
