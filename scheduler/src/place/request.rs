//! What is asked for: one instance, as plain data.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
};

use berth_common::{document::Flavor, ids::HostId, message::view::Resources};

use super::{failures::Millis, rejection::Rejection};

/// A resource that some hosts have so many of: `HUGEPAGES_2048K`, `PCI_<pool>`.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ResourceClass(pub String);

impl From<&str> for ResourceClass {
    fn from(name: &str) -> Self {
        Self(name.to_owned())
    }
}

impl fmt::Display for ResourceClass {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// What an instance takes of its host.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Demand {
    /// vCPUs, memory, disk.
    pub resources: Resources,
    /// Countable resources.
    pub countables: BTreeMap<ResourceClass, u64>,
}

/// How the members of a server group shall lie to each other.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum GroupPolicy {
    /// All on one host.
    Affinity,
    /// On different hosts; at most `max_per_host` on one.
    AntiAffinity,
    /// On one host where that is possible.
    SoftAffinity,
    /// On different hosts where that is possible.
    SoftAntiAffinity,
}

impl GroupPolicy {
    /// The name in OpenStack.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Affinity => "affinity",
            Self::AntiAffinity => "anti-affinity",
            Self::SoftAffinity => "soft-affinity",
            Self::SoftAntiAffinity => "soft-anti-affinity",
        }
    }
}

/// The server group an instance belongs to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ServerGroup {
    /// How its members shall lie to each other.
    pub policy: GroupPolicy,
    /// The most members on one host, under any policy. None: one under anti-affinity, else any number.
    pub max_per_host: Option<u64>,
    /// How many members lie on which host.
    pub members: BTreeMap<HostId, u64>,
}

impl ServerGroup {
    /// The most members that may lie on one host.
    #[must_use]
    pub const fn limit(&self) -> Option<u64> {
        match (self.max_per_host, self.policy) {
            (Some(limit), _) => Some(limit),
            (None, GroupPolicy::AntiAffinity) => Some(1),
            (None, _) => None,
        }
    }

    /// How many members lie on a host.
    #[must_use]
    pub fn on(&self, host: HostId) -> u64 {
        self.members.get(&host).copied().unwrap_or(0)
    }

    /// Whether any member lies anywhere.
    #[must_use]
    pub fn has_members(&self) -> bool {
        self.members.values().any(|count| *count > 0)
    }

    /// After one more member.
    pub fn add(&mut self, host: HostId, count: u64) {
        let members = self.members.entry(host).or_default();
        *members = members.saturating_add(count);
    }
}

/// What an image needs of a host; what it does not say, every host has.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct ImageNeeds {
    /// `hw_architecture`, in libvirt's words.
    pub architecture: Option<String>,
    /// `hypervisor_type`: `kvm` or `qemu`.
    pub virt_type: Option<String>,
}

/// What a volume needs that gets its host with the instance: room in a storage pool. Hosts that have it are in
/// [`Request::volume_hosts`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct VolumeRoom {
    /// The pool.
    pub pool: String,
    /// How much, in GiB.
    pub needed: u64,
    /// Of hosts whose pool has too little: what is free, and what the pool has. Others have no such pool.
    pub lacking: BTreeMap<HostId, (u64, u64)>,
    /// How it is stored.
    pub format: &'static str,
    /// Hosts whose pool holds nothing that is stored so.
    pub unfit: BTreeSet<HostId>,
}

/// Whether something is asked of a host.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Need {
    /// It does not matter.
    #[default]
    None,
    /// The host must have it.
    Asked,
}

/// What networks ask of a host.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct NetworkNeeds {
    /// Physical networks that the host must reach; all of them.
    pub physical_networks: BTreeSet<String>,
    /// VLANs.
    pub vlan: Need,
    /// VXLAN, with an address for it.
    pub vxlan: Need,
    /// Connection tracking in bridges: what port security needs.
    pub stateful_filter: Need,
}

impl NetworkNeeds {
    /// Nothing.
    pub const NONE: Self = Self {
        physical_networks: BTreeSet::new(),
        vlan: Need::None,
        vxlan: Need::None,
        stateful_filter: Need::None,
    };

    /// Whether every host will do.
    #[must_use]
    pub fn is_none(&self) -> bool {
        *self == Self::NONE
    }
}

/// The addresses that the `nat` networks of a request need for themselves on their host, whether its ports are in them or a router
/// joins them.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct NatNeeds {
    /// The addresses and their networks, in words; none: nothing is asked.
    pub asked: Vec<String>,
    /// The hosts on which another network has some of them, and which.
    pub taken: BTreeMap<HostId, Rejection>,
}

/// A network that a router joins to those of the ports: whoever has the ports has it too.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RoutedNetwork {
    /// The name of the router.
    pub router: String,
    /// The name of the network.
    pub network: String,
    /// What it needs.
    pub needs: NetworkNeeds,
}

/// A request for one instance: everything placement may know of it.
///
/// What is empty or `None` is not asked, and costs nothing.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Request {
    /// vCPUs, memory, disk.
    pub resources: Resources,
    /// Countable resources besides.
    pub countables: BTreeMap<ResourceClass, u64>,
    /// The availability zone.
    pub zone: Option<String>,
    /// Properties, key and value, that the host must have through its aggregates; all of them.
    pub properties: BTreeMap<String, String>,
    /// What the image needs.
    pub image: ImageNeeds,
    /// What the networks of its ports need.
    pub networks: NetworkNeeds,
    /// The networks that routers join to these, as far as they need anything.
    pub routed: Vec<RoutedNetwork>,
    /// What those of them need for themselves that are of type `nat`.
    pub nat: NatNeeds,
    /// The one host that will do.
    pub requested_host: Option<HostId>,
    /// Hosts of the instances it must be kept away from.
    pub different_hosts: BTreeSet<HostId>,
    /// Hosts of the instances it must lie beside: one of them. An empty set asks nothing: that none of the named
    /// instances has a host is for the caller to refuse.
    pub same_hosts: BTreeSet<HostId>,
    /// Its server group.
    pub group: Option<ServerGroup>,
    /// Hosts that reach its volume. None: it has no volume, or every host reaches it.
    pub volume_hosts: Option<BTreeSet<HostId>>,
    /// Why the others do not, if it is the room in a storage pool.
    pub volume_room: Option<VolumeRoom>,
    /// Hosts on which this very request has failed already.
    pub excluded_hosts: BTreeSet<HostId>,
    /// Decides between hosts that are equally good.
    pub seed: u64,
    /// When it is asked.
    pub now: Millis,
}

impl Request {
    /// A request for so much, and nothing else.
    #[must_use]
    pub const fn of(resources: Resources) -> Self {
        Self {
            resources,
            countables: BTreeMap::new(),
            zone: None,
            properties: BTreeMap::new(),
            image: ImageNeeds {
                architecture: None,
                virt_type: None,
            },
            networks: NetworkNeeds::NONE,
            routed: Vec::new(),
            nat: NatNeeds {
                asked: Vec::new(),
                taken: BTreeMap::new(),
            },
            requested_host: None,
            different_hosts: BTreeSet::new(),
            same_hosts: BTreeSet::new(),
            group: None,
            volume_hosts: None,
            volume_room: None,
            excluded_hosts: BTreeSet::new(),
            seed: 0,
            now: Millis(0),
        }
    }

    /// What the instance will take of its host.
    #[must_use]
    pub fn demand(&self) -> Demand {
        Demand {
            resources: self.resources,
            countables: self.countables.clone(),
        }
    }

    /// The one host that its volume is on.
    pub(super) fn host_of_volume(&self) -> Option<HostId> {
        let hosts = self.volume_hosts.as_ref()?;
        let only = hosts.first().copied();
        only.filter(|_| hosts.len() == 1 && self.volume_room.is_none())
    }

    /// The request once so many of its like were placed on a host: its group has grown.
    pub fn count_placed(&mut self, host: HostId, count: u64) {
        if let Some(group) = &mut self.group {
            group.add(host, count);
        }
    }
}

impl From<Flavor> for Request {
    fn from(flavor: Flavor) -> Self {
        Self::of(Resources::from(flavor))
    }
}
