//! What can go wrong between the agent and libvirt.

use std::{fmt, io, path::PathBuf, sync::Arc, time::Duration};

use super::{
    procedures::RemoteError,
    xdr::{Malformed, Unsayable},
};

/// A call did not do what it was to do.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Error {
    /// libvirt says no.
    #[error(transparent)]
    Refused(#[from] Refusal),
    /// Nobody listens where libvirt should.
    #[error("nobody answers at {}", path.display())]
    NobodyThere {
        /// The socket.
        path: PathBuf,
        /// Why not.
        #[source]
        source: io::Error,
    },
    /// libvirt wants to know who calls.
    #[error(
        "libvirt wants its callers to authenticate themselves (type {0}), which only root need not; run the agent as root, or set \
         auth_unix_rw = \"none\" in libvirtd.conf"
    )]
    Authentication(i32),
    /// The connection ended before the answer came. Nobody knows whether the call was carried out.
    #[error("the connection to libvirt ended before its answer came")]
    Lost(#[source] Ended),
    /// The question cannot be sent.
    #[error("libvirt cannot be asked")]
    Unsayable(#[from] Unsayable),
    /// The question is longer than a packet may be.
    #[error("libvirt cannot be asked: the question is longer than a packet may be")]
    TooLong,
    /// The answer is not what libvirt's protocol says.
    #[error("libvirt's answer cannot be read")]
    Malformed(#[from] Malformed),
    /// More came than was wanted.
    #[error("libvirt sends more than {0} bytes")]
    TooMuch(usize),
}

impl Error {
    /// libvirt's number of what went wrong, if it was libvirt that said so.
    pub(crate) fn code(&self) -> Option<Code> {
        match self {
            Self::Refused(refusal) => Some(refusal.code),
            _ => None,
        }
    }

    /// libvirt's words, if they are its own.
    pub(crate) fn message(&self) -> &str {
        match self {
            Self::Refused(refusal) => &refusal.message,
            _ => "",
        }
    }
}

/// Why a connection ended. All calls that waited on it are told the same.
#[derive(Debug, Clone, thiserror::Error)]
pub(crate) enum Ended {
    /// libvirt closed it, or died.
    #[error("libvirt closed it")]
    Closed,
    /// The socket failed.
    #[error("the socket failed")]
    Socket(#[source] Arc<io::Error>),
    /// Something came that is no answer of libvirt's.
    #[error("something came that is not libvirt's protocol: {0}")]
    Protocol(Arc<str>),
    /// libvirt does not even say that it is there.
    #[error("libvirt has said nothing for {} s, although it was asked whether it is there", .0.as_secs())]
    Silent(Duration),
}

/// libvirt's number of what went wrong (`virErrorNumber`).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Code(pub(crate) i32);

/// Numbers of `virterror.h`, by its names.
impl Code {
    pub(crate) const INTERNAL_ERROR: Self = Self(1);
    pub(crate) const NO_SUPPORT: Self = Self(3);
    pub(crate) const INVALID_DOMAIN: Self = Self(7);
    pub(crate) const INVALID_ARG: Self = Self(8);
    pub(crate) const XML_ERROR: Self = Self(27);
    pub(crate) const DOM_EXIST: Self = Self(28);
    pub(crate) const XML_DETAIL: Self = Self(35);
    pub(crate) const NO_DOMAIN: Self = Self(42);
    pub(crate) const OPERATION_INVALID: Self = Self(55);
    pub(crate) const CONFIG_UNSUPPORTED: Self = Self(67);
    pub(crate) const OPERATION_TIMEOUT: Self = Self(68);
    pub(crate) const ARGUMENT_UNSUPPORTED: Self = Self(74);
    pub(crate) const AGENT_UNRESPONSIVE: Self = Self(86);
    pub(crate) const XML_INVALID_SCHEMA: Self = Self(92);
    pub(crate) const AGENT_UNSYNCED: Self = Self(97);
    pub(crate) const NO_DOMAIN_BACKUP: Self = Self(104);
    pub(crate) const AGENT_COMMAND_TIMEOUT: Self = Self(112);
    pub(crate) const AGENT_COMMAND_FAILED: Self = Self(113);
}

/// What libvirt says when it refuses.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Refusal {
    /// What went wrong.
    pub(crate) code: Code,
    /// Which part of libvirt says so (`virErrorDomain`).
    pub(crate) domain: i32,
    /// Its words.
    pub(crate) message: String,
}

impl From<RemoteError> for Refusal {
    fn from(error: RemoteError) -> Self {
        Self {
            code: Code(error.code),
            domain: error.domain,
            message: error.message.unwrap_or_default(),
        }
    }
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            code: Code(code),
            domain,
            message,
        } = self;
        let words = if message.is_empty() {
            "libvirt refused, and does not say why"
        } else {
            message
        };
        write!(f, "{words} [code={code}, domain={domain}]")
    }
}

impl std::error::Error for Refusal {}
