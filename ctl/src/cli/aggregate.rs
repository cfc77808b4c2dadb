//! The words of `berthctl aggregate …`.

use std::{fmt::Display, str::FromStr};

use berth_common::{
    ids::AggregateId,
    message::request::Change,
    names::{AggregateName, InvalidText, PropertyKey, PropertyValue, ZoneName},
    units::AllocationRatio,
};
use clap::{Args, Subcommand};

use super::value_or;

/// Commands on host aggregates.
#[derive(Debug, Clone, Subcommand)]
pub(crate) enum Aggregate {
    /// Create an aggregate: hypervisors with an availability zone, properties or ratios in common.
    Create(AggregateCreateArgs),
    /// Change an aggregate. What is not named stays; `none` clears.
    Set(AggregateSetArgs),
    /// Delete an aggregate; its hypervisors stay.
    Delete {
        /// Name or id of the aggregate.
        name: String,
    },
    /// List all aggregates.
    List,
    /// Show one aggregate.
    Show {
        /// Name or id of the aggregate.
        name: String,
    },
    /// Put a hypervisor into an aggregate. It can be in many, but in one availability zone only.
    AddHost(Member),
    /// Take a hypervisor out of an aggregate.
    RemoveHost(Member),
}

/// A new aggregate.
#[derive(Debug, Clone, Args)]
pub(crate) struct AggregateCreateArgs {
    /// Its name, unique.
    pub(crate) name: AggregateName,
    #[command(flatten)]
    pub(crate) traits: Traits,
    /// A hypervisor to put into it, by name or id; may be given many times.
    #[arg(long = "host", value_name = "HOST")]
    pub(crate) hosts: Vec<String>,
    /// Its id: repeating a request with the same id is harmless. Default: a new one.
    #[arg(long, value_name = "UUID")]
    pub(crate) id: Option<AggregateId>,
}

/// What changes on an aggregate.
#[derive(Debug, Clone, Args)]
pub(crate) struct AggregateSetArgs {
    /// Name or id of the aggregate.
    pub(crate) name: String,
    #[command(flatten)]
    pub(crate) traits: Traits,
    /// A property to remove; may be given many times.
    #[arg(long = "unset-property", value_name = "KEY")]
    pub(crate) unset: Vec<PropertyKey>,
}

/// What the hypervisors of an aggregate have in common.
#[derive(Debug, Clone, Args)]
pub(crate) struct Traits {
    /// The availability zone they are in.
    #[arg(long, value_name = "ZONE|none", value_parser = or_none::<ZoneName>)]
    pub(crate) zone: Option<Change<ZoneName>>,
    /// cpu_allocation_ratio of those that have none of their own; of several aggregates the lowest counts.
    #[arg(long, value_name = "R|none", value_parser = or_none::<AllocationRatio>)]
    pub(crate) cpu_allocation_ratio: Option<Change<AllocationRatio>>,
    /// ram_allocation_ratio, likewise.
    #[arg(long, value_name = "R|none", value_parser = or_none::<AllocationRatio>)]
    pub(crate) ram_allocation_ratio: Option<Change<AllocationRatio>>,
    /// disk_allocation_ratio, likewise.
    #[arg(long, value_name = "R|none", value_parser = or_none::<AllocationRatio>)]
    pub(crate) disk_allocation_ratio: Option<Change<AllocationRatio>>,
    /// A property that instances can ask for; may be given many times.
    #[arg(long = "property", value_name = "KEY=VALUE", value_parser = property)]
    pub(crate) properties: Vec<(PropertyKey, PropertyValue)>,
}

/// A hypervisor and an aggregate.
#[derive(Debug, Clone, Args)]
pub(crate) struct Member {
    /// Name or id of the aggregate.
    pub(crate) name: String,
    /// Name or id of the hypervisor.
    pub(crate) host: String,
}

fn or_none<T: FromStr<Err: Display>>(text: &str) -> Result<Change<T>, String> {
    value_or("none", text)
}

pub(super) fn property(text: &str) -> Result<(PropertyKey, PropertyValue), String> {
    let (key, value) = text
        .split_once('=')
        .ok_or_else(|| "must be written KEY=VALUE, like disk=ssd".to_owned())?;
    Ok((word(key)?, word(value)?))
}

fn word<T: FromStr<Err = InvalidText>>(text: &str) -> Result<T, String> {
    text.parse().map_err(|error: InvalidText| error.to_string())
}
