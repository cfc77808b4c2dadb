//! Everything that can go wrong, with its exit code and its two forms: for people and for programs.

use std::{fmt, io, path::PathBuf, time::Duration};

use berth_common::{
    config::ConfigErrors,
    ids::InstanceId,
    message::report::{Fault, FaultCode},
    names::InstanceName,
    refusal::{Refusal, RefusalCode},
};
use serde::Serialize;

use crate::{console::ConsoleError, instance_file::FileMistakes, terminal::visible_lines};

/// Why a command did not end well.
#[derive(Debug, thiserror::Error)]
pub(crate) enum CtlError {
    /// The scheduler said no.
    #[error("{} ({}){}", .0.message, .0.code.as_str(), if .0.retryable { "; the same may succeed later" } else { "" })]
    Refused(Refusal),
    /// No host has room for a new instance.
    #[error("{} ({}). {}", .refusal.message, .refusal.code.as_str(), kept(.id))]
    NoHost {
        /// What the scheduler said, with the numbers.
        refusal: Refusal,
        /// The instance.
        id: InstanceId,
    },
    /// Of several new instances one could not be, so that none is.
    #[error(
        "{} ({}). None of the {count} instances was created{}", .refusal.message, .refusal.code.as_str(),
        instead(.refusal.code)
    )]
    NoneCreated {
        /// What the scheduler said of the first that cannot be.
        refusal: Refusal,
        /// How many were asked for.
        count: usize,
    },
    /// Of several new instances some are not there.
    #[error("{} of {all} instances are not there:{}{}", .missing.len(), listed(.missing), try_again(.missing, *.first))]
    SomeMissing {
        /// The id of the first, from which the others follow.
        first: InstanceId,
        /// How many were asked for.
        all: usize,
        /// Those that are not there.
        missing: Vec<Missing>,
    },
    /// A new aggregate does not have all its hosts.
    #[error(
        "aggregate {aggregate} was created, but {} could not be put into it: {error}. Go on with `berthctl aggregate \
         add-host {aggregate} HOST`", .without.join(", ")
    )]
    WithoutHosts {
        /// Its name.
        aggregate: String,
        /// The hosts that are not in it.
        without: Vec<String>,
        /// What happened with the first of them.
        error: Box<CtlError>,
    },
    /// A dry run found no host.
    #[error("such an instance fits nowhere now")]
    FitsNowhere,
    /// What was waited for failed.
    #[error(
        "instance {instance} is in error ({}): {}{}", fault_code(.fault.as_ref()), fault_text(.fault.as_ref()),
        .fault.as_ref().and_then(|fault| why(fault, *.id)).map(|why| format!(". {why}")).unwrap_or_default()
    )]
    Failed {
        /// Its name and id.
        instance: String,
        /// Its id.
        id: InstanceId,
        /// What its view says.
        fault: Option<Fault>,
    },
    /// A volume that was waited for failed.
    #[error(
        "volume {volume} is in error ({}): {}", fault_code(.fault.as_ref()), fault_text(.fault.as_ref())
    )]
    VolumeFailed {
        /// Its name and id.
        volume: String,
        /// What its view says.
        fault: Option<Fault>,
    },
    /// A snapshot that was waited for failed.
    #[error(
        "snapshot {snapshot} is in error ({}): {}", fault_code(.fault.as_ref()), fault_text(.fault.as_ref())
    )]
    SnapshotFailed {
        /// Its name and id.
        snapshot: String,
        /// What its view says.
        fault: Option<Fault>,
    },
    /// Somebody wanted something else meanwhile.
    #[error("{subject}: {reason}")]
    Overtaken {
        /// What it is, with its name and id.
        subject: String,
        /// What happened.
        reason: String,
    },
    /// The limit of `--wait` was reached.
    #[error(
        "{subject} is not {goal} after {} s; {last}. Nothing is lost: berth goes on with it. Look again with \
         `{look_again}`", waited.as_secs()
    )]
    NotYet {
        /// What it is, with its name and id.
        subject: String,
        /// The command that looks at it.
        look_again: String,
        /// What was waited for.
        goal: &'static str,
        /// The limit.
        waited: Duration,
        /// What was seen last.
        last: String,
    },
    /// Ctrl-C before the scheduler answered.
    #[error("interrupted; {method} was not answered yet and may still be carried out{hint}")]
    InterruptedUnanswered {
        /// The method.
        method: &'static str,
        /// How to go on, starting with "; " or empty.
        hint: String,
    },
    /// Ctrl-C before anything was asked for.
    #[error("interrupted; nothing was asked for yet")]
    InterruptedEarly,
    /// Ctrl-C while waiting for what was accepted.
    #[error("interrupted; the request on {0} was accepted and goes on, only the waiting ended")]
    Interrupted(String),
    /// The command asks for something that cannot be.
    #[error("{0}")]
    Usage(String),
    /// The configuration file has mistakes.
    #[error("{0}")]
    Config(#[from] ConfigErrors),
    /// The instance file has mistakes.
    #[error("{0}")]
    InstanceFile(#[from] FileMistakes),
    /// The instance file cannot be read.
    #[error("the instance file {} {}", path.display(), unreadable(source))]
    ReadFile {
        /// The file.
        path: PathBuf,
        /// What the system says.
        source: io::Error,
    },
    /// A result that was to be in a file is not.
    #[error("the file {} cannot be written: {source}", path.display())]
    WriteFile {
        /// The file.
        path: PathBuf,
        /// What the system says.
        source: io::Error,
    },
    /// There is no connection to the broker.
    #[error(
        "cannot reach the message broker at {address}: {reason}. Check that RabbitMQ runs there (`rabbitmqctl status`), \
         that a firewall lets this machine in, and that user, password and vhost of the address are right"
    )]
    Unreachable {
        /// Its address, without the password.
        address: String,
        /// What the connection says.
        reason: String,
    },
    /// The broker has no queue of requests.
    #[error(
        "the message broker at {address} has no queue `scheduler`: no scheduler has ever started on this vhost. Start \
         berth-scheduler (`systemctl status berth-scheduler`), or check the vhost of the address"
    )]
    NoScheduler {
        /// The broker's address, without the password.
        address: String,
    },
    /// The request may have arrived, but nobody answered.
    #[error("{reason}.{fate} Check that the scheduler runs (`systemctl status berth-scheduler`)")]
    Unanswered {
        /// What happened.
        reason: String,
        /// What may become of the request.
        fate: Fate,
    },
    /// The request cannot be sent at all.
    #[error("the request cannot be sent: {0}")]
    Unsendable(String),
    /// The answer makes no sense.
    #[error(
        "the scheduler's answer to {method} cannot be understood: {reason}; are berthctl and scheduler of neighbouring versions?"
    )]
    Nonsense {
        /// The method.
        method: &'static str,
        /// What is wrong with it.
        reason: String,
    },
    /// The console cannot be shown.
    #[error("{0}")]
    Console(#[from] ConsoleError),
    /// The result cannot be printed.
    #[error("the result cannot be written: {0}")]
    Output(#[source] io::Error),
    /// The runtime cannot start.
    #[error("cannot start: {0}")]
    Start(#[source] io::Error),
}

/// What serves where not all instances can be created.
const fn instead(code: RefusalCode) -> &'static str {
    match code {
        RefusalCode::NoValidHost => {
            "; `berthctl capacity -f FILE` tells how many fit, and --best-effort creates those"
        }
        _ => "; --best-effort creates those that can be",
    }
}

/// An instance that is not there, and why.
#[derive(Debug)]
pub(crate) struct Missing {
    /// Its name.
    pub(crate) instance: InstanceName,
    /// Its id.
    pub(crate) id: InstanceId,
    /// Why.
    pub(crate) error: CtlError,
}

fn listed(missing: &[Missing]) -> String {
    let line = |missing: &Missing| {
        let why = match &missing.error {
            CtlError::Refused(refusal) if refusal.code == RefusalCode::NoValidHost => {
                format!(". {}", told_by_explain(missing.id))
            }
            _ => String::new(),
        };
        format!("\n  {}: {}{why}", missing.instance, missing.error)
    };
    missing.iter().map(line).collect()
}

fn try_again(missing: &[Missing], first: InstanceId) -> String {
    if missing
        .iter()
        .any(|missing| matches!(missing.error, CtlError::Refused(_)))
    {
        format!(
            "\nrepeat the command with --id {first} to try again what was refused; the others stay as they are"
        )
    } else {
        String::new()
    }
}

/// What may become of a request that nobody answered.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Fate {
    /// It was a question: nothing.
    Question,
    /// It was the question that comes before a change.
    NothingAsked,
    /// It may still be carried out.
    Open {
        /// How to go on, starting with "; " or empty.
        hint: String,
    },
}

impl fmt::Display for Fate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Question => Ok(()),
            Self::NothingAsked => f.write_str(" Nothing was changed."),
            Self::Open { hint } => write!(f, " The request may still be carried out{hint}."),
        }
    }
}

/// How to go on with an instance that has no host.
fn kept(id: &InstanceId) -> String {
    format!(
        "The instance is kept, in error: see why with `berthctl explain {id}`, repeat the command with --id {id} to try \
         again, or remove it with `berthctl instance delete {id}`"
    )
}

/// Where an operator finds out more about a fault, if it is one of placement.
pub(crate) fn why(fault: &Fault, id: InstanceId) -> Option<String> {
    (fault.code == FaultCode::NoValidHost).then(|| told_by_explain(id))
}

fn told_by_explain(id: InstanceId) -> String {
    format!("`berthctl explain {id}` tells what the hosts lacked")
}

fn fault_code(fault: Option<&Fault>) -> &'static str {
    fault.map_or("no fault given", |fault| fault.code.as_str())
}

fn fault_text(fault: Option<&Fault>) -> &str {
    fault.map_or(
        "the scheduler gave no reason; its log may have one",
        |fault| fault.message.as_str(),
    )
}

fn unreadable(error: &io::Error) -> String {
    match error.kind() {
        io::ErrorKind::NotFound => {
            "does not exist; docs/instance.sample.toml is a sample to start from".to_owned()
        }
        io::ErrorKind::PermissionDenied => "may not be read by this user".to_owned(),
        io::ErrorKind::InvalidData => "is not UTF-8 text".to_owned(),
        _ => format!("cannot be read: {error}"),
    }
}

/// An error for programs.
#[derive(Debug, Serialize)]
struct JsonError<'e> {
    error: JsonBody<'e>,
}

#[derive(Debug, Serialize)]
struct JsonBody<'e> {
    code: &'e str,
    message: String,
    retryable: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    fault: Option<&'e Fault>,
}

impl CtlError {
    /// What the process ends with; `--help` lists them.
    pub(crate) fn exit_code(&self) -> u8 {
        match self {
            Self::Refused(_)
            | Self::NoHost { .. }
            | Self::NoneCreated { .. }
            | Self::Failed { .. }
            | Self::VolumeFailed { .. }
            | Self::SnapshotFailed { .. }
            | Self::Overtaken { .. }
            | Self::Console(_)
            | Self::Nonsense { .. }
            | Self::Output(_)
            | Self::WriteFile { .. }
            | Self::Start(_) => 1,
            Self::Usage(_)
            | Self::Config(_)
            | Self::InstanceFile(_)
            | Self::ReadFile { .. }
            | Self::Unsendable(_) => 2,
            Self::Unreachable { .. } | Self::NoScheduler { .. } | Self::Unanswered { .. } => 3,
            Self::NotYet { .. } => 4,
            Self::FitsNowhere => 5,
            Self::WithoutHosts { error, .. } => error.exit_code(),
            // A plain no outweighs what may still come.
            Self::SomeMissing { missing, .. } => missing
                .iter()
                .map(|missing| missing.error.exit_code())
                .min()
                .unwrap_or(1),
            Self::InterruptedUnanswered { .. } | Self::InterruptedEarly | Self::Interrupted(_) => {
                130
            }
        }
    }

    /// The reason, for programs: the refusal's own code, or one of berthctl's.
    fn code(&self) -> &str {
        match self {
            Self::Refused(refusal)
            | Self::NoHost { refusal, .. }
            | Self::NoneCreated { refusal, .. } => refusal.code.as_str(),
            Self::SomeMissing { .. } => "some_missing",
            Self::WithoutHosts { error, .. } => error.code(),
            Self::FitsNowhere => "fits_nowhere",
            Self::Failed { .. } => "instance_in_error",
            Self::VolumeFailed { .. } => "volume_in_error",
            Self::SnapshotFailed { .. } => "snapshot_in_error",
            Self::Overtaken { .. } => "overtaken",
            Self::NotYet { .. } => "not_yet",
            Self::InterruptedUnanswered { .. } | Self::InterruptedEarly | Self::Interrupted(_) => {
                "interrupted"
            }
            Self::Usage(_) | Self::Unsendable(_) => "usage",
            Self::Config(_) => "configuration",
            Self::InstanceFile(_) | Self::ReadFile { .. } => "instance_file",
            Self::Unreachable { .. } => "broker_unreachable",
            Self::NoScheduler { .. } => "no_scheduler",
            Self::Unanswered { .. } => "unanswered",
            Self::Nonsense { .. } => "answer_not_understood",
            Self::Console(_) => "console",
            Self::Output(_) | Self::WriteFile { .. } | Self::Start(_) => "system",
        }
    }

    /// Whether the same command may succeed later.
    pub(crate) fn retryable(&self) -> bool {
        match self {
            Self::Refused(refusal)
            | Self::NoHost { refusal, .. }
            | Self::NoneCreated { refusal, .. } => refusal.retryable,
            Self::WithoutHosts { error, .. } => error.retryable(),
            Self::SomeMissing { missing, .. } => {
                missing.iter().all(|missing| missing.error.retryable())
            }
            Self::NotYet { .. }
            | Self::FitsNowhere
            | Self::InterruptedUnanswered { .. }
            | Self::InterruptedEarly
            | Self::Interrupted(_)
            | Self::Unreachable { .. }
            | Self::NoScheduler { .. }
            | Self::Unanswered { .. } => true,
            _ => false,
        }
    }

    /// Says what repeating the command would do, where a request got no answer.
    pub(crate) fn advise(mut self, advice: &str) -> Self {
        if let Self::Unanswered {
            fate: Fate::Open { hint },
            ..
        }
        | Self::InterruptedUnanswered { hint, .. } = &mut self
        {
            *hint = format!("; {advice}");
        }
        self
    }

    /// Says that a change was not even asked for, where the question before it got no answer.
    pub(crate) fn before_asking(mut self) -> Self {
        if let Self::Unanswered { fate, .. } = &mut self {
            *fate = Fate::NothingAsked;
        }
        self
    }

    /// For people, on a terminal.
    pub(crate) fn text(&self) -> String {
        format!("berthctl: {}\n", visible_lines(&self.to_string()))
    }

    /// For programs: one line.
    pub(crate) fn json(&self) -> String {
        let fault = match self {
            Self::Failed { fault, .. }
            | Self::VolumeFailed { fault, .. }
            | Self::SnapshotFailed { fault, .. } => fault.as_ref(),
            _ => None,
        };
        let message = match self {
            // Code and retryable have fields of their own.
            Self::Refused(refusal) => refusal.message.clone(),
            Self::NoHost { refusal, id } => format!("{}. {}", refusal.message, kept(id)),
            _ => self.to_string(),
        };
        let body = JsonBody {
            code: self.code(),
            message,
            retryable: self.retryable(),
            fault,
        };
        json_line(&JsonError { error: body })
    }
}

/// The JSON form of a command line that clap refused.
pub(crate) fn usage_json(message: &str) -> String {
    let body = JsonBody {
        code: "usage",
        message: message.trim_end().to_owned(),
        retryable: false,
        fault: None,
    };
    json_line(&JsonError { error: body })
}

fn json_line(error: &JsonError<'_>) -> String {
    // Strings and booleans always have a JSON form.
    serde_json::to_string(error)
        .map(|json| json + "\n")
        .unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_refusal_shows_message_and_code() {
        let error = CtlError::Refused(Refusal::new(
            RefusalCode::NotFound,
            "there is no instance \"x\"",
        ));
        assert_eq!(
            error.text(),
            "berthctl: there is no instance \"x\" (not_found)\n"
        );
        assert_eq!(
            error.json(),
            "{\"error\":{\"code\":\"not_found\",\"message\":\"there is no instance \\\"x\\\"\",\
             \"retryable\":false}}\n"
        );
        assert_eq!(error.exit_code(), 1);
    }

    #[test]
    fn no_host_is_told_with_the_numbers_and_the_id_to_go_on_with() {
        let id = crate::testing::instance().id;
        let error = CtlError::NoHost {
            refusal: Refusal::new(RefusalCode::NoValidHost, "needs 8 vCPU, 2 free"),
            id,
        };
        let hint = format!(
            "The instance is kept, in error: see why with `berthctl explain {id}`, repeat the command with --id {id} to \
             try again, or remove it with `berthctl instance delete {id}`"
        );
        assert_eq!(
            error.text(),
            format!("berthctl: needs 8 vCPU, 2 free (no_valid_host). {hint}\n")
        );
        assert_eq!(
            error.json(),
            format!(
                "{{\"error\":{{\"code\":\"no_valid_host\",\"message\":\"needs 8 vCPU, 2 free. {hint}\",\
                 \"retryable\":true}}}}\n"
            )
        );
        assert_eq!(error.exit_code(), 1);
    }

    #[test]
    fn advice_is_given_only_where_the_request_may_have_been_carried_out() {
        let check = |fate: Fate, expected: &str| {
            let reason = "no answer".to_owned();
            let error = CtlError::Unanswered { reason, fate }.advise("do this");
            let text = error.to_string();
            assert!(
                text.starts_with(&format!("no answer.{expected} Check")),
                "{text}"
            );
        };
        let hint = String::new();
        check(Fate::Question, "");
        check(Fate::NothingAsked, " Nothing was changed.");
        check(
            Fate::Open { hint },
            " The request may still be carried out; do this.",
        );
    }

    #[test]
    fn a_fault_is_told_in_full_and_cannot_drive_the_terminal() {
        let fault = Fault {
            code: FaultCode::ImageChecksum,
            message: "expected a, got \x1b[31mb".to_owned(),
        };
        let error = CtlError::Failed {
            instance: "web-1 (id)".to_owned(),
            id: crate::testing::instance().id,
            fault: Some(fault),
        };
        assert_eq!(
            error.text(),
            "berthctl: instance web-1 (id) is in error (image_checksum): expected a, got ^[[31mb\n"
        );
        assert!(
            error
                .json()
                .contains("\"fault\":{\"code\":\"image_checksum\""),
            "{}",
            error.json()
        );
    }

    #[test]
    fn each_of_several_is_told_in_a_line_with_the_way_to_go_on() {
        let id = crate::testing::instance().id;
        let refused = |code| CtlError::Refused(Refusal::new(code, "needs 8 vCPU, 2 free"));
        let missing = |instance: &str, error| Missing {
            instance: instance.parse().unwrap(),
            id,
            error,
        };
        let error = CtlError::SomeMissing {
            first: id,
            all: 5,
            missing: vec![
                missing("web-2", refused(RefusalCode::NoValidHost)),
                missing("web-4", refused(RefusalCode::Conflict)),
            ],
        };
        insta::assert_snapshot!(error.text(), @r#"
        berthctl: 2 of 5 instances are not there:
          web-2: needs 8 vCPU, 2 free (no_valid_host); the same may succeed later. `berthctl explain 0191e7a0-7c1f-7b5e-9d2a-3f6f5f0c2a11` tells what the hosts lacked
          web-4: needs 8 vCPU, 2 free (conflict)
        repeat the command with --id 0191e7a0-7c1f-7b5e-9d2a-3f6f5f0c2a11 to try again what was refused; the others stay as they are
        "#);
        insta::assert_snapshot!(error.json(), @r#"{"error":{"code":"some_missing","message":"2 of 5 instances are not there:\n  web-2: needs 8 vCPU, 2 free (no_valid_host); the same may succeed later. `berthctl explain 0191e7a0-7c1f-7b5e-9d2a-3f6f5f0c2a11` tells what the hosts lacked\n  web-4: needs 8 vCPU, 2 free (conflict)\nrepeat the command with --id 0191e7a0-7c1f-7b5e-9d2a-3f6f5f0c2a11 to try again what was refused; the others stay as they are","retryable":false}}"#);
        assert_eq!(error.exit_code(), 1);
        let late = CtlError::SomeMissing {
            first: id,
            all: 1,
            missing: vec![missing(
                "web-1",
                CtlError::NotYet {
                    subject: "instance web-1".to_owned(),
                    look_again: format!("berthctl instance show {id}"),
                    goal: "active",
                    waited: Duration::from_secs(5),
                    last: "last seen building".to_owned(),
                },
            )],
        };
        assert_eq!(late.exit_code(), 4);
        assert!(!late.text().contains("--id"), "{}", late.text());
    }

    #[test]
    fn what_was_not_done_at_all_is_told_as_such() {
        let none = CtlError::NoneCreated {
            refusal: Refusal::new(RefusalCode::NoValidHost, "needs 8 vCPU, 2 free"),
            count: 5,
        };
        insta::assert_snapshot!(none.text(), @r#"berthctl: needs 8 vCPU, 2 free (no_valid_host). None of the 5 instances was created; `berthctl capacity -f FILE` tells how many fit, and --best-effort creates those"#);
        assert_eq!(none.exit_code(), 1);
        let nowhere = CtlError::FitsNowhere;
        assert_eq!((nowhere.exit_code(), nowhere.code()), (5, "fits_nowhere"));
    }

    #[test]
    fn a_fault_of_placement_names_the_command_that_explains_it() {
        let error = CtlError::Failed {
            instance: "web-1 (id)".to_owned(),
            id: crate::testing::instance().id,
            fault: Some(Fault {
                code: FaultCode::NoValidHost,
                message: "no host of 3 fits".to_owned(),
            }),
        };
        insta::assert_snapshot!(error.text(), @r#"berthctl: instance web-1 (id) is in error (no_valid_host): no host of 3 fits. `berthctl explain 0191e7a0-7c1f-7b5e-9d2a-3f6f5f0c2a11` tells what the hosts lacked"#);
    }
}
