//! libvirt's errors as what they mean for an instance.

use std::time::Duration;

use berth_common::message::report::FaultCode;
use chrono::{DateTime, SecondsFormat, Utc};
use virt::error::{Error, ErrorNumber};

use crate::act::{ActError, pool::PoolError};

/// libvirt refused or failed.
pub(super) fn failed(what: String, error: Error) -> ActError {
    let code = if error.code() == ErrorNumber::DomExist {
        FaultCode::ForeignObject
    } else {
        FaultCode::Hypervisor
    };
    ActError {
        what,
        code,
        retryable: !is_permanent(error.code()),
        source: Some(Box::new(error)),
    }
}

/// Nobody answers at the connection's address.
pub(super) fn unreachable(uri: &str, error: Error) -> ActError {
    ActError::retryable(
        FaultCode::Hypervisor,
        format!("cannot reach libvirt at {uri}; is it running? (`systemctl start libvirtd`)"),
        error,
    )
}

/// The call did not come back, or was not made.
pub(super) fn no_answer(what: &str, uri: &str, error: PoolError) -> ActError {
    ActError::retryable(
        FaultCode::Hypervisor,
        format!("{what}: libvirt at {uri} does not answer"),
        error,
    )
}

/// libvirt has not answered for a while, so it was not asked.
pub(super) fn not_asked(what: &str, uri: &str, since: DateTime<Utc>, pause: Duration) -> ActError {
    ActError {
        what: format!(
            "{what}: libvirt at {uri} does not answer since {}, so it was not asked; every {} s it is tried whether it is \
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
fn is_permanent(code: ErrorNumber) -> bool {
    matches!(
        code,
        ErrorNumber::XmlError
            | ErrorNumber::XmlDetail
            | ErrorNumber::XmlInvalidSchema
            | ErrorNumber::InvalidArg
            | ErrorNumber::InvalidDomain
            | ErrorNumber::ConfigUnsupported
            | ErrorNumber::ArgumentUnsupported
            | ErrorNumber::NoSupport
            | ErrorNumber::DomExist
    )
}

/// The domain is not there (any more).
pub(super) fn is_gone(error: &Error) -> bool {
    error.code() == ErrorNumber::NoDomain
}
