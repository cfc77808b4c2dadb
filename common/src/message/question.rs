//! Questions about an instance that only its host can answer: what its console says, what its display shows, whether
//! its guest agent is there, how to reach it, and what goes through its ports.
//!
//! ```text
//!   client ──request──▶ [scheduler] ── looks up the host ──question──▶ [ask.<host>] ──▶ agent
//!     ▲                     │ refused: no such instance, host down             │
//!     └─────────reply───────┴──────────────────────────────────────reply───────┘
//! ```
//!
//! A question changes nothing, is stored nowhere and has no document. The agent answers the client itself: the question
//! carries the client's `reply_to` and `correlation_id`. What a guest wrote is shown as it is; whoever prints it sees
//! to it that it does no harm.

use std::{fmt, str::FromStr, time::Duration};

use data_encoding::BASE64;
use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::{Deserialize, Serialize};

use super::{
    counters::PortCounters,
    report::PowerState,
    request::Method,
    trace::{PortTrace, TracePacket},
};
use crate::{
    ids::{HostId, InstanceId, PortId},
    names::{HostName, ProjectName},
};

/// The AMQP property `type` of a question to an agent.
pub const QUESTION_TYPE: &str = "question";
/// The newest version of its body. A question is sent in the version that has what is asked, so that older agents answer what they
/// know ([`Ask::version`]).
pub const QUESTION_VERSION: u32 = 3;
/// How long somebody waits who does not say it.
pub const DEFAULT_PATIENCE: Duration = Duration::from_secs(10);
/// Nobody is waited for longer.
pub const MAX_PATIENCE: Duration = Duration::from_secs(60);
/// The most lines of a console that are shown at once.
pub const MAX_CONSOLE_LINES: u32 = 10_000;
/// The most bytes of a console's text in one answer, as JSON writes them (512 KiB): a message holds 1 MiB.
pub const MAX_CONSOLE_BYTES: usize = 512 * 1024;
/// The largest picture in one answer, in bytes (700 KiB): base64 makes a third more of it, and a message holds 1 MiB.
pub const MAX_PICTURE_BYTES: usize = 700 * 1024;

/// Show what the guest wrote to the serial console.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct InstanceConsoleOutput {
    /// Id, or name within the project, of the instance.
    pub instance: String,
    /// The project a name is looked up in.
    #[serde(default)]
    pub project: ProjectName,
    /// At most so many lines from the end, 1 to 10000; with `after` it means nothing.
    #[serde(default = "default_lines")]
    pub lines: u32,
    /// Only what came after this place, as an earlier answer gave it in `next`: so nothing is shown twice.
    #[serde(default)]
    pub after: Option<ConsolePlace>,
}

/// The lines that are shown unless asked otherwise.
#[must_use]
pub fn default_lines() -> u32 {
    100
}

/// Take a picture of what the guest shows on its display.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct InstanceScreenshot {
    /// Id, or name within the project, of the instance.
    pub instance: String,
    /// The project a name is looked up in.
    #[serde(default)]
    pub project: ProjectName,
}

/// Ask whether the QEMU guest agent in an instance is there.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct InstancePingGuestAgent {
    /// Id, or name within the project, of the instance.
    pub instance: String,
    /// The project a name is looked up in.
    #[serde(default)]
    pub project: ProjectName,
}

/// Ask where an instance's display and consoles are, and how to reach them.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct InstanceEndpoints {
    /// Id, or name within the project, of the instance.
    pub instance: String,
    /// The project a name is looked up in.
    #[serde(default)]
    pub project: ProjectName,
}

/// What an agent is asked, on queue `ask.<host>`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Question {
    /// The host it is for. Another one that has the same name refuses.
    pub host_id: HostId,
    /// The instance it is about.
    pub instance_id: InstanceId,
    /// How long whoever asked waits for the answer, in milliseconds, from when this was sent.
    pub patience_ms: u64,
    /// What is asked.
    pub ask: Ask,
}

/// What is asked of an instance.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub enum Ask {
    /// What its guest wrote to the console.
    ConsoleOutput {
        /// At most so many lines from the end.
        lines: u32,
        /// Only what came after this place.
        #[serde(default)]
        after: Option<ConsolePlace>,
    },
    /// A picture of its display.
    Screenshot {},
    /// Whether its guest agent is there.
    PingGuestAgent {},
    /// Where its display and consoles are.
    Endpoints {},
    /// What would become of a packet of one of its ports.
    PortTrace {
        /// The port.
        port_id: PortId,
        /// The packet.
        packet: TracePacket,
    },
    /// What went through one of its ports.
    PortCounters {
        /// The port.
        port_id: PortId,
    },
}

impl Ask {
    /// The method that asks it, whose reply the answer is.
    #[must_use]
    pub const fn method(&self) -> &'static str {
        match self {
            Self::ConsoleOutput { .. } => InstanceConsoleOutput::NAME,
            Self::Screenshot {} => InstanceScreenshot::NAME,
            Self::PingGuestAgent {} => InstancePingGuestAgent::NAME,
            Self::Endpoints {} => InstanceEndpoints::NAME,
            Self::PortTrace { .. } => PortTrace::NAME,
            Self::PortCounters { .. } => PortCounters::NAME,
        }
    }

    /// The version of questions that has it first.
    #[must_use]
    pub const fn version(&self) -> u32 {
        match self {
            Self::ConsoleOutput { .. }
            | Self::Screenshot {}
            | Self::PingGuestAgent {}
            | Self::Endpoints {} => 1,
            Self::PortTrace { .. } => 2,
            Self::PortCounters { .. } => 3,
        }
    }

    /// Its name among others of its sort, for figures.
    #[must_use]
    pub const fn kind(&self) -> &'static str {
        match self {
            Self::ConsoleOutput { .. } => "console_output",
            Self::Screenshot {} => "screenshot",
            Self::PingGuestAgent {} => "ping_guest_agent",
            Self::Endpoints {} => "endpoints",
            Self::PortTrace { .. } => "port_trace",
            Self::PortCounters { .. } => "port_counters",
        }
    }
}

/// The methods that only an instance's host can answer.
pub const METHODS: [&str; 6] = [
    InstanceConsoleOutput::NAME,
    InstanceScreenshot::NAME,
    InstancePingGuestAgent::NAME,
    InstanceEndpoints::NAME,
    PortTrace::NAME,
    PortCounters::NAME,
];

/// Whether only an instance's host can answer this method.
#[must_use]
pub fn is_question(method: &str) -> bool {
    METHODS.contains(&method)
}

/// A place in a console's log. It means something to the host that gave it only.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(into = "String", try_from = "String")]
pub struct ConsolePlace {
    /// The file: logs are put aside when they are large. Its inode.
    pub file: u64,
    /// How many of its bytes were shown.
    pub offset: u64,
}

/// A text that is no place in a console's log.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("a place in a console's log must be as an earlier answer gave it in `next`")]
pub struct NoConsolePlace;

impl fmt::Display for ConsolePlace {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}-{}", self.file, self.offset)
    }
}

impl FromStr for ConsolePlace {
    type Err = NoConsolePlace;
    fn from_str(text: &str) -> Result<Self, NoConsolePlace> {
        let (file, offset) = text.split_once('-').ok_or(NoConsolePlace)?;
        let number = |text: &str| text.parse().map_err(|_| NoConsolePlace);
        Ok(Self {
            file: number(file)?,
            offset: number(offset)?,
        })
    }
}

impl From<ConsolePlace> for String {
    fn from(place: ConsolePlace) -> Self {
        place.to_string()
    }
}

impl TryFrom<String> for ConsolePlace {
    type Error = NoConsolePlace;
    fn try_from(text: String) -> Result<Self, NoConsolePlace> {
        text.parse()
    }
}

impl JsonSchema for ConsolePlace {
    fn inline_schema() -> bool {
        true
    }
    fn schema_name() -> std::borrow::Cow<'static, str> {
        "ConsolePlace".into()
    }
    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({ "type": "string", "pattern": "^[0-9]{1,20}-[0-9]{1,20}$" })
    }
}

/// A part of what a guest wrote to its serial console.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct ConsoleOutput {
    /// The instance.
    pub instance_id: InstanceId,
    /// Its hypervisor.
    pub host: HostName,
    /// What it wrote, control characters included: never to be printed on a terminal as it is. Bytes that are no UTF-8
    /// are U+FFFD. At most 512 KiB as JSON writes it.
    pub text: String,
    /// Whether something before `text` is missing that was asked for, because it is too much or is not kept any more.
    pub cut: bool,
    /// Whether more is there already: ask for what comes after `next`.
    pub more: bool,
    /// Where to go on; null: the guest has no console yet, because it was never powered on.
    pub next: Option<ConsolePlace>,
}

/// A picture of a guest's display.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Screenshot {
    /// The instance.
    pub instance_id: InstanceId,
    /// Its hypervisor.
    pub host: HostName,
    /// What the picture is: `image/png`, or of an old QEMU `image/x-portable-pixmap`.
    pub media_type: String,
    /// The picture in base64, at most 700 KiB of it.
    pub picture: Base64,
}

/// What a guest agent said.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct GuestAgent {
    /// The instance.
    pub instance_id: InstanceId,
    /// Its hypervisor.
    pub host: HostName,
    /// Whether it is there.
    pub state: GuestAgentState,
    /// The same in words.
    pub detail: String,
}

/// Whether a guest agent is there.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
#[schemars(inline)]
pub enum GuestAgentState {
    /// It answered.
    Present,
    /// Nothing in the guest has opened its channel.
    Absent,
    /// Something in the guest has opened its channel and does not answer in time.
    Silent,
}

impl GuestAgentState {
    /// The name on the wire.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Present => "present",
            Self::Absent => "absent",
            Self::Silent => "silent",
        }
    }
}

/// Where an instance's display and consoles are.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Endpoints {
    /// The instance.
    pub instance_id: InstanceId,
    /// Its hypervisor: all of it is there.
    pub host: HostName,
    /// libvirt's name of its domain.
    pub domain: String,
    /// Whether the domain runs. What is off has no display and no console, only their log.
    pub power_state: PowerState,
    /// What can be reached.
    pub endpoints: Vec<Endpoint>,
}

/// One thing that can be reached.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Endpoint {
    /// What it is.
    pub kind: EndpointKind,
    /// Where it is on the hypervisor: `unix:` or `file:` or `pty:` with a path, or `tcp:` with address and port.
    pub address: String,
    /// A command that reaches it, for an administrator of the hypervisor.
    pub reach: String,
}

/// What can be reached of an instance.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
#[schemars(inline)]
pub enum EndpointKind {
    /// Its display.
    Vnc,
    /// Its serial console, to read from and to write to.
    Serial,
    /// What the serial console said.
    ConsoleLog,
    /// The channel of its guest agent.
    GuestAgent,
}

impl EndpointKind {
    /// The name on the wire.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Vnc => "vnc",
            Self::Serial => "serial",
            Self::ConsoleLog => "console_log",
            Self::GuestAgent => "guest_agent",
        }
    }
}

/// Bytes that are base64 (RFC 4648, with padding) on the wire.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(into = "String", try_from = "String")]
pub struct Base64(pub Vec<u8>);

/// A text that is no base64.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("must be base64 with padding (RFC 4648): {0}")]
pub struct NoBase64(data_encoding::DecodeError);

impl fmt::Debug for Base64 {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Base64({} bytes)", self.0.len())
    }
}

impl From<Base64> for String {
    fn from(bytes: Base64) -> Self {
        BASE64.encode(&bytes.0)
    }
}

impl TryFrom<String> for Base64 {
    type Error = NoBase64;
    fn try_from(text: String) -> Result<Self, NoBase64> {
        BASE64.decode(text.as_bytes()).map(Self).map_err(NoBase64)
    }
}

impl JsonSchema for Base64 {
    fn inline_schema() -> bool {
        true
    }
    fn schema_name() -> std::borrow::Cow<'static, str> {
        "Base64".into()
    }
    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({ "type": "string", "contentEncoding": "base64" })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bus::MAX_MESSAGE_BYTES;

    #[test]
    fn a_place_is_a_text_on_the_wire_and_nothing_else_is_a_place() {
        let place = ConsolePlace {
            file: u64::MAX,
            offset: 7,
        };
        let json = serde_json::to_string(&place).unwrap();
        assert_eq!(json, "\"18446744073709551615-7\"");
        assert_eq!(serde_json::from_str::<ConsolePlace>(&json).unwrap(), place);
        for bad in [
            "",
            "7",
            "7-",
            "-7",
            "a-b",
            "1-2-3",
            "18446744073709551616-0",
        ] {
            assert_eq!(bad.parse::<ConsolePlace>(), Err(NoConsolePlace), "{bad}");
        }
    }

    #[test]
    fn pictures_are_base64_and_the_largest_one_fits_into_a_message() {
        let bytes = Base64(vec![0, 255, 10]);
        let json = serde_json::to_string(&bytes).unwrap();
        assert_eq!(json, "\"AP8K\"");
        assert_eq!(serde_json::from_str::<Base64>(&json).unwrap(), bytes);
        assert!(serde_json::from_str::<Base64>("\"AP8\"").is_err());
        let largest = String::from(Base64(vec![0; MAX_PICTURE_BYTES]));
        assert!(largest.len() + 1024 < MAX_MESSAGE_BYTES);
    }

    #[test]
    fn a_question_is_named_after_its_method() {
        for (ask, method) in [
            (Ask::Screenshot {}, InstanceScreenshot::NAME),
            (Ask::PingGuestAgent {}, InstancePingGuestAgent::NAME),
            (Ask::Endpoints {}, InstanceEndpoints::NAME),
        ] {
            assert_eq!(ask.method(), method);
            assert_eq!(format!("instance.{}", ask.kind()), method);
            assert!(is_question(method));
        }
        assert!(!is_question("instance.show"));
    }
}
