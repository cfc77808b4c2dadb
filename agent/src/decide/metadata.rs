//! The metadata service as data: who asks, by the address the question comes from, and what is answered. Files and sockets are
//! [`crate::act::net`]'s and those of the program `berth-metadata`.
//!
//! Two files carry it from the agent to that program, which outlives the agent and reads them for every request: the sources
//! of each network, and for each instance all that can be asked for. A third one comes back: who claimed to be somebody else.
//!
//! Layouts: <https://docs.openstack.org/nova/latest/user/metadata.html> and
//! <https://docs.aws.amazon.com/AWSEC2/latest/UserGuide/instancedata-data-categories.html>.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
};

use berth_common::{
    document::{ConfigDrive, Document, InstanceSpec, NetworkPort, NetworkSpec},
    ids::{InstanceId, NetworkId, PortId},
    names::MacAddress,
};
use ipnet::{IpNet, Ipv4Net, Ipv6Net};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::{
    config_drive::{self, Subnets},
    dhcp,
};

/// Where guests look for it in IPv4.
pub const ADDRESS_V4: Ipv4Addr = Ipv4Addr::new(169, 254, 169, 254);
/// Where guests look for it in IPv6.
pub const ADDRESS_V6: Ipv6Addr = Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0xa9fe, 0xa9fe);
/// The port of both.
pub const PORT: u16 = 80;

/// The versions of EC2's layout, all answered alike.
const EC2_VERSIONS: [&str; 10] = [
    "1.0",
    "2007-01-19",
    "2007-03-01",
    "2007-08-29",
    "2007-10-10",
    "2007-12-15",
    "2008-02-01",
    "2008-09-01",
    "2009-04-04",
    LATEST,
];
/// The versions of OpenStack's layout, all answered alike.
const OPENSTACK_VERSIONS: [&str; 9] = [
    "2012-08-10",
    "2013-04-04",
    "2013-10-17",
    "2015-10-15",
    "2016-06-30",
    "2016-10-06",
    "2017-02-22",
    "2018-08-27",
    LATEST,
];
const LATEST: &str = "latest";
const OPENSTACK: &str = "openstack";

/// The addresses that the service has in each network's namespace.
#[must_use]
pub fn addresses() -> BTreeSet<IpNet> {
    [
        IpNet::V4(Ipv4Net::from(ADDRESS_V4)),
        IpNet::V6(Ipv6Net::new_assert(ADDRESS_V6, 64)),
    ]
    .into()
}

/// The address that a guest makes itself of its Ethernet address (RFC 4291, appendix A).
#[must_use]
pub fn link_local(mac: MacAddress) -> Ipv6Addr {
    with_interface_id(Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, 0), mac)
}

/// The address of a prefix of 64 bits that a guest makes itself of its Ethernet address.
#[must_use]
pub fn with_interface_id(prefix: Ipv6Addr, mac: MacAddress) -> Ipv6Addr {
    let [p0, p1, p2, p3, p4, p5, p6, p7, ..] = prefix.octets();
    let [a, b, c, d, e, f] = mac.octets();
    Ipv6Addr::from([
        p0,
        p1,
        p2,
        p3,
        p4,
        p5,
        p6,
        p7,
        a ^ 0x02,
        b,
        c,
        0xff,
        0xfe,
        d,
        e,
        f,
    ])
}

/// Whose questions come from which address.
pub type Sources = BTreeMap<IpAddr, InstanceId>;

/// Whose questions come from which address, of the ports of this host; empty without a subnet that is served.
#[must_use]
pub fn sources(spec: &NetworkSpec) -> Sources {
    let ports = spec.ports.iter();
    ports
        .flat_map(|port| {
            let addresses = addresses_of(spec, port).into_iter();
            addresses.map(|address| (address, port.instance_id))
        })
        .collect()
}

/// Where the questions of a port come from; nowhere, without a subnet that is served.
fn addresses_of(spec: &NetworkSpec, port: &NetworkPort) -> Vec<IpAddr> {
    let served: BTreeSet<_> = dhcp::served(spec).map(|(subnet, _)| subnet.id).collect();
    if served.is_empty() {
        return Vec::new();
    }
    let fixed = port.fixed_ips.iter();
    let fixed = fixed.filter(|fixed| served.contains(&fixed.subnet_id));
    let link_local = IpAddr::V6(link_local(port.mac_address));
    fixed
        .map(|fixed| fixed.ip_address)
        .chain([link_local])
        .collect()
}

/// Headers by which OpenStack's proxy tells its metadata service who asks. No proxy is between berth's and a guest, so whoever
/// sends one claims to be somebody.
pub const IDENTITY_HEADERS: [&str; 5] = [
    "X-Forwarded-For",
    "X-Instance-ID",
    "X-Instance-ID-Signature",
    "X-Remote-Address",
    "X-Tenant-ID",
];

/// Requests with identity headers that came from one address.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Forged {
    /// Whose address it was. Addresses are given again; what was counted of another instance is not this one's.
    pub instance: InstanceId,
    /// How many.
    pub requests: u64,
}

/// What a network's metadata service counted since it was started, by where it came from. Only known addresses are in it.
pub type ForgedCounts = BTreeMap<IpAddr, Forged>;

/// Requests with identity headers that came from one port.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PortForged {
    /// The port.
    pub port: PortId,
    /// The instance it belongs to.
    pub instance: InstanceId,
    /// How many, since the metadata service of its network was started.
    pub requests: u64,
}

/// How many requests with identity headers came from a port; `None`: no metadata service counts those of this port.
#[must_use]
pub fn forged_of(
    spec: &NetworkSpec,
    port: &NetworkPort,
    counted: Option<&ForgedCounts>,
) -> Option<u64> {
    let addresses = addresses_of(spec, port);
    let counted = counted.filter(|_| !addresses.is_empty())?;
    let own = addresses.iter().filter_map(|address| counted.get(address));
    let own = own.filter(|forged| forged.instance == port.instance_id);
    Some(own.fold(0, |sum, forged| sum.saturating_add(forged.requests)))
}

/// The same of all ports that documents name.
#[must_use]
pub fn forged<'a>(
    counted: &BTreeMap<NetworkId, ForgedCounts>,
    documents: impl Iterator<Item = &'a Document>,
) -> Vec<PortForged> {
    let networks = documents.filter_map(|document| match document {
        Document::Network(wish) => Some((counted.get(&wish.id)?, wish.spec.as_ref()?)),
        _ => None,
    });
    networks
        .flat_map(|(counted, spec)| {
            spec.ports.iter().filter_map(move |port| {
                Some(PortForged {
                    port: port.id,
                    instance: port.instance_id,
                    requests: forged_of(spec, port, Some(counted))?,
                })
            })
        })
        .collect()
}

/// The same as text: what lies beside the network's other files.
#[must_use]
pub fn sources_text(spec: &NetworkSpec) -> String {
    json!(sources(spec)).to_string()
}

/// Everything an instance can ask for, by path, `latest` standing for every version. A path that ends in a slash is what is
/// answered for that directory; the others are answered with what is in them.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(transparent)]
pub struct GuestFiles(BTreeMap<String, String>);

/// What is answered.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Answer<T> {
    /// Of which kind it is, as HTTP says it.
    pub content_type: &'static str,
    /// The answer.
    pub content: T,
}

/// All that an instance can ask for, as text.
#[must_use]
pub fn guest_text(id: InstanceId, spec: &InstanceSpec, subnets: &Subnets) -> String {
    json!(GuestFiles::of(id, spec, subnets).0).to_string()
}

impl GuestFiles {
    /// What an instance can ask for: the same as on its config drive, whether it has one or not.
    #[must_use]
    pub fn of(id: InstanceId, spec: &InstanceSpec, subnets: &Subnets) -> Self {
        let nothing = ConfigDrive::default();
        let told = spec.config_drive.as_ref().or(spec.guest_data.as_ref());
        let told = told.unwrap_or(&nothing);
        let mut files: BTreeMap<String, String> = config_drive::files(id, spec, told, subnets)
            .into_iter()
            .filter_map(|file| {
                let path = match file.path {
                    "ec2/latest/user-data" => "latest/user-data",
                    path => path.starts_with(OPENSTACK).then_some(path)?,
                };
                Some((path.to_owned(), file.content))
            })
            .collect();
        let mut meta_data = config_drive::ec2(id, spec, told);
        // Each key has a number and a name; it is asked for by the number.
        if let Some(Value::Object(keys)) = meta_data
            .as_object_mut()
            .and_then(|tree| tree.remove("public-keys"))
            .filter(|keys| keys.as_object().is_some_and(|keys| !keys.is_empty()))
        {
            let names: Vec<&str> = keys.keys().map(String::as_str).collect();
            files.insert("latest/meta-data/public-keys/".to_owned(), names.join("\n"));
            for (name, key) in &keys {
                let number = name.split('=').next().unwrap_or_default();
                flatten(
                    &format!("latest/meta-data/public-keys/{number}"),
                    key,
                    &mut files,
                );
            }
        }
        flatten("latest/meta-data", &meta_data, &mut files);
        Self(files)
    }

    /// What is answered to a question for this path; `None`: there is no such thing.
    #[must_use]
    pub fn answer(&self, path: &str) -> Option<Answer<String>> {
        let parts: Vec<&str> = path.split('/').filter(|part| !part.is_empty()).collect();
        let text = |content| {
            Some(Answer {
                content_type: "text/plain; charset=utf-8",
                content,
            })
        };
        let key = match parts.as_slice() {
            [] => return text(EC2_VERSIONS.join("\n")),
            [OPENSTACK] => return text(OPENSTACK_VERSIONS.join("\n")),
            [OPENSTACK, version, rest @ ..] if OPENSTACK_VERSIONS.contains(version) => {
                [&[OPENSTACK, LATEST], rest].concat().join("/")
            }
            [version, rest @ ..] if EC2_VERSIONS.contains(version) => {
                [&[LATEST], rest].concat().join("/")
            }
            _ => return None,
        };
        if let Some(content) = self.0.get(&key) {
            let content = content.clone();
            return if key.ends_with(".json") {
                Some(Answer {
                    content_type: "application/json",
                    content,
                })
            } else {
                text(content)
            };
        }
        text(self.listing(&format!("{key}/"))?)
    }

    /// What is in a directory.
    fn listing(&self, directory: &str) -> Option<String> {
        if let Some(said) = self.0.get(directory) {
            return Some(said.clone());
        }
        let below = self.0.range(directory.to_owned()..);
        let names: BTreeSet<String> = below
            .map_while(|(path, _)| path.strip_prefix(directory))
            .map(|rest| match rest.split_once('/') {
                Some((name, _)) => format!("{name}/"),
                None => rest.to_owned(),
            })
            .collect();
        let names: Vec<String> = names.into_iter().collect();
        (!names.is_empty()).then(|| names.join("\n"))
    }
}

/// Writes a tree as one file for each leaf. What is not known has none.
fn flatten(path: &str, value: &Value, files: &mut BTreeMap<String, String>) {
    match value {
        Value::Null => {}
        Value::Object(tree) => {
            for (name, value) in tree {
                flatten(&format!("{path}/{name}"), value, files);
            }
        }
        Value::String(text) => drop(files.insert(path.to_owned(), text.clone())),
        other => drop(files.insert(path.to_owned(), other.to_string())),
    }
}

#[cfg(test)]
mod tests;
