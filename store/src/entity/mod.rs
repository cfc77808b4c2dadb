//! The tables as SeaORM sees them: bare integers and text. Only the query files use them; nothing here leaves
//! the crate.
#![expect(
    unreachable_pub,
    reason = "the derives need `pub` items; this module is private"
)]

pub(crate) mod aggregate;
pub(crate) mod aggregate_host;
pub(crate) mod attachment;
pub(crate) mod claim;
pub(crate) mod decision;
pub(crate) mod document;
pub(crate) mod fixed_ip;
pub(crate) mod floating_ip;
pub(crate) mod held_address;
pub(crate) mod host;
pub(crate) mod instance;
pub(crate) mod leadership;
pub(crate) mod network;
pub(crate) mod nonce;
pub(crate) mod port;
pub(crate) mod port_security_group;
pub(crate) mod router;
pub(crate) mod router_gateway;
pub(crate) mod router_interface;
pub(crate) mod security_group;
pub(crate) mod security_group_rule;
pub(crate) mod segment;
pub(crate) mod server_group;
pub(crate) mod snapshot;
pub(crate) mod subnet;
pub(crate) mod volume;
