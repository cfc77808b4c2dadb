//! A decision in words: for operators, who may know every host, and for tenants, who may know none.

use std::fmt::{self, Write as _};

use berth_common::message::placement::Points;

use super::{
    amounts::Words,
    decision::Decision,
    filter::FilterName,
    request::{Need, NetworkNeeds, Request},
    table::HostTable,
};

impl Request {
    /// What is asked besides vCPUs, memory and disk, each in a few words, for operators: it may name a host.
    pub(super) fn constraints(&self, table: &HostTable) -> Vec<String> {
        let mut words = Vec::new();
        for (class, amount) in &self.countables {
            words.push(format!("{amount} {class}"));
        }
        if let Some(zone) = &self.zone {
            words.push(format!("availability zone {zone}"));
        }
        for (key, value) in &self.properties {
            words.push(format!("property {key} = {value}"));
        }
        if let Some(architecture) = &self.image.architecture {
            words.push(format!("architecture {architecture}"));
        }
        if let Some(virt_type) = &self.image.virt_type {
            words.push(format!("hypervisor type {virt_type}"));
        }
        if let Some(host) = self.requested_host {
            let name = table.host(host).map(|host| &host.facts().name);
            words.push(name.map_or_else(|| format!("host {host}"), |name| format!("host {name}")));
        }
        let hosts = |count| match count {
            1 => "1 host".to_owned(),
            count => format!("{count} hosts"),
        };
        if !self.different_hosts.is_empty() {
            words.push(format!("away from {}", hosts(self.different_hosts.len())));
        }
        if !self.same_hosts.is_empty() {
            words.push(format!("on one of {}", hosts(self.same_hosts.len())));
        }
        if let Some(group) = &self.group {
            let mut text = format!("server group with {}", group.policy.as_str());
            if let Some(limit) = group.max_per_host {
                // Writing to a string does not fail.
                let _ = write!(text, ", at most {limit} on a host");
            }
            words.push(text);
        }
        if let Some(room) = &self.volume_room {
            words.push(format!(
                "{} GB in storage pool {} for a volume",
                room.needed, room.pool
            ));
        } else if let Some(reaching) = &self.volume_hosts {
            words.push(format!("a volume that {} can reach", hosts(reaching.len())));
        }
        words.extend(self.networks.words());
        for routed in &self.routed {
            let needs: Vec<String> = routed.needs.words().collect();
            words.push(format!(
                "{} for network {} of router {}",
                needs.join(", "),
                routed.network,
                routed.router
            ));
        }
        words.extend(self.nat.asked.iter().cloned());
        if !self.excluded_hosts.is_empty() {
            words.push(format!("not again on {}", hosts(self.excluded_hosts.len())));
        }
        words
    }
}

impl NetworkNeeds {
    fn words(&self) -> impl Iterator<Item = String> {
        let networks = self.physical_networks.iter();
        let kinds = [
            (self.vlan, "VLANs"),
            (self.vxlan, "VXLAN"),
            (self.stateful_filter, "port security"),
        ];
        let kinds = kinds.into_iter().filter(|(need, _)| *need == Need::Asked);
        networks
            .map(|network| format!("physical network {network}"))
            .chain(kinds.map(|(_, kind)| kind.to_owned()))
    }
}

impl FilterName {
    /// Why nothing was found when the nearest host failed this filter, naming no host and no number of hosts.
    const fn for_tenants(self) -> &'static str {
        match self {
            Self::Enabled => "no host takes new instances at present",
            Self::Alive => "no host that takes new instances is available at present",
            Self::Cpu => "not enough vCPUs are free on any host that fits otherwise",
            Self::Ram => "not enough memory is free on any host that fits otherwise",
            Self::Disk => "not enough disk is free on any host that fits otherwise",
            Self::CountableResources => {
                "no host that fits otherwise has enough of the further resources that are asked for"
            }
            Self::AvailabilityZone => "no host that fits otherwise is in the availability zone",
            Self::AggregateProperties => {
                "no host that fits otherwise has the properties that the flavor asks for"
            }
            Self::ImageProperties => "no host that fits otherwise can run the image",
            Self::RequestedHost => "the requested host does not fit",
            Self::DifferentHost => {
                "every host that fits otherwise holds an instance that this one shall be kept away from"
            }
            Self::SameHost => {
                "no host of the instances that this one shall lie beside fits otherwise"
            }
            Self::ServerGroup => {
                "the policy of the server group leaves no host that fits otherwise"
            }
            Self::VolumeLocality => "no host that fits otherwise can reach the volume",
            Self::NetworkReachability => {
                "no host that fits otherwise can build the networks of its ports"
            }
            Self::FailedRecently => {
                "building has failed lately on every host that fits otherwise; try again later"
            }
        }
    }
}

impl Decision {
    /// For operators, on one line, naming hosts: `No valid host was found for 4 vCPU, 8192 MB of memory, 20 GB of
    /// disk: 2 hosts; enabled removed 1; ram removed 1; nearest miss hv1: needs 8192 MB of memory, 512 free of 4096,
    /// 7680 missing`.
    #[must_use]
    pub fn operator_text(&self) -> String {
        self.to_string()
    }

    /// For tenants, on one line, naming no host. No number of hosts is in it either: whether tenants learn how many
    /// each filter removed is for the caller to say.
    #[must_use]
    pub fn tenant_text(&self) -> String {
        let asked = Words(&self.asked.resources);
        if self.chosen.is_some() {
            return format!("A host was found for {asked}");
        }
        let why = match self.nearest.first() {
            None => "no host is available at present",
            Some(nearest) => nearest.filter.for_tenants(),
        };
        format!("No valid host was found for {asked}: {why}")
    }
}

impl fmt::Display for Decision {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let asked = Words(&self.asked.resources);
        match &self.chosen {
            Some(chosen) => write!(f, "{} was chosen for {asked}: ", chosen.host)?,
            None => write!(f, "No valid host was found for {asked}: ")?,
        }
        match self.hosts {
            0 => return f.write_str("no host has ever sent a heartbeat"),
            1 => f.write_str("1 host")?,
            hosts => write!(f, "{hosts} hosts")?,
        }
        for removed in self.filters.iter().filter(|removed| removed.hosts > 0) {
            write!(f, "; {} removed {}", removed.filter, removed.hosts)?;
        }
        if let Some(chosen) = &self.chosen {
            write!(f, "; score {}", Points(chosen.score))?;
            if let Some(runner_up) = &self.runner_up {
                write!(
                    f,
                    "; runner-up {} with {}",
                    runner_up.host,
                    Points(runner_up.score)
                )?;
            }
        } else if let Some(near) = self.nearest.first() {
            write!(f, "; nearest miss {}: {}", near.host, near.rejection)?;
        }
        Ok(())
    }
}
