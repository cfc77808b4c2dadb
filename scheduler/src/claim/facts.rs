//! What placement knows of a host, from its rows: pure.

use std::collections::{BTreeMap, BTreeSet};

use berth_common::{
    ids::HostId,
    message::view::{AllocationRatios, HostState, HostStatus, Resources},
    names::ZoneName,
    units::AllocationRatio,
};
use berth_store::{
    aggregates::{Aggregate, AggregateRow},
    hosts::HostRow,
};

use crate::{
    config::Placement,
    place::{Admission, HostFacts, Inventory, ResourceClass},
};

/// The facts of a host. `aggregates`: all there are.
#[must_use]
pub fn of_host(
    row: &HostRow,
    aggregates: &[Aggregate],
    state: HostState,
    placement: &Placement,
) -> HostFacts {
    let of_host = || aggregates_of(row.id, aggregates);
    HostFacts {
        id: row.id,
        name: row.name.clone(),
        admission: match row.status {
            HostStatus::Enabled => Admission::Enabled,
            HostStatus::Disabled => Admission::Disabled,
            HostStatus::Draining => Admission::Draining,
        },
        liveness: state,
        total: row.total,
        reserved: reserved(row, placement),
        ailing: u64::try_from(row.health.iter().filter(|part| !part.ok).count())
            .unwrap_or(u64::MAX),
        ratios: ratios(row, aggregates, placement),
        foreign: foreign(row),
        zone: Some(zone(row.id, aggregates).to_string()),
        properties: of_host()
            .flat_map(|aggregate| &aggregate.properties)
            .map(|(key, value)| (key.to_string(), value.to_string()))
            .collect(),
        architecture: row.arch.clone(),
        virt_types: BTreeSet::from([row.virt_type.clone()]),
        physical_networks: row
            .physical_networks
            .iter()
            .map(ToString::to_string)
            .collect(),
        network: row.network.clone(),
        countables: row
            .resources
            .iter()
            .map(|inventory| {
                let class = ResourceClass(inventory.class.to_string());
                let inventory = Inventory {
                    total: inventory.total,
                    reserved: 0,
                };
                (class, inventory)
            })
            .collect::<BTreeMap<_, _>>(),
        pools: row.pools.clone(),
    }
}

/// The aggregates a host is in.
pub fn aggregates_of(
    host: HostId,
    aggregates: &[Aggregate],
) -> impl Iterator<Item = &AggregateRow> {
    aggregates
        .iter()
        .filter(move |aggregate| aggregate.hosts.contains(&host))
        .map(|aggregate| &aggregate.row)
}

/// The availability zone of a host: that of its aggregates, which never name two, or `nova`.
#[must_use]
pub fn zone(host: HostId, aggregates: &[Aggregate]) -> ZoneName {
    aggregates_of(host, aggregates)
        .find_map(|aggregate| aggregate.availability_zone.clone())
        .unwrap_or_else(ZoneName::nova)
}

/// A host's ratios: its own, else the lowest of its aggregates, else the default.
#[must_use]
pub fn ratios(row: &HostRow, aggregates: &[Aggregate], placement: &Placement) -> AllocationRatios {
    let choose = |own: Option<AllocationRatio>,
                  of: fn(&AggregateRow) -> Option<AllocationRatio>,
                  default: AllocationRatio| {
        own.or_else(|| aggregates_of(row.id, aggregates).filter_map(of).min())
            .unwrap_or(default)
    };
    AllocationRatios {
        cpu: choose(
            row.cpu_ratio,
            |aggregate| aggregate.cpu_ratio,
            placement.ratios.cpu,
        ),
        ram: choose(
            row.ram_ratio,
            |aggregate| aggregate.ram_ratio,
            placement.ratios.ram,
        ),
        disk: choose(
            row.disk_ratio,
            |aggregate| aggregate.disk_ratio,
            placement.ratios.disk,
        ),
    }
}

/// What is kept for the host itself: its own values, else the defaults.
#[must_use]
pub fn reserved(row: &HostRow, placement: &Placement) -> Resources {
    let default = placement.reserved;
    Resources {
        vcpus: row.reserved.vcpus.unwrap_or(default.vcpus),
        memory_mb: row.reserved.memory_mb.unwrap_or(default.memory_mb),
        disk_gb: row.reserved.disk_gb.unwrap_or(default.disk_gb),
    }
}

/// What domains take that berth did not make.
fn foreign(row: &HostRow) -> Resources {
    row.foreign_domains
        .iter()
        .fold(Resources::default(), |sum, domain| {
            sum.saturating_add(Resources {
                vcpus: domain.vcpus,
                memory_mb: domain.memory_mb,
                ..Resources::default()
            })
        })
}
