//! Images for instances: the guest, copies of it with another checksum, and hostile ones.

use std::path::{Path, PathBuf};

use anyhow::Context;
use berth_common::document::{ImageFormat, ImageRef};
use sha2::{Digest, Sha256};

use crate::run;

/// The image in a file, addressed by `file://`.
///
/// # Errors
/// It cannot be read, or its path cannot be told as a URL.
pub fn of_file(path: &Path) -> anyhow::Result<ImageRef> {
    Ok(ImageRef {
        url: format!("file://{}", path.display()).parse()?,
        sha256: sha256(path)?.parse()?,
        format: ImageFormat::Qcow2,
    })
}

/// The checksum of a file, as `sha256sum` prints it.
///
/// # Errors
/// It cannot be read.
pub fn sha256(path: &Path) -> anyhow::Result<String> {
    let bytes = std::fs::read(path).with_context(|| format!("cannot read {}", path.display()))?;
    Ok(Sha256::digest(&bytes)
        .iter()
        .map(|byte| format!("{byte:02x}"))
        .collect())
}

/// A copy of the guest that boots the same and has another checksum, so that no host has it in its cache.
///
/// # Errors
/// It cannot be written.
pub fn fresh_copy(guest: &Path, folder: &Path, name: &str) -> anyhow::Result<PathBuf> {
    let path = folder.join(format!("{name}.qcow2"));
    let mut bytes = std::fs::read(guest)?;
    // A whole cluster beyond the end that no table refers to.
    bytes.resize(bytes.len().next_multiple_of(65_536), 0);
    let mut tail = name.as_bytes().to_vec();
    tail.resize(65_536, 0);
    bytes.extend(tail);
    std::fs::write(&path, bytes)?;
    Ok(path)
}

/// A qcow2 whose header names another file of the host as its backing file.
///
/// # Errors
/// `qemu-img` fails.
pub async fn with_backing_file(folder: &Path, backing: &Path) -> anyhow::Result<PathBuf> {
    let path = folder.join("backing.qcow2");
    let (backing, target) = (backing.display().to_string(), path.display().to_string());
    run::text(&[
        "qemu-img", "create", "-q", "-f", "qcow2", "-u", "-b", &backing, "-F", "raw", &target,
        "32M",
    ])
    .await?;
    Ok(path)
}

/// A qcow2 whose content lies in an external data file.
///
/// # Errors
/// `qemu-img` fails.
pub async fn with_data_file(folder: &Path) -> anyhow::Result<PathBuf> {
    let path = folder.join("data.qcow2");
    let option = format!(
        "data_file={},data_file_raw=on",
        folder.join("data.raw").display()
    );
    let target = path.display().to_string();
    run::text(&[
        "qemu-img", "create", "-q", "-f", "qcow2", "-o", &option, &target, "32M",
    ])
    .await?;
    Ok(path)
}

/// The guest in another format.
///
/// # Errors
/// `qemu-img` fails.
pub async fn converted(
    guest: &Path,
    folder: &Path,
    format: ImageFormat,
) -> anyhow::Result<PathBuf> {
    let path = folder.join(format!("guest.{}", format.as_str()));
    let (from, to) = (guest.display().to_string(), path.display().to_string());
    run::text(&[
        "qemu-img",
        "convert",
        "-f",
        "qcow2",
        "-O",
        format.as_str(),
        &from,
        &to,
    ])
    .await?;
    Ok(path)
}

/// A copy of an image with other bytes at one place.
///
/// # Errors
/// It cannot be read or written, or has no such place.
pub fn patched(image: &Path, name: &str, at: usize, bytes: &[u8]) -> anyhow::Result<PathBuf> {
    let path = image.with_file_name(name);
    let mut content = std::fs::read(image)?;
    content
        .get_mut(at..at + bytes.len())
        .with_context(|| format!("{} is too short", image.display()))?
        .copy_from_slice(bytes);
    std::fs::write(&path, content)?;
    Ok(path)
}

/// A raw image of 1 MiB whose boot sector halts the processor for good: a guest that runs and does nothing.
///
/// # Errors
/// It cannot be written.
pub fn that_halts(folder: &Path) -> anyhow::Result<ImageRef> {
    // cli; hlt; jmp to hlt, and the mark of a boot sector at its end.
    const CODE: [u8; 4] = [0xfa, 0xf4, 0xeb, 0xfd];
    let path = folder.join("halts.raw");
    let mut bytes = CODE.to_vec();
    bytes.resize(510, 0);
    bytes.extend([0x55, 0xaa]);
    bytes.resize(1 << 20, 0);
    std::fs::write(&path, bytes)?;
    let image = of_file(&path)?;
    Ok(ImageRef {
        format: ImageFormat::Raw,
        ..image
    })
}

/// A raw image of 1 MiB with a word at its beginning, where the guest looks for what is kept on a disk.
///
/// # Errors
/// It cannot be written.
pub fn with_word(folder: &Path, word: &str) -> anyhow::Result<ImageRef> {
    let path = folder.join(format!("{word}.raw"));
    let mut bytes = word.as_bytes().to_vec();
    bytes.resize(1 << 20, 0);
    std::fs::write(&path, bytes)?;
    let image = of_file(&path)?;
    Ok(ImageRef {
        format: ImageFormat::Raw,
        ..image
    })
}
