//! A thousand clients at once, and room for seven hundred: the claims are exact, whoever comes first.
//!
//! 20 simulated hosts take 35 instances each by memory, the overcommit ratio included; CPUs and disk would take one
//! more each. Some of the thousand are in server groups, which leave none of them more room than there is. Those in no
//! group are more than there is room for, so every place is taken in the end.

use std::{
    collections::BTreeMap,
    time::{Duration, Instant},
};

use anyhow::{Context, ensure};
use berth_common::{
    ids::{InstanceId, ServerGroupId},
    message::{
        placement::{SchedulerHints, ServerGroupPolicy},
        request::{InstanceCreate, ServerGroupCreate},
        view::{InstanceView, VmState},
    },
    names::HostName,
    refusal::{Refusal, RefusalCode},
    units::{DiskGb, MemoryMb, Vcpus},
};
use berth_tests::{
    TestCloud,
    cloud::{InstanceOptions, Sims, imaginary_image},
    ctl::Berthctl,
    figure,
    wait::{Seen, wait_for},
    with_cloud,
};
use futures::future::join_all;
use serde_json::Value;

const HOSTS: usize = 20;
const REQUESTS: usize = 1000;
/// So many fit, [`PER_HOST`] on each host.
const ROOM: usize = 700;
const PER_HOST: u64 = 35;
/// The size of each instance, besides one CPU and 1 GiB of disk.
const MEMORY_MB: u64 = 256;
/// What of a host's memory may be claimed: `(6486 − 512) × 1.5`, and 35 × 256 is 8960.
const CAPACITY_MB: u64 = 8961;
/// How long the thousand may wait for their answers.
const PATIENCE: Duration = Duration::from_secs(60);
/// How long their end may take.
const END_LIMIT: Duration = Duration::from_secs(60);

/// A server group and how many want to be in it.
struct Group {
    name: &'static str,
    policy: ServerGroupPolicy,
    max_server_per_host: Option<u32>,
    members: usize,
}

/// Of `apart`, four find no host; of `in-pairs`, another four.
const GROUPS: [Group; 5] = [
    Group {
        name: "apart",
        policy: ServerGroupPolicy::AntiAffinity,
        max_server_per_host: None,
        members: 24,
    },
    Group {
        name: "in-pairs",
        policy: ServerGroupPolicy::AntiAffinity,
        max_server_per_host: Some(2),
        members: 44,
    },
    Group {
        name: "together",
        policy: ServerGroupPolicy::Affinity,
        max_server_per_host: None,
        members: 12,
    },
    Group {
        name: "rather-together",
        policy: ServerGroupPolicy::SoftAffinity,
        max_server_per_host: None,
        members: 10,
    },
    Group {
        name: "rather-apart",
        policy: ServerGroupPolicy::SoftAntiAffinity,
        max_server_per_host: None,
        members: 10,
    },
];

#[test]
fn of_a_thousand_creates_at_once_exactly_those_become_active_for_whom_there_is_room() {
    let sims = Sims {
        vcpus: 9,
        memory_mb: 6486,
        disk_gb: 36,
        ..Sims::of(HOSTS)
    };
    let builder = TestCloud::builder()
        .agents(0)
        .sims(sims)
        // Under a thousand requests even later than elsewhere.
        .scheduler_config("hosts.heartbeat_timeout_seconds", 60);
    with_cloud(builder, async |cloud| {
        let cloud = &*cloud;
        let requests = requests(cloud).await?;
        let start = Instant::now();
        let asked = requests.iter().map(|request| async move {
            let answer = cloud.try_call(request, PATIENCE).await?;
            anyhow::Ok((request, answer))
        });
        let answers: Vec<_> = join_all(asked)
            .await
            .into_iter()
            .collect::<anyhow::Result<_>>()?;
        let answered = start.elapsed();
        let (granted, refused): (Vec<_>, Vec<_>) =
            answers.into_iter().partition(|(_, answer)| answer.is_ok());
        assert_eq!((granted.len(), refused.len()), (ROOM, REQUESTS - ROOM));
        for (request, answer) in refused {
            let refusal = answer.err().context("it was granted")?;
            the_refusal_has_numbers(request, &refusal)?;
        }

        let hosts = cloud.wait_all_run(u64::try_from(ROOM)?).await?;
        let active = start.elapsed();
        for host in &hosts {
            assert_eq!(host.capacity.memory_mb.get(), CAPACITY_MB, "{}", host.name);
            assert_eq!(host.instances, PER_HOST, "{}", host.name);
            assert!(
                host.used_max.vcpus <= host.capacity.vcpus
                    && host.used_max.memory_mb <= host.capacity.memory_mb
                    && host.used_max.disk_gb <= host.capacity.disk_gb,
                "{} has more claims than it may: {host:?}",
                host.name
            );
        }
        let instances = everybody_is_where_they_were_told_to_be(cloud, &granted).await?;
        groups_are_respected(&requests, &instances)?;
        the_operator_sees_the_same_sums(cloud).await?;

        let start = Instant::now();
        cloud.delete_all().await?;
        wait_for("all claims to be gone", END_LIMIT, async || {
            let left: Vec<_> = cloud
                .hosts()
                .await?
                .into_iter()
                .filter(|host| host.instances > 0 || host.used_max != Default::default())
                .map(|host| (host.name, host.instances))
                .collect();
            Ok(Seen::when(left.is_empty(), left))
        })
        .await?;
        let deleted = start.elapsed();
        figure(&format!(
            "scale creates={REQUESTS} active={ROOM} answered_s={:.1} active_s={:.1} deleted_s={:.1}",
            answered.as_secs_f64(),
            active.as_secs_f64(),
            deleted.as_secs_f64()
        ));
        Ok(())
    });
}

/// The thousand requests, those of the groups among the others.
async fn requests(cloud: &TestCloud) -> anyhow::Result<Vec<InstanceCreate>> {
    let options = InstanceOptions {
        image: Some(imaginary_image()?),
        memory_mb: MEMORY_MB,
        ..InstanceOptions::default()
    };
    let template = cloud.instance_request("template", &options)?;
    let mut wishes = Vec::new();
    for group in &GROUPS {
        cloud
            .call(&ServerGroupCreate {
                id: ServerGroupId::new(),
                name: group.name.parse()?,
                project: Default::default(),
                policy: group.policy,
                max_server_per_host: group.max_server_per_host,
            })
            .await?;
        wishes.extend(std::iter::repeat_n(Some(group.name), group.members));
    }
    let ungrouped = REQUESTS - wishes.len();
    assert!(ungrouped > ROOM, "some room could be left");
    wishes.resize(REQUESTS, None);
    (0..REQUESTS)
        .map(|number| {
            // 7 and 1000 have no common divisor: every wish has its turn once, spread over the whole.
            let group = wishes[number * 7 % REQUESTS];
            let name = format!("{}-{number}", group.unwrap_or("alone"));
            Ok(InstanceCreate {
                id: InstanceId::new(),
                name: name.parse()?,
                hints: SchedulerHints {
                    server_group: group.map(str::to_owned),
                    ..SchedulerHints::default()
                },
                ..template.clone()
            })
        })
        .collect()
}

fn the_refusal_has_numbers(request: &InstanceCreate, refusal: &Refusal) -> anyhow::Result<()> {
    let text = &refusal.message;
    let name = &request.name;
    ensure!(
        refusal.code == RefusalCode::NoValidHost,
        "{name}: {refusal:?}"
    );
    let asked = "No valid host was found for 1 vCPU, 256 MB of memory, 1 GB of disk";
    ensure!(text.contains(asked), "{name}: {text}");
    // Every host fell at some filter.
    let fell: usize = text
        .split(" removed ")
        .skip(1)
        .filter_map(|rest| rest.split(|c: char| !c.is_ascii_digit()).next())
        .filter_map(|number| number.parse::<usize>().ok())
        .sum();
    ensure!(fell == HOSTS, "{name}: {fell} hosts are counted: {text}");
    if request.hints.server_group.is_none() {
        let missing = "needs 256 MB of memory, 1 free of 8961, 255 missing";
        ensure!(
            text.contains(missing) && text.contains("ram removed 20"),
            "{name}: {text}"
        );
    }
    Ok(())
}

/// Granted, active, and on the host of the answer: by the scheduler's list, and by what the hosts have been told.
async fn everybody_is_where_they_were_told_to_be(
    cloud: &TestCloud,
    granted: &[(&InstanceCreate, Result<InstanceView, Refusal>)],
) -> anyhow::Result<Vec<InstanceView>> {
    let answered: BTreeMap<InstanceId, Option<HostName>> = granted
        .iter()
        .filter_map(|(_, answer)| answer.as_ref().ok())
        .map(|view| (view.id, view.host.clone()))
        .collect();
    // The last reports may be under way still.
    let instances = wait_for("all of them to be active", END_LIMIT, async || {
        let instances = cloud.instances().await?;
        let count = |state| {
            instances
                .iter()
                .filter(|view| view.vm_state == state)
                .count()
        };
        let seen = (count(VmState::Active), count(VmState::Error));
        Ok(if seen == (ROOM, REQUESTS - ROOM) {
            Seen::Done(instances)
        } else {
            Seen::NotYet(format!("{seen:?} active and in error"))
        })
    })
    .await?;
    let told = cloud.told_once()?;
    ensure!(told.len() == ROOM, "{} are told", told.len());
    for view in &instances {
        let host = view.host.as_ref().map(HostName::as_str);
        let expected = answered.get(&view.id).and_then(Option::as_ref);
        ensure!(
            host == expected.map(HostName::as_str)
                && host == told.get(&view.id.to_string()).map(String::as_str),
            "{} is on {host:?}, answered was {expected:?}, told {:?}",
            view.name,
            told.get(&view.id.to_string())
        );
    }
    Ok(instances)
}

fn groups_are_respected(
    requests: &[InstanceCreate],
    instances: &[InstanceView],
) -> anyhow::Result<()> {
    let hosts: BTreeMap<InstanceId, &HostName> = instances
        .iter()
        .filter_map(|view| Some((view.id, view.host.as_ref()?)))
        .collect();
    for group in &GROUPS {
        let mut members: BTreeMap<&HostName, usize> = BTreeMap::new();
        for request in requests {
            if request.hints.server_group.as_deref() == Some(group.name)
                && let Some(host) = hosts.get(&request.id)
            {
                *members.entry(host).or_default() += 1;
            }
        }
        let placed: usize = members.values().sum();
        let most = members.values().max().copied().unwrap_or_default();
        let name = group.name;
        ensure!(placed > 0, "nobody of {name} was placed");
        match group.policy {
            ServerGroupPolicy::AntiAffinity => {
                let limit = usize::try_from(group.max_server_per_host.unwrap_or(1))?;
                ensure!(most <= limit, "{name}: {members:?}");
            }
            ServerGroupPolicy::Affinity => {
                ensure!(members.len() == 1, "{name}: {members:?}");
            }
            // A wish; that it is weighed is shown where there is room.
            ServerGroupPolicy::SoftAffinity | ServerGroupPolicy::SoftAntiAffinity => {}
        }
    }
    Ok(())
}

async fn the_operator_sees_the_same_sums(cloud: &TestCloud) -> anyhow::Result<()> {
    let ctl = Berthctl::new(cloud)?;
    let hosts = ctl.json(&["host", "list"]).await?;
    let list = ctl.json(&["instance", "list"]).await?;
    let hosts = rows(&hosts, "hosts")?;
    let instances = rows(&list, "instances")?;
    let mut on: BTreeMap<&str, u64> = BTreeMap::new();
    for host in instances.iter().filter_map(|view| view["host"].as_str()) {
        *on.entry(host).or_default() += 1;
    }
    let mut sum = 0;
    for host in hosts {
        let name = host["name"].as_str().context("a host without a name")?;
        let count = host["instances"].as_u64().context("no count")?;
        ensure!(
            on.get(name) == Some(&count),
            "{name} counts {count} instances, the list has {:?}",
            on.get(name)
        );
        let claimed = &host["projects"][0]["claimed"];
        for (resource, each) in [
            ("vcpus", Vcpus::new(1)?.get()),
            ("memory_mb", MemoryMb::new(MEMORY_MB)?.get()),
            ("disk_gb", DiskGb::new(1)?.get()),
        ] {
            let used = host["used_max"][resource].as_u64();
            ensure!(
                used == Some(count * each) && claimed[resource].as_u64() == used,
                "{name}: {count} instances, {resource} {used:?}, project {claimed}"
            );
        }
        sum += count;
    }
    ensure!(sum == u64::try_from(ROOM)?, "{sum} in all");
    Ok(())
}

/// The rows of a list, whether the program prints them bare or under their name.
fn rows<'v>(list: &'v Value, name: &str) -> anyhow::Result<&'v Vec<Value>> {
    list.as_array()
        .or_else(|| list[name].as_array())
        .with_context(|| format!("no {name} in {list}"))
}
