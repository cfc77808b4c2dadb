//! Placement in requests and replies: hints, aggregates, server groups, decisions.
//!
//! A decision exists in two texts: one for operators, which names hosts, and one for owners of instances, which does
//! not.

use std::{collections::BTreeMap, fmt};

use chrono::{DateTime, Utc};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::{
    ids::{AggregateId, HostId, InstanceId, ServerGroupId},
    message::view::Resources,
    names::{
        AggregateName, HostName, ProjectName, PropertyKey, PropertyValue, ResourceClass,
        ServerGroupName, ZoneName,
    },
    units::AllocationRatio,
};

/// Where an instance may be placed, and where not: Nova's scheduler hints, and what flavors and images ask of hosts.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
pub struct SchedulerHints {
    /// Only hosts in this availability zone.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub availability_zone: Option<ZoneName>,
    /// Only this host: its name or id.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub host: Option<String>,
    /// Only hosts that have one of these instances; at most 64.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub same_host: Vec<InstanceId>,
    /// Only hosts that have none of these instances; at most 64.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub different_host: Vec<InstanceId>,
    /// The server group it joins: its id, or its name within the project.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub server_group: Option<String>,
    /// Only hosts whose aggregates have these properties; at most 64.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub properties: BTreeMap<PropertyKey, PropertyValue>,
    /// Only hosts of this processor architecture, in libvirt's words (`x86_64`).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub architecture: Option<String>,
    /// Only hosts that run guests this way: `kvm` or `qemu`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub virt_type: Option<String>,
    /// Countable resources it takes of its host, besides CPUs, memory and disk; at most 16, each at least 1.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub resources: BTreeMap<ResourceClass, u64>,
}

impl SchedulerHints {
    /// Whether it may be placed anywhere.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }
}

/// How the instances of a server group stand to one another, in Nova's words.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
#[schemars(inline)]
pub enum ServerGroupPolicy {
    /// All on one host.
    Affinity,
    /// At most so many on a host as the group says, one unless it says more.
    AntiAffinity,
    /// Together where there is room.
    SoftAffinity,
    /// Apart where there is room.
    SoftAntiAffinity,
}

impl ServerGroupPolicy {
    /// The name on the wire and in the database.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Affinity => "affinity",
            Self::AntiAffinity => "anti_affinity",
            Self::SoftAffinity => "soft_affinity",
            Self::SoftAntiAffinity => "soft_anti_affinity",
        }
    }
}

/// A host aggregate as it is now.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct AggregateView {
    /// Its id.
    pub id: AggregateId,
    /// Its name.
    pub name: AggregateName,
    /// The availability zone its hosts are in.
    pub availability_zone: Option<ZoneName>,
    /// `cpu_allocation_ratio` of its hosts.
    pub cpu_allocation_ratio: Option<AllocationRatio>,
    /// `ram_allocation_ratio` of its hosts.
    pub ram_allocation_ratio: Option<AllocationRatio>,
    /// `disk_allocation_ratio` of its hosts.
    pub disk_allocation_ratio: Option<AllocationRatio>,
    /// Properties of its hosts.
    pub properties: BTreeMap<PropertyKey, PropertyValue>,
    /// Its hosts, by name.
    pub hosts: Vec<HostName>,
    /// When it was asked for.
    pub created_at: DateTime<Utc>,
}

/// A server group as it is now.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct ServerGroupView {
    /// Its id.
    pub id: ServerGroupId,
    /// Its name.
    pub name: ServerGroupName,
    /// Its owner.
    pub project: ProjectName,
    /// How its instances stand to one another.
    pub policy: ServerGroupPolicy,
    /// Of `anti_affinity`: how many of its instances one host may have.
    pub max_server_per_host: Option<u32>,
    /// Its living instances.
    pub members: Vec<InstanceId>,
    /// When it was asked for.
    pub created_at: DateTime<Utc>,
}

/// How a placement was decided, with the names of hosts: for operators.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct DecisionView {
    /// When.
    pub decided_at: DateTime<Utc>,
    /// The how-manieth attempt to place the instance, from 1; more than 1 when hosts could not build it.
    pub attempt: u32,
    /// What was asked for: vCPUs, memory, disk; null in a decision from before this was written down.
    #[serde(default)]
    pub asked: Option<Resources>,
    /// What was asked for besides, each in a few words.
    #[serde(default)]
    pub constraints: Vec<String>,
    /// How many hosts were asked.
    pub hosts: u64,
    /// How many hosts each filter removed, in the order of asking; those that removed none are not listed.
    pub filters: Vec<FilterResult>,
    /// The chosen host; null: none.
    pub chosen: Option<ScoredHost>,
    /// The host that would have been next.
    pub runner_up: Option<ScoredHost>,
    /// Hosts that came close, the nearest first; at most 3.
    pub nearest_misses: Vec<NearMiss>,
    /// The decision in words, for operators.
    pub summary: String,
    /// The decision in words that name no host.
    pub public_summary: String,
}

/// What one filter did.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct FilterResult {
    /// The filter.
    pub filter: String,
    /// How many hosts it removed.
    pub removed: u64,
}

/// A host that passed every filter.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct ScoredHost {
    /// Its id.
    pub host_id: HostId,
    /// Its name.
    pub host: HostName,
    /// Its score: the sum of the parts; the highest wins.
    pub score: i64,
    /// What each weigher gave.
    pub parts: Vec<ScorePart>,
}

/// What one weigher gave.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct ScorePart {
    /// The weigher.
    pub weigher: String,
    /// Its part of the score.
    pub score: i64,
}

/// A score as people read it: thousandths of a point as a decimal.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Points(pub i64);

impl fmt::Display for Points {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let sign = if self.0 < 0 { "-" } else { "" };
        let thousandths = self.0.unsigned_abs();
        write!(f, "{sign}{}.{:03}", thousandths / 1000, thousandths % 1000)
    }
}

/// A host that was removed, and by how little.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct NearMiss {
    /// Its id.
    pub host_id: HostId,
    /// Its name.
    pub host: HostName,
    /// The filter that removed it.
    pub filter: String,
    /// Why, in words with numbers.
    pub reason: String,
    /// How much was missing, where that can be counted; in the unit that the reason names.
    pub missing: Option<u64>,
}

/// How many more instances fit.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct CapacityView {
    /// So many.
    pub fits: u64,
    /// Whether counting ended at `most` and not for want of room.
    pub counted_out: bool,
    /// What refuses the next one; null when counting ended at `most`.
    pub next: Option<DecisionView>,
    /// The answer in words.
    pub summary: String,
}
