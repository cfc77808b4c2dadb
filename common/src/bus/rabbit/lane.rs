//! A channel that carries many publishes at once, and the task that owns it.
//!
//! ```text
//!  callers ──▶ queue ──▶ published back to back ──▶ confirms, as they come ──▶ verdicts ──▶ callers
//!              (bounded)  (at most a window)         (returns.rs)
//! ```
//!
//! One task alone publishes on the channel, so the tags that the library counts are those the broker counts.
//! Each publish is decided on its own as soon as it can be: a queue that does not confirm holds up nobody else. A
//! channel on which nothing comes for a while is asked whether it lives, and exchanged for a new one if not.
//! A caller that stops waiting leaves its publish to be confirmed unheard; when such a confirm never comes, the
//! channel is exchanged too.
//!
//! It tries nothing again: what the end of the channel catches is told so, and its caller decides.

use std::collections::HashMap;
use std::fmt;
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll, Wake, Waker};
use std::time::Duration;

use bytes::Bytes;
use futures::future::BoxFuture;
use lapin::options::{BasicPublishOptions, ChannelFlowOptions, ConfirmSelectOptions};
use lapin::protocol::AMQPSoftError;
use lapin::types::ShortString;
use lapin::{
    BasicProperties, Channel, Confirmation, ConnectionStatus, ErrorKind, PublisherConfirm,
};
use tokio::sync::{Notify, mpsc, oneshot};
use tokio::time::Instant;
use tokio_util::sync::ReusableBoxFuture;

use super::super::topology::EXCHANGE;
use super::super::{BusError, PublishError, Target};
use super::convert::{self, Parts};
use super::declare;
use super::link::{Link, Up, chain};
use super::places::{PER_LANE, Seat};
use super::returns::{Reply, Returns, Stranger, Verdict};

/// Publishes that wait for their turn; further callers wait to get in line.
const QUEUE: usize = 256;
/// No more is handed to the library while so much of it is not yet written: it keeps a copy until then.
const WINDOW_BYTES: usize = 8 * 1024 * 1024;
/// With nothing from the channel for this part of a publish's timeout it is asked, and when it is silent for so long
/// again, it is blocked. Enough is left to publish once more.
const SILENT_PART: u32 = 10;
/// How often a channel is looked after in that time.
const LOOKS: u32 = 4;
/// But not more often.
const SHORTEST_LOOK: Duration = Duration::from_millis(5);
/// After so many timeouts of a publish nobody waits for, its confirm will never come.
const FORSAKEN_TIMEOUTS: u32 = 6;

/// Tells that a message reached no queue.
pub(super) const OPTIONS: BasicPublishOptions = BasicPublishOptions {
    mandatory: true,
    immediate: false,
};

/// What a lane carries. The exchange of topics can be missing, which ends the channel; that of queues cannot.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Road {
    Queues,
    Topics,
}

/// A message on its way, kept by its caller for another try.
#[derive(Debug)]
pub(super) struct Outgoing {
    pub(super) exchange: &'static str,
    pub(super) key: ShortString,
    pub(super) properties: Parts,
    pub(super) body: Bytes,
}

impl Outgoing {
    pub(super) fn new(
        to: &Target,
        properties: BasicProperties,
        body: Bytes,
    ) -> Result<Arc<Self>, PublishError> {
        let (exchange, key) = match to {
            Target::Queue(name) => ("", name.as_str()),
            Target::Topic { key } => (EXCHANGE, key.as_str()),
        };
        let key = ShortString::try_new(key).map_err(|e| PublishError::Invalid {
            target: to.clone(),
            reason: e.to_string(),
        })?;
        Ok(Arc::new(Self {
            exchange,
            key,
            properties: Parts::new(properties),
            body,
        }))
    }
}

/// How one try ended.
#[derive(Debug)]
pub(super) enum Outcome {
    /// The broker says so.
    Decided(Verdict),
    /// The exchange is not there.
    NoExchange { why: String },
    /// The broker closed the channel over this or another message of the channel.
    Offended { why: String },
    /// The channel does not answer. Perhaps because of this message's queue.
    Blocked,
    /// The channel went away. The message may have reached the broker.
    Lost { why: String },
}

impl Outcome {
    pub(super) fn failed(error: &lapin::Error) -> Self {
        let why = error.to_string();
        if declare::is_soft(error, AMQPSoftError::NOTFOUND) {
            Self::NoExchange { why }
        } else if declare::is_soft(error, AMQPSoftError::PRECONDITIONFAILED) {
            Self::Offended { why }
        } else {
            Self::Lost { why }
        }
    }
}

#[derive(Debug)]
struct Request {
    outgoing: Arc<Outgoing>,
    answer: oneshot::Sender<Outcome>,
    seat: Seat,
}

/// The way to the task of a lane. The lane ends with its connection.
#[derive(Debug, Clone)]
pub(super) struct Lane {
    epoch: u64,
    requests: mpsc::Sender<Request>,
}

impl Lane {
    pub(super) fn open(link: Arc<Link>, up: Up, road: Road) -> Self {
        let (requests, queue) = mpsc::channel(QUEUE);
        let epoch = up.epoch;
        tokio::spawn(run(link, up, road, queue));
        Self { epoch, requests }
    }

    /// Whether it is a lane of this connection, or of a later one.
    pub(super) fn serves(&self, epoch: u64) -> bool {
        self.epoch >= epoch && !self.requests.is_closed()
    }

    /// Publishes once. `None` when nothing was heard of it, because the connection ended.
    pub(super) async fn publish(&self, outgoing: Arc<Outgoing>, seat: Seat) -> Option<Outcome> {
        let (answer, outcome) = oneshot::channel();
        let request = Request {
            outgoing,
            answer,
            seat,
        };
        self.requests.send(request).await.ok()?;
        outcome.await.ok()
    }
}

async fn run(link: Arc<Link>, up: Up, road: Road, mut queue: mpsc::Receiver<Request>) {
    let mut gone = std::pin::pin!(link.gone(up.epoch));
    loop {
        let opened = tokio::select! {
            biased;
            () = &mut gone => return,
            opened = open(&up, road) => opened,
        };
        let mut flight = match opened {
            Ok(channel) => Flight::new(channel, &link, &up),
            Err(error) => {
                let why = chain(&error);
                queue.close();
                while let Ok(request) = queue.try_recv() {
                    tell(request.answer, Outcome::Lost { why: why.clone() });
                }
                return;
            }
        };
        let end = tokio::select! {
            biased;
            () = &mut gone => return,
            end = flight.carry(&mut queue) => end,
        };
        match end {
            End::NoCallers => return,
            End::Broken(broken) => {
                tracing::debug!(
                    ?road,
                    ?broken,
                    left = flight.publishes.len(),
                    "a lane ended"
                );
                flight.tell_all(&broken);
            }
        }
    }
}

/// A channel with confirms, to an exchange that is there.
async fn open(up: &Up, road: Road) -> Result<Channel, BusError> {
    let operation = "opening a channel to publish";
    match road {
        Road::Queues => {}
        Road::Topics => {
            // One that cannot be declared may still be there and of use.
            if let Err(error) = declare::missing_exchange(&up.connection).await {
                tracing::debug!(error = chain(&error), "the exchange cannot be declared");
            }
        }
    }
    let channel = declare::channel(&up.connection, operation).await?;
    let confirms = channel.confirm_select(ConfirmSelectOptions::default());
    declare::bounded(operation, confirms).await?;
    Ok(channel)
}

fn tell(answer: oneshot::Sender<Outcome>, outcome: Outcome) {
    // An error means that the caller has stopped waiting.
    let _ = answer.send(outcome);
}

/// Collects who was woken. The library wakes from its own thread, in the order in which it handles frames.
#[derive(Debug, Default)]
struct Bell {
    woken: Mutex<Vec<u64>>,
    rung: Notify,
}

impl Bell {
    fn ring(&self, tag: u64) {
        let mut woken = self.woken.lock().unwrap_or_else(PoisonError::into_inner);
        woken.push(tag);
        // One ring is enough: who hears it takes all.
        if woken.len() == 1 {
            self.rung.notify_one();
        }
    }

    fn take(&self) -> Vec<u64> {
        std::mem::take(&mut *self.woken.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

struct Cord {
    bell: Arc<Bell>,
    tag: u64,
}

impl Wake for Cord {
    fn wake(self: Arc<Self>) {
        self.bell.ring(self.tag);
    }

    fn wake_by_ref(self: &Arc<Self>) {
        self.bell.ring(self.tag);
    }
}

/// A publish of the library until it is written. It is large, and its memory is used again.
type Call = ReusableBoxFuture<'static, lapin::Result<PublisherConfirm>>;

/// The tag of the fence. Publishes count from 1.
const FENCE: u64 = 0;

enum Stage {
    /// Until it is written.
    Sending {
        call: Call,
        bytes: usize,
    },
    /// Until it is confirmed.
    Sent(PublisherConfirm),
    Over,
}

struct Publish {
    answer: oneshot::Sender<Outcome>,
    waker: Waker,
    stage: Stage,
    since: Instant,
    _seat: Seat,
}

enum End {
    /// Nobody can ask for anything any more.
    NoCallers,
    Broken(Broken),
}

#[derive(Debug)]
enum Broken {
    /// The channel or the connection.
    Channel(lapin::Error),
    /// The books: whose a returned message is, nobody can tell.
    Books,
    /// The channel does not answer.
    Blocked,
    /// A publish that nobody waits for was never confirmed.
    Forsaken,
}

impl From<Stranger> for Broken {
    fn from(_: Stranger) -> Self {
        Self::Books
    }
}

impl Broken {
    fn outcome(&self) -> Outcome {
        let why = match self {
            Self::Channel(error) => return Outcome::failed(error),
            Self::Blocked => return Outcome::Blocked,
            Self::Books => "a returned message could not be told from others",
            Self::Forsaken => "another message on the channel was never confirmed",
        };
        Outcome::Lost {
            why: why.to_owned(),
        }
    }
}

/// What is under way on one channel.
struct Flight {
    channel: Arc<Channel>,
    bell: Arc<Bell>,
    last_tag: u64,
    publishes: HashMap<u64, Publish>,
    spare: Vec<Call>,
    /// Handed to the library and not written.
    unwritten: usize,
    unwritten_bytes: usize,
    returns: Returns,
    fence: Option<BoxFuture<'static, lapin::Result<bool>>>,
    /// When the channel last said something that it was waited for.
    heard: Instant,
    /// When the question was put whether it lives.
    asked: Option<Instant>,
    connection: ConnectionStatus,
    silence: Duration,
    forsaken_for: Duration,
    /// Nothing more goes out: the channel is to be given up.
    ending: bool,
    broken: Option<Broken>,
}

impl fmt::Debug for Flight {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Flight")
            .field("channel", &self.channel.id())
            .field("last_tag", &self.last_tag)
            .field("publishes", &self.publishes.len())
            .finish_non_exhaustive()
    }
}

impl Flight {
    fn new(channel: Channel, link: &Link, up: &Up) -> Self {
        Self {
            channel: Arc::new(channel),
            bell: Arc::default(),
            last_tag: FENCE,
            publishes: HashMap::new(),
            spare: Vec::new(),
            unwritten: 0,
            unwritten_bytes: 0,
            returns: Returns::default(),
            fence: None,
            heard: Instant::now(),
            asked: None,
            connection: up.connection.status().clone(),
            silence: link.publish_timeout() / SILENT_PART,
            forsaken_for: link.publish_timeout() * FORSAKEN_TIMEOUTS,
            ending: false,
            broken: None,
        }
    }

    /// Carries publishes until the channel ends.
    async fn carry(&mut self, queue: &mut mpsc::Receiver<Request>) -> End {
        let bell = Arc::clone(&self.bell);
        let mut look = tokio::time::interval((self.silence / LOOKS).max(SHORTEST_LOOK));
        loop {
            tokio::select! {
                biased;
                () = bell.rung.notified() => {}
                request = queue.recv(), if self.has_room() => match request {
                    Some(request) => self.launch(request),
                    None => return End::NoCallers,
                },
                _ = look.tick() => self.look_after(),
            }
            while self.has_room()
                && let Ok(request) = queue.try_recv()
            {
                self.launch(request);
            }
            self.look_at_all();
            self.decide();
            // Closing a channel overtakes what is not yet written on it, which would cost the connection.
            if self.ending && self.unwritten == 0 && self.broken.is_none() {
                self.broken = Some(Broken::Forsaken);
            }
            if let Some(broken) = self.broken.take() {
                return End::Broken(broken);
            }
        }
    }

    fn has_room(&self) -> bool {
        !self.ending
            && self.broken.is_none()
            && self.publishes.len() < PER_LANE
            && self.unwritten_bytes < WINDOW_BYTES
    }

    /// Finds out what nobody tells: that the channel is blocked, or that a confirm will not come.
    fn look_after(&mut self) {
        // What is not written cannot be answered, and a blocked broker takes nothing.
        if self.unwritten > 0 || self.connection.blocked() {
            self.heard = Instant::now();
            self.asked = None;
            self.ending = false;
            return;
        }
        let given_up = |p: &Publish| p.answer.is_closed() && p.since.elapsed() > self.forsaken_for;
        self.ending = self.publishes.values().any(given_up);
        let silent = !self.publishes.is_empty() && self.heard.elapsed() > self.silence;
        match self.asked {
            _ if !silent => self.asked = None,
            None => {
                self.asked = Some(Instant::now());
                self.send_fence();
            }
            Some(asked) if asked.elapsed() > self.silence => {
                self.broken.get_or_insert(Broken::Blocked);
            }
            Some(_) => {}
        }
    }

    /// Hands one publish to the library.
    fn launch(&mut self, request: Request) {
        let Request {
            outgoing,
            answer,
            seat,
        } = request;
        if answer.is_closed() {
            return;
        }
        if self.publishes.is_empty() {
            self.heard = Instant::now();
        }
        self.last_tag += 1;
        let tag = self.last_tag;
        let bytes = outgoing.body.len();
        let channel = Arc::clone(&self.channel);
        let call = async move {
            let exchange = ShortString::from(outgoing.exchange);
            let key = outgoing.key.clone();
            let properties = outgoing.properties.tagged(tag);
            channel
                .basic_publish(exchange, key, OPTIONS, &outgoing.body, properties)
                .await
        };
        let call = match self.spare.pop() {
            Some(mut spare) => {
                spare.set(call);
                spare
            }
            None => ReusableBoxFuture::new(call),
        };
        let cord = Cord {
            bell: Arc::clone(&self.bell),
            tag,
        };
        self.unwritten += 1;
        self.unwritten_bytes += bytes;
        self.returns.sent(tag);
        let publish = Publish {
            answer,
            waker: Waker::from(Arc::new(cord)),
            stage: Stage::Sending { call, bytes },
            since: Instant::now(),
            _seat: seat,
        };
        self.publishes.insert(tag, publish);
        // The first look is what puts it in the library's queue, so they get there in the order of their tags.
        self.look_at(tag);
    }

    /// Looks at everybody who was woken, until nobody is. Whatever was confirmed before something that is seen
    /// here is seen here too: the library woke it earlier.
    fn look_at_all(&mut self) {
        loop {
            let woken = self.bell.take();
            if woken.is_empty() {
                return;
            }
            for tag in woken {
                if tag == FENCE {
                    self.look_at_fence();
                } else {
                    self.look_at(tag);
                }
            }
        }
    }

    fn look_at(&mut self, tag: u64) {
        let Some(publish) = self.publishes.get_mut(&tag) else {
            return;
        };
        let mut context = Context::from_waker(&publish.waker);
        if let Stage::Sending { call, bytes } = &mut publish.stage {
            let Poll::Ready(sent) = call.poll(&mut context) else {
                return;
            };
            self.unwritten -= 1;
            self.unwritten_bytes -= *bytes;
            let next = match sent {
                Ok(confirm) => Stage::Sent(confirm),
                Err(error) => {
                    publish.stage = Stage::Over;
                    return self.broke(error);
                }
            };
            // It has ended, and holds nothing any more but its memory.
            if let Stage::Sending { call, .. } = std::mem::replace(&mut publish.stage, next) {
                self.spare.push(call);
            }
        }
        if let Stage::Sent(confirm) = &mut publish.stage {
            let Poll::Ready(confirmed) = Pin::new(confirm).poll(&mut context) else {
                return;
            };
            publish.stage = Stage::Over;
            match confirmed {
                Ok(confirmation) => self.confirmed(tag, confirmation),
                Err(error) => self.broke(error),
            }
        }
    }

    fn confirmed(&mut self, tag: u64, confirmation: Confirmation) {
        self.heard = Instant::now();
        let (reply, along) = match confirmation {
            Confirmation::Ack(along) => (Reply::Ack, along),
            Confirmation::Nack(along) => (Reply::Nack, along),
            Confirmation::NotRequested => (Reply::Nack, None),
        };
        let along = along.map(|message| convert::tag(&message.delivery.properties));
        let noted = match along {
            None => self.returns.confirmed(tag, reply, None),
            Some(Some(returned)) => self.returns.confirmed(tag, reply, Some(returned)),
            Some(None) => Err(Stranger),
        };
        if let Err(stranger) = noted {
            tracing::warn!("a returned message has another tag than it was sent with");
            self.broken.get_or_insert(stranger.into());
        }
    }

    /// The first error that the broker itself gave says most.
    fn broke(&mut self, error: lapin::Error) {
        let says_more = matches!(error.kind(), ErrorKind::ProtocolError(_));
        match &self.broken {
            Some(Broken::Channel(known)) => {
                if says_more && !matches!(known.kind(), ErrorKind::ProtocolError(_)) {
                    self.broken = Some(Broken::Channel(error));
                }
            }
            Some(Broken::Books | Broken::Blocked | Broken::Forsaken) => {}
            None => self.broken = Some(Broken::Channel(error)),
        }
    }

    /// Answers who can be answered, and sends a fence for the others.
    fn decide(&mut self) {
        if matches!(self.broken, Some(Broken::Books)) {
            return;
        }
        for (tag, verdict) in self.returns.verdicts() {
            if let Some(publish) = self.publishes.remove(&tag) {
                tell(publish.answer, Outcome::Decided(verdict));
            }
        }
        if self.fence.is_none() && self.returns.send_fence() {
            self.send_fence();
        }
    }

    /// Asks for what is already so, which is answered all the same. It overtakes what is not yet written.
    fn send_fence(&mut self) {
        if self.fence.is_none() {
            let channel = Arc::clone(&self.channel);
            let options = ChannelFlowOptions { active: true };
            self.fence = Some(Box::pin(async move { channel.channel_flow(options).await }));
            self.bell.ring(FENCE);
        }
    }

    fn look_at_fence(&mut self) {
        let Some(fence) = &mut self.fence else {
            return;
        };
        let cord = Cord {
            bell: Arc::clone(&self.bell),
            tag: FENCE,
        };
        let waker = Waker::from(Arc::new(cord));
        match fence.as_mut().poll(&mut Context::from_waker(&waker)) {
            Poll::Pending => {}
            Poll::Ready(answer) => {
                self.fence = None;
                self.heard = Instant::now();
                match answer {
                    Ok(_) => self.returns.fence_passed(),
                    Err(error) => self.broke(error),
                }
            }
        }
    }

    /// The channel ended: tells everybody who is left.
    fn tell_all(self, broken: &Broken) {
        for publish in self.publishes.into_values() {
            tell(publish.answer, broken.outcome());
        }
    }
}
