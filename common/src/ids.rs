//! Typed identifiers: one registry, so that a port can never be passed where an instance is meant.
//!
//! Every id is a UUID on the wire. Ids that berth makes are version 7 (ordered by time of creation);
//! ids that clients choose may be of any version except the nil UUID, which is refused.

use std::{borrow::Cow, fmt, str::FromStr};

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::{Deserialize, Serialize};
use uuid::Uuid;

/// An id was not a UUID, or was the nil UUID.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "{what} must be a UUID other than the nil UUID, like 0191e7a0-7c1f-7b5e-9d2a-3f6f5f0c2a11; got {got:?}"
)]
pub struct InvalidId {
    /// Which kind of id was read.
    pub what: &'static str,
    /// What was read instead.
    pub got: String,
}

macro_rules! typed_ids {
    ($($(#[$doc:meta])* $name:ident = $what:literal;)*) => {$(
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
        #[serde(try_from = "Uuid", into = "Uuid")]
        pub struct $name(Uuid);

        impl $name {
            /// A new id, ordered by time (UUID version 7).
            #[expect(clippy::new_without_default, reason = "a default id would hide that each one is new")]
            #[must_use]
            pub fn new() -> Self {
                Self(Uuid::now_v7())
            }

            /// The UUID itself.
            #[must_use]
            pub const fn as_uuid(&self) -> Uuid {
                self.0
            }
        }

        impl TryFrom<Uuid> for $name {
            type Error = InvalidId;
            fn try_from(uuid: Uuid) -> Result<Self, InvalidId> {
                if uuid.is_nil() {
                    return Err(InvalidId { what: $what, got: uuid.to_string() });
                }
                Ok(Self(uuid))
            }
        }

        impl From<$name> for Uuid {
            fn from(id: $name) -> Uuid {
                id.0
            }
        }

        impl FromStr for $name {
            type Err = InvalidId;
            fn from_str(text: &str) -> Result<Self, InvalidId> {
                Uuid::try_parse(text)
                    .map_err(|_| InvalidId { what: $what, got: text.to_owned() })
                    .and_then(Self::try_from)
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                fmt::Display::fmt(&self.0, f)
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "{}({})", stringify!($name), self.0)
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
                json_schema!({ "type": "string", "format": "uuid", "description": concat!("id of a ", $what) })
            }
        }
    )*};
}

typed_ids! {
    /// A virtual machine. Chosen by the client that asks for it: repeating the request is harmless.
    InstanceId = "instance id";
    /// A hypervisor. Made once by its agent and kept in the agent's state directory.
    HostId = "host id";
    /// A network.
    NetworkId = "network id";
    /// A subnet of a network.
    SubnetId = "subnet id";
    /// A port: one virtual NIC with its addresses.
    PortId = "port id";
    /// A volume.
    VolumeId = "volume id";
    /// A snapshot of a volume. Chosen by the client that asks for it.
    SnapshotId = "snapshot id";
    /// A router.
    RouterId = "router id";
    /// A floating IP. Chosen by the client that asks for it.
    FloatingIpId = "floating IP id";
    /// A security group. Chosen by the client that asks for it.
    SecurityGroupId = "security group id";
    /// A rule of a security group. Chosen by the client that asks for it.
    SecurityGroupRuleId = "security group rule id";
    /// A host aggregate. Chosen by the client that asks for it.
    AggregateId = "aggregate id";
    /// A server group. Chosen by the client that asks for it.
    ServerGroupId = "server group id";
    /// A placement decision that was written down.
    DecisionId = "decision id";
    /// A one-shot wish of a client (a reboot, say): the same nonce twice is one wish.
    Nonce = "nonce";
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_nil_uuid_is_refused_on_the_wire() {
        let nil = "\"00000000-0000-0000-0000-000000000000\"";
        let error = serde_json::from_str::<InstanceId>(nil)
            .unwrap_err()
            .to_string();
        assert!(error.contains("instance id must be a UUID"), "{error}");
        assert!(serde_json::from_str::<InstanceId>("\"web-1\"").is_err());
    }

    #[test]
    fn ids_survive_the_wire() {
        let id = PortId::new();
        let json = serde_json::to_string(&id).unwrap();
        assert_eq!(serde_json::from_str::<PortId>(&json).unwrap(), id);
        assert_eq!(id.to_string().parse::<PortId>().unwrap(), id);
    }
}
