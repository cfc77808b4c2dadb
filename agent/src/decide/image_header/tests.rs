//! Crafted headers, real `qemu-img` output, and random bytes.

use std::{
    path::Path,
    process::{Command, Output},
};

use proptest::prelude::*;

use super::*;

/// An image in memory; what it says about its length need not be true.
struct Memory<'a> {
    bytes: &'a [u8],
    length: u64,
}

impl Window for Memory<'_> {
    type Error = std::convert::Infallible;

    fn length(&self) -> u64 {
        self.length
    }

    fn read(&mut self, at: u64, count: usize) -> Result<Vec<u8>, Self::Error> {
        assert!(count <= HEAD_BYTES, "{count} bytes at once");
        let at = usize::try_from(at).unwrap_or(usize::MAX);
        let rest = self.bytes.get(at..).unwrap_or_default();
        Ok(rest[..count.min(rest.len())].to_vec())
    }
}

fn judge(format: ImageFormat, bytes: &[u8], length: u64) -> Result<ImageFacts, Refusal> {
    inspect(format, bytes, length)
}

fn inspect(format: ImageFormat, bytes: &[u8], length: u64) -> Result<ImageFacts, Refusal> {
    match super::inspect(format, &mut Memory { bytes, length }) {
        Ok(facts) => Ok(facts),
        Err(Judgement::Refused(refusal)) => Err(refusal),
    }
}

/// A header builder: starts as a good version 3 image, and is changed byte by byte.
struct Image {
    bytes: Vec<u8>,
    length: u64,
}

impl Image {
    /// 64 KiB clusters, 1 GiB disk, tables where `qemu-img` puts them.
    fn v3() -> Self {
        let mut image = Self {
            bytes: vec![0; HEAD_BYTES],
            length: 4 * 65536,
        };
        image.bytes[..4].copy_from_slice(b"QFI\xfb");
        image
            .u32(4, 3)
            .u32(20, 16)
            .u64(24, 1 << 30)
            .u32(36, 2)
            .u64(40, 3 * 65536)
            .u64(48, 65536)
            .u32(56, 1);
        image.u32(96, 4).u32(100, 112);
        image
    }

    fn v2() -> Self {
        let mut image = Self::v3();
        image.u32(4, 2).u32(96, 0).u32(100, 0);
        image
    }

    fn u32(&mut self, at: usize, value: u32) -> &mut Self {
        self.bytes[at..at + 4].copy_from_slice(&value.to_be_bytes());
        self
    }

    fn u64(&mut self, at: usize, value: u64) -> &mut Self {
        self.bytes[at..at + 8].copy_from_slice(&value.to_be_bytes());
        self
    }

    fn text(&mut self, at: usize, text: &[u8]) -> &mut Self {
        self.bytes[at..at + text.len()].copy_from_slice(text);
        self
    }

    fn cut(&mut self, length: usize) -> &mut Self {
        self.bytes.truncate(length);
        self.length = u64::try_from(length).unwrap();
        self
    }

    fn inspect(&self) -> Result<ImageFacts, Refusal> {
        inspect(ImageFormat::Qcow2, &self.bytes, self.length)
    }
}

fn refused(mut image: Image, change: impl Fn(&mut Image), expected: &str) {
    change(&mut image);
    let text = image.inspect().expect_err(expected).to_string();
    assert!(
        text.contains(expected),
        "{text:?} does not say {expected:?}"
    );
}

#[test]
fn good_headers_are_accepted() {
    type Change = fn(&mut Image);
    let cases: [(Image, Change); 5] = [
        (Image::v3(), |_| ()),
        (Image::v2(), |_| ()),
        // The feature name table and an unknown extension are harmless.
        (Image::v3(), |image| {
            image
                .u32(112, 0x6803_f857)
                .u32(116, 144)
                .u32(264, 0x1234_5678)
                .u32(268, 3);
        }),
        // zstd, announced.
        (Image::v3(), |image| {
            image.u64(72, 1 << 3).text(104, &[1]);
        }),
        (Image::v3(), |image| {
            image.u32(60, 1).u64(64, 2 * 65536);
        }),
    ];
    for (mut image, change) in cases {
        change(&mut image);
        assert_eq!(
            image.inspect(),
            Ok(ImageFacts {
                virtual_size: ByteCount::clamped(1 << 30)
            })
        );
    }
}

#[test]
fn images_that_point_elsewhere_are_refused() {
    let with_name = |image: &mut Image| {
        image.u64(8, 512).u32(16, 11).text(512, b"/etc/shadow");
    };
    refused(
        Image::v3(),
        with_name,
        "names a backing file (\"/etc/shadow\"); an image must stand alone",
    );
    refused(
        Image::v2(),
        with_name,
        "names a backing file (\"/etc/shadow\")",
    );
    refused(
        Image::v3(),
        |image| {
            image.u64(8, u64::MAX).u32(16, u32::MAX);
        },
        "names a backing file;",
    );
    refused(
        Image::v3(),
        |image| {
            image.u32(16, 5);
        },
        "names a backing file;",
    );
    let format = |image: &mut Image| {
        image.u32(112, 0xe279_2aca).u32(116, 3).text(120, b"raw");
    };
    refused(Image::v3(), format, "states a backing format");
    let data_file = |image: &mut Image| {
        image
            .u32(112, 0x4441_5441)
            .u32(116, 8)
            .text(120, b"/dev/sda");
    };
    refused(Image::v3(), data_file, "external data file (\"/dev/sda\")");
    refused(
        Image::v3(),
        |image| {
            data_file(image);
            image.u64(72, 1 << 2);
        },
        "external data file (\"/dev/sda\")",
    );
    refused(
        Image::v3(),
        |image| {
            image.u64(72, 1 << 2);
        },
        "external data file;",
    );
    let name_with_escape = |image: &mut Image| {
        image.u64(8, 512).u32(16, 3).text(512, b"\x1b[2");
    };
    refused(Image::v3(), name_with_escape, "(\"\\u{1b}[2\")");
}

#[test]
fn encrypted_dirty_corrupt_and_unknown_images_are_refused() {
    refused(
        Image::v2(),
        |image| {
            image.u32(32, 1);
        },
        "encrypted",
    );
    refused(
        Image::v3(),
        |image| {
            image.u32(32, 2);
        },
        "encrypted",
    );
    refused(
        Image::v3(),
        |image| {
            image.u32(112, 0x0537_be77).u32(116, 16);
        },
        "encrypted",
    );
    refused(
        Image::v3(),
        |image| {
            image.u64(72, 1);
        },
        "dirty",
    );
    refused(
        Image::v3(),
        |image| {
            image.u64(72, 2);
        },
        "corrupt",
    );
    refused(
        Image::v3(),
        |image| {
            image.u64(72, 1 << 5);
        },
        "incompatible bits 0x20",
    );
    refused(
        Image::v3(),
        |image| {
            image.u64(72, 1 << 63);
        },
        "incompatible bits 0x8000000000000000",
    );
    refused(
        Image::v3(),
        |image| {
            image.u32(4, 4);
        },
        "version 4; versions 2 and 3 are accepted",
    );
    refused(
        Image::v3(),
        |image| {
            image.u32(4, 0);
        },
        "version 0",
    );
}

#[test]
fn fields_out_of_range_are_refused() {
    refused(
        Image::v3(),
        |image| {
            image.u64(24, 0);
        },
        "size is 0",
    );
    refused(
        Image::v3(),
        |image| {
            image.u64(24, 1000);
        },
        "size is 1000, and it must be a multiple of 512",
    );
    refused(
        Image::v3(),
        |image| {
            image.u64(24, 2 << 30);
        },
        "l1_size is 2, and it must be 4 to",
    );
    refused(
        Image::v3(),
        |image| {
            image.u64(24, u64::MAX - 511);
        },
        "l1_size",
    );
    refused(
        Image::v3(),
        |image| {
            image.u32(20, 8);
        },
        "cluster_bits is 8, and it must be 9 to 21",
    );
    refused(
        Image::v3(),
        |image| {
            image.u32(20, 22);
        },
        "cluster_bits is 22",
    );
    refused(
        Image::v3(),
        |image| {
            image.u32(20, u32::MAX);
        },
        "cluster_bits",
    );
    refused(
        Image::v3(),
        |image| {
            image.u32(96, 7);
        },
        "refcount_order is 7",
    );
    refused(
        Image::v3(),
        |image| {
            image.u32(100, 72);
        },
        "header_length is 72, and it must be",
    );
    refused(
        Image::v3(),
        |image| {
            image.u32(100, 100);
        },
        "header_length is 100",
    );
    refused(
        Image::v3(),
        |image| {
            image.u32(100, 109);
        },
        "header_length is 109",
    );
    refused(
        Image::v3(),
        |image| {
            image.u32(100, u32::MAX - 7);
        },
        "header_length",
    );
    refused(
        Image::v3(),
        |image| {
            image.text(104, &[1]);
        },
        "compression_type is 1",
    );
    refused(
        Image::v3(),
        |image| {
            image.u64(72, 8);
        },
        "compression_type is 0",
    );
    refused(
        Image::v3(),
        |image| {
            image.u64(40, 0);
        },
        "l1_table_offset is 0",
    );
    refused(
        Image::v3(),
        |image| {
            image.u64(40, 3 * 65536 + 512);
        },
        "l1_table_offset",
    );
    refused(
        Image::v3(),
        |image| {
            image.u32(56, 0);
        },
        "refcount_table_clusters is 0",
    );
    refused(
        Image::v3(),
        |image| {
            image.u32(56, u32::MAX);
        },
        "refcount_table_clusters",
    );
    refused(
        Image::v3(),
        |image| {
            image.u32(60, 70_000);
        },
        "nb_snapshots is 70000",
    );
}

#[test]
fn a_huge_disk_is_refused() {
    let mut image = Image::v3();
    // 2 MiB clusters, so that the L1 table of 128 TiB fits in the file.
    let size = 128_u64 << 40;
    let entries = u32::try_from(size >> 39).unwrap();
    image
        .u32(20, 21)
        .u64(24, size)
        .u32(36, entries)
        .u64(40, 3 << 21)
        .u64(48, 1 << 21);
    image.length = 4 << 21;
    assert_eq!(image.inspect(), Err(Refusal::TooLarge { bytes: size }));
}

#[test]
fn cut_off_images_are_refused() {
    refused(
        Image::v3(),
        |image| {
            image.cut(4);
        },
        "header ends at byte 72, and the file has 4 bytes",
    );
    refused(
        Image::v3(),
        |image| {
            image.cut(103);
        },
        "header ends at byte 104",
    );
    refused(
        Image::v3(),
        |image| {
            image.cut(105);
        },
        "cut off",
    );
    refused(
        Image::v2(),
        |image| {
            image.cut(71);
        },
        "header ends at byte 72",
    );
    refused(
        Image::v3(),
        |image| image.length = 3 * 65536,
        "L1 table ends at byte 196624, and the file has 196608",
    );
    refused(
        Image::v3(),
        |image| {
            image.u64(48, 1 << 30);
        },
        "refcount table ends at byte",
    );
    refused(
        Image::v3(),
        |image| {
            image.u64(48, u64::MAX << 16);
        },
        "refcount table ends at byte",
    );
    refused(
        Image::v3(),
        |image| {
            image.u32(60, 9).u64(64, 1 << 30);
        },
        "snapshot table ends at byte",
    );
    assert_eq!(inspect(ImageFormat::Qcow2, b"", 0), Err(Refusal::Empty));
    assert_eq!(inspect(ImageFormat::Raw, b"", 0), Err(Refusal::Empty));
}

#[test]
fn extensions_that_do_not_fit_are_refused() {
    let huge = |image: &mut Image| {
        image.u32(112, 7).u32(116, u32::MAX);
    };
    refused(
        Image::v3(),
        huge,
        "the extension at byte 112 (type 0x7) claims 4294967295 bytes",
    );
    refused(
        Image::v2(),
        |image| {
            image.u32(72, 7).u32(76, 65536);
        },
        "the extension at byte 72",
    );
    // With clusters larger than what is inspected, the list must still end there.
    let endless = |image: &mut Image| {
        image.u32(20, 21).u64(40, 3 << 21).u64(48, 1 << 21);
        image.u32(112, 7).u32(116, 65536 - 120);
        image.length = 4 << 21;
    };
    refused(
        Image::v3(),
        endless,
        "its extensions do not end within 65536 bytes",
    );
}

#[test]
fn wrong_magic_says_what_it_is() {
    let text = |head: &[u8]| {
        inspect(ImageFormat::Qcow2, head, 1 << 20)
            .unwrap_err()
            .to_string()
    };
    assert!(text(b"hello").contains("does not start with qcow2's magic number"));
    assert!(text(b"KDMV").contains("it is a VMDK image; declare its real format or convert it"));
    assert!(text(b"\x1f\x8b\x08").contains("a gzip archive (unpack it first)"));
    assert!(text(b"<!DOCTYPE html>").contains("a web page"));
    let mut boot = [0; 512];
    boot[510..].copy_from_slice(b"\x55\xaa");
    assert!(text(&boot).contains("a raw image with a boot sector"));
}

#[test]
fn raw_images_must_not_look_like_another_disk_format() {
    let inspect = |head: &[u8]| inspect(ImageFormat::Raw, head, 1_000_000);
    let mut vdi = [0; 128];
    vdi[0x40..0x44].copy_from_slice(&0xbeda_107f_u32.to_le_bytes());
    for hostile in [
        &b"QFI\xfb\0\0\0\x03"[..],
        b"QFI\xfb\0\0\0\x01",
        b"QED\0",
        b"KDMV",
        b"COWD",
        b"# Disk DescriptorFile\n",
        b"# a comment\r\n \n# another\nversion=1\nRW 1 FLAT \"/etc/shadow\" 0\n",
        b"Version=3\r\n",
        &vdi,
        b"vhdxfile",
        b"conectix",
        b"LUKS\xba\xbe\0\x01",
        b"WithoutFreeSpace",
        b"WithouFreSpacExt",
    ] {
        let text = inspect(hostile).expect_err("must be refused").to_string();
        assert!(
            text.starts_with("the image is declared raw, but it is a"),
            "{text}"
        );
    }
    let mut iso = vec![0; HEAD_BYTES];
    iso[0x8001..0x8006].copy_from_slice(b"CD001");
    for harmless in [&iso[..], &[0; 512], b"text", b"\x1f\x8b\x08"] {
        let facts = inspect(harmless).expect("is a raw disk");
        assert_eq!(
            facts.virtual_size.get(),
            1_000_448,
            "rounded up to whole sectors"
        );
    }
    assert_eq!(
        judge(ImageFormat::Raw, b"x", MAX_VIRTUAL_SIZE + 1),
        Err(Refusal::TooLarge {
            bytes: MAX_VIRTUAL_SIZE + 512
        })
    );
    assert_eq!(
        judge(ImageFormat::Raw, b"x", u64::MAX),
        Err(Refusal::TooLarge { bytes: u64::MAX })
    );
}

/// Has the real `qemu-img` make a file, and inspects it.
fn made_by_qemu(
    directory: &Path,
    format: ImageFormat,
    args: &[&str],
) -> Result<ImageFacts, Refusal> {
    let run = || {
        Command::new("qemu-img")
            .current_dir(directory)
            .args(args)
            .output()
            .expect("qemu-img is installed")
    };
    // It measures its own speed for LUKS, and gives up when the clock did not tick meanwhile.
    let measured = |output: &Output| {
        !String::from_utf8_lossy(&output.stderr).contains("Unable to get accurate CPU usage")
    };
    let mut tries = std::iter::repeat_with(run).take(50);
    let output = tries.find(measured).expect("never a tick in 50 tries");
    assert!(
        output.status.success(),
        "{args:?}: {}",
        String::from_utf8_lossy(&output.stderr)
    );
    let bytes = std::fs::read(directory.join("image")).unwrap();
    let facts = inspect(
        format,
        &bytes[..bytes.len().min(HEAD_BYTES)],
        u64::try_from(bytes.len()).unwrap(),
    );
    std::fs::remove_file(directory.join("image")).unwrap();
    facts
}

#[test]
fn what_qemu_img_makes_is_accepted_if_it_stands_alone() {
    let directory = tempfile::tempdir().unwrap();
    let create = |options: &str, size: &str| {
        made_by_qemu(
            directory.path(),
            ImageFormat::Qcow2,
            &["create", "-q", "-f", "qcow2", "-o", options, "image", size],
        )
    };
    for options in [
        "compat=1.1",
        "compat=0.10",
        "cluster_size=512",
        "cluster_size=2M",
        "compression_type=zstd",
        "extended_l2=on",
        "lazy_refcounts=on",
        "refcount_bits=64",
        "refcount_bits=1",
        "preallocation=metadata",
    ] {
        for (text, bytes) in [("64M", 64 << 20), ("512", 512), ("1025M", 1025 << 20)] {
            let accepted = create(options, text);
            assert_eq!(
                accepted,
                Ok(ImageFacts {
                    virtual_size: ByteCount::clamped(bytes)
                }),
                "{options} {text}"
            );
        }
    }
    assert!(create("compat=1.1", "60T").is_ok());
    assert_eq!(
        create("cluster_size=2M", "65T"),
        Err(Refusal::TooLarge { bytes: 65 << 40 })
    );
}

#[test]
fn what_qemu_img_makes_is_refused_if_it_leans_on_another_file() {
    let directory = tempfile::tempdir().unwrap();
    std::fs::write(directory.path().join("base"), vec![0; 1 << 20]).unwrap();
    let make = |args: &[&str]| {
        made_by_qemu(directory.path(), ImageFormat::Qcow2, args)
            .expect_err("must be refused")
            .to_string()
    };
    let backed = make(&[
        "create", "-q", "-f", "qcow2", "-F", "raw", "-b", "base", "image",
    ]);
    assert!(
        backed.contains("names a backing file (\"base\")"),
        "{backed}"
    );
    let old = make(&[
        "create",
        "-q",
        "-f",
        "qcow2",
        "-o",
        "compat=0.10",
        "-F",
        "raw",
        "-b",
        "base",
        "image",
    ]);
    assert!(old.contains("names a backing file (\"base\")"), "{old}");
    let split = make(&[
        "create",
        "-q",
        "-f",
        "qcow2",
        "-o",
        "data_file=data",
        "image",
        "1M",
    ]);
    assert!(split.contains("external data file (\"data\")"), "{split}");
    let raw_split = make(&[
        "create",
        "-q",
        "-f",
        "qcow2",
        "-o",
        "data_file=data2,data_file_raw=on",
        "image",
        "1M",
    ]);
    assert!(
        raw_split.contains("external data file (\"data2\")"),
        "{raw_split}"
    );
    let secret = [
        "create",
        "-q",
        "--object",
        "secret,id=s,data=x",
        "-f",
        "qcow2",
    ];
    let luks = [
        &secret[..],
        &[
            "-o",
            "encrypt.format=luks,encrypt.key-secret=s,encrypt.iter-time=10",
            "image",
            "1M",
        ],
    ];
    assert!(make(&luks.concat()).contains("encrypted"));
    for format in [
        "qcow2",
        "qcow",
        "qed",
        "vmdk",
        "vdi",
        "vhdx",
        "vpc",
        "parallels",
    ] {
        let args = ["create", "-q", "-f", format, "image", "64M"];
        let result = made_by_qemu(directory.path(), ImageFormat::Raw, &args);
        assert!(
            matches!(result, Err(Refusal::NotRaw { .. })),
            "{format}: {result:?}"
        );
    }
    let args = ["create", "-q", "-f", "raw", "image", "64M"];
    assert_eq!(
        made_by_qemu(directory.path(), ImageFormat::Raw, &args),
        Ok(ImageFacts {
            virtual_size: ByteCount::clamped(64 << 20)
        })
    );
}

mod converted;

/// Where each format has its mark.
const BEGINNINGS: [(ImageFormat, usize, &[u8]); 4] = [
    (ImageFormat::Qcow2, 0, b"QFI\xfb\0\0\0\x03"),
    (ImageFormat::Vmdk, 0, b"KDMV\x01\0\0\0\x03\0\0\0"),
    (ImageFormat::Vdi, 0x40, b"\x7f\x10\xda\xbe\x01\0\x01\0"),
    (ImageFormat::Vhdx, 0, b"vhdxfile"),
];

proptest! {
    #[test]
    fn random_bytes_never_panic(bytes in proptest::collection::vec(any::<u8>(), 0..2048), length in any::<u64>()) {
        let _ = inspect(ImageFormat::Qcow2, &bytes, length);
        let _ = inspect(ImageFormat::Raw, &bytes, length);
    }

    #[test]
    fn random_bytes_behind_a_good_beginning_never_panic(
        bytes in proptest::collection::vec(any::<u8>(), 0..4096),
        length in any::<u64>(),
    ) {
        for (format, at, magic) in BEGINNINGS {
            let mut image = bytes.clone();
            image.resize(image.len().max(at + magic.len()), 0);
            image[at..at + magic.len()].copy_from_slice(magic);
            let _ = inspect(format, &image, length);
            let _ = inspect(format, &image, u64::try_from(image.len()).unwrap());
        }
    }

    #[test]
    fn damaged_headers_never_panic_and_never_lean_on_another_file(
        damage in proptest::collection::vec((0_usize..600, any::<u8>()), 1..24),
        v2 in any::<bool>(),
        length in prop_oneof![Just(4 * 65536_u64), any::<u64>()],
    ) {
        let mut image = if v2 { Image::v2() } else { Image::v3() };
        for (at, byte) in damage {
            image.bytes[at] = byte;
        }
        image.length = length;
        if let Ok(facts) = image.inspect() {
            prop_assert!(facts.virtual_size.get() <= MAX_VIRTUAL_SIZE);
            prop_assert_eq!(&image.bytes[8..20], &[0; 12], "a backing file");
            prop_assert_eq!(&image.bytes[32..36], &[0; 4], "encryption");
            if image.bytes[7] == 3 {
                prop_assert_eq!(image.bytes[79] & !0b1_1000, 0, "incompatible features");
            }
        }
    }
}

proptest! {
    // The images have megabytes.
    #![proptest_config(ProptestConfig::with_cases(24))]

    #[test]
    fn damaged_images_of_other_tools_never_panic_and_never_lean_on_another_file(
        damage in proptest::collection::vec((0.0..1.0_f64, any::<u8>()), 1..16),
        cut in 0_usize..64,
    ) {
        for (format, image) in converted::samples() {
            let mut image = image.clone();
            for (place, byte) in &damage {
                let at = converted::header_byte(*format, *place);
                if let Some(old) = image.get_mut(at) {
                    *old = *byte;
                }
            }
            let kept = image.len() - cut * 1000;
            image.truncate(kept);
            if let Ok(facts) = inspect(*format, &image, u64::try_from(kept).unwrap()) {
                prop_assert!(facts.virtual_size.get() <= MAX_VIRTUAL_SIZE);
            }
        }
    }
}
