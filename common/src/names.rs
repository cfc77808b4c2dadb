//! Names people give to things, and other short texts with a grammar.
//!
//! A name ends up in file names, DHCP leases, XML and terminals. So the grammar admits only what is harmless in
//! all of them, and a name that does not fit is refused where it enters.

use std::{borrow::Cow, fmt, net::IpAddr, str::FromStr};

use ipnet::IpNet;

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

/// A text did not follow the grammar of its type.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{what} {expected}; got {got:?}")]
pub struct InvalidText {
    /// What was read.
    pub what: &'static str,
    /// What would be right.
    pub expected: &'static str,
    /// What was found, cut to a readable length.
    pub got: String,
}

fn invalid(what: &'static str, expected: &'static str, got: &str) -> InvalidText {
    InvalidText {
        what,
        expected,
        got: got.chars().take(80).collect(),
    }
}

macro_rules! text_types {
    ($($(#[$doc:meta])* $name:ident, $what:literal, $expected:literal, pattern $pattern:literal, $valid:expr;)*) => {$(
        $(#[$doc])*
        #[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
        #[serde(try_from = "String", into = "String")]
        pub struct $name(String);

        impl $name {
            /// The text.
            #[must_use]
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl TryFrom<String> for $name {
            type Error = InvalidText;
            fn try_from(text: String) -> Result<Self, InvalidText> {
                let valid: fn(&str) -> bool = $valid;
                if valid(&text) { Ok(Self(text)) } else { Err(invalid($what, $expected, &text)) }
            }
        }

        impl FromStr for $name {
            type Err = InvalidText;
            fn from_str(text: &str) -> Result<Self, InvalidText> {
                Self::try_from(text.to_owned())
            }
        }

        impl From<$name> for String {
            fn from(name: $name) -> String {
                name.0
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.pad(&self.0)
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "{:?}", self.0)
            }
        }

        impl JsonSchema for $name {
            fn inline_schema() -> bool {
                true
            }
            fn schema_name() -> Cow<'static, str> {
                Cow::Borrowed(stringify!($name))
            }
            fn json_schema(_: &mut SchemaGenerator) -> Schema {
                json_schema!({ "type": "string", "pattern": $pattern })
            }
        }
    )*};
}

/// One DNS label: letters, digits and inner hyphens, at most 63.
fn is_label(text: &str) -> bool {
    (1..=63).contains(&text.len())
        && text
            .bytes()
            .all(|byte| byte.is_ascii_alphanumeric() || byte == b'-')
        && !text.starts_with('-')
        && !text.ends_with('-')
}

fn is_word(text: &str) -> bool {
    (1..=63).contains(&text.len())
        && text
            .bytes()
            .all(|byte| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte))
        && text
            .bytes()
            .next()
            .is_some_and(|byte| byte.is_ascii_alphanumeric())
}

/// `ssh-ed25519 AAAA… comment`.
fn is_public_key(text: &str) -> bool {
    let mut words = text.splitn(3, ' ');
    let (kind, key) = (words.next().unwrap_or(""), words.next().unwrap_or(""));
    let is_kind = ["ssh-", "ecdsa-", "sk-"].iter().any(|prefix| {
        kind.strip_prefix(prefix)
            .is_some_and(|rest| !rest.is_empty())
    }) && kind
        .bytes()
        .all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit() || b"@.-".contains(&byte));
    let is_key = !key.is_empty()
        && key
            .bytes()
            .all(|byte| byte.is_ascii_alphanumeric() || b"+/=".contains(&byte));
    text.len() <= 16_384 && is_kind && is_key && !text.chars().any(char::is_control)
}

text_types! {
    /// Name of an instance; also its host name inside its network, hence one DNS label.
    InstanceName, "an instance name",
        "must be 1 to 63 letters, digits and hyphens, with no hyphen at either end (it becomes the guest's host name)",
        pattern "^[A-Za-z0-9]([A-Za-z0-9-]{0,61}[A-Za-z0-9])?$", is_label;
    /// Name of a network, unique in its project.
    NetworkName, "a network name",
        "must be 1 to 63 letters, digits, '.', '_' and '-', starting with a letter or digit",
        pattern "^[A-Za-z0-9][A-Za-z0-9._-]{0,62}$", is_word;
    /// Name of a volume, unique among its project's living volumes.
    VolumeName, "a volume name",
        "must be 1 to 63 letters, digits, '.', '_' and '-', starting with a letter or digit",
        pattern "^[A-Za-z0-9][A-Za-z0-9._-]{0,62}$", is_word;
    /// Name of a storage pool of a host: where volumes lie. Every host has the pool `local`.
    PoolName, "the name of a storage pool",
        "must be 1 to 32 lower-case letters, digits, '-' and '_', starting with a letter",
        pattern "^[a-z][a-z0-9_-]{0,31}$",
        |text| (1..=32).contains(&text.len())
            && text.bytes().all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit() || b"-_".contains(&byte))
            && text.bytes().next().is_some_and(|byte| byte.is_ascii_lowercase());
    /// Name of a snapshot, unique among its project's living snapshots.
    SnapshotName, "a snapshot name",
        "must be 1 to 63 letters, digits, '.', '_' and '-', starting with a letter or digit",
        pattern "^[A-Za-z0-9][A-Za-z0-9._-]{0,62}$", is_word;
    /// Name of a project, the owner of resources.
    ProjectName, "a project name",
        "must be 1 to 63 letters, digits, '.', '_' and '-', starting with a letter or digit",
        pattern "^[A-Za-z0-9][A-Za-z0-9._-]{0,62}$", is_word;
    /// Name of a host aggregate, unique.
    AggregateName, "an aggregate name",
        "must be 1 to 63 letters, digits, '.', '_' and '-', starting with a letter or digit",
        pattern "^[A-Za-z0-9][A-Za-z0-9._-]{0,62}$", is_word;
    /// Name of a public key.
    KeyName, "the name of a key",
        "must be 1 to 63 letters, digits, '.', '_' and '-', starting with a letter or digit",
        pattern "^[A-Za-z0-9][A-Za-z0-9._-]{0,62}$", is_word;
    /// A public key for SSH, as it stands in `authorized_keys`: type, key, and perhaps a comment.
    PublicKey, "a public key",
        "must be one line like `ssh-ed25519 AAAA… comment`, at most 16384 characters",
        pattern "^(ssh|ecdsa|sk)-[a-z0-9@.-]+ [A-Za-z0-9+/=]+( [^\\x00-\\x1f]*)?$", is_public_key;
    /// What cloud-init does at the first boot.
    UserData, "user data",
        "must be 1 to 65535 bytes of text without NUL",
        pattern "^[^\\x00]{1,65535}$",
        |text| (1..=65_535).contains(&text.len()) && !text.contains('\0');
    /// Name of an availability zone: what an aggregate says of its hosts, as in Nova.
    ZoneName, "an availability zone",
        "must be 1 to 63 letters, digits, '.', '_' and '-', starting with a letter or digit",
        pattern "^[A-Za-z0-9][A-Za-z0-9._-]{0,62}$", is_word;
    /// Name of a server group, unique in its project.
    ServerGroupName, "a server group name",
        "must be 1 to 63 letters, digits, '.', '_' and '-', starting with a letter or digit",
        pattern "^[A-Za-z0-9][A-Za-z0-9._-]{0,62}$", is_word;
    /// Name of a subnet, unique in its network.
    SubnetName, "a subnet name",
        "must be 1 to 63 letters, digits, '.', '_' and '-', starting with a letter or digit",
        pattern "^[A-Za-z0-9][A-Za-z0-9._-]{0,62}$", is_word;
    /// Name of a port, unique in its project.
    PortName, "a port name",
        "must be 1 to 63 letters, digits, '.', '_' and '-', starting with a letter or digit",
        pattern "^[A-Za-z0-9][A-Za-z0-9._-]{0,62}$", is_word;
    /// Name of a security group, unique in its project.
    SecurityGroupName, "a security group name",
        "must be 1 to 63 letters, digits, '.', '_' and '-', starting with a letter or digit",
        pattern "^[A-Za-z0-9][A-Za-z0-9._-]{0,62}$", is_word;
    /// Name of a router, unique in its project.
    RouterName, "a router name",
        "must be 1 to 63 letters, digits, '.', '_' and '-', starting with a letter or digit",
        pattern "^[A-Za-z0-9][A-Za-z0-9._-]{0,62}$", is_word;
    /// Name of a link of the host, as the kernel takes it.
    LinkName, "the name of a link",
        "must be 1 to 15 letters, digits, '.', '_' and '-', starting with a letter or digit, like eth0",
        pattern "^[A-Za-z0-9][A-Za-z0-9._-]{0,14}$", |text| is_word(text) && text.len() <= 15;
    /// Name of a physical network: what a hypervisor's NIC is plugged into, as in Neutron.
    PhysicalNetworkName, "a physical network name",
        "must be 1 to 63 letters, digits, '.', '_' and '-', starting with a letter or digit",
        pattern "^[A-Za-z0-9][A-Za-z0-9._-]{0,62}$", is_word;
    /// A countable resource that only some hosts have, as Placement names its custom resource classes: `HUGEPAGES_2048K`,
    /// `PCI_GPU`.
    ResourceClass, "a resource class",
        "must be 1 to 63 upper-case letters, digits and '_', starting with a letter",
        pattern "^[A-Z][A-Z0-9_]{0,62}$",
        |text| (1..=63).contains(&text.len())
            && text.bytes().all(|byte| byte.is_ascii_uppercase() || byte.is_ascii_digit() || byte == b'_')
            && text.bytes().next().is_some_and(|byte| byte.is_ascii_uppercase());
    /// Name of a property that an aggregate gives its hosts.
    PropertyKey, "the name of a property",
        "must be 1 to 63 letters, digits, '.', '_' and '-', starting with a letter or digit",
        pattern "^[A-Za-z0-9][A-Za-z0-9._-]{0,62}$", is_word;
    /// Value of a property that an aggregate gives its hosts.
    PropertyValue, "the value of a property",
        "must be 1 to 255 printable ASCII characters",
        pattern "^[ -~]{1,255}$",
        |text| (1..=255).contains(&text.len())
            && text.bytes().all(|byte| byte == b' ' || byte.is_ascii_graphic());
    /// Host name of a hypervisor: a label for people and the name of its queue; its identity is a `HostId`.
    HostName, "a host name",
        "must be a DNS name: labels of letters, digits and hyphens joined by dots, at most 200 characters",
        pattern "^[A-Za-z0-9-]{1,63}(\\.[A-Za-z0-9-]{1,63})*$",
        |text| text.len() <= 200 && text.split('.').all(is_label);
    /// SHA-256 of an image, in lower-case hex: the identity of its content.
    ImageSha256, "an image's sha256",
        "must be 64 lower-case hexadecimal digits, as `sha256sum` prints them",
        pattern "^[0-9a-f]{64}$",
        |text| text.len() == 64 && text.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'));
    /// Where an image is fetched from.
    ImageUrl, "an image URL",
        "must be file:///absolute/path, http://… or https://…, of at most 2048 printable characters without spaces",
        pattern "^(file:///|https?://)[!-~]+$",
        |text| text.len() <= 2048
            && text.bytes().all(|byte| byte.is_ascii_graphic())
            && ["file:///", "http://", "https://"].iter().any(|scheme| {
                text.strip_prefix(scheme).is_some_and(|rest| !rest.is_empty())
            });
}

impl Default for ProjectName {
    fn default() -> Self {
        Self("default".to_owned())
    }
}

impl PoolName {
    /// The pool that every host has: files on the disk of its agent's state.
    pub const LOCAL: &'static str = "local";

    /// Whether it is the pool that every host has. What lies there takes of the host's disk, which instances take of as
    /// well; any other pool has room of its own, whether it is of files or of block devices.
    #[must_use]
    pub fn is_local(&self) -> bool {
        self.0 == Self::LOCAL
    }
}

impl Default for PoolName {
    fn default() -> Self {
        Self(Self::LOCAL.to_owned())
    }
}

impl ZoneName {
    /// The zone of hosts that no aggregate puts into another one: `nova`, as in Nova.
    #[must_use]
    pub fn nova() -> Self {
        Self("nova".to_owned())
    }
}

/// A 48-bit Ethernet address of one interface: never multicast, never all zero.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct MacAddress([u8; 6]);

impl MacAddress {
    const EXPECTED: &'static str = "must be six hexadecimal pairs with colons, of one interface (the first octet is even), like 52:54:00:12:34:56";

    /// The address with these octets.
    ///
    /// # Errors
    /// Multicast addresses (odd first octet) and the zero address are refused.
    pub fn from_octets(octets: [u8; 6]) -> Result<Self, InvalidText> {
        if octets[0] & 1 == 1 || octets == [0; 6] {
            let text = octets.map(|octet| format!("{octet:02x}")).join(":");
            return Err(invalid("a MAC address", Self::EXPECTED, &text));
        }
        Ok(Self(octets))
    }

    /// A locally administered address derived from a seed, in QEMU's usual range `52:54:00`.
    #[must_use]
    pub fn derived(seed: &[u8]) -> Self {
        let digest = Sha256::digest(seed);
        Self([0x52, 0x54, 0x00, digest[0], digest[1], digest[2]])
    }

    /// An address of a link of berth's own, derived from a seed: `02:` and 40 bits of a digest. It is locally administered, and in none of
    /// the ranges that ports get theirs from. Of 10,000 in one network two are the same in one of 20,000 installations.
    #[must_use]
    pub fn of_own_link(seed: &[u8]) -> Self {
        let digest = Sha256::digest(seed);
        Self([0x02, digest[0], digest[1], digest[2], digest[3], digest[4]])
    }

    /// The six octets.
    #[must_use]
    pub const fn octets(self) -> [u8; 6] {
        self.0
    }
}

impl FromStr for MacAddress {
    type Err = InvalidText;
    fn from_str(text: &str) -> Result<Self, InvalidText> {
        let refuse = || invalid("a MAC address", Self::EXPECTED, text);
        let mut octets = [0_u8; 6];
        let mut parts = text.split(':');
        for octet in &mut octets {
            let part = parts
                .next()
                .filter(|part| part.len() == 2)
                .ok_or_else(refuse)?;
            if !part.bytes().all(|byte| byte.is_ascii_hexdigit()) {
                return Err(refuse());
            }
            *octet = u8::from_str_radix(part, 16).map_err(|_| refuse())?;
        }
        if parts.next().is_some() {
            return Err(refuse());
        }
        Self::from_octets(octets)
    }
}

impl TryFrom<String> for MacAddress {
    type Error = InvalidText;
    fn try_from(text: String) -> Result<Self, InvalidText> {
        text.parse()
    }
}

impl From<MacAddress> for String {
    fn from(mac: MacAddress) -> String {
        mac.to_string()
    }
}

impl fmt::Display for MacAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&self.0.map(|octet| format!("{octet:02x}")).join(":"))
    }
}

impl fmt::Debug for MacAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{self}")
    }
}

impl JsonSchema for MacAddress {
    fn inline_schema() -> bool {
        true
    }
    fn schema_name() -> Cow<'static, str> {
        Cow::Borrowed("MacAddress")
    }
    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({ "type": "string", "pattern": "^([0-9a-f]{2}:){5}[0-9a-f]{2}$", "description": "unicast MAC address" })
    }
}

/// A subnet by its network address: of IPv4, like `10.0.0.0/24`, with a prefix of 8 to 29 bits; or of IPv6, like `fd00:1::/64`, with
/// one of 16 to 125 bits.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Cidr(IpNet);

impl Cidr {
    /// The network as `ipnet` sees it.
    #[must_use]
    pub const fn net(self) -> IpNet {
        self.0
    }

    /// Whether it is of IPv6.
    #[must_use]
    pub const fn is_ipv6(self) -> bool {
        matches!(self.0, IpNet::V6(_))
    }

    /// Whether the address can belong to one machine of this subnet. The first address of an IPv6 subnet is every router's (RFC
    /// 4291, 2.6.1).
    #[must_use]
    pub fn is_host_address(self, address: IpAddr) -> bool {
        let is_broadcast = matches!(self.0, IpNet::V4(net) if address == net.broadcast());
        self.0.contains(&address) && address != self.0.network() && !is_broadcast
    }
}

impl FromStr for Cidr {
    type Err = InvalidText;
    fn from_str(text: &str) -> Result<Self, InvalidText> {
        const EXPECTED: &str = "must be an IPv4 network address with a prefix of 8 to 29 bits and no host bits set, like 10.0.0.0/24, or an IPv6 one with a prefix of 16 to 125 bits, like fd00:1::/64";
        let refuse = || invalid("a subnet's CIDR", EXPECTED, text);
        let net: IpNet = text.parse().map_err(|_| refuse())?;
        let first = net.network();
        let prefixes = match net {
            IpNet::V4(_) => 8..=29,
            IpNet::V6(_) => 16..=125,
        };
        let is_link_local = matches!(net, IpNet::V6(net) if net.network().is_unicast_link_local());
        let usable = !first.is_multicast()
            && !first.is_loopback()
            && !first.is_unspecified()
            && !is_link_local;
        if net.trunc() != net || !prefixes.contains(&net.prefix_len()) || !usable {
            return Err(refuse());
        }
        Ok(Self(net))
    }
}

impl TryFrom<String> for Cidr {
    type Error = InvalidText;
    fn try_from(text: String) -> Result<Self, InvalidText> {
        text.parse()
    }
}

impl From<Cidr> for String {
    fn from(cidr: Cidr) -> String {
        cidr.to_string()
    }
}

impl fmt::Display for Cidr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&self.0.to_string())
    }
}

impl fmt::Debug for Cidr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{self}")
    }
}

impl JsonSchema for Cidr {
    fn inline_schema() -> bool {
        true
    }
    fn schema_name() -> Cow<'static, str> {
        Cow::Borrowed("Cidr")
    }
    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({ "type": "string", "pattern": "^[0-9a-f.:]+/[0-9]+$", "description": "IPv4 subnet, prefix 8 to 29, or IPv6 subnet, prefix 16 to 125" })
    }
}

/// Any addresses that begin with the same bits: `0.0.0.0/0`, `10.0.0.7/32`, `2001:db8::/32`. One address may be written without
/// its prefix.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct IpPrefix(IpNet);

impl IpPrefix {
    /// The network as `ipnet` sees it.
    #[must_use]
    pub const fn net(self) -> IpNet {
        self.0
    }

    /// Whether it is of IPv6.
    #[must_use]
    pub const fn is_ipv6(self) -> bool {
        matches!(self.0, IpNet::V6(_))
    }
}

impl From<IpAddr> for IpPrefix {
    fn from(address: IpAddr) -> Self {
        Self(IpNet::from(address))
    }
}

impl FromStr for IpPrefix {
    type Err = InvalidText;
    fn from_str(text: &str) -> Result<Self, InvalidText> {
        const EXPECTED: &str = "must be an address with a prefix and no host bits set, like 10.0.0.0/24 or 2001:db8::/32, or one address";
        let refuse = || invalid("a range of addresses", EXPECTED, text);
        if let Ok(address) = text.parse::<IpAddr>() {
            return Ok(address.into());
        }
        let net: IpNet = text.parse().map_err(|_| refuse())?;
        if net.trunc() != net {
            return Err(refuse());
        }
        Ok(Self(net))
    }
}

impl TryFrom<String> for IpPrefix {
    type Error = InvalidText;
    fn try_from(text: String) -> Result<Self, InvalidText> {
        text.parse()
    }
}

impl From<IpPrefix> for String {
    fn from(prefix: IpPrefix) -> String {
        prefix.to_string()
    }
}

impl fmt::Display for IpPrefix {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&self.0.to_string())
    }
}

impl fmt::Debug for IpPrefix {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{self}")
    }
}

impl JsonSchema for IpPrefix {
    fn inline_schema() -> bool {
        true
    }
    fn schema_name() -> Cow<'static, str> {
        Cow::Borrowed("IpPrefix")
    }
    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({ "type": "string", "pattern": "^[0-9a-f.:]+(/[0-9]+)?$", "description": "addresses that begin with the same bits, or one address" })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_with_shell_or_xml_characters_are_refused() {
        for bad in [
            "",
            "-a",
            "a-",
            "a b",
            "a;reboot",
            "<b/>",
            "a&b",
            "$(id)",
            "../x",
            "a\n",
            "é",
            &"x".repeat(64),
        ] {
            assert!(bad.parse::<InstanceName>().is_err(), "{bad:?}");
        }
        for good in ["web-1", "A", "0", &"x".repeat(63)] {
            assert!(good.parse::<InstanceName>().is_ok(), "{good:?}");
        }
        let error = serde_json::from_str::<InstanceName>("\"<x>\"")
            .unwrap_err()
            .to_string();
        assert!(
            error.contains("an instance name must be 1 to 63 letters"),
            "{error}"
        );
    }

    #[test]
    fn only_addresses_of_one_interface_are_mac_addresses() {
        for bad in [
            "",
            "52:54:00:00:00",
            "01:00:5e:00:00:01",
            "00:00:00:00:00:00",
            "52-54-00-00-00-01",
            "+2:54:00:00:00:01",
        ] {
            assert!(bad.parse::<MacAddress>().is_err(), "{bad}");
        }
        assert_eq!(
            "52:54:00:AB:cd:01"
                .parse::<MacAddress>()
                .unwrap()
                .to_string(),
            "52:54:00:ab:cd:01"
        );
    }

    #[test]
    fn cidrs_name_whole_networks() {
        for bad in [
            "10.0.0.1/24",
            "10.0.0.0/30",
            "10.0.0.0",
            "0.0.0.0/0",
            "224.0.0.0/8",
            "127.0.0.0/8",
            "fe80::/64",
        ] {
            assert!(bad.parse::<Cidr>().is_err(), "{bad}");
        }
        let cidr: Cidr = "10.0.0.0/29".parse().unwrap();
        assert!(cidr.is_host_address(IpAddr::from([10, 0, 0, 6])));
        assert!(!cidr.is_host_address(IpAddr::from([10, 0, 0, 7])));
        assert!(!cidr.is_host_address(IpAddr::from([10, 0, 0, 0])));

        let cidr: Cidr = "fd00:1::/64".parse().unwrap();
        assert!(cidr.is_ipv6());
        let of = |text: &str| cidr.is_host_address(text.parse().unwrap());
        assert!(of("fd00:1::1") && of("fd00:1::ffff:ffff:ffff:ffff"));
        assert!(!of("fd00:1::") && !of("fd00:2::1") && !of("10.0.0.1"));
        for bad in [
            "fd00:1::1/64",
            "fd00::/8",
            "fd00:1::/126",
            "ff02::/64",
            "::/64",
        ] {
            assert!(bad.parse::<Cidr>().is_err(), "{bad}");
        }
    }

    #[test]
    fn a_prefix_has_no_host_bits_and_may_be_one_address() {
        for (text, written) in [
            ("0.0.0.0/0", "0.0.0.0/0"),
            ("10.0.0.7", "10.0.0.7/32"),
            ("2001:db8::1", "2001:db8::1/128"),
            ("::/0", "::/0"),
        ] {
            assert_eq!(text.parse::<IpPrefix>().unwrap().to_string(), written);
        }
        for bad in ["10.0.0.7/24", "10.0.0/8", "", "10.0.0.0/33"] {
            assert!(bad.parse::<IpPrefix>().is_err(), "{bad}");
        }
    }

    #[test]
    fn a_public_key_is_one_line_of_authorized_keys() {
        let check = |text: &str, good: bool| {
            assert_eq!(text.parse::<PublicKey>().is_ok(), good, "{text:?}");
        };
        check("ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAA me@example.org", true);
        check("ssh-rsa AAAAB3NzaC1yc2E=", true);
        check("ecdsa-sha2-nistp256 AAAA an office key, ünïcode", true);
        check("sk-ssh-ed25519@openssh.com AAAA", true);
        for bad in [
            "",
            "ssh-",
            "ssh- AAAA",
            "AAAA",
            "ssh-rsa",
            "ssh-rsa  AAAA",
            "command=\"x\" ssh-rsa AAAA",
            "ssh-rsa AA;AA",
            "ssh-rsa AAAA a\nssh-rsa BBBB",
            "-----BEGIN OPENSSH PRIVATE KEY-----",
        ] {
            check(bad, false);
        }
        check(&format!("ssh-rsa {}", "A".repeat(16_400)), false);
        assert!("a\0b".parse::<UserData>().is_err());
        assert!("x".repeat(65_536).parse::<UserData>().is_err());
        assert!("#cloud-config\n".parse::<UserData>().is_ok());
    }

    #[test]
    fn image_urls_are_files_or_http() {
        for bad in [
            "",
            "file://relative",
            "file:///",
            "ftp://x/y",
            "http://",
            "file:///a b",
            "rbd:pool",
        ] {
            assert!(bad.parse::<ImageUrl>().is_err(), "{bad}");
        }
        for good in ["file:///a/b.qcow2", "https://example.org/x"] {
            assert!(good.parse::<ImageUrl>().is_ok(), "{good}");
        }
    }
}
