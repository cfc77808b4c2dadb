//! The queues of berth and how they are bound: pure data, the same for every broker.
//!
//! It declares nothing itself. An implementation of the bus turns a [`QueueDecl`] into what
//! its broker understands. Changing a declaration here means that queues which exist with the
//! old one have to be deleted or migrated: a broker refuses other arguments for the same name.

use std::time::Duration;

/// The durable topic exchange that reports and heartbeats are published to.
pub const EXCHANGE: &str = "berth";
/// The queue of requests to the scheduler.
pub const SCHEDULER: &str = "scheduler";
/// The queue of observed documents.
pub const REPORTS: &str = "scheduler.reports";
/// The queue of inventory and usage.
pub const HEARTBEATS: &str = "scheduler.heartbeats";
/// The queue of poison messages.
pub const DEAD: &str = "berth.dead";
/// The queue that is there while a scheduler stands by that could lead.
pub const STANDBY: &str = "scheduler.standby";
/// How often a message is given back before it is dead.
pub const DELIVERY_LIMIT: u32 = 20;
/// How long a heartbeat is worth anything.
pub const HEARTBEAT_TTL: Duration = Duration::from_secs(60);
/// Heartbeats kept at most: ten per host of a cell of 10,000 hosts.
pub const HEARTBEAT_MAX_LENGTH: u32 = 100_000;
/// Documents kept at most for one host; a host that is away gets them again when it is back.
pub const COMPUTE_MAX_LENGTH: u32 = 10_000;
/// Questions kept at most for one host: more than anybody answers in time.
pub const ASK_MAX_LENGTH: u32 = 100;
/// How long a question is worth anything; each expires earlier, with the patience of whoever asks.
pub const ASK_TTL: Duration = Duration::from_secs(60);
/// Bytes of poison messages kept at most; the oldest go first (256 MiB).
pub const DEAD_MAX_BYTES: u32 = 256 * 1024 * 1024;

/// What kind of queue a broker makes of a declaration.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum QueueKind {
    /// Replicated and on disk: survives the loss of a broker node.
    Quorum,
    /// On disk of one node: survives a restart of the broker.
    DurableClassic,
    /// In memory: gone when the broker restarts.
    TransientClassic,
    /// Gone with the last of its consumers.
    AutoDelete,
}

impl QueueKind {
    /// Whether the queue itself survives a restart of the broker.
    #[must_use]
    pub fn durable(self) -> bool {
        match self {
            Self::Quorum | Self::DurableClassic | Self::AutoDelete => true,
            Self::TransientClassic => false,
        }
    }

    /// Whether the queue goes with the last of its consumers.
    #[must_use]
    pub fn auto_delete(self) -> bool {
        self == Self::AutoDelete
    }
}

/// How many of a queue's consumers get messages.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Consumers {
    /// One at a time; the others stand by and the oldest takes over.
    SingleActive,
    /// All of them share the messages.
    Shared,
}

/// What happens to a message that the queue gives up on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum DeadLetter {
    /// It goes to [`DEAD`].
    ToDeadQueue,
    /// It is dropped.
    Drop,
}

/// What a full queue does.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Overflow {
    /// The oldest message makes room.
    DropOldest,
    /// The sender of the newest gets [`super::PublishError::Refused`].
    RefuseNewest,
}

/// A queue as berth wants it.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct QueueDecl {
    /// The name.
    pub name: String,
    /// The kind.
    pub kind: QueueKind,
    /// Who gets messages.
    pub consumers: Consumers,
    /// How often a message may come back before it is dead; quorum queues only.
    pub delivery_limit: Option<u32>,
    /// Where dead messages go.
    pub dead_letter: DeadLetter,
    /// How long a message waits before it is dropped.
    pub message_ttl: Option<Duration>,
    /// Messages kept at most; see [`QueueDecl::overflow`]. RabbitMQ may keep a few more.
    pub max_length: Option<u32>,
    /// Bytes kept at most; see [`QueueDecl::overflow`]. RabbitMQ may keep a few more.
    pub max_length_bytes: Option<u32>,
    /// The pattern that binds the queue to the topic exchange [`EXCHANGE`].
    pub topic: Option<String>,
}

impl QueueDecl {
    /// A durable quorum queue with the delivery limit and dead letters of berth.
    #[must_use]
    pub fn quorum(name: impl Into<String>, consumers: Consumers) -> Self {
        Self {
            name: name.into(),
            kind: QueueKind::Quorum,
            consumers,
            delivery_limit: Some(DELIVERY_LIMIT),
            dead_letter: DeadLetter::ToDeadQueue,
            message_ttl: None,
            max_length: None,
            max_length_bytes: None,
            topic: None,
        }
    }

    /// `scheduler`: requests.
    #[must_use]
    pub fn scheduler() -> Self {
        Self::quorum(SCHEDULER, Consumers::SingleActive)
    }

    /// What it does when it is full. Brokers send what a full queue drops to the dead letters
    /// like everything else it gives up on. A queue that has some refuses instead, so that
    /// a silent consumer does not fill [`DEAD`].
    #[must_use]
    pub fn overflow(&self) -> Overflow {
        match self.dead_letter {
            DeadLetter::ToDeadQueue => Overflow::RefuseNewest,
            DeadLetter::Drop => Overflow::DropOldest,
        }
    }

    /// `compute.<host>`: desired documents for one host, named by its hostname. Bounded: they
    /// are published again and again while a host does not answer.
    #[must_use]
    pub fn compute(host: &str) -> Self {
        Self {
            max_length: Some(COMPUTE_MAX_LENGTH),
            ..Self::quorum(compute_queue(host), Consumers::SingleActive)
        }
    }

    /// `ask.<host>`: questions for one host. It goes with the agent, so that a question for a host without one reaches no
    /// queue and is refused at once; what a silent agent leaves there expires. Of several agents that have the name by
    /// mistake each gets some, and refuses what is not for its host.
    #[must_use]
    pub fn ask(host: &str) -> Self {
        Self {
            name: ask_queue(host),
            kind: QueueKind::AutoDelete,
            consumers: Consumers::Shared,
            delivery_limit: None,
            dead_letter: DeadLetter::Drop,
            message_ttl: Some(ASK_TTL),
            max_length: Some(ASK_MAX_LENGTH),
            max_length_bytes: None,
            topic: None,
        }
    }

    /// `scheduler.reports`: observed documents, whichever host they come from.
    ///
    /// Single active consumer as well: one scheduler at a time holds the state.
    #[must_use]
    pub fn reports() -> Self {
        Self {
            topic: Some("report.*".to_owned()),
            ..Self::quorum(REPORTS, Consumers::SingleActive)
        }
    }

    /// `scheduler.heartbeats`: inventory and usage, worthless after a minute.
    #[must_use]
    pub fn heartbeats() -> Self {
        Self {
            name: HEARTBEATS.to_owned(),
            kind: QueueKind::TransientClassic,
            consumers: Consumers::SingleActive,
            delivery_limit: None,
            dead_letter: DeadLetter::Drop,
            message_ttl: Some(HEARTBEAT_TTL),
            max_length: Some(HEARTBEAT_MAX_LENGTH),
            max_length_bytes: None,
            topic: Some("heartbeat.*".to_owned()),
        }
    }

    /// `scheduler.standby`: no message ever comes. While somebody consumes it, a scheduler stands by that could lead.
    #[must_use]
    pub fn standby() -> Self {
        Self {
            name: STANDBY.to_owned(),
            kind: QueueKind::AutoDelete,
            consumers: Consumers::Shared,
            delivery_limit: None,
            dead_letter: DeadLetter::Drop,
            message_ttl: None,
            max_length: Some(1),
            max_length_bytes: None,
            topic: None,
        }
    }

    /// `berth.dead`: poison messages. Declared together with every queue that needs it.
    #[must_use]
    pub fn dead() -> Self {
        Self {
            name: DEAD.to_owned(),
            kind: QueueKind::DurableClassic,
            consumers: Consumers::Shared,
            delivery_limit: None,
            dead_letter: DeadLetter::Drop,
            message_ttl: None,
            max_length: None,
            max_length_bytes: Some(DEAD_MAX_BYTES),
            topic: None,
        }
    }
}

/// The name of a host's queue of desired documents.
#[must_use]
pub fn compute_queue(host: &str) -> String {
    format!("compute.{host}")
}

/// The name of a host's queue of questions.
#[must_use]
pub fn ask_queue(host: &str) -> String {
    format!("ask.{host}")
}

/// The routing key of a host's reports. `host_id` is the host's UUID: one word, no dots.
#[must_use]
pub fn report_key(host_id: impl std::fmt::Display) -> String {
    format!("report.{host_id}")
}

/// The routing key of a host's heartbeats. `host_id` is the host's UUID: one word, no dots.
#[must_use]
pub fn heartbeat_key(host_id: impl std::fmt::Display) -> String {
    format!("heartbeat.{host_id}")
}

/// Whether a topic `pattern` takes a routing `key`: words are parted by dots, `*` is exactly
/// one word, `#` is any number of words (AMQP 0-9-1, section 3.1.3.3).
#[must_use]
pub fn topic_matches(pattern: &str, key: &str) -> bool {
    fn words<'a>(pattern: &[&'a str], key: &[&'a str]) -> bool {
        match (pattern.split_first(), key.split_first()) {
            (None, None) => true,
            (None, Some(_)) => false,
            (Some((&"#", rest)), None) => words(rest, key),
            (Some((&"#", rest)), Some((_, tail))) => words(rest, key) || words(pattern, tail),
            (Some(_), None) => false,
            (Some((&want, rest)), Some((&have, tail))) => {
                (want == "*" || want == have) && words(rest, tail)
            }
        }
    }
    let pattern: Vec<&str> = pattern.split('.').collect();
    let key: Vec<&str> = key.split('.').collect();
    words(&pattern, &key)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn topics_match_word_by_word() {
        for (pattern, key, expected) in [
            ("report.*", "report.a", true),
            ("report.*", "report.a.b", false),
            ("report.*", "report", false),
            ("report.*", "heartbeat.a", false),
            ("#", "a.b.c", true),
            ("a.#", "a", true),
            ("a.#.c", "a.b.b.c", true),
            ("a.#.c", "a.b.b", false),
        ] {
            assert_eq!(topic_matches(pattern, key), expected, "{pattern} {key}");
        }
    }

    #[test]
    fn what_a_full_queue_does_never_fills_the_dead_letters() {
        let compute = QueueDecl::compute("hv1");
        assert_eq!(compute.max_length, Some(COMPUTE_MAX_LENGTH));
        assert_eq!(compute.overflow(), Overflow::RefuseNewest);
        assert_eq!(QueueDecl::heartbeats().overflow(), Overflow::DropOldest);
        assert_eq!(QueueDecl::dead().overflow(), Overflow::DropOldest);
        assert_eq!(QueueDecl::ask("hv1").overflow(), Overflow::DropOldest);
    }

    #[test]
    fn questions_leave_nothing_behind() {
        let ask = QueueDecl::ask("hv1.example.org");
        assert_eq!(ask.name, "ask.hv1.example.org");
        assert!(ask.kind.auto_delete());
        assert_eq!(ask.dead_letter, DeadLetter::Drop);
        assert!(ask.message_ttl.is_some() && ask.max_length.is_some());
    }

    #[test]
    fn requests_and_documents_are_durable_limited_and_dead_lettered() {
        for queue in [
            QueueDecl::scheduler(),
            QueueDecl::compute("hv1.example.org"),
            QueueDecl::reports(),
        ] {
            assert_eq!(queue.kind, QueueKind::Quorum, "{}", queue.name);
            assert_eq!(queue.delivery_limit, Some(20), "{}", queue.name);
            assert_eq!(queue.dead_letter, DeadLetter::ToDeadQueue, "{}", queue.name);
        }
    }
}
