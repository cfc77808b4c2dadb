//! libvirt's errors as what they mean for an instance.

use std::time::Duration;

use berth_common::message::report::FaultCode;
use chrono::{DateTime, SecondsFormat, Utc};

use super::rpc::{Address, Code, Ended, Error};
use crate::act::{ActError, calls::CallError};

/// libvirt refused or failed.
pub(super) fn failed(what: String, error: Error) -> ActError {
    let code = if error.code() == Some(Code::DOM_EXIST) {
        FaultCode::ForeignObject
    } else {
        FaultCode::Hypervisor
    };
    ActError {
        what,
        code,
        retryable: !error.code().is_some_and(is_permanent),
        source: Some(Box::new(error)),
    }
}

/// Nobody answers at the connection's address.
pub(super) fn unreachable(address: &Address, error: Error) -> ActError {
    ActError::retryable(
        FaultCode::Hypervisor,
        format!("cannot reach libvirt at {address}; is it running? (`systemctl start libvirtd`)"),
        error,
    )
}

/// Whether libvirt is there and says nothing: the connection was given up for it, or a new one is not taken.
pub(super) fn is_silence(error: &ActError) -> bool {
    let told = causes(error).find_map(|cause| match cause.downcast_ref::<Error>() {
        Some(Error::Lost(Ended::Silent(_))) => Some(true),
        Some(Error::NobodyThere { source, .. }) => {
            Some(source.kind() == std::io::ErrorKind::WouldBlock)
        }
        _ => None,
    });
    told.unwrap_or(false)
}

/// QEMU says nothing, and libvirt is there.
#[derive(Debug, thiserror::Error)]
#[error(transparent)]
struct SilentQemu(CallError);

/// libvirt is there, and the call did not come back, or was not made because an earlier one did not.
pub(super) fn no_answer_of_qemu(what: &str, error: CallError) -> ActError {
    ActError::retryable(
        FaultCode::Hypervisor,
        format!(
            "{what}: QEMU does not answer, though libvirt does (its process may be stopped, or wait for a disk)"
        ),
        SilentQemu(error),
    )
}

/// Whether a QEMU says nothing. libvirt tells so itself of one that is busy with an earlier call for long.
pub(super) fn is_silence_of_qemu(error: &ActError) -> bool {
    causes(error).any(|cause| {
        let is_busy = cause
            .downcast_ref::<Error>()
            .is_some_and(|error| error.code() == Some(Code::OPERATION_TIMEOUT));
        is_busy || cause.is::<SilentQemu>()
    })
}

/// The error, and what each was caused by.
fn causes(error: &ActError) -> impl Iterator<Item = &(dyn std::error::Error + 'static)> {
    let first: &(dyn std::error::Error + 'static) = error;
    std::iter::successors(Some(first), |error| error.source())
}

/// Calls about other guests hang, or take their time, so this one was not made.
#[derive(Debug, thiserror::Error)]
#[error(transparent)]
struct NotMade(CallError);

/// The call was not made, for which libvirt cannot be blamed.
pub(super) fn not_made(what: &str, error: CallError) -> ActError {
    ActError::retryable(FaultCode::Hypervisor, what, NotMade(error))
}

/// Whether a call was not made because of others.
pub(super) fn is_not_made(error: &ActError) -> bool {
    causes(error).any(|cause| cause.is::<NotMade>())
}

/// The call did not come back.
pub(super) fn no_answer(what: &str, address: &Address, error: CallError) -> ActError {
    ActError::retryable(
        FaultCode::Hypervisor,
        format!("{what}: libvirt at {address} does not answer"),
        error,
    )
}

/// libvirt has not answered for a while, so it was not asked.
pub(super) fn not_asked(
    what: &str,
    address: &Address,
    since: DateTime<Utc>,
    pause: Duration,
) -> ActError {
    ActError {
        what: format!(
            "{what}: libvirt at {address} does not answer since {}, so it was not asked; every {} s it is tried whether it is \
             back",
            since.to_rfc3339_opts(SecondsFormat::Secs, true),
            pause.as_secs()
        ),
        code: FaultCode::Hypervisor,
        retryable: true,
        source: None,
    }
}

/// The caller gave up before anything was changed.
pub(super) fn abandoned(what: String) -> ActError {
    ActError {
        what: format!("{what}: given up before it was begun"),
        code: FaultCode::Hypervisor,
        retryable: true,
        source: None,
    }
}

/// What no repetition mends: the definition itself is wrong for this libvirt.
fn is_permanent(code: Code) -> bool {
    matches!(
        code,
        Code::XML_ERROR
            | Code::XML_DETAIL
            | Code::XML_INVALID_SCHEMA
            | Code::INVALID_ARG
            | Code::INVALID_DOMAIN
            | Code::CONFIG_UNSUPPORTED
            | Code::ARGUMENT_UNSUPPORTED
            | Code::NO_SUPPORT
            | Code::DOM_EXIST
    )
}

/// The domain is not there (any more).
pub(super) fn is_gone(error: &Error) -> bool {
    error.code() == Some(Code::NO_DOMAIN)
}

#[cfg(test)]
mod tests {
    use std::io;

    use super::*;
    use crate::act::libvirt::rpc::Refusal;

    #[test]
    fn a_qemu_that_says_nothing_is_told_from_everything_else() {
        let silent = no_answer_of_qemu("x", CallError::Hung);
        assert!(is_silence_of_qemu(&silent) && !is_silence(&silent));
        let refused = |code| {
            let refusal = Refusal {
                code,
                domain: 10,
                message: String::new(),
            };
            is_silence_of_qemu(&failed("x".to_owned(), Error::Refused(refusal)))
        };
        assert!(refused(Code::OPERATION_TIMEOUT));
        assert!(!refused(Code::OPERATION_INVALID));
        for other in [
            not_made("x", CallError::Stuck(12)),
            no_answer("x", &Address::default(), CallError::Hung),
        ] {
            assert!(!is_silence_of_qemu(&other), "{other}");
        }
        assert!(is_not_made(&not_made("x", CallError::Stuck(12))));
        assert!(!is_not_made(&silent));
    }

    #[test]
    fn whoever_is_there_and_says_nothing_has_not_answered() {
        let nobody = |kind: io::ErrorKind| Error::NobodyThere {
            path: "/run/libvirt/libvirt-sock".into(),
            source: kind.into(),
        };
        for (error, silent) in [
            (Error::Lost(Ended::Silent(Duration::from_secs(20))), true),
            (nobody(io::ErrorKind::WouldBlock), true),
            (Error::Lost(Ended::Closed), false),
            (nobody(io::ErrorKind::NotFound), false),
            (Error::TooLong, false),
        ] {
            let words = error.to_string();
            let of_call = unreachable(&Address::default(), error);
            assert_eq!(is_silence(&of_call), silent, "{words}");
        }
    }
}
