//! Packets: a length that counts itself, a header of six numbers, and what they carry.

use super::xdr::{Malformed, Pack, Reader, Unpack, Writer};

/// The longest packet that libvirt sends or takes (`VIR_NET_MESSAGE_MAX` with its length).
pub(super) const PACKET_MAX: usize = (32 << 20) + LENGTH;
/// Bytes of the length in front.
pub(super) const LENGTH: usize = 4;
/// Bytes of a header.
const HEADER: usize = 24;

/// A set of procedures, by its number.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Program(pub(super) u32);

impl Program {
    /// libvirt's API (`REMOTE_PROGRAM`).
    pub(super) const REMOTE: Self = Self(0x2000_8086);
    /// What is QEMU's alone (`QEMU_PROGRAM`).
    pub(super) const QEMU: Self = Self(0x2000_8087);
    /// Whether the other side is there (`KEEPALIVE_PROGRAM`).
    pub(super) const KEEPALIVE: Self = Self(0x6b65_6570);
    /// The version of all of them.
    pub(super) const VERSION: u32 = 1;
}

/// `KEEPALIVE_PROC_PING`: whether the other side is there.
pub(super) const PING: i32 = 1;
/// `KEEPALIVE_PROC_PONG`: it is.
pub(super) const PONG: i32 = 2;

/// What a packet is (`virNetMessageType`).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    /// A question.
    Call,
    /// Its answer.
    Reply,
    /// What nobody asked for: events, keepalive.
    Message,
    /// A part of a stream that a call has opened.
    Stream,
    /// One that comes with open files, or that skips a part of a stream: nothing here asks for such.
    Other(u32),
}

impl Kind {
    fn of(number: u32) -> Self {
        match number {
            0 => Self::Call,
            1 => Self::Reply,
            2 => Self::Message,
            3 => Self::Stream,
            other => Self::Other(other),
        }
    }

    fn number(self) -> u32 {
        match self {
            Self::Call => 0,
            Self::Reply => 1,
            Self::Message => 2,
            Self::Stream => 3,
            Self::Other(number) => number,
        }
    }
}

/// How it went (`virNetMessageStatus`).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Status {
    /// Well; of a stream, that this is its end.
    Ok,
    /// It did not; what follows is an error.
    Error,
    /// More of a stream follows.
    Continue,
    /// Nobody knows.
    Other(u32),
}

impl Status {
    fn of(number: u32) -> Self {
        match number {
            0 => Self::Ok,
            1 => Self::Error,
            2 => Self::Continue,
            other => Self::Other(other),
        }
    }

    fn number(self) -> u32 {
        match self {
            Self::Ok => 0,
            Self::Error => 1,
            Self::Continue => 2,
            Self::Other(number) => number,
        }
    }
}

/// What is in front of every packet (`virNetMessageHeader`).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Header {
    /// Whose procedure it is.
    pub(super) program: Program,
    /// The procedure's number in it.
    pub(super) procedure: i32,
    /// What the packet is.
    pub(super) kind: Kind,
    /// Which call it belongs to.
    pub(super) serial: u32,
    /// How it went.
    pub(super) status: Status,
}

/// Bytes are no packet of this protocol.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(super) enum NoPacket {
    /// None is that short, or that long.
    #[error("it announces a packet of {0} bytes; packets have {least} to {PACKET_MAX}", least = LENGTH + HEADER)]
    Length(u32),
    /// A program in another version.
    #[error("it speaks version {1} of program {0:#x}; known is {known}", known = Program::VERSION)]
    Version(u32, u32),
    /// The header cannot be read.
    #[error("its header cannot be read")]
    Header(#[source] Malformed),
}

/// How many bytes the packet has that begins with these; `None`: its length has not come yet.
pub(super) fn length(bytes: &[u8]) -> Result<Option<usize>, NoPacket> {
    let Some(first) = bytes.first_chunk::<LENGTH>() else {
        return Ok(None);
    };
    let said = u32::from_be_bytes(*first);
    match usize::try_from(said) {
        Ok(length) if (LENGTH + HEADER..=PACKET_MAX).contains(&length) => Ok(Some(length)),
        _ => Err(NoPacket::Length(said)),
    }
}

/// A packet's header and what it carries.
pub(super) fn open(packet: &[u8]) -> Result<(Header, &[u8]), NoPacket> {
    let mut reader = Reader::new(packet);
    let mut number = || u32::unpack(&mut reader).map_err(NoPacket::Header);
    let [_length, program, version, procedure, kind, serial, status] = [
        number()?,
        number()?,
        number()?,
        number()?,
        number()?,
        number()?,
        number()?,
    ];
    if version != Program::VERSION {
        return Err(NoPacket::Version(program, version));
    }
    let header = Header {
        program: Program(program),
        procedure: procedure.cast_signed(),
        kind: Kind::of(kind),
        serial,
        status: Status::of(status),
    };
    Ok((header, reader.rest()))
}

/// A packet; `None`: it would be longer than one may be.
pub(super) fn seal(header: Header, payload: &[u8]) -> Option<Vec<u8>> {
    let length = LENGTH + HEADER + payload.len();
    let said = u32::try_from(length)
        .ok()
        .filter(|_| length <= PACKET_MAX)?;
    let mut writer = Writer::default();
    (said, header.program.0, Program::VERSION, header.procedure).pack(&mut writer);
    (header.kind.number(), header.serial, header.status.number()).pack(&mut writer);
    let mut packet = writer.finish().ok()?;
    packet.extend_from_slice(payload);
    Some(packet)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_ping_lies_as_libvirt_expects_it() {
        let header = Header {
            program: Program::KEEPALIVE,
            procedure: PING,
            kind: Kind::Message,
            serial: 0,
            status: Status::Ok,
        };
        let expected = b"\0\0\0\x1ckeep\0\0\0\x01\0\0\0\x01\0\0\0\x02\0\0\0\0\0\0\0\0";
        assert_eq!(seal(header, &[]).unwrap(), expected);
    }

    #[test]
    fn lengths_are_known_early_and_bounded() {
        assert_eq!(length(&[0, 0, 0]), Ok(None));
        assert_eq!(length(&[0, 0, 0, 28, 9]), Ok(Some(28)));
        assert_eq!(length(&[0, 0, 0, 27]), Err(NoPacket::Length(27)));
        assert_eq!(length(&[0; 4]), Err(NoPacket::Length(0)));
        assert_eq!(length(&[2, 0, 0, 4]), Ok(Some(PACKET_MAX)));
        assert_eq!(length(&[2, 0, 0, 5]), Err(NoPacket::Length(0x0200_0005)));
        assert_eq!(length(&[255; 9]), Err(NoPacket::Length(u32::MAX)));
    }

    #[test]
    fn another_version_and_a_cut_header_are_told() {
        let mut packet = [0; 28];
        packet[11] = 2;
        assert_eq!(open(&packet), Err(NoPacket::Version(0, 2)));
        assert_eq!(open(&packet[..20]), Err(NoPacket::Header(Malformed::Short)));
    }

    proptest! {
        #[test]
        fn a_packet_is_opened_as_it_was_sealed(
            program: u32, procedure: i32, kind: u32, serial: u32, status: u32, payload: Vec<u8>,
        ) {
            let header = Header {
                program: Program(program),
                procedure,
                kind: Kind::of(kind),
                serial,
                status: Status::of(status),
            };
            let packet = seal(header, &payload).unwrap();
            prop_assert_eq!(length(&packet), Ok(Some(packet.len())));
            prop_assert_eq!(open(&packet), Ok((header, payload.as_slice())));
        }

        #[test]
        fn any_bytes_are_a_packet_or_none(bytes: Vec<u8>) {
            let _ = length(&bytes);
            let _ = open(&bytes);
        }
    }
}
