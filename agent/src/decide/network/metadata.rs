//! The metadata service of a network: one process in its namespace, beside the DHCP server.
//!
//! What it answers from is read for every request, so the process is started once and left alone until it runs another program
//! than the one that is installed, or is not where the network is now.

use std::fmt;

use berth_common::ids::NetworkId;

use super::{Planner, link::Link, observed::NetworkObserved, step::NetStep};

/// What is there of a network's metadata service.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct MetadataObserved {
    /// The file that tells whose questions come from which address.
    pub sources: Option<String>,
    /// The service, if it runs.
    pub process: Option<MetadataProcess>,
}

/// A running metadata service.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct MetadataProcess {
    /// Whether it is the program that is installed, started as this agent starts it.
    pub is_current: bool,
    /// Whether it runs in the namespace that has the network's name now.
    pub in_namespace: bool,
}

/// One step for a network's metadata service. Each may be repeated.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum MetadataStep {
    /// Write whose questions come from which address.
    WriteSources {
        /// The network.
        network: NetworkId,
        /// The file.
        sources: String,
    },
    /// Start it.
    Start(NetworkId),
    /// Stop it.
    Stop(NetworkId),
}

impl MetadataStep {
    /// The network it is for.
    #[must_use]
    pub const fn network(&self) -> NetworkId {
        match self {
            Self::WriteSources { network, .. } | Self::Start(network) | Self::Stop(network) => {
                *network
            }
        }
    }

    /// The word for it in figures and logs.
    #[must_use]
    pub const fn name(&self) -> &'static str {
        match self {
            Self::WriteSources { .. } => "write_metadata_sources",
            Self::Start(_) => "start_metadata",
            Self::Stop(_) => "stop_metadata",
        }
    }
}

/// What the step does, as the end of "could not …".
impl fmt::Display for MetadataStep {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::WriteSources { .. } => "write who may ask its metadata service",
            Self::Start(_) => "start its metadata service",
            Self::Stop(_) => "stop its metadata service",
        })
    }
}

/// See [`super::imagine`].
pub(super) fn imagine(observed: &mut NetworkObserved, step: &MetadataStep) {
    match step {
        MetadataStep::WriteSources { sources, .. } => {
            observed.dhcp.directory = true;
            observed.metadata.sources = Some(sources.clone());
        }
        MetadataStep::Start(_) => {
            if observed.content().is_some() {
                observed.metadata.process = Some(MetadataProcess {
                    is_current: true,
                    in_namespace: true,
                });
            }
        }
        MetadataStep::Stop(_) => observed.metadata.process = None,
    }
}

impl Planner {
    /// Writes who may ask, and stops a service that has to start afresh.
    pub(super) fn prepare_metadata(&mut self, sources: String) {
        let network = self.network;
        if self.now.metadata.sources.as_ref() != Some(&sources) {
            self.step(NetStep::Metadata(MetadataStep::WriteSources {
                network,
                sources,
            }));
        }
        // It listens on the link itself: on one that is made anew, it would be deaf.
        let link_stays = [Link::veth_host(network), Link::veth_namespace(network)]
            .into_iter()
            .all(|end| self.now.link(end).is_some());
        let process = self.now.metadata.process;
        if process.is_some_and(|it| !(it.is_current && it.in_namespace && link_stays)) {
            self.stop_metadata();
        }
    }

    /// Starts it, if it does not run.
    pub(super) fn run_metadata(&mut self) {
        if self.now.metadata.process.is_none() {
            self.step(NetStep::Metadata(MetadataStep::Start(self.network)));
        }
    }

    /// Stops it, if it runs.
    pub(super) fn stop_metadata(&mut self) {
        if self.now.metadata.process.is_some() {
            self.step(NetStep::Metadata(MetadataStep::Stop(self.network)));
        }
    }
}
