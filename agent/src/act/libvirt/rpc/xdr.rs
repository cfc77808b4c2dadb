//! XDR (RFC 4506), as far as libvirt's protocol uses it: every value takes a multiple of four bytes, big end first.
//!
//! What is read may be hostile: nothing is reserved by a length that the bytes at hand do not cover.

use std::sync::Arc;

/// The longest text that libvirt takes (`REMOTE_STRING_MAX`).
pub(super) const STRING_MAX: usize = 4 << 20;
/// Every value takes a multiple of so many bytes.
const UNIT: usize = 4;

/// A text cannot be sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Unsayable {
    /// libvirt would refuse the whole packet.
    #[error("a text of {0} bytes is too long for libvirt, which takes {STRING_MAX}")]
    TooLong(usize),
    /// libvirt reads texts up to the first zero byte.
    #[error("a text has a zero byte, and libvirt would read no further")]
    Zero,
}

/// Bytes are not what they should be.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Malformed {
    /// It ends in the middle of a value.
    #[error("it ends in the middle of a value")]
    Short,
    /// A length or a count says that more follows than there is.
    #[error("it announces {0} bytes or elements, and has fewer")]
    Count(u32),
    /// Something follows where nothing should.
    #[error("{0} bytes are left over")]
    Rest(usize),
    /// A value may be there or not (1 or 0), and this is neither.
    #[error("{0} where only 0 or 1 may be")]
    Presence(u32),
    /// A union has no such arm.
    #[error("a value of the unknown type {0}")]
    Arm(i32),
}

/// Something that can be written.
pub(super) trait Pack {
    /// Appends it.
    fn pack(&self, to: &mut Writer);
}

/// Something that can be read.
pub(super) trait Unpack: Sized {
    /// The fewest bytes that one of them takes.
    const LEAST: usize;
    /// Takes it from the front.
    fn unpack(from: &mut Reader<'_>) -> Result<Self, Malformed>;
}

/// What is written, or why it cannot be.
#[derive(Debug, Default)]
pub(super) struct Writer {
    bytes: Vec<u8>,
    wrong: Option<Unsayable>,
}

impl Writer {
    /// All that was written.
    pub(super) fn finish(self) -> Result<Vec<u8>, Unsayable> {
        self.wrong.map_or(Ok(self.bytes), Err)
    }

    /// Bytes whose number both sides know.
    fn fixed(&mut self, bytes: &[u8]) {
        self.bytes.extend_from_slice(bytes);
        let padding = bytes.len().next_multiple_of(UNIT) - bytes.len();
        self.bytes.extend(std::iter::repeat_n(0, padding));
    }

    fn count(&mut self, count: usize) {
        match u32::try_from(count) {
            Ok(count) => count.pack(self),
            Err(_) => self.wrong = self.wrong.or(Some(Unsayable::TooLong(count))),
        }
    }
}

/// What is left to read.
#[derive(Debug, Clone)]
pub(super) struct Reader<'a>(&'a [u8]);

impl<'a> Reader<'a> {
    /// Reads from these bytes.
    pub(super) fn new(bytes: &'a [u8]) -> Self {
        Self(bytes)
    }

    /// Reads one value that is all there is.
    pub(super) fn whole<T: Unpack>(bytes: &'a [u8]) -> Result<T, Malformed> {
        let mut reader = Self(bytes);
        let value = T::unpack(&mut reader)?;
        if reader.0.is_empty() {
            Ok(value)
        } else {
            Err(Malformed::Rest(reader.0.len()))
        }
    }

    /// What is left.
    pub(super) fn rest(&self) -> &'a [u8] {
        self.0
    }

    /// So many bytes, and their padding.
    fn fixed(&mut self, count: usize) -> Result<&'a [u8], Malformed> {
        let padded = count
            .checked_next_multiple_of(UNIT)
            .ok_or(Malformed::Short)?;
        let (taken, rest) = self.0.split_at_checked(padded).ok_or(Malformed::Short)?;
        self.0 = rest;
        taken.get(..count).ok_or(Malformed::Short)
    }

    /// A count of elements that take so many bytes each, at least.
    fn count(&mut self, least: usize) -> Result<usize, Malformed> {
        let said = u32::unpack(self)?;
        let count = usize::try_from(said).map_err(|_| Malformed::Count(said))?;
        let needed = count.checked_mul(least).ok_or(Malformed::Count(said))?;
        if needed > self.0.len() {
            return Err(Malformed::Count(said));
        }
        Ok(count)
    }
}

/// Integers, and their bytes.
macro_rules! integers {
    ($($integer:ty)*) => {$(
        impl Pack for $integer {
            fn pack(&self, to: &mut Writer) {
                to.fixed(&self.to_be_bytes());
            }
        }

        impl Unpack for $integer {
            const LEAST: usize = size_of::<Self>();
            fn unpack(from: &mut Reader<'_>) -> Result<Self, Malformed> {
                let bytes = from.fixed(Self::LEAST)?;
                bytes.try_into().map(Self::from_be_bytes).map_err(|_| Malformed::Short)
            }
        }
    )*};
}

integers! { u32 i32 u64 i64 }

impl Pack for str {
    fn pack(&self, to: &mut Writer) {
        let wrong = if self.len() > STRING_MAX {
            Some(Unsayable::TooLong(self.len()))
        } else if self.contains('\0') {
            Some(Unsayable::Zero)
        } else {
            None
        };
        if wrong.is_some() {
            to.wrong = to.wrong.or(wrong);
            return;
        }
        to.count(self.len());
        to.fixed(self.as_bytes());
    }
}

impl Pack for String {
    fn pack(&self, to: &mut Writer) {
        self.as_str().pack(to);
    }
}

impl Unpack for String {
    const LEAST: usize = UNIT;
    /// libvirt's texts are UTF-8, but for names of files that somebody made up: those have a mark where they are not.
    fn unpack(from: &mut Reader<'_>) -> Result<Self, Malformed> {
        let count = from.count(1)?;
        Ok(Self::from_utf8_lossy(from.fixed(count)?).into_owned())
    }
}

/// Bytes whose number both sides know.
impl<const N: usize> Pack for [u8; N] {
    fn pack(&self, to: &mut Writer) {
        to.fixed(self);
    }
}

impl<const N: usize> Unpack for [u8; N] {
    const LEAST: usize = N;
    fn unpack(from: &mut Reader<'_>) -> Result<Self, Malformed> {
        from.fixed(N)?.try_into().map_err(|_| Malformed::Short)
    }
}

/// What may be there or not.
impl<T: Pack> Pack for Option<T> {
    fn pack(&self, to: &mut Writer) {
        match self {
            None => 0_u32.pack(to),
            Some(value) => {
                1_u32.pack(to);
                value.pack(to);
            }
        }
    }
}

impl<T: Unpack> Unpack for Option<T> {
    const LEAST: usize = UNIT;
    fn unpack(from: &mut Reader<'_>) -> Result<Self, Malformed> {
        match u32::unpack(from)? {
            0 => Ok(None),
            1 => T::unpack(from).map(Some),
            other => Err(Malformed::Presence(other)),
        }
    }
}

/// As many as there are.
impl<T: Pack> Pack for Vec<T> {
    fn pack(&self, to: &mut Writer) {
        to.count(self.len());
        for element in self {
            element.pack(to);
        }
    }
}

impl<T: Unpack> Unpack for Vec<T> {
    const LEAST: usize = UNIT;
    fn unpack(from: &mut Reader<'_>) -> Result<Self, Malformed> {
        let count = from.count(T::LEAST.max(1))?;
        (0..count).map(|_| T::unpack(from)).collect()
    }
}

impl<T: Pack> Pack for Arc<T> {
    fn pack(&self, to: &mut Writer) {
        T::pack(self, to);
    }
}

impl<T: Unpack> Unpack for Arc<T> {
    const LEAST: usize = T::LEAST;
    fn unpack(from: &mut Reader<'_>) -> Result<Self, Malformed> {
        T::unpack(from).map(Self::new)
    }
}

/// One after the other.
macro_rules! tuples {
    ($(($($name:ident)*))*) => {$(
        impl<$($name: Pack),*> Pack for ($($name,)*) {
            #[expect(non_snake_case, reason = "a value is called as its type")]
            fn pack(&self, to: &mut Writer) {
                let ($($name,)*) = self;
                $($name.pack(to);)*
            }
        }

        impl<$($name: Unpack),*> Unpack for ($($name,)*) {
            const LEAST: usize = 0 $(+ $name::LEAST)*;
            fn unpack(from: &mut Reader<'_>) -> Result<Self, Malformed> {
                Ok(($($name::unpack(from)?,)*))
            }
        }
    )*};
}

tuples! { (A) (A B) (A B C) (A B C D) }

impl Pack for () {
    fn pack(&self, _: &mut Writer) {}
}

impl Unpack for () {
    const LEAST: usize = 0;
    fn unpack(_: &mut Reader<'_>) -> Result<Self, Malformed> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn packed(value: &impl Pack) -> Vec<u8> {
        let mut writer = Writer::default();
        value.pack(&mut writer);
        writer.finish().unwrap()
    }

    #[test]
    fn values_lie_as_rfc_4506_says() {
        assert_eq!(packed(&(1_u32, -2_i32)), [0, 0, 0, 1, 255, 255, 255, 254]);
        assert_eq!(packed(&0x0102_0304_0506_0708_u64), [1, 2, 3, 4, 5, 6, 7, 8]);
        assert_eq!(
            packed(&"vda1!".to_owned()),
            [0, 0, 0, 5, b'v', b'd', b'a', b'1', b'!', 0, 0, 0]
        );
        assert_eq!(packed(&None::<u32>), [0, 0, 0, 0]);
        assert_eq!(packed(&Some(7_u32)), [0, 0, 0, 1, 0, 0, 0, 7]);
        assert_eq!(packed(&vec![7_u32]), [0, 0, 0, 1, 0, 0, 0, 7]);
        assert_eq!(packed(&[1_u8, 2, 3, 4]), [1, 2, 3, 4]);
    }

    #[test]
    fn what_libvirt_would_not_take_is_not_sent() {
        let refused = |text: String| {
            let mut writer = Writer::default();
            (text, 1_u32).pack(&mut writer);
            writer.finish().unwrap_err()
        };
        assert_eq!(refused("a\0b".to_owned()), Unsayable::Zero);
        let long = refused("x".repeat(STRING_MAX + 1));
        assert_eq!(long, Unsayable::TooLong(STRING_MAX + 1));
        assert_eq!(packed(&"x".repeat(STRING_MAX)).len(), STRING_MAX + 4);
    }

    #[test]
    fn lengths_that_the_bytes_do_not_cover_are_refused_before_anything_is_reserved() {
        let all = u32::MAX.to_be_bytes();
        assert_eq!(
            Reader::whole::<String>(&all),
            Err(Malformed::Count(u32::MAX))
        );
        assert_eq!(
            Reader::whole::<Vec<u64>>(&all),
            Err(Malformed::Count(u32::MAX))
        );
        let two = [0, 0, 0, 2, 0, 0, 0, 0, 0, 0, 0, 9];
        assert_eq!(Reader::whole::<Vec<u64>>(&two), Err(Malformed::Count(2)));
        assert_eq!(
            Reader::whole::<Option<u32>>(&two),
            Err(Malformed::Presence(2))
        );
        assert_eq!(Reader::whole::<u32>(&two), Err(Malformed::Rest(8)));
        assert_eq!(Reader::whole::<u64>(&two[..7]), Err(Malformed::Short));
        // A text whose padding is missing.
        let bare = [0, 0, 0, 1, b'x'];
        assert_eq!(Reader::whole::<String>(&bare), Err(Malformed::Short));
    }

    type Everything = (
        (u32, i32, u64, i64),
        (String, Option<String>, Vec<String>),
        [u8; 16],
        Vec<(u32, Option<[u8; 16]>)>,
    );

    proptest! {
        #[test]
        fn what_was_written_is_read(
            numbers: (u32, i32, u64, i64),
            text in "[^\0]{0,9}",
            maybe in proptest::option::of("[^\0]{0,9}"),
            list in proptest::collection::vec("[^\0]{0,9}", 0..4),
            uuid: [u8; 16],
            nested: Vec<(u32, Option<[u8; 16]>)>,
        ) {
            let value: Everything = (numbers, (text, maybe, list), uuid, nested);
            let bytes = packed(&value);
            prop_assert_eq!(bytes.len() % UNIT, 0);
            prop_assert_eq!(Reader::whole::<Everything>(&bytes), Ok(value));
            if let Some(shorter) = bytes.len().checked_sub(1) {
                prop_assert!(Reader::whole::<Everything>(&bytes[..shorter]).is_err());
            }
        }

        #[test]
        fn any_bytes_are_read_or_refused(bytes: Vec<u8>) {
            let _ = Reader::whole::<Everything>(&bytes);
            if let Ok(list) = Reader::whole::<Vec<Option<String>>>(&bytes) {
                prop_assert!(list.len() <= bytes.len());
            }
        }
    }
}
