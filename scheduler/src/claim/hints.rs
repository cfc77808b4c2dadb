//! What a request asks of hosts: names become ids, and what cannot be is refused before anything is placed.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use berth_common::{
    document::Flavor,
    ids::{HostId, InstanceId, ServerGroupId},
    message::placement::{SchedulerHints, ServerGroupPolicy},
    names::{ProjectName, ServerGroupName, ZoneName},
};
use berth_store::{
    Executor, instances,
    server_groups::{self, ServerGroupRow},
};

use super::{ClaimError, cloud::Cloud, conflict, hosts, invalid, not_found};
use crate::place::{self, GroupPolicy, ImageNeeds, Millis, ResourceClass, ServerGroup};

/// The most instances, or properties, that hints may name.
const MAX_NAMED: usize = 64;
/// The most classes of countable resources that an instance may take.
const MAX_CLASSES: usize = 16;
/// The longest architecture or hypervisor type.
const MAX_WORD: usize = 32;

/// Everything that can be said of hints without looking at any row. `instance`: the one that is asked for.
#[must_use]
pub fn mistakes(hints: &SchedulerHints, instance: Option<InstanceId>) -> Vec<String> {
    let mut mistakes = Vec::new();
    for (name, instances) in [
        ("same_host", &hints.same_host),
        ("different_host", &hints.different_host),
    ] {
        if instances.len() > MAX_NAMED {
            mistakes.push(format!(
                "hints.{name} must name at most {MAX_NAMED} instances; got {}",
                instances.len()
            ));
        }
        if instance.is_some_and(|instance| instances.contains(&instance)) {
            mistakes.push(format!("hints.{name} names the instance itself"));
        }
    }
    if let Some(both) = hints
        .same_host
        .iter()
        .find(|instance| hints.different_host.contains(instance))
    {
        mistakes.push(format!(
            "instance {both} is in hints.same_host and in hints.different_host: it cannot be both"
        ));
    }
    if hints.properties.len() > MAX_NAMED {
        mistakes.push(format!(
            "hints.properties must be at most {MAX_NAMED}; got {}",
            hints.properties.len()
        ));
    }
    if hints.resources.len() > MAX_CLASSES {
        mistakes.push(format!(
            "hints.resources must be at most {MAX_CLASSES} classes; got {}",
            hints.resources.len()
        ));
    }
    if let Some((class, _)) = hints.resources.iter().find(|(_, amount)| **amount == 0) {
        mistakes.push(format!("hints.resources.{class} must be at least 1"));
    }
    for (name, word) in [
        ("architecture", &hints.architecture),
        ("virt_type", &hints.virt_type),
    ] {
        let is_word = |word: &str| {
            (1..=MAX_WORD).contains(&word.len())
                && word
                    .bytes()
                    .all(|byte| byte.is_ascii_alphanumeric() || byte == b'_' || byte == b'-')
        };
        if word.as_deref().is_some_and(|word| !is_word(word)) {
            mistakes.push(format!(
                "hints.{name} must be 1 to {MAX_WORD} letters, digits, '_' and '-'"
            ));
        }
    }
    mistakes
}

/// A request as placement takes it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Resolved {
    /// What is asked of hosts.
    pub request: place::Request,
    /// The server group the instance joins.
    pub group: Option<ServerGroupId>,
}

/// What was looked up already, for the requests of one batch.
#[derive(Debug, Default)]
pub struct Lookups {
    groups: HashMap<(ProjectName, String), ServerGroupRow>,
    hosts: HashMap<String, HostId>,
}

/// Who asks, and when.
#[derive(Debug, Clone, Copy)]
pub struct Asker<'a> {
    /// The project that names are looked up in.
    pub project: &'a ProjectName,
    /// Decides between hosts that are equally good.
    pub seed: u64,
    /// When it is asked.
    pub now: Millis,
}

impl Lookups {
    /// Looks up everything that hints name.
    ///
    /// # Errors
    /// A refusal that names what does not exist or contradicts itself, or a failure of the database.
    pub async fn resolve(
        &mut self,
        db: &impl Executor,
        cloud: &Cloud,
        asker: Asker<'_>,
        flavor: Flavor,
        hints: &SchedulerHints,
    ) -> Result<Resolved, ClaimError> {
        let mut request = place::Request::from(flavor);
        request.seed = asker.seed;
        request.now = asker.now;
        if hints.is_empty() {
            return Ok(Resolved {
                request,
                group: None,
            });
        }
        request.countables = hints
            .resources
            .iter()
            .map(|(class, amount)| (ResourceClass(class.to_string()), *amount))
            .collect();
        request.properties = hints
            .properties
            .iter()
            .map(|(key, value)| (key.to_string(), value.to_string()))
            .collect::<BTreeMap<_, _>>();
        request.image = ImageNeeds {
            architecture: hints.architecture.clone(),
            virt_type: hints.virt_type.clone(),
        };
        request.zone = hints
            .availability_zone
            .as_ref()
            .map(|zone| known_zone(cloud, zone))
            .transpose()?;
        if let Some(host) = &hints.host {
            request.requested_host = Some(self.host(db, host).await?);
        }
        request.same_hosts = same_hosts(db, cloud, &hints.same_host).await?;
        request.different_hosts = different_hosts(db, cloud, &hints.different_host).await?;
        contradiction(&request)?;
        let mut group = None;
        if let Some(named) = &hints.server_group {
            let row = self.group(db, asker.project, named).await?;
            group = Some(row.id);
            request.group = Some(ServerGroup {
                policy: policy(row.policy),
                max_per_host: row.max_server_per_host.map(u64::from),
                members: cloud.members(row.id),
            });
        }
        Ok(Resolved { request, group })
    }

    async fn host(&mut self, db: &impl Executor, host: &str) -> Result<HostId, ClaimError> {
        if let Some(id) = self.hosts.get(host) {
            return Ok(*id);
        }
        let id = hosts::resolve(db, host).await?.id;
        self.hosts.insert(host.to_owned(), id);
        Ok(id)
    }

    async fn group(
        &mut self,
        db: &impl Executor,
        project: &ProjectName,
        named: &str,
    ) -> Result<ServerGroupRow, ClaimError> {
        let key = (project.clone(), named.to_owned());
        if let Some(row) = self.groups.get(&key) {
            return Ok(row.clone());
        }
        let row = group(db, project, named).await?;
        self.groups.insert(key, row.clone());
        Ok(row)
    }
}

/// The server group a request names, by id or by name; of this project only.
///
/// # Errors
/// A refusal when there is none, or a failure of the database.
pub async fn group(
    db: &impl Executor,
    project: &ProjectName,
    named: &str,
) -> Result<ServerGroupRow, ClaimError> {
    if let Ok(id) = named.parse::<ServerGroupId>()
        && let Some(row) = server_groups::get(db, id).await?
        && row.project == *project
    {
        return Ok(row);
    }
    if let Ok(name) = named.parse::<ServerGroupName>()
        && let Some(row) = server_groups::find_by_name(db, project, &name).await?
    {
        return Ok(row);
    }
    let shown: String = named.chars().take(80).collect();
    Err(not_found(format!(
        "project {project} has no server group {shown:?}, neither by id nor by name; `berthctl server-group list` \
         shows all"
    )))
}

/// A zone that some host could be in.
fn known_zone(cloud: &Cloud, zone: &ZoneName) -> Result<String, ClaimError> {
    let named = cloud
        .aggregates()
        .iter()
        .filter_map(|aggregate| aggregate.row.availability_zone.as_ref());
    let mut known: BTreeSet<&ZoneName> = named.collect();
    let nova = ZoneName::nova();
    known.insert(&nova);
    if known.contains(zone) {
        return Ok(zone.to_string());
    }
    let known: Vec<&str> = known.into_iter().map(ZoneName::as_str).collect();
    Err(not_found(format!(
        "there is no availability zone {zone}; there are: {}",
        known.join(", ")
    )))
}

/// The hosts of instances of which one must be beside.
async fn same_hosts(
    db: &impl Executor,
    cloud: &Cloud,
    instances: &[InstanceId],
) -> Result<BTreeSet<HostId>, ClaimError> {
    for instance in instances {
        if cloud.placed(*instance).is_none() {
            known_instance(db, *instance, "same_host").await?;
        }
    }
    let hosts = cloud.hosts_of(instances);
    if hosts.is_empty() && !instances.is_empty() {
        return Err(conflict(
            "no instance in hints.same_host has a host (yet): create them first",
        ));
    }
    Ok(hosts)
}

/// The hosts of instances that must be elsewhere; those that have no host are.
async fn different_hosts(
    db: &impl Executor,
    cloud: &Cloud,
    instances: &[InstanceId],
) -> Result<BTreeSet<HostId>, ClaimError> {
    for instance in instances {
        if cloud.placed(*instance).is_none() {
            known_instance(db, *instance, "different_host").await?;
        }
    }
    Ok(cloud.hosts_of(instances))
}

async fn known_instance(
    db: &impl Executor,
    instance: InstanceId,
    hint: &str,
) -> Result<(), ClaimError> {
    match instances::get(db, instance).await? {
        Some(_) => Ok(()),
        None => Err(not_found(format!(
            "there is no instance {instance}, which hints.{hint} names"
        ))),
    }
}

/// Hints that no host of any cloud could satisfy.
fn contradiction(request: &place::Request) -> Result<(), ClaimError> {
    let conflict = if let Some(host) = request.requested_host {
        if request.different_hosts.contains(&host) {
            Some("hints.host has an instance of hints.different_host")
        } else if !request.same_hosts.is_empty() && !request.same_hosts.contains(&host) {
            Some("hints.host has no instance of hints.same_host")
        } else {
            None
        }
    } else if !request.same_hosts.is_empty()
        && request.same_hosts.is_subset(&request.different_hosts)
    {
        Some("every host of hints.same_host has an instance of hints.different_host")
    } else {
        None
    };
    match conflict {
        Some(why) => Err(invalid(format!("the hints contradict one another: {why}"))),
        None => Ok(()),
    }
}

const fn policy(policy: ServerGroupPolicy) -> GroupPolicy {
    match policy {
        ServerGroupPolicy::Affinity => GroupPolicy::Affinity,
        ServerGroupPolicy::AntiAffinity => GroupPolicy::AntiAffinity,
        ServerGroupPolicy::SoftAffinity => GroupPolicy::SoftAffinity,
        ServerGroupPolicy::SoftAntiAffinity => GroupPolicy::SoftAntiAffinity,
    }
}
