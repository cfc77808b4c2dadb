//! What a pass over a resource comes to, as plain data.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use berth_common::{
    document::{DocumentKey, Kind},
    ids::{NetworkId, SnapshotId, VolumeId},
    message::report::{Fault, FaultCode},
    telemetry::error_chain,
};
use tokio::time::Instant;

use crate::{
    act::ActError,
    decide::{
        domain::{DiskError, DomainObserved, LeftOff, OffReason},
        instance::Paths,
    },
};

/// What a pass came to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Outcome {
    /// The resource is as its document says.
    Converged,
    /// Nothing of it is left.
    Gone,
    /// Something else must happen first.
    Waiting(Waiting),
    /// It cannot be made so.
    Refused(Fault),
    /// A network that is built but for something its document asks for in vain.
    Flawed(Fault),
    /// The same, because a step failed; trying again may help.
    Hampered(Fault),
    /// A step failed; trying again may help.
    Failed(Fault),
    /// The resource could not be looked at, so nothing is known and nothing was done.
    Unseen(Fault),
    /// It was broken off between two steps: a newer document came, or the agent ends.
    Superseded,
}

/// What a resource waits for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Waiting {
    /// An instance or a router, until a network is ready.
    Network(NetworkId),
    /// An instance, until its guest powers off.
    Guest,
    /// A network, until these links have left its bridge.
    Members(BTreeSet<String>),
    /// A network, until these taps are there, where copies of packets shall go.
    Mirrors(BTreeSet<String>),
    /// Something that needs a volume, until it is made.
    Volume(VolumeId),
    /// A volume, until these domains no longer use it.
    Users(BTreeSet<String>),
    /// A volume or a snapshot, until it is no longer being copied.
    Copied,
    /// An instance, until a volume is no longer being copied.
    CopiedVolume(VolumeId),
    /// A volume, until the snapshot it is made from is there.
    Snapshot(SnapshotId),
    /// A snapshot, until another backup job on this domain has ended.
    Turn(String),
    /// An instance, until its guest has given back these disks.
    Detach(BTreeSet<String>),
    /// An instance, until its guest has given back these NICs, as people know them.
    DetachNics(BTreeSet<String>),
    /// An instance, until its guest goes on.
    GuestGoesOn,
    /// An instance, until libvirt has started it.
    Start,
}

impl Waiting {
    /// The resource that is waited for, if it is one of berth's.
    pub(super) const fn resource(&self) -> Option<DocumentKey> {
        match self {
            Self::Network(id) => Some(DocumentKey {
                kind: Kind::Network,
                id: id.as_uuid(),
            }),
            Self::Snapshot(id) => Some(DocumentKey {
                kind: Kind::Snapshot,
                id: id.as_uuid(),
            }),
            Self::Volume(id) | Self::CopiedVolume(id) => Some(DocumentKey {
                kind: Kind::Volume,
                id: id.as_uuid(),
            }),
            Self::Guest
            | Self::Members(_)
            | Self::Mirrors(_)
            | Self::Users(_)
            | Self::Copied
            | Self::Turn(_)
            | Self::Detach(_)
            | Self::DetachNics(_)
            | Self::GuestGoesOn
            | Self::Start => None,
        }
    }

    /// For people.
    pub(super) fn text(&self) -> String {
        match self {
            Self::Network(id) => format!("waiting for network {id} to be built on this host"),
            Self::Guest => "waiting for the guest to power off".to_owned(),
            Self::Volume(id) => format!("waiting for volume {id} to be made on this host"),
            Self::Copied => "waiting until it is no longer being copied".to_owned(),
            Self::CopiedVolume(id) => {
                format!("waiting until volume {id} is no longer being copied")
            }
            Self::Snapshot(id) => format!("waiting for snapshot {id} to be made on this host"),
            Self::Turn(domain) => format!(
                "waiting for its turn: another backup job runs on domain {domain}, and there is one at a time"
            ),
            Self::Detach(targets) => {
                let targets: Vec<&str> = targets.iter().map(String::as_str).collect();
                format!(
                    "waiting for the guest to give back {}; powering it off takes them from it",
                    targets.join(", ")
                )
            }
            Self::DetachNics(ports) => {
                let ports: Vec<&str> = ports.iter().map(String::as_str).collect();
                format!(
                    "waiting for the guest to give back the NIC of {}; powering it off takes it from it",
                    ports.join(", ")
                )
            }
            Self::GuestGoesOn => "its volumes and ports change when its guest goes on".to_owned(),
            Self::Start => "waiting until libvirt has started it".to_owned(),
            Self::Users(names) => {
                let names: Vec<&str> = names.iter().map(String::as_str).collect();
                format!(
                    "waiting until these domains no longer use it: {}",
                    names.join(", ")
                )
            }
            Self::Mirrors(names) => {
                let names: Vec<&str> = names.iter().map(String::as_str).collect();
                format!(
                    "waiting for these taps to be on this host, where copies of packets shall go: {}",
                    names.join(", ")
                )
            }
            Self::Members(names) => {
                let names: Vec<&str> = names.iter().map(String::as_str).collect();
                format!(
                    "waiting until these links have left its bridge: {}",
                    names.join(", ")
                )
            }
        }
    }
}

impl Outcome {
    /// The word for it in figures and logs.
    pub(super) const fn word(&self) -> &'static str {
        match self {
            Self::Converged => "converged",
            Self::Gone => "gone",
            Self::Waiting(_) => "waiting",
            Self::Refused(_) => "refused",
            Self::Flawed(_) => "flawed",
            Self::Hampered(_) => "hampered",
            Self::Failed(_) | Self::Unseen(_) => "failed",
            Self::Superseded => "superseded",
        }
    }

    /// Of a network that is no tombstone: whether it is ready for the ports of its document. Taps of others may still be in it.
    pub(super) const fn is_built(&self) -> bool {
        matches!(
            self,
            Self::Converged
                | Self::Flawed(_)
                | Self::Hampered(_)
                | Self::Waiting(Waiting::Members(_) | Waiting::Mirrors(_))
        )
    }

    /// What went wrong, if anything did.
    pub(super) const fn fault(&self) -> Option<&Fault> {
        match self {
            Self::Refused(fault)
            | Self::Flawed(fault)
            | Self::Hampered(fault)
            | Self::Failed(fault)
            | Self::Unseen(fault) => Some(fault),
            Self::Converged | Self::Gone | Self::Waiting(_) | Self::Superseded => None,
        }
    }

    /// A step went wrong.
    pub(super) fn of_step(error: &ActError) -> Self {
        let fault = fault(error);
        if error.retryable {
            Self::Failed(fault)
        } else {
            Self::Refused(fault)
        }
    }

    /// Looking went wrong.
    pub(super) fn of_look(error: &ActError) -> Self {
        let fault = fault(error);
        if error.retryable {
            Self::Unseen(fault)
        } else {
            Self::Refused(fault)
        }
    }

    /// The plan of every round was carried out, and there is still something to do.
    pub(super) fn unsettled(rounds: usize, steps: &str) -> Self {
        Self::Failed(Fault {
            code: FaultCode::Internal,
            message: format!(
                "it does not settle: after {rounds} rounds there is still to do: {steps}"
            ),
        })
    }
}

fn fault(error: &ActError) -> Fault {
    Fault {
        code: error.code,
        message: error_chain(error),
    }
}

/// When a guest was asked to power off, or for something it shall give back.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct AskedAt {
    /// The first time.
    pub(super) first: Instant,
    /// The last time.
    pub(super) last: Instant,
}

/// What the next pass over an instance needs to know of those before, and the host does not.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(super) struct Memory {
    /// When the guest was asked to power off, for the wish that is being carried out.
    pub(super) asked: Option<AskedAt>,
    /// When it was asked last, for whatever wish, or first found marked as asked: it may still obey.
    pub(super) asked_before: Option<Instant>,
    /// When the guest was asked to give back a volume that it still has.
    pub(super) detach_asked: Option<AskedAt>,
    /// When the guest was asked to give back a NIC that it still has.
    pub(super) nic_asked: Option<AskedAt>,
    /// When a guest that stood still for its disks was let go on, if it has not shown since that it runs.
    pub(super) let_go_on: Option<AskedAt>,
    /// Those disks.
    pub(super) disk_errors: BTreeMap<String, DiskError>,
    /// Since when libvirt is starting it, as far as this agent has seen.
    pub(super) starting: Option<Instant>,
    /// Why it was off by itself when it was seen last: libvirt may be started anew before that is written down.
    pub(super) left_off: Option<LeftOff>,
    /// The document replaced another one of the same generation, and was not carried out yet.
    pub(super) overruled: bool,
}

/// The end of a pass.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct PassEnd {
    /// What it came to.
    pub(super) outcome: Outcome,
    /// Of instances: the domain as it was seen last; `None`: it was not seen.
    pub(super) domain: Option<Option<DomainObserved>>,
    /// Of instances: the volumes it has then; `None`: not known.
    pub(super) volumes: Option<Vec<VolumeId>>,
    /// Of instances: what to remember.
    pub(super) memory: Memory,
    /// Look again after this long, if not earlier for another reason.
    pub(super) again: Option<Duration>,
    /// Of instances: whether taps were made or taken away.
    pub(super) taps: bool,
    /// Of networks: whether its bridge was made.
    pub(super) bridge: bool,
    /// Of routers: whether legs were taken away. Of networks: whether its packet filter knows other legs than before.
    pub(super) legs: bool,
}

impl PassEnd {
    /// The end of a pass that knows of no domain.
    pub(super) fn of(outcome: Outcome) -> Self {
        Self {
            outcome,
            domain: None,
            volumes: None,
            memory: Memory::default(),
            again: None,
            taps: false,
            bridge: false,
            legs: false,
        }
    }

    /// Of instances: notes its domain.
    pub(super) fn saw(&mut self, domain: Option<DomainObserved>, paths: &Paths) {
        self.volumes = match &domain {
            None => Some(Vec::new()),
            // What its memory was saved with is in no definition.
            Some(domain) if domain.off_reason == Some(OffReason::Saved) => None,
            Some(domain) => {
                let disks = domain.disks.live.iter().chain(&domain.disks.kept);
                let volumes = disks.filter_map(|disk| paths.volume_at(&disk.path));
                let volumes: BTreeSet<VolumeId> = volumes.collect();
                Some(volumes.into_iter().collect())
            }
        };
        self.domain = Some(domain);
    }
}
