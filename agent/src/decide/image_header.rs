//! Judges an image by its first bytes, before any tool opens it.
//!
//! An image comes from a stranger. A qcow2 header can name other files of the host as its backing or data file,
//! and a "raw" image that starts like a qcow2 becomes one as soon as something probes it. So the format is what the
//! document states, the header must agree with it, and everything that points outside the image is refused.
//!
//! Pure: bytes in, facts or a refusal out. Nothing here follows offsets beyond the bytes it was given.

use berth_common::{document::ImageFormat, units::ByteCount};

mod foreign;
mod qcow2;

pub use qcow2::Qcow2Refusal;

/// How much of an image's beginning [`inspect`] wants to see, in bytes; less only if the image is shorter.
pub const HEAD_BYTES: usize = 64 * 1024;

/// The largest virtual size of an image that is accepted: 64 TiB, far above real disks, far below any overflow.
pub const MAX_VIRTUAL_SIZE: u64 = 64 << 40;

/// Disks are made of sectors.
const SECTOR: u64 = 512;

/// What an image is, once accepted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ImageFacts {
    /// Size of the disk the guest sees; an overlay must not be smaller.
    pub virtual_size: ByteCount,
}

/// Why an image is not accepted: what is wrong, and what would be right.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// There is nothing in it.
    #[error("the image is empty")]
    Empty,
    /// It is declared raw, but other programs would take it for something else.
    #[error(
        "the image is declared raw, but it is {found}; declare its real format if that is qcow2, or convert it with \
         `qemu-img convert -O raw`"
    )]
    NotRaw {
        /// What its first bytes say.
        found: &'static str,
    },
    /// It is declared qcow2, but is something else.
    #[error("the image is declared qcow2, but {}; declare its real format or convert it to qcow2", looks_like(*found))]
    NotQcow2 {
        /// What its first bytes say, if they say anything.
        found: Option<&'static str>,
    },
    /// Its disk is larger than any disk berth handles.
    #[error(
        "the image's virtual size is {bytes} bytes, and at most {} bytes are accepted",
        MAX_VIRTUAL_SIZE
    )]
    TooLarge {
        /// Its virtual size.
        bytes: u64,
    },
    /// Its qcow2 header is not acceptable.
    #[error(transparent)]
    Qcow2(#[from] Qcow2Refusal),
}

fn looks_like(found: Option<&'static str>) -> String {
    match found {
        Some(found) => format!("it is {found}"),
        None => "it does not start with qcow2's magic number (bytes 51 46 49 fb)".to_owned(),
    }
}

/// Judges an image of the declared format by its first [`HEAD_BYTES`] bytes and its length.
///
/// # Errors
/// [`Refusal`] of anything that is not plainly one self-contained image of that format.
pub fn inspect(format: ImageFormat, head: &[u8], length: u64) -> Result<ImageFacts, Refusal> {
    if length == 0 || head.is_empty() {
        return Err(Refusal::Empty);
    }
    let bytes = match format {
        ImageFormat::Raw => match foreign::recognize(head) {
            Some(found) if found.probed => return Err(Refusal::NotRaw { found: found.name }),
            Some(_) | None => length.checked_next_multiple_of(SECTOR).unwrap_or(u64::MAX),
        },
        ImageFormat::Qcow2 => {
            if !head.starts_with(&qcow2::MAGIC) {
                return Err(Refusal::NotQcow2 {
                    found: foreign::recognize(head).map(|found| found.name),
                });
            }
            qcow2::virtual_size(head, length)?
        }
    };
    if bytes > MAX_VIRTUAL_SIZE {
        return Err(Refusal::TooLarge { bytes });
    }
    Ok(ImageFacts {
        virtual_size: ByteCount::clamped(bytes),
    })
}

#[cfg(test)]
mod tests;
