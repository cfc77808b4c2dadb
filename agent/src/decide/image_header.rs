//! Judges an image by its first bytes, before any tool opens it.
//!
//! An image comes from a stranger. A qcow2 header can name other files of the host as its backing or data file,
//! and a "raw" image that starts like a qcow2 becomes one as soon as something probes it. So the format is what the
//! document states, the header must agree with it, and everything that points outside the image is refused.
//!
//! Pure: bytes in, facts or a refusal out. What lies elsewhere than at the beginning is asked for in small pieces of
//! bounded number and size, and nothing is believed that does not lie within the image.

use berth_common::{document::ImageFormat, units::ByteCount};

mod foreign;
pub mod qcow2;
mod vdi;
mod vhdx;
mod vmdk;
mod window;

pub use qcow2::Qcow2Refusal;

/// How much of an image's beginning [`inspect`] looks at in any case, in bytes.
pub const HEAD_BYTES: usize = 64 * 1024;

/// The largest virtual size of an image that is accepted: 64 TiB, far above real disks, far below any overflow.
pub const MAX_VIRTUAL_SIZE: u64 = 64 << 40;

/// Disks are made of sectors.
const SECTOR: u64 = 512;

/// The bytes of an image, wherever they lie.
pub trait Window {
    /// Why they cannot be had.
    type Error;

    /// Length of the image, in bytes.
    fn length(&self) -> u64;

    /// So many bytes at an offset; fewer only where the image ends. At most [`HEAD_BYTES`] are asked for at once.
    ///
    /// # Errors
    /// The bytes cannot be had.
    fn read(&mut self, at: u64, count: usize) -> Result<Vec<u8>, Self::Error>;
}

/// Why there are no facts.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Judgement<E> {
    /// The image is not acceptable.
    Refused(Refusal),
    /// Its bytes could not be had.
    Unreadable(E),
}

impl<E> From<Refusal> for Judgement<E> {
    fn from(refusal: Refusal) -> Self {
        Self::Refused(refusal)
    }
}

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
        "the image is declared raw, but it is {found}; declare its real format if berth takes it, or convert it with \
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
    /// It is declared to be of another format, but is something else.
    #[error("the image is declared {declared}, but {}; declare its real format or convert it to qcow2", does_not_look(*found, declared))]
    OtherFormat {
        /// What its document states.
        declared: &'static str,
        /// What its first bytes say, if they say anything.
        found: Option<&'static str>,
    },
    /// The file ends within its own header or tables.
    #[error(
        "the {format} image is cut off: its {part} ends at byte {needed}, and the file has {length} bytes"
    )]
    Truncated {
        /// Its format.
        format: &'static str,
        /// What does not fit.
        part: &'static str,
        /// Where it would end.
        needed: u64,
        /// Length of the file.
        length: u64,
    },
    /// A field of the header makes no sense.
    #[error("the {format} header is broken: the {field} is {value}, and it must be {expected}")]
    Field {
        /// Its format.
        format: &'static str,
        /// The field.
        field: &'static str,
        /// What it says.
        value: u64,
        /// What would be right.
        expected: String,
    },
    /// The header contradicts itself.
    #[error("the {format} header is broken: {what}")]
    Broken {
        /// Its format.
        format: &'static str,
        /// How.
        what: &'static str,
    },
    /// It is of a kind that is not one whole disk in one file.
    #[error(
        "the {format} image is of a kind that is not accepted: {found}; accepted is {expected}"
    )]
    Kind {
        /// Its format.
        format: &'static str,
        /// What it is.
        found: String,
        /// What would be right.
        expected: &'static str,
    },
    /// It is the difference to another image.
    #[error(
        "the {format} image is the difference to a parent{}; an image must stand alone: make one with `qemu-img \
         convert` where both are",
        name.as_ref().map_or_else(String::new, |name| format!(" ({name:?})"))
    )]
    Parent {
        /// Its format.
        format: &'static str,
        /// The parent's name, if it could be read.
        name: Option<String>,
    },
    /// Its descriptor names something else than the file itself.
    #[error(
        "the VMDK descriptor has the line {line:?}; its only extent must be the file itself: convert it to \
         monolithicSparse or streamOptimized"
    )]
    Extent {
        /// The line, or its beginning.
        line: String,
    },
    /// Its log would have to be replayed.
    #[error(
        "the VHDX image was not closed properly: its log must be replayed first; open and close it with the tool that \
         made it, or convert it there"
    )]
    DirtyLog,
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

fn does_not_look(found: Option<&'static str>, declared: &str) -> String {
    match found {
        Some(found) => format!("it is {found}"),
        None => format!("it does not start like one of format {declared}"),
    }
}

/// Judges an image as the declared format.
///
/// # Errors
/// [`Judgement::Refused`] for anything that is not plainly one self-contained image of that format;
/// [`Judgement::Unreadable`] if its bytes cannot be had.
pub fn inspect<W: Window>(
    format: ImageFormat,
    window: &mut W,
) -> Result<ImageFacts, Judgement<W::Error>> {
    let length = window.length();
    let head = window.read(0, HEAD_BYTES).map_err(Judgement::Unreadable)?;
    if length == 0 || head.is_empty() {
        return Err(Refusal::Empty.into());
    }
    let found = foreign::recognize(&head);
    let other = |declared| Refusal::OtherFormat {
        declared,
        found: found.map(|found| found.name),
    };
    let bytes = match format {
        ImageFormat::Raw => match found {
            Some(found) if found.probed => {
                return Err(Refusal::NotRaw { found: found.name }.into());
            }
            Some(_) | None => length.checked_next_multiple_of(SECTOR).unwrap_or(u64::MAX),
        },
        ImageFormat::Qcow2 => {
            if !head.starts_with(&qcow2::MAGIC) {
                return Err(Refusal::NotQcow2 {
                    found: found.map(|found| found.name),
                }
                .into());
            }
            qcow2::virtual_size(&head, length).map_err(Refusal::from)?
        }
        ImageFormat::Vmdk if head.starts_with(&vmdk::MAGIC) => vmdk::virtual_size(window)?,
        ImageFormat::Vdi if found.is_some_and(|found| found.name == foreign::VDI) => {
            vdi::virtual_size(window)?
        }
        ImageFormat::Vhdx if head.starts_with(&vhdx::MAGIC) => vhdx::virtual_size(window)?,
        ImageFormat::Vmdk | ImageFormat::Vdi | ImageFormat::Vhdx => {
            return Err(other(format.as_str()).into());
        }
    };
    if bytes > MAX_VIRTUAL_SIZE {
        return Err(Refusal::TooLarge { bytes }.into());
    }
    Ok(ImageFacts {
        virtual_size: ByteCount::clamped(bytes),
    })
}

/// The file below a qcow2 disk of berth's own making; `None`: there is none, or it is no qcow2.
///
/// # Errors
/// Its bytes cannot be had.
pub fn backing_file<W: Window>(window: &mut W) -> Result<Option<String>, W::Error> {
    let head = window.read(0, qcow2::BACKING_BYTES)?;
    let Some((at, count)) = qcow2::backing_name(&head) else {
        return Ok(None);
    };
    let name = window.read(at, count)?;
    Ok((name.len() == count).then(|| String::from_utf8_lossy(&name).into_owned()))
}

#[cfg(test)]
mod tests;
