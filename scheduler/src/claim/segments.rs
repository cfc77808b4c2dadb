//! Which flat network, VLAN or VNI a new network gets.

use berth_common::{
    document::NetworkType, message::network::NetworkCreate, names::PhysicalNetworkName,
};
use berth_store::{Executor, segments};

use super::{ClaimError, conflict};
use crate::config::{IdRange, Networks, VLAN_IDS, VNIS};

/// What tells a network apart on its physical network, or between hosts.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Segment {
    /// The physical network.
    pub physical_network: Option<PhysicalNetworkName>,
    /// The VLAN or the VNI.
    pub segmentation_id: Option<u32>,
}

/// What is wrong with what a request says of its segment.
#[must_use]
pub fn mistakes(request: &NetworkCreate, networks: &Networks) -> Vec<String> {
    let mut mistakes = Vec::new();
    let kind = request.network_type.as_str();
    let physnet = request.physical_network.as_ref();
    match request.network_type {
        NetworkType::Local | NetworkType::Nat | NetworkType::Vxlan => {
            if let Some(physnet) = physnet {
                mistakes.push(format!(
                    "physical_network {physnet} is for flat and vlan networks; a {kind} network is on none"
                ));
            }
        }
        NetworkType::Flat => {
            let known = joined(&networks.flat_networks);
            match physnet {
                Some(physnet) if networks.flat_networks.contains(physnet) => {}
                Some(physnet) => mistakes.push(format!(
                    "physical_network {physnet} may not be a flat network: network.flat_networks of the scheduler's \
                     configuration has {known}"
                )),
                None => mistakes.push(format!(
                    "a flat network needs physical_network: network.flat_networks of the scheduler's configuration has {known}"
                )),
            }
        }
        NetworkType::Vlan => vlan_mistakes(request, networks, &mut mistakes),
    }
    match (request.network_type, request.segmentation_id) {
        (NetworkType::Local | NetworkType::Nat | NetworkType::Flat, Some(id)) => mistakes.push(format!(
            "segmentation_id {id} is for vlan and vxlan networks; a {kind} network has none"
        )),
        (NetworkType::Vlan, Some(id)) if !VLAN_IDS.contains(&id) => mistakes.push(format!(
            "segmentation_id of a vlan network must be from 1 to 4094; got {id}"
        )),
        (NetworkType::Vxlan, Some(id)) if !VNIS.contains(&id) => mistakes.push(format!(
            "segmentation_id of a vxlan network must be from 1 to 16777215; got {id}"
        )),
        (NetworkType::Vxlan, None) if networks.vni_ranges.is_empty() => mistakes.push(
            "segmentation_id is missing: network.vni_ranges of the scheduler's configuration is empty".to_owned(),
        ),
        _ => {}
    }
    mistakes
}

fn vlan_mistakes(request: &NetworkCreate, networks: &Networks, mistakes: &mut Vec<String>) {
    let ranges = &networks.vlan_ranges;
    let known = joined(ranges);
    match &request.physical_network {
        Some(physnet) => {
            let mut of_it = ranges
                .iter()
                .filter(|range| range.physical_network == *physnet)
                .peekable();
            if of_it.peek().is_none() {
                mistakes.push(format!(
                    "physical_network {physnet} has no VLANs: network.vlan_ranges of the scheduler's configuration has {known}"
                ));
            } else if request.segmentation_id.is_none() && of_it.all(|range| range.ids.is_none()) {
                mistakes.push(format!(
                    "segmentation_id is missing: network.vlan_ranges of the scheduler's configuration gives out no VLANs of \
                     {physnet}"
                ));
            }
        }
        None if request.segmentation_id.is_some() => mistakes.push(format!(
            "segmentation_id of a vlan network needs physical_network: network.vlan_ranges of the scheduler's configuration \
             has {known}"
        )),
        None if ranges.iter().all(|range| range.ids.is_none()) => mistakes.push(format!(
            "a vlan network needs physical_network and segmentation_id: network.vlan_ranges of the scheduler's configuration \
             has {known}"
        )),
        None => {}
    }
}

fn joined<T: ToString>(items: &[T]) -> String {
    if items.is_empty() {
        return "none".to_owned();
    }
    let items: Vec<String> = items.iter().map(ToString::to_string).collect();
    items.join(", ")
}

/// The segment of a new network: the one it names, or the lowest free one of the ranges.
///
/// # Errors
/// A refusal that names the segment or the ranges, or a failure of the database.
pub async fn choose(
    db: &impl Executor,
    request: &NetworkCreate,
    networks: &Networks,
) -> Result<Segment, ClaimError> {
    let kind = request.network_type;
    let named = Segment {
        physical_network: request.physical_network.clone(),
        segmentation_id: request.segmentation_id,
    };
    match (kind, request.segmentation_id) {
        (NetworkType::Local | NetworkType::Nat, _) => Ok(named),
        (NetworkType::Flat, _) => named_one(db, kind, named, 0).await,
        (NetworkType::Vlan | NetworkType::Vxlan, Some(id)) => named_one(db, kind, named, id).await,
        (NetworkType::Vlan, None) => {
            let ranges: Vec<(Option<&PhysicalNetworkName>, &IdRange)> = networks
                .vlan_ranges
                .iter()
                .filter(|range| {
                    let wanted = request.physical_network.as_ref();
                    wanted.is_none_or(|wanted| range.physical_network == *wanted)
                })
                .filter_map(|range| Some((Some(&range.physical_network), range.ids.as_ref()?)))
                .collect();
            lowest(db, kind, &ranges).await
        }
        (NetworkType::Vxlan, None) => {
            let ranges: Vec<_> = networks
                .vni_ranges
                .iter()
                .map(|range| (None, range))
                .collect();
            lowest(db, kind, &ranges).await
        }
    }
}

/// What a taken segment is called.
#[must_use]
pub fn taken(kind: NetworkType, segment: &Segment) -> ClaimError {
    let id = segment.segmentation_id.unwrap_or_default();
    let physnet = segment.physical_network.as_ref();
    let physnet = physnet.map_or_else(String::new, ToString::to_string);
    conflict(match kind {
        NetworkType::Vlan => {
            format!("VLAN {id} of physical network {physnet} is already used by another network")
        }
        NetworkType::Vxlan => format!("VNI {id} is already used by another network"),
        NetworkType::Flat | NetworkType::Local | NetworkType::Nat => {
            format!("physical network {physnet} is already a flat network")
        }
    })
}

async fn named_one(
    db: &impl Executor,
    kind: NetworkType,
    segment: Segment,
    id: u32,
) -> Result<Segment, ClaimError> {
    let physnet = segment.physical_network.as_ref();
    if segments::taken(db, kind, physnet, id..=id)
        .await?
        .is_empty()
    {
        return Ok(segment);
    }
    Err(taken(kind, &segment))
}

async fn lowest(
    db: &impl Executor,
    kind: NetworkType,
    ranges: &[(Option<&PhysicalNetworkName>, &IdRange)],
) -> Result<Segment, ClaimError> {
    for (physnet, ids) in ranges {
        let taken = segments::taken(db, kind, *physnet, ids.0.clone()).await?;
        if let Some(id) = lowest_free(&taken, ids) {
            return Ok(Segment {
                physical_network: physnet.cloned(),
                segmentation_id: Some(id),
            });
        }
    }
    let (what, key) = match kind {
        NetworkType::Vxlan => ("VNI", "network.vni_ranges"),
        _ => ("VLAN", "network.vlan_ranges"),
    };
    let asked: Vec<String> = ranges
        .iter()
        .map(|(physnet, ids)| match physnet {
            Some(physnet) => format!("{physnet}:{ids}"),
            None => ids.to_string(),
        })
        .collect();
    Err(conflict(format!(
        "no {what} is free in {}: delete a network, or let {key} of the scheduler's configuration have more",
        asked.join(", ")
    )))
}

/// `taken`: in order.
fn lowest_free(taken: &[u32], ids: &IdRange) -> Option<u32> {
    let mut next = *ids.0.start();
    for id in taken {
        if *id > next {
            break;
        }
        next = id.checked_add(1)?;
    }
    ids.0.contains(&next).then_some(next)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn the_lowest_free_id_is_the_lowest_that_is_free(
            taken in prop::collection::btree_set(0_u32..40, 0..40), start in 0_u32..40, length in 0_u32..40,
        ) {
            let ids = IdRange(start..=start + length);
            let inside: BTreeSet<u32> = taken.into_iter().filter(|id| ids.0.contains(id)).collect();
            let expected = ids.0.clone().find(|id| !inside.contains(id));
            let inside: Vec<u32> = inside.into_iter().collect();
            prop_assert_eq!(lowest_free(&inside, &ids), expected);
        }
    }
}
