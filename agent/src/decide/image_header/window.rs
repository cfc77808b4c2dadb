//! Bytes of an image at offsets that its own header names: little-endian reads that cannot leave the image.

use super::{Judgement, Refusal, Window};

/// One piece of an image, read whole.
pub(super) struct Piece {
    bytes: Vec<u8>,
}

impl Piece {
    /// So many bytes at an offset. An image that ends before is refused: the format's name and the part's are for
    /// the message.
    pub(super) fn read<W: Window>(
        window: &mut W,
        format: &'static str,
        part: &'static str,
        at: u64,
        count: usize,
    ) -> Result<Self, Judgement<W::Error>> {
        let length = window.length();
        let needed = at.saturating_add(u64::try_from(count).unwrap_or(u64::MAX));
        let cut_off = || Refusal::Truncated {
            format,
            part,
            needed,
            length,
        };
        if needed > length {
            return Err(cut_off().into());
        }
        let bytes = window.read(at, count).map_err(Judgement::Unreadable)?;
        if bytes.len() == count {
            Ok(Self { bytes })
        } else {
            Err(cut_off().into())
        }
    }

    /// All of it.
    pub(super) fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// Bytes within the piece; what lies beyond its end reads as 0.
    pub(super) fn array<const N: usize>(&self, at: usize) -> [u8; N] {
        let mut array = [0; N];
        let there = self.bytes.get(at..).unwrap_or_default();
        for (to, from) in array.iter_mut().zip(there) {
            *to = *from;
        }
        array
    }

    pub(super) fn u16(&self, at: usize) -> u16 {
        u16::from_le_bytes(self.array(at))
    }

    pub(super) fn u32(&self, at: usize) -> u32 {
        u32::from_le_bytes(self.array(at))
    }

    pub(super) fn u64(&self, at: usize) -> u64 {
        u64::from_le_bytes(self.array(at))
    }
}

/// A part that the image's own header places must lie within the image.
pub(super) fn within<E>(
    format: &'static str,
    part: &'static str,
    at: u64,
    bytes: u64,
    length: u64,
) -> Result<(), Judgement<E>> {
    let needed = at.saturating_add(bytes);
    if needed <= length {
        return Ok(());
    }
    Err(Refusal::Truncated {
        format,
        part,
        needed,
        length,
    }
    .into())
}

/// A field must be as it is in images that exist.
pub(super) fn field<E>(
    format: &'static str,
    field: &'static str,
    value: u64,
    valid: bool,
    expected: impl FnOnce() -> String,
) -> Result<(), Judgement<E>> {
    if valid {
        return Ok(());
    }
    Err(Refusal::Field {
        format,
        field,
        value,
        expected: expected(),
    }
    .into())
}
