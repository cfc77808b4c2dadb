//! The task that owns a connection's socket: it gives every call a serial number and sends it, hands answers to whoever waits
//! for them, collects streams, says that an event was told, and finds out whether libvirt is still there while somebody waits.
//!
//! What comes is not trusted: the first packet that libvirt would never send ends the connection, and all calls that wait on it
//! are told why.

use std::{
    collections::{BTreeMap, btree_map::Entry},
    sync::Arc,
    time::Duration,
};

use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::UnixStream,
    sync::{Notify, mpsc, oneshot},
    time::{Instant, sleep_until},
};

use super::{
    error::{Ended, Error, Refusal},
    packet::{self, Header, Kind, PING, PONG, Program, Status},
    procedures::{EVENTS, RemoteError},
    xdr::Reader,
};

/// How long libvirt may say nothing, while somebody waits, before it is asked whether it is there.
pub(super) const PING_AFTER: Duration = Duration::from_secs(5);
/// How many of these questions may go unanswered before the connection is given up, and with it the calls that wait on it.
pub(super) const PINGS: u32 = 3;
/// How much is reserved at once for a packet that is on its way.
const STEP: usize = 64 << 10;

/// What came of a call.
pub(super) type Answer = Result<Answered, Error>;

/// The answer to a call.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(super) struct Answered {
    /// What the procedure answers.
    pub(super) reply: Vec<u8>,
    /// What came by the stream that it opened.
    pub(super) data: Vec<u8>,
}

/// A call that is to be made.
#[derive(Debug)]
pub(super) struct Order {
    /// Whose procedure it is.
    pub(super) program: Program,
    /// Its number.
    pub(super) procedure: i32,
    /// The question.
    pub(super) payload: Vec<u8>,
    /// The most that its stream may bring, if it opens one.
    pub(super) download: Option<usize>,
    /// Who waits.
    pub(super) answer: oneshot::Sender<Answer>,
}

/// A call that was made.
#[derive(Debug)]
struct Waiting {
    program: Program,
    procedure: i32,
    stage: Stage,
}

#[derive(Debug)]
enum Stage {
    /// Its answer has not come. With the most that its stream may bring, if it opens one, and what of it came before the answer:
    /// libvirt opens a stream before it answers, and another of its threads may be the first to send.
    Asked(Option<(usize, Early)>, oneshot::Sender<Answer>),
    /// Its stream broke off before its answer came, which is of no use any more.
    Broken,
    /// The answer has come, and its stream has not ended.
    Streaming(usize, Answered, oneshot::Sender<Answer>),
    /// All of its stream came, and libvirt was told so.
    Finished(Answered, oneshot::Sender<Answer>),
    /// Its stream is not wanted any more. What is on its way still comes.
    Aborted,
}

/// What came of a stream before the answer to the call that opened it.
#[derive(Debug, Default)]
struct Early {
    data: Vec<u8>,
    has_ended: bool,
}

impl Stage {
    fn into_sender(self) -> Option<oneshot::Sender<Answer>> {
        match self {
            Self::Asked(_, sender) | Self::Streaming(_, _, sender) | Self::Finished(_, sender) => {
                Some(sender)
            }
            Self::Aborted | Self::Broken => None,
        }
    }
}

/// Nobody listens when the caller has given up.
fn tell(sender: oneshot::Sender<Answer>, answer: Answer) {
    drop(sender.send(answer));
}

/// Serves a connection until it ends, or nobody can ask any more. `events` is told that libvirt tells of one; how many came
/// since somebody last looked is kept nowhere.
pub(super) async fn serve(
    mut socket: UnixStream,
    mut orders: mpsc::Receiver<Order>,
    events: Option<Arc<Notify>>,
) {
    let (mut reader, mut writer) = socket.split();
    let mut link = Link::new(events);
    let why = loop {
        let step = tokio::select! {
            read = reader.read_buf(&mut link.incoming) => match read {
                Ok(0) => Err(Ended::Closed),
                Ok(_) => link.received(),
                Err(error) => Err(Ended::Socket(Arc::new(error))),
            },
            written = writer.write(&link.outgoing), if !link.outgoing.is_empty() => match written {
                Ok(count) => {
                    link.outgoing.drain(..count);
                    Ok(())
                }
                Err(error) => Err(Ended::Socket(Arc::new(error))),
            },
            order = orders.recv() => match order {
                Some(order) => {
                    link.ask(order);
                    Ok(())
                }
                // Nobody has a handle any more, so nobody waits.
                None => return,
            },
            () = sleep_until(link.quiet_since + PING_AFTER), if !link.waiting.is_empty() => link.ping(),
        };
        if let Err(why) = step {
            break why;
        }
    };
    tracing::debug!(%why, "a connection to libvirt ended");
    // From here on the handles know that it is closed.
    orders.close();
    let waiting = link.waiting.into_values();
    for sender in waiting.filter_map(|waiting| waiting.stage.into_sender()) {
        tell(sender, Err(Error::Lost(why.clone())));
    }
    while let Ok(order) = orders.try_recv() {
        tell(order.answer, Err(Error::Lost(why.clone())));
    }
}

/// What a connection remembers.
struct Link {
    incoming: Vec<u8>,
    outgoing: Vec<u8>,
    waiting: BTreeMap<u32, Waiting>,
    serial: u32,
    /// When libvirt said something, or was asked something after nobody waited, or was asked whether it is there.
    quiet_since: Instant,
    unanswered: u32,
    events: Option<Arc<Notify>>,
}

impl Link {
    fn new(events: Option<Arc<Notify>>) -> Self {
        Self {
            events,
            incoming: Vec::new(),
            outgoing: Vec::new(),
            waiting: BTreeMap::new(),
            serial: 0,
            quiet_since: Instant::now(),
            unanswered: 0,
        }
    }

    fn heard(&mut self) {
        self.quiet_since = Instant::now();
        self.unanswered = 0;
    }

    /// Sends a call.
    fn ask(&mut self, order: Order) {
        let Order {
            program,
            procedure,
            payload,
            download,
            answer,
        } = order;
        if self.waiting.is_empty() {
            self.heard();
        }
        // 0 is that of what nobody asked for. One whose call still waits after four thousand million others is passed by.
        let serial = loop {
            self.serial = self.serial.checked_add(1).unwrap_or(1);
            if !self.waiting.contains_key(&self.serial) {
                break self.serial;
            }
        };
        let header = Header {
            program,
            procedure,
            kind: Kind::Call,
            serial,
            status: Status::Ok,
        };
        let Some(packet) = packet::seal(header, &payload) else {
            tell(answer, Err(Error::TooLong));
            return;
        };
        self.outgoing.extend_from_slice(&packet);
        let stage = Stage::Asked(download.map(|most| (most, Early::default())), answer);
        self.waiting.insert(
            serial,
            Waiting {
                program,
                procedure,
                stage,
            },
        );
    }

    /// libvirt has said nothing for a while, and somebody waits.
    fn ping(&mut self) -> Result<(), Ended> {
        if self.unanswered >= PINGS {
            return Err(Ended::Silent(PING_AFTER * (PINGS + 1)));
        }
        self.unanswered += 1;
        self.quiet_since = Instant::now();
        self.send(keepalive(PING), &[])
    }

    fn send(&mut self, header: Header, payload: &[u8]) -> Result<(), Ended> {
        let packet = packet::seal(header, payload)
            .ok_or_else(|| Ended::Protocol("a packet is longer than one may be".into()))?;
        self.outgoing.extend_from_slice(&packet);
        Ok(())
    }

    /// More bytes have come.
    fn received(&mut self) -> Result<(), Ended> {
        let nonsense = |error: packet::NoPacket| Ended::Protocol(error.to_string().into());
        self.heard();
        let mut incoming = std::mem::take(&mut self.incoming);
        let mut rest = incoming.as_slice();
        let missing = loop {
            match packet::length(rest).map_err(nonsense)? {
                None => break None,
                Some(length) => {
                    let Some((packet, after)) = rest.split_at_checked(length) else {
                        break Some(length - rest.len());
                    };
                    let (header, payload) = packet::open(packet).map_err(nonsense)?;
                    self.dispatch(header, payload)?;
                    rest = after;
                }
            }
        };
        let left = rest.len();
        if left == 0 {
            // What a large answer took is not kept.
            return Ok(());
        }
        incoming.drain(..incoming.len() - left);
        // Only as far as the packet reaches, and not all of it at once: its length may be a lie.
        incoming.reserve(missing.unwrap_or_default().min(STEP));
        self.incoming = incoming;
        Ok(())
    }

    fn dispatch(&mut self, header: Header, payload: &[u8]) -> Result<(), Ended> {
        if header.program == Program::KEEPALIVE {
            return match (header.kind, header.procedure) {
                (Kind::Message, PING) => self.send(keepalive(PONG), &[]),
                (Kind::Message, PONG) => Ok(()),
                _ => Err(unexpected(header)),
            };
        }
        match header.kind {
            Kind::Reply => self.replied(header, payload),
            Kind::Stream => self.streamed(header, payload),
            Kind::Message => {
                self.told(header);
                Ok(())
            }
            Kind::Call | Kind::Other(_) => Err(unexpected(header)),
        }
    }

    /// Something came that nobody waits for. An event is a reason to look, and whatever else it says is not read.
    fn told(&self, header: Header) {
        let is_event = header.program == Program::REMOTE
            && EVENTS.iter().any(|event| event.message == header.procedure);
        if let Some(events) = self.events.as_ref().filter(|_| is_event) {
            events.notify_one();
        }
    }

    /// The call that a packet belongs to, which waits no more unless it is put back.
    fn take(&mut self, header: Header) -> Result<Waiting, Ended> {
        match self.waiting.entry(header.serial) {
            Entry::Occupied(entry)
                if (entry.get().program, entry.get().procedure)
                    == (header.program, header.procedure) =>
            {
                Ok(entry.remove())
            }
            _ => Err(unexpected(header)),
        }
    }

    fn put_back(&mut self, header: Header, stage: Stage) {
        let Header {
            program, procedure, ..
        } = header;
        self.waiting.insert(
            header.serial,
            Waiting {
                program,
                procedure,
                stage,
            },
        );
    }

    fn replied(&mut self, header: Header, payload: &[u8]) -> Result<(), Ended> {
        let waiting = self.take(header)?;
        let (download, sender) = match waiting.stage {
            Stage::Asked(download, sender) => (download, sender),
            Stage::Broken => return Ok(()),
            _ => return Err(unexpected(header)),
        };
        match (header.status, download) {
            (Status::Error, _) => tell(sender, Err(refusal(payload))),
            (Status::Ok, None) => {
                let answered = Answered {
                    reply: payload.to_vec(),
                    data: Vec::new(),
                };
                tell(sender, Ok(answered));
            }
            (Status::Ok, Some((most, early))) => {
                let answered = Answered {
                    reply: payload.to_vec(),
                    data: early.data,
                };
                if early.has_ended {
                    self.put_back(header, Stage::Finished(answered, sender));
                    return self.send(stream(header, Status::Ok), &[]);
                }
                self.put_back(header, Stage::Streaming(most, answered, sender));
            }
            (Status::Continue | Status::Other(_), _) => return Err(unexpected(header)),
        }
        Ok(())
    }

    /// A part of a stream, its end (a part with nothing in it), or what libvirt says to the end of it.
    fn streamed(&mut self, header: Header, payload: &[u8]) -> Result<(), Ended> {
        let waiting = self.take(header)?;
        match (header.status, waiting.stage) {
            (Status::Continue, Stage::Asked(Some((most, mut early)), sender))
                if !early.has_ended && early.data.len().saturating_add(payload.len()) <= most =>
            {
                early.has_ended = payload.is_empty();
                early.data.extend_from_slice(payload);
                self.put_back(header, Stage::Asked(Some((most, early)), sender));
                Ok(())
            }
            (Status::Error, Stage::Asked(Some(_), sender)) => {
                tell(sender, Err(refusal(payload)));
                self.put_back(header, Stage::Broken);
                Ok(())
            }
            (Status::Error, stage) => {
                if let Some(sender) = stage.into_sender() {
                    tell(sender, Err(refusal(payload)));
                }
                Ok(())
            }
            (Status::Continue, Stage::Streaming(_, answered, sender)) if payload.is_empty() => {
                self.put_back(header, Stage::Finished(answered, sender));
                self.send(stream(header, Status::Ok), &[])
            }
            (Status::Continue, Stage::Streaming(most, mut answered, sender)) => {
                if answered.data.len().saturating_add(payload.len()) > most {
                    tell(sender, Err(Error::TooMuch(most)));
                    self.put_back(header, Stage::Aborted);
                    return self.send(stream(header, Status::Error), &[]);
                }
                answered.data.extend_from_slice(payload);
                self.put_back(header, Stage::Streaming(most, answered, sender));
                Ok(())
            }
            (Status::Continue, Stage::Aborted) => {
                self.put_back(header, Stage::Aborted);
                Ok(())
            }
            (Status::Ok, Stage::Finished(answered, sender)) => {
                tell(sender, Ok(answered));
                Ok(())
            }
            (Status::Ok, Stage::Aborted) => Ok(()),
            (_, stage) => {
                // It waits no more, so it is told here.
                let why = unexpected(header);
                if let Some(sender) = stage.into_sender() {
                    tell(sender, Err(Error::Lost(why.clone())));
                }
                Err(why)
            }
        }
    }
}

fn keepalive(procedure: i32) -> Header {
    Header {
        program: Program::KEEPALIVE,
        procedure,
        kind: Kind::Message,
        serial: 0,
        status: Status::Ok,
    }
}

/// What libvirt is told of a stream.
fn stream(header: Header, status: Status) -> Header {
    Header {
        kind: Kind::Stream,
        status,
        ..header
    }
}

/// libvirt's error. One that cannot be read concerns its call only.
fn refusal(payload: &[u8]) -> Error {
    match Reader::whole::<RemoteError>(payload) {
        Ok(error) => Refusal::from(error).into(),
        Err(error) => error.into(),
    }
}

fn unexpected(header: Header) -> Ended {
    let Header {
        program,
        procedure,
        kind,
        serial,
        status,
    } = header;
    Ended::Protocol(
        format!(
            "a packet {kind:?} of procedure {procedure} of program {:#x} with status {status:?} and serial number {serial} was \
             not expected",
            program.0
        )
        .into(),
    )
}
