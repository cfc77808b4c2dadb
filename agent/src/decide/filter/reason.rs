//! Why a packet of a port is dropped. Each reason has a set of links with a counter each, which no change of rules touches.

/// Why a packet was dropped.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Reason {
    /// The guest sent from another's Ethernet address.
    SpoofedMac,
    /// The guest sent from another's IP address.
    SpoofedIp,
    /// The guest claimed another's address by ARP.
    SpoofedArp,
    /// The guest claimed another's address by neighbour discovery.
    SpoofedNd,
    /// The guest answered as a DHCP server.
    RogueDhcp,
    /// The guest advertised a router, or redirected to one.
    RogueRa,
    /// The guest sent a frame with a VLAN tag.
    Tagged,
    /// The guest sent something that is neither IPv4, IPv6 nor ARP.
    Ethertype,
    /// The guest sent to an Ethernet address that bridges keep to themselves.
    Reserved,
    /// The guest sent what belongs to no connection and begins none.
    InvalidEgress,
    /// The guest should have got such a packet.
    InvalidIngress,
    /// No rule allows the guest to send it.
    DeniedEgress,
    /// No rule allows the guest to receive it.
    DeniedIngress,
}

impl Reason {
    /// All of them.
    pub const ALL: [Self; 13] = [
        Self::SpoofedMac,
        Self::SpoofedIp,
        Self::SpoofedArp,
        Self::SpoofedNd,
        Self::RogueDhcp,
        Self::RogueRa,
        Self::Tagged,
        Self::Ethertype,
        Self::Reserved,
        Self::InvalidEgress,
        Self::InvalidIngress,
        Self::DeniedEgress,
        Self::DeniedIngress,
    ];

    /// Its name, in metrics and in names of chains and sets.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::SpoofedMac => "spoofed_mac",
            Self::SpoofedIp => "spoofed_ip",
            Self::SpoofedArp => "spoofed_arp",
            Self::SpoofedNd => "spoofed_nd",
            Self::RogueDhcp => "rogue_dhcp",
            Self::RogueRa => "rogue_ra",
            Self::Tagged => "tagged",
            Self::Ethertype => "ethertype",
            Self::Reserved => "reserved",
            Self::InvalidEgress => "invalid_egress",
            Self::InvalidIngress => "invalid_ingress",
            Self::DeniedEgress => "denied_egress",
            Self::DeniedIngress => "denied_ingress",
        }
    }

    /// Whether it is the receiver's packet, which is counted by the link it would have gone out by.
    #[must_use]
    pub const fn is_of_receiver(self) -> bool {
        matches!(self, Self::InvalidIngress | Self::DeniedIngress)
    }

    /// The chain that counts and drops.
    #[must_use]
    pub fn chain(self) -> String {
        format!("drop-{}", self.as_str())
    }

    /// The set of the links with their counters.
    #[must_use]
    pub fn set(self) -> String {
        format!("dropped-{}", self.as_str())
    }

    /// The reason whose set has this name.
    #[must_use]
    pub fn of_set(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|reason| reason.set() == name)
    }
}
