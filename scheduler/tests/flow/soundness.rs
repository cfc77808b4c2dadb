//! What must be true of the rows and of the writer's memory after every step, whatever happened.

use std::collections::{BTreeMap, BTreeSet};

use berth_common::{
    document::Kind,
    ids::{HostId, InstanceId, ServerGroupId},
    message::placement::ServerGroupPolicy,
};
use berth_scheduler::{
    claim::load,
    derive::{self, diff},
    place::{Resource, ResourceClass},
};
use berth_store::{
    attachments,
    claims::{ClaimRole, ClaimRow},
    documents, host_rows, hosts, instances, server_groups, snapshots, volumes,
};

use crate::cloud::Cloud;

/// Every invariant, or what is wrong.
pub(crate) async fn check(cloud: &Cloud) -> Result<(), String> {
    let context = cloud.context();
    // Nobody writes while this is held.
    let image = context.image().await.unwrap();
    let anew = load::cloud(cloud.pool(), &context.config.placement)
        .await
        .unwrap();
    if let Some(difference) = image.differs_from(&anew) {
        return Err(format!("the memory is not what the rows say: {difference}"));
    }
    image.table().debug_validate()?;

    let claims = cloud.claims().await;
    let all_volumes = volumes::page_of_claims(cloud.pool(), None, u32::MAX)
        .await
        .unwrap();
    let all_snapshots = snapshots::page_of_claims(cloud.pool(), None, u32::MAX)
        .await
        .unwrap();
    for host in hosts::all(cloud.pool()).await.unwrap() {
        let counted = image.table().host(host.id).unwrap();
        let on_host: Vec<&ClaimRow> = claims
            .iter()
            .filter(|claim| claim.host_id == host.id)
            .collect();
        for of in Resource::ALL {
            let mut sum: u64 = on_host.iter().map(|claim| of.of(&claim.resources)).sum();
            if of == Resource::DiskGb {
                let volumes = all_volumes.iter().filter(|claim| claim.host_id == host.id);
                sum += volumes.map(|claim| claim.of_host_disk().get()).sum::<u64>();
                let snapshots = all_snapshots
                    .iter()
                    .filter(|claim| claim.host_id == host.id);
                sum += snapshots
                    .map(|claim| claim.of_host_disk().get())
                    .sum::<u64>();
            }
            if counted.used(of) != sum + of.of(&counted.facts().foreign) {
                return Err(format!("{of} of {}: the claims sum up to {sum}", host.name));
            }
        }
        let here = counted.facts().countables.keys().cloned();
        let mut sums: BTreeMap<ResourceClass, u64> = here.map(|class| (class, 0)).collect();
        for (class, amount) in on_host.iter().flat_map(|claim| &claim.extra) {
            *sums.entry(class.as_str().into()).or_default() += amount;
        }
        for (class, sum) in sums {
            if counted.countable_used(&class) != sum {
                return Err(format!(
                    "{class} of {}: the claims sum up to {sum}",
                    host.name
                ));
            }
        }
    }
    let living = instances::list(cloud.pool(), None, None, 1000)
        .await
        .unwrap();
    one_claim_each(&claims, &living)?;
    volumes_lie_with_their_instances(cloud, &claims, &living).await?;
    documents_follow(cloud, &claims, &living).await?;
    groups_are_kept(cloud, &claims, &living).await
}

/// The same, for the end of a test.
pub(crate) async fn assert_sound(cloud: &Cloud) {
    if let Err(wrong) = check(cloud).await {
        panic!("{wrong}");
    }
}

/// Every accepted instance has exactly one claim, and nobody else has any.
fn one_claim_each(claims: &[ClaimRow], living: &[instances::InstanceRow]) -> Result<(), String> {
    let mut of: BTreeMap<InstanceId, usize> = BTreeMap::new();
    for claim in claims {
        *of.entry(claim.instance_id).or_default() += 1;
        if claim.role != ClaimRole::Current {
            return Err(format!("nothing moves, and yet there is {claim:?}"));
        }
    }
    for row in living {
        let expected = usize::from(row.placement_fault.is_none());
        let found = of.remove(&row.id).unwrap_or_default();
        if found != expected {
            return Err(format!(
                "{} has {found} claims and should have {expected}",
                row.name
            ));
        }
    }
    match of.into_iter().next() {
        Some((orphan, _)) => Err(format!("{orphan} has a claim and does not live")),
        None => Ok(()),
    }
}

/// Every attached volume lives, on the host of its living instance, which has been built; positions are within bounds.
/// That each volume is attached once is held by the key, and that positions differ by an index.
async fn volumes_lie_with_their_instances(
    cloud: &Cloud,
    claims: &[ClaimRow],
    living: &[instances::InstanceRow],
) -> Result<(), String> {
    let all = volumes::list(cloud.pool(), None, None, 1000).await.unwrap();
    let ids: Vec<InstanceId> = living.iter().map(|row| row.id).collect();
    let of_living = attachments::of_instances(cloud.pool(), &ids).await.unwrap();
    let ids: Vec<_> = all.iter().map(|row| row.id).collect();
    let of_volumes = attachments::of_volumes(cloud.pool(), &ids).await.unwrap();
    if of_living != of_volumes {
        return Err(format!(
            "of living instances there are {of_living:?}, of living volumes {of_volumes:?}"
        ));
    }
    for attachment in of_living {
        let volume = all.iter().find(|row| row.id == attachment.volume_id);
        let claim = claims
            .iter()
            .find(|claim| claim.instance_id == attachment.instance_id);
        let built = living
            .iter()
            .any(|row| row.id == attachment.instance_id && row.observed.was_active);
        let on = volume.and_then(|volume| volume.host_id);
        if on.is_none() || on != claim.map(|claim| claim.host_id) || !built {
            return Err(format!("{attachment:?}: {volume:?} and {claim:?}"));
        }
        if !(1..=8).contains(&attachment.position) {
            return Err(format!("{attachment:?} is beyond the last position"));
        }
    }
    Ok(())
}

/// Every host was told what follows from the rows. Every claim has a document on its host, a tombstone once its owner shall be gone from there; and nobody else has a living one.
async fn documents_follow(
    cloud: &Cloud,
    claims: &[ClaimRow],
    living: &[instances::InstanceRow],
) -> Result<(), String> {
    let deleted: BTreeSet<_> = living
        .iter()
        .filter(|row| row.desired_deleted)
        .map(|row| row.id)
        .collect();
    let is_leaving = |claim: &ClaimRow| {
        living
            .iter()
            .any(|row| row.id == claim.instance_id && row.failed_hosts.contains(&claim.host_id))
    };
    let mut told = BTreeMap::new();
    for host in hosts::all(cloud.pool()).await.unwrap() {
        let documents = documents::of_host(cloud.pool(), host.id).await.unwrap();
        let rows = host_rows::of_host(cloud.pool(), host.id).await.unwrap();
        let wanted = derive::derive(host.id, &rows).unwrap();
        let words = documents.iter().map(|row| {
            let word = diff::Told {
                generation: row.generation,
                spec_json: row.spec_json.clone(),
            };
            (row.key, word)
        });
        let changes = diff::diff(&wanted, &words.collect(), &BTreeSet::new());
        if let Some(change) = changes.first() {
            return Err(format!("{} was never told of {change:?}", host.name));
        }
        for document in documents {
            if document.key.kind == Kind::Instance {
                let id = InstanceId::try_from(document.key.id).unwrap();
                told.insert((host.id, id), document.spec_json.is_some());
            }
        }
    }
    for claim in claims {
        let expected = !deleted.contains(&claim.instance_id) && !is_leaving(claim);
        match told.remove(&(claim.host_id, claim.instance_id)) {
            Some(lives) if lives == expected => {}
            Some(_) => return Err(format!("the document does not follow from {claim:?}")),
            None => return Err(format!("its host was never told of {claim:?}")),
        }
    }
    match told.into_iter().find(|(_, lives)| *lives) {
        Some(((host, id), _)) => Err(format!("host {host} shall have {id}, without a claim")),
        None => Ok(()),
    }
}

/// No hard policy is broken.
async fn groups_are_kept(
    cloud: &Cloud,
    claims: &[ClaimRow],
    living: &[instances::InstanceRow],
) -> Result<(), String> {
    let group_of: BTreeMap<InstanceId, ServerGroupId> = living
        .iter()
        .filter_map(|row| Some((row.id, row.server_group_id?)))
        .collect();
    for group in server_groups::list(cloud.pool(), None).await.unwrap() {
        let mut members: BTreeMap<HostId, u32> = BTreeMap::new();
        for claim in claims {
            if group_of.get(&claim.instance_id) == Some(&group.id) {
                *members.entry(claim.host_id).or_default() += 1;
            }
        }
        let limit = group.max_server_per_host.unwrap_or(1);
        let broken = match group.policy {
            ServerGroupPolicy::Affinity => members.len() > 1,
            ServerGroupPolicy::AntiAffinity => members.values().any(|count| *count > limit),
            ServerGroupPolicy::SoftAffinity | ServerGroupPolicy::SoftAntiAffinity => false,
        };
        if broken {
            return Err(format!("group {} is broken: {members:?}", group.name));
        }
    }
    Ok(())
}
