//! The translated flows that the kernel tracks in the namespace of the calling thread, through netlink (`ctnetlink`). A flow keeps
//! its translation until it ends, whatever the rules say by then: those whose translation ended are ended here.

use std::{
    collections::BTreeSet,
    net::Ipv4Addr,
    ops::ControlFlow,
    os::fd::{AsRawFd as _, OwnedFd},
};

use nix::{
    errno::Errno,
    sys::{
        socket::{
            AddressFamily, MsgFlags, NetlinkAddr, SockFlag, SockProtocol, SockType, recv, sendto,
            setsockopt, socket, sockopt::ReceiveTimeout,
        },
        time::TimeVal,
    },
};

use crate::{act::net::error::NetError, decide::router::Translation};

/// How long the kernel may take for one answer, in seconds.
const PATIENCE: i64 = 10;
/// The largest piece the kernel answers a dump in.
const PIECE: usize = 64 << 10;
/// How often the flows are listed when they change in a way that leaves the list incomplete.
const TRIES: u32 = 5;
/// `NFNL_SUBSYS_CTNETLINK`, with `IPCTNL_MSG_CT_GET` and `IPCTNL_MSG_CT_DELETE`.
const GET: u16 = (1 << 8) | 1;
const DELETE: u16 = (1 << 8) | 2;
/// `NLMSG_ERROR` and `NLMSG_DONE`.
const ERROR: u16 = 2;
const DONE: u16 = 3;
/// `NLM_F_DUMP_INTR`: what is listed changed meanwhile, and may be listed in part.
const INTERRUPTED: u16 = 0x10;
/// `NLM_F_REQUEST`, with `NLM_F_ACK` and `NLM_F_DUMP`.
const AND_ACK: u16 = 0x1 | 0x4;
const AND_DUMP: u16 = 0x1 | 0x300;
/// Attributes of a flow: `CTA_TUPLE_ORIG`, `CTA_TUPLE_REPLY`, `CTA_ZONE`.
const ORIGINAL: u16 = 1;
const REPLY: u16 = 2;
const ZONE: u16 = 18;
/// Within a tuple: `CTA_TUPLE_IP`, and in that `CTA_IP_V4_SRC` and `CTA_IP_V4_DST`.
const ADDRESSES: u16 = 1;
const SOURCE: u16 = 1;
const DESTINATION: u16 = 2;
/// `NLA_F_NESTED` and `NLA_F_NET_BYTEORDER`.
const FLAGS: u16 = 0xc000;
const HEADER: usize = 16;
/// `struct nfgenmsg`.
const GENERIC: usize = 4;

/// The translations that flows have at the moment.
pub(super) fn translations() -> Result<BTreeSet<Translation>, NetError> {
    Ok(flows()?
        .iter()
        .flat_map(|flow| &flow.translations)
        .copied()
        .collect())
}

/// Ends the flows that have one of these translations.
pub(super) fn forget(which: &BTreeSet<Translation>) -> Result<(), NetError> {
    let ended: Vec<Flow> = flows()?
        .into_iter()
        .filter(|flow| flow.translations.iter().any(|it| which.contains(it)))
        .collect();
    let socket = open()?;
    for flow in ended {
        send(&socket, DELETE, AND_ACK, &flow.key)?;
        match answer(&socket, &mut |_, _| ()) {
            Ok(()) | Err(Errno::ENOENT) => {}
            Err(errno) => return Err(NetError::system("end a flow")(errno)),
        }
    }
    Ok(())
}

/// A flow that is translated.
struct Flow {
    /// The attributes by which the kernel finds it.
    key: Vec<u8>,
    translations: Vec<Translation>,
}

fn flows() -> Result<Vec<Flow>, NetError> {
    let mut left = TRIES;
    loop {
        left -= 1;
        let socket = open()?;
        send(&socket, GET, AND_DUMP, &[])?;
        let mut flows = Vec::new();
        let answered = answer(&socket, &mut |kind, body| {
            if kind == GET & 0xff00 {
                flows.extend(body.get(GENERIC..).and_then(flow));
            }
        });
        match answered {
            Ok(()) => return Ok(flows),
            Err(Errno::EINTR) if left > 0 => {}
            Err(errno) => return Err(NetError::system("list the flows")(errno)),
        }
    }
}

fn flow(attributes: &[u8]) -> Option<Flow> {
    let mut key = Vec::new();
    let (mut original, mut reply) = (None, None);
    for (kind, whole, value) in Attributes(attributes) {
        match kind {
            ORIGINAL => {
                original = ends(value);
                key.extend(whole);
            }
            REPLY => reply = ends(value),
            ZONE => key.extend(whole),
            _ => {}
        }
    }
    let ((from, to), (back_from, back_to)) = (original?, reply?);
    let destination = (to != back_from).then_some(Translation {
        outside: to,
        inside: back_from,
    });
    let source = (from != back_to).then_some(Translation {
        outside: back_to,
        inside: from,
    });
    let translations: Vec<Translation> = destination.into_iter().chain(source).collect();
    (!translations.is_empty()).then_some(Flow { key, translations })
}

/// Source and destination of a tuple.
fn ends(tuple: &[u8]) -> Option<(Ipv4Addr, Ipv4Addr)> {
    let (_, _, addresses) = Attributes(tuple).find(|(kind, ..)| *kind == ADDRESSES)?;
    let find = |wanted| {
        let (_, _, value) = Attributes(addresses).find(|(kind, ..)| *kind == wanted)?;
        Some(Ipv4Addr::from(<[u8; 4]>::try_from(value).ok()?))
    };
    Some((find(SOURCE)?, find(DESTINATION)?))
}

/// Attributes one after another: kind, the whole with padding, and the value. Ends where they are broken.
struct Attributes<'a>(&'a [u8]);

impl<'a> Iterator for Attributes<'a> {
    type Item = (u16, &'a [u8], &'a [u8]);

    fn next(&mut self) -> Option<Self::Item> {
        let length = usize::from(u16_at(self.0, 0)?);
        let kind = u16_at(self.0, 2)? & !FLAGS;
        let value = self.0.get(4..length)?;
        let padded = length.next_multiple_of(4).min(self.0.len());
        let (whole, rest) = self.0.split_at(padded);
        self.0 = rest;
        Some((kind, whole, value))
    }
}

fn u16_at(bytes: &[u8], at: usize) -> Option<u16> {
    let found = bytes.get(at..at + 2)?;
    Some(u16::from_ne_bytes(found.try_into().ok()?))
}

fn u32_at(bytes: &[u8], at: usize) -> Option<u32> {
    let found = bytes.get(at..at + 4)?;
    Some(u32::from_ne_bytes(found.try_into().ok()?))
}

fn open() -> Result<OwnedFd, NetError> {
    let socket = socket(
        AddressFamily::Netlink,
        SockType::Raw,
        SockFlag::SOCK_CLOEXEC,
        SockProtocol::NetlinkNetFilter,
    )
    .map_err(NetError::system("open a netlink socket for flows"))?;
    setsockopt(&socket, ReceiveTimeout, &TimeVal::new(PATIENCE, 0))
        .map_err(NetError::system("limit how long the kernel may take"))?;
    Ok(socket)
}

fn send(socket: &OwnedFd, kind: u16, flags: u16, attributes: &[u8]) -> Result<(), NetError> {
    let length = HEADER + GENERIC + attributes.len();
    let mut message = Vec::with_capacity(length);
    message.extend(u32::try_from(length).unwrap_or(u32::MAX).to_ne_bytes());
    message.extend(kind.to_ne_bytes());
    message.extend(flags.to_ne_bytes());
    message.extend([0; 8]);
    // `AF_INET`, version 0.
    message.extend([2, 0, 0, 0]);
    message.extend(attributes);
    sendto(
        socket.as_raw_fd(),
        &message,
        &NetlinkAddr::new(0, 0),
        MsgFlags::empty(),
    )
    .map_err(NetError::system("ask the kernel about flows"))?;
    Ok(())
}

/// Reads an answer to its end, and hands on kind and body of each message in it. `EINTR`: ask again.
fn answer(socket: &OwnedFd, each: &mut dyn FnMut(u16, &[u8])) -> Result<(), Errno> {
    let mut buffer = vec![0; PIECE];
    loop {
        let length = recv(socket.as_raw_fd(), &mut buffer, MsgFlags::empty())?;
        let piece = buffer.get(..length).ok_or(Errno::EMSGSIZE)?;
        if let ControlFlow::Break(end) = messages(piece, each) {
            return end;
        }
    }
}

/// Hands on the messages of one piece of an answer; breaks off where the answer ends.
fn messages(mut piece: &[u8], each: &mut dyn FnMut(u16, &[u8])) -> ControlFlow<Result<(), Errno>> {
    const BROKEN: ControlFlow<Result<(), Errno>> = ControlFlow::Break(Err(Errno::EBADMSG));
    while piece.len() >= HEADER {
        let (Some(length), Some(kind), Some(flags)) =
            (u32_at(piece, 0), u16_at(piece, 4), u16_at(piece, 6))
        else {
            return BROKEN;
        };
        let Ok(length) = usize::try_from(length) else {
            return BROKEN;
        };
        let Some(body) = piece.get(HEADER..length) else {
            return BROKEN;
        };
        if flags & INTERRUPTED != 0 {
            return ControlFlow::Break(Err(Errno::EINTR));
        }
        // Both end with 0, or with what went wrong as a negative number.
        if kind == DONE || kind == ERROR {
            let Some(code) = u32_at(body, 0) else {
                return BROKEN;
            };
            let errno = i32::from_ne_bytes(code.to_ne_bytes()).saturating_neg();
            return ControlFlow::Break(if errno == 0 {
                Ok(())
            } else {
                Err(Errno::from_raw(errno))
            });
        }
        each(kind, body);
        piece = piece.get(length.next_multiple_of(4)..).unwrap_or_default();
    }
    ControlFlow::Continue(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn message(kind: u16, flags: u16, body: &[u8]) -> Vec<u8> {
        let length = u32::try_from(HEADER + body.len()).unwrap();
        let mut message = length.to_ne_bytes().to_vec();
        message.extend(kind.to_ne_bytes());
        message.extend(flags.to_ne_bytes());
        message.extend([0; 8]);
        message.extend(body);
        message
    }

    fn read(piece: &[u8]) -> (ControlFlow<Result<(), Errno>>, Vec<u16>) {
        let mut kinds = Vec::new();
        let end = messages(piece, &mut |kind, _| kinds.push(kind));
        (end, kinds)
    }

    #[test]
    fn a_list_is_whole_only_if_the_kernel_says_so() {
        let one = message(GET & 0xff00, 2, &[0; 8]);
        let done = |code: i32| message(DONE, 2, &code.to_ne_bytes());
        let kinds = vec![GET & 0xff00];
        let after = |last: &[u8]| read(&[&one[..], last].concat());
        assert_eq!(after(&[]), (ControlFlow::Continue(()), kinds.clone()));
        let whole = ControlFlow::Break(Ok(()));
        assert_eq!(after(&done(0)), (whole, kinds.clone()));
        let failed = |errno| ControlFlow::Break(Err(errno));
        assert_eq!(after(&done(-12)), (failed(Errno::ENOMEM), kinds.clone()));
        let interrupted = message(DONE, 2 | INTERRUPTED, &[0; 4]);
        assert_eq!(after(&interrupted), (failed(Errno::EINTR), kinds.clone()));
        let refused = message(ERROR, 0, &(-1_i32).to_ne_bytes());
        assert_eq!(after(&refused), (failed(Errno::EPERM), kinds.clone()));
        let cut = &one[..HEADER];
        assert_eq!(after(cut), (failed(Errno::EBADMSG), kinds));
    }
}
