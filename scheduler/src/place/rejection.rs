//! Why a host does not fit, in numbers, and in words for operators.

use std::fmt;

use berth_common::ids::HostId;

use super::{amounts::Resource, failures::FailureCount, request::ResourceClass};

/// Why a host does not fit.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Rejection {
    /// It is disabled.
    Disabled,
    /// It is being drained.
    Draining,
    /// Its heartbeats do not arrive.
    Down,
    /// It is physically too small: overcommit is of the sum, never of one instance.
    LargerThanHost {
        /// What of it.
        resource: Resource,
        /// What was asked for.
        needed: u64,
        /// What the host has, less what is reserved.
        physical: u64,
        /// What may still be claimed.
        free: u64,
    },
    /// It has too little left.
    Full {
        /// What of it.
        resource: Resource,
        /// What was asked for.
        needed: u64,
        /// What may still be claimed.
        free: u64,
        /// What may be claimed in all: `(total − reserved) × ratio`.
        capacity: u64,
    },
    /// It has too few left of a countable resource.
    TooFew {
        /// Of which.
        class: ResourceClass,
        /// How many were asked for.
        needed: u64,
        /// How many may still be claimed.
        free: u64,
        /// How many may be claimed in all.
        capacity: u64,
    },
    /// It is in another availability zone.
    OtherZone {
        /// The zone that was asked for.
        needed: String,
        /// The zone it is in, if any.
        found: Option<String>,
    },
    /// None of its aggregates has the property.
    NoProperty {
        /// The property's key.
        key: String,
        /// The value that was asked for.
        needed: String,
        /// The values its aggregates have.
        found: Vec<String>,
    },
    /// Its processors are of another architecture than the image.
    OtherArchitecture {
        /// The image's.
        needed: String,
        /// The host's.
        found: String,
    },
    /// It cannot run guests as the image needs.
    OtherVirtType {
        /// What the image needs.
        needed: String,
        /// What the host can.
        found: Vec<String>,
    },
    /// Another host was asked for.
    NotRequested {
        /// That host.
        requested: HostId,
    },
    /// It holds an instance that this one must be kept away from.
    HoldsOther,
    /// It holds none of the instances that this one must lie beside.
    HoldsNone,
    /// The members of the server group, which must be together, are elsewhere.
    GroupElsewhere,
    /// It holds as many members of the server group as one host may.
    GroupFull {
        /// How many it holds.
        members: u64,
        /// How many it may.
        limit: u64,
    },
    /// It does not reach the volume.
    VolumeOutOfReach,
    /// It does not have the storage pool that the volume shall be in.
    NoPool {
        /// The pool.
        needed: String,
    },
    /// Its storage pool is of block devices, which hold nothing that is stored as the volume shall be.
    PoolFormat {
        /// The pool.
        pool: String,
        /// How the volume shall be stored.
        needed: String,
    },
    /// Its storage pool has too little left for the volume.
    PoolFull {
        /// The pool.
        pool: String,
        /// What the volume takes, in GiB.
        needed: u64,
        /// What may still be claimed.
        free: u64,
        /// What the pool has.
        total: u64,
    },
    /// It is not connected to a physical network.
    NoPhysicalNetwork {
        /// The one that is missing.
        needed: String,
        /// Those it is connected to.
        found: Vec<String>,
    },
    /// Its kernel has no VLANs.
    NoVlan,
    /// Its kernel has no VXLAN.
    NoVxlan,
    /// It has no address for VXLAN.
    NoTunnelIp,
    /// Its kernel does not track connections in bridges.
    NoStatefulFilter,
    /// It cannot build a network that a router joins to those of the ports.
    Routed {
        /// The router.
        router: String,
        /// The network.
        network: String,
        /// Why it cannot.
        reason: Box<Self>,
    },
    /// A `nat` network that it has uses the same addresses as one that it would get.
    NatAddresses {
        /// The addresses of the one that it would get.
        needed: String,
        /// The one that it has.
        network: String,
        /// The addresses of that.
        found: String,
    },
    /// This very request has failed on it.
    FailedThisRequest,
    /// Too many builds failed on it lately.
    FailedRecently {
        /// How many, halving with time.
        failures: FailureCount,
        /// How many are tolerated.
        limit: FailureCount,
    },
}

impl Rejection {
    /// The same in words for the owner of what was refused: without another network on the host, which may be anybody's.
    #[must_use]
    pub fn for_owner(&self) -> String {
        match self {
            Self::NatAddresses { needed, .. } => format!(
                "needs {needed} for itself, as a nat network does, and another one has some of it there"
            ),
            Self::Routed {
                router,
                network,
                reason,
            } => format!(
                "router {router} joins network {network}, which {}",
                reason.for_owner()
            ),
            other => other.to_string(),
        }
    }

    /// How much was missing, in the unit of what was missing; zero where nothing is counted.
    ///
    /// For an instance larger than its host: what both the host and what is left of it would have to grow by.
    #[must_use]
    pub fn missing(&self) -> u64 {
        match self {
            Self::LargerThanHost {
                needed,
                physical,
                free,
                ..
            } => needed.saturating_sub(*physical.min(free)),
            Self::Full { needed, free, .. } | Self::TooFew { needed, free, .. } => {
                needed.saturating_sub(*free)
            }
            _ => 0,
        }
    }
}

fn list(f: &mut fmt::Formatter<'_>, found: &[String]) -> fmt::Result {
    if found.is_empty() {
        return f.write_str("none");
    }
    f.write_str(&found.join(", "))
}

impl fmt::Display for Rejection {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Disabled => f.write_str("it is disabled"),
            Self::Draining => f.write_str("it is being drained"),
            Self::Down => f.write_str("its heartbeats do not arrive"),
            Self::LargerThanHost {
                resource,
                needed,
                physical,
                ..
            } => write!(
                f,
                "needs {needed} {resource}, the whole host has {physical} (one instance is never overcommitted)"
            ),
            Self::Full {
                resource,
                needed,
                free,
                capacity,
            } => write!(
                f,
                "needs {needed} {resource}, {free} free of {capacity}, {} missing",
                self.missing()
            ),
            Self::TooFew {
                class,
                needed,
                free,
                capacity,
            } => write!(
                f,
                "needs {needed} {class}, {free} free of {capacity}, {} missing",
                self.missing()
            ),
            Self::OtherZone { needed, found } => match found {
                Some(found) => write!(f, "needs availability zone {needed}, it is in {found}"),
                None => write!(f, "needs availability zone {needed}, it is in none"),
            },
            Self::NoProperty { key, needed, found } => {
                write!(f, "needs property {key} = {needed}, its aggregates have ")?;
                list(f, found)
            }
            Self::OtherArchitecture { needed, found } => {
                write!(f, "the image needs architecture {needed}, it has {found}")
            }
            Self::OtherVirtType { needed, found } => {
                write!(f, "the image needs hypervisor type {needed}, it has ")?;
                list(f, found)
            }
            Self::NotRequested { requested } => write!(f, "host {requested} was asked for"),
            Self::HoldsOther => {
                f.write_str("it holds an instance that this one must be kept away from")
            }
            Self::HoldsNone => {
                f.write_str("it holds none of the instances that this one must lie beside")
            }
            Self::GroupElsewhere => f.write_str("the members of the server group are elsewhere"),
            Self::GroupFull { members, limit } => write!(
                f,
                "it holds {members} of the server group, at most {limit} may lie on one host"
            ),
            Self::VolumeOutOfReach => f.write_str("it does not reach the volume"),
            Self::NoPool { needed } => write!(f, "it has no storage pool {needed}"),
            Self::PoolFormat { pool, needed } => write!(
                f,
                "its storage pool {pool} holds raw volumes only, and the volume shall be {needed}"
            ),
            Self::PoolFull {
                pool,
                needed,
                free,
                total,
            } => write!(
                f,
                "needs {needed} GB in storage pool {pool} for the volume, {free} free of {total}, {} missing",
                needed.saturating_sub(*free)
            ),
            Self::NoPhysicalNetwork { needed, found } => {
                write!(f, "needs physical network {needed}, it is connected to ")?;
                list(f, found)
            }
            Self::NoVlan => f.write_str("needs VLANs: its kernel lacks them (802.1Q)"),
            Self::NoVxlan => f.write_str("needs VXLAN: its kernel lacks it"),
            Self::NoTunnelIp => {
                f.write_str("needs VXLAN: its agent's configuration lacks network.tunnel_ip")
            }
            Self::NoStatefulFilter => f.write_str(
                "needs connection tracking in bridges, for port security: its kernel lacks it (nf_conntrack_bridge or \
                 br_netfilter)",
            ),
            Self::Routed {
                router,
                network,
                reason,
            } => write!(f, "router {router} joins network {network}, which {reason}"),
            Self::NatAddresses {
                needed,
                network,
                found,
            } => write!(
                f,
                "needs {needed} for itself, as a nat network does, and nat network {network} has {found} there"
            ),
            Self::FailedThisRequest => f.write_str("this request has failed there already"),
            Self::FailedRecently { failures, limit } => write!(
                f,
                "{failures} builds have failed there lately, at most {limit} are tolerated"
            ),
        }
    }
}
