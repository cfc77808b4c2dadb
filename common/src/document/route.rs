//! A route, as subnets hand it to guests and routers use it.

use std::net::IpAddr;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::names::IpPrefix;

/// A route to some addresses.
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, JsonSchema,
)]
pub struct Route {
    /// To these addresses.
    pub destination: IpPrefix,
    /// By way of this one; of the same family.
    pub nexthop: IpAddr,
}
