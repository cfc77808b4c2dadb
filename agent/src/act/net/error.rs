//! What can go wrong with the kernel's network and DHCP, and what it means for the network's owner.

use std::{io, path::PathBuf, time::Duration};

use berth_common::{ids::NetworkId, message::report::FaultCode};

use crate::act::{ActError, command::CommandError};

/// An action on the network failed.
#[derive(Debug, thiserror::Error)]
pub enum NetError {
    /// The kernel refused a request.
    #[error("the kernel refused to {what}")]
    Netlink {
        /// What was asked.
        what: String,
        /// The cause.
        #[source]
        source: rtnetlink::Error,
    },
    /// A file could not be read or written.
    #[error("could not {what} {path}")]
    File {
        /// What was tried.
        what: &'static str,
        /// The file.
        path: PathBuf,
        /// The cause.
        #[source]
        source: io::Error,
    },
    /// A system call failed.
    #[error("could not {what}")]
    System {
        /// What was tried.
        what: String,
        /// The cause.
        #[source]
        source: io::Error,
    },
    /// A tool failed.
    #[error(transparent)]
    Command(#[from] CommandError),
    /// It took too long.
    #[error("it took longer than {} s", limit.as_secs())]
    Deadline {
        /// How long it was given.
        limit: Duration,
    },
    /// The thread that did it ended without an answer.
    #[error("the thread that did it ended without an answer")]
    ThreadLost,
    /// A link that a step needs is not there.
    #[error("link {link} is not there")]
    Absent {
        /// The link.
        link: String,
    },
    /// The kernel does not tell what went through a link.
    #[error("the kernel does not tell what went through link {link}")]
    Uncounted {
        /// The link.
        link: String,
    },
    /// A link has a name of ours, but is not ours.
    #[error("link {link} was not made by berth for this network; it was left alone")]
    Foreign {
        /// The link.
        link: String,
    },
    /// The packet filter is not as it must be.
    #[error("{what}")]
    Filter {
        /// What is wrong.
        what: String,
    },
    /// dnsmasq is not in the state the step needs.
    #[error("dnsmasq {what}")]
    Dhcp {
        /// What is wrong.
        what: String,
    },
    /// The metadata service is not in the state the step needs.
    #[error("the metadata service {what}")]
    Metadata {
        /// What is wrong.
        what: String,
    },
}

impl NetError {
    /// A failed file operation.
    pub(super) fn file(
        what: &'static str,
        path: impl Into<PathBuf>,
    ) -> impl FnOnce(io::Error) -> Self {
        let path = path.into();
        move |source| Self::File { what, path, source }
    }

    /// A failed system call.
    pub(super) fn system<E: Into<io::Error>>(what: impl Into<String>) -> impl FnOnce(E) -> Self {
        let what = what.into();
        move |source| Self::System {
            what,
            source: source.into(),
        }
    }

    /// A refused netlink request.
    pub(super) fn netlink(what: impl Into<String>) -> impl FnOnce(rtnetlink::Error) -> Self {
        let what = what.into();
        move |source| Self::Netlink { what, source }
    }

    /// What it means for the network: `what` was being done.
    pub(super) fn into_act(self, network: Option<NetworkId>, what: &str) -> ActError {
        self.into_act_of(network.map(|network| format!("network {network}")), what)
    }

    /// What it means for a resource: `what` was being done.
    pub(super) fn into_act_of(self, resource: Option<String>, what: &str) -> ActError {
        let (code, retryable) = match &self {
            Self::Foreign { .. } => (FaultCode::ForeignObject, false),
            Self::ThreadLost => (FaultCode::Internal, true),
            Self::Netlink { .. }
            | Self::File { .. }
            | Self::System { .. }
            | Self::Command(_)
            | Self::Deadline { .. }
            | Self::Absent { .. }
            | Self::Uncounted { .. }
            | Self::Filter { .. }
            | Self::Metadata { .. }
            | Self::Dhcp { .. } => (FaultCode::Network, true),
        };
        let what = match resource {
            Some(resource) => format!("{resource}: could not {what}"),
            None => format!("could not {what}"),
        };
        ActError {
            what,
            code,
            retryable,
            source: Some(Box::new(self)),
        }
    }
}
