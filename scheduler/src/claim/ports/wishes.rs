//! What is wanted of a port, as far as it can be judged without looking at any row.

use std::net::IpAddr;

use berth_common::{
    document::{AddressPair, BandwidthLimit, PortMirror, PortQos},
    message::request::NetworkAttachment,
};

/// The most security groups of a port.
pub const MAX_GROUPS: usize = 16;
/// The most allowed address pairs of a port.
pub const MAX_PAIRS: usize = 16;
/// The most mirrors of a port.
pub const MAX_MIRRORS: usize = 4;
/// The group that ports have unless others are named.
const DEFAULT: [&str; 1] = ["default"];

/// What a request says of the security of a new port.
#[derive(Debug, Clone, Copy)]
pub struct SecurityWish<'a> {
    /// Whether groups and pairs hold.
    pub port_security_enabled: bool,
    /// Its groups, by id or name; none named: the project's group `default`.
    pub security_groups: Option<&'a [String]>,
}

impl<'a> SecurityWish<'a> {
    /// The groups that the port gets.
    pub fn groups(self) -> impl Iterator<Item = &'a str> {
        let default = self.security_groups.is_none() && self.port_security_enabled;
        let named = self.security_groups.unwrap_or_default().iter();
        let default = DEFAULT.into_iter().filter(move |_| default);
        named.map(String::as_str).chain(default)
    }

    /// What is wrong with it.
    #[must_use]
    pub fn mistakes(self) -> Vec<String> {
        let named = self.security_groups.unwrap_or_default();
        let mut mistakes = Vec::new();
        if !self.port_security_enabled && !named.is_empty() {
            mistakes.push(
                "security_groups need port security; leave them away, or leave port_security_enabled on".to_owned(),
            );
        }
        mistakes.extend(too_many("security_groups", named.len(), MAX_GROUPS));
        mistakes
    }
}

/// More of something than may be.
#[must_use]
pub fn too_many(what: &str, count: usize, most: usize) -> Option<String> {
    (count > most).then(|| format!("{what} must be at most {most}; got {count}"))
}

/// What is wrong with allowed address pairs.
#[must_use]
pub fn pair_mistakes(pairs: &[AddressPair]) -> Vec<String> {
    let mut mistakes = Vec::new();
    mistakes.extend(too_many("allowed_address_pairs", pairs.len(), MAX_PAIRS));
    for (at, pair) in pairs.iter().enumerate() {
        if pairs.iter().take(at).any(|other| other == pair) {
            mistakes.push(format!(
                "{} is in allowed_address_pairs twice",
                pair.ip_address
            ));
        }
        let net = pair.ip_address.net();
        let is_multicast = match net.network() {
            IpAddr::V4(address) => address.is_multicast(),
            IpAddr::V6(address) => address.is_multicast(),
        };
        if is_multicast {
            mistakes.push(format!(
                "{} in allowed_address_pairs is multicast, which nobody sends from",
                pair.ip_address
            ));
        }
    }
    mistakes
}

/// What is wrong with limits of bandwidth.
#[must_use]
pub fn qos_mistakes(qos: &PortQos) -> Vec<String> {
    let zero = |name: &str, limit: Option<BandwidthLimit>| {
        limit.filter(|limit| limit.max_kbps == 0).map(|_| {
            format!("{name}.max_kbps must be at least 1; admin_state_up false stops all traffic")
        })
    };
    let both = [
        zero("qos.egress", qos.egress),
        zero("qos.ingress", qos.ingress),
    ];
    both.into_iter().flatten().collect()
}

/// What is wrong with mirrors.
#[must_use]
pub fn mirror_mistakes(mirrors: &[PortMirror]) -> Vec<String> {
    let mut mistakes = Vec::new();
    mistakes.extend(too_many("mirrors", mirrors.len(), MAX_MIRRORS));
    for (at, mirror) in mirrors.iter().enumerate() {
        if mirrors.iter().take(at).any(|other| other.to == mirror.to) {
            mistakes.push("mirrors name one target twice; say direction both".to_owned());
        }
    }
    mistakes
}

/// What is wrong with the ports of a new instance.
#[must_use]
pub fn attachment_mistakes(attachments: &[NetworkAttachment]) -> Vec<String> {
    let mut mistakes = Vec::new();
    for (at, attachment) in attachments.iter().enumerate() {
        let has_more = attachment.ip_address.is_some()
            || attachment.mac_address.is_some()
            || attachment.security_groups.is_some()
            || attachment.port_security_enabled.is_some();
        match (&attachment.port, attachment.network.as_str()) {
            (None, "") => mistakes.push(format!("networks[{at}] must name a network or a port")),
            (None, _) => {}
            (Some(_), "") if !has_more => {}
            (Some(_), "") => mistakes.push(format!(
                "networks[{at}] names a port, which has its addresses and its security already; set them there"
            )),
            (Some(_), _) => mistakes.push(format!(
                "networks[{at}] names a network and a port; name one of them"
            )),
        }
        let wish = SecurityWish {
            port_security_enabled: attachment.port_security_enabled.unwrap_or(true),
            security_groups: attachment.security_groups.as_deref(),
        };
        let of_this = wish.mistakes().into_iter();
        mistakes.extend(of_this.map(|mistake| format!("networks[{at}]: {mistake}")));
    }
    mistakes
}
