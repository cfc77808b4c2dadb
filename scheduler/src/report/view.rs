//! What an instance, a network or a host looks like from outside: a pure function of rows.

use std::{collections::BTreeMap, time::Duration};

use berth_common::{
    document::{DesiredPower, OnCrash},
    ids::{HostId, NetworkId},
    message::{
        report::{BootDisk, ConvergeStatus, Fault, FaultCode, PowerState},
        view::{
            AttachedVolume, HostState, HostView, InstanceView, NetworkView, PoolUsage, PortView,
            ProjectUsage, ResourceUsage, Resources, SubnetView, TaskState, VmState,
        },
    },
    names::{AggregateName, HostName, NetworkName, PoolName, ProjectName, VolumeName},
    units::{DiskGb, Generation},
};
use berth_store::{
    aggregates::Aggregate, attachments::AttachmentRow, claims::ClaimRow, documents::DocumentRow,
    hosts::HostRow, instances::InstanceRow, networks::NetworkRow, ports::PortRow,
    snapshots::SnapshotClaim, subnets::SubnetRow, volumes::VolumeClaim,
};

use super::{size_view, volume_view::device};
use crate::{
    claim::{address, facts},
    config::Placement,
};

/// Everything that is known of an instance.
#[derive(Debug, Clone, Copy)]
pub struct InstanceFacts<'a> {
    /// Its row.
    pub row: &'a InstanceRow,
    /// Its ports.
    pub ports: &'a [PortRow],
    /// The volumes attached to it, by position, with their names.
    pub volumes: &'a [(AttachmentRow, VolumeName)],
    /// Why the volume that it boots from could not be made.
    pub root_fault: Option<&'a Fault>,
    /// The host it has a claim on.
    pub host: Option<(HostId, &'a HostName)>,
    /// That host is down, and since when.
    pub silence: Option<Silence>,
    /// Its document.
    pub document: Option<&'a DocumentRow>,
    /// Names of networks.
    pub networks: &'a BTreeMap<NetworkId, NetworkName>,
}

/// A host is down.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Silence {
    /// For how long nothing was heard of it; `None`: not since this scheduler leads.
    pub age: Option<Duration>,
}

impl Silence {
    /// Of a host in this state.
    #[must_use]
    pub fn of(state: HostState, age: Option<Duration>) -> Option<Self> {
        (state == HostState::Down).then_some(Self { age })
    }

    /// `its host is down, nothing was heard of it for 95 s`.
    pub(super) fn in_words(self) -> String {
        match self.age {
            Some(age) => format!(
                "its host is down, nothing was heard of it for {} s",
                age.as_secs()
            ),
            None => "its host is down".to_owned(),
        }
    }
}

/// An instance from outside.
#[must_use]
pub fn instance(facts: InstanceFacts<'_>) -> InstanceView {
    let row = facts.row;
    let generation = facts
        .document
        .map_or(Generation(0), |document| document.generation);
    let (vm_state, fault) = vm_state(row, facts.root_fault);
    let silence = facts
        .silence
        .map(Silence::in_words)
        .filter(|_| vm_state != VmState::Deleted);
    let task_state = task_state(row, vm_state, generation);
    let (vm_state, task_state, fault) = match (&silence, vm_state) {
        // Nobody builds it: that is no state to wait in. It ends when the host is back, and building goes on.
        (Some(silence), VmState::Building) => (
            VmState::Error,
            task_state.filter(|task| *task == TaskState::Deleting),
            Some(not_built(row, silence)),
        ),
        _ => (vm_state, task_state, fault),
    };
    InstanceView {
        id: row.id,
        name: row.name.clone(),
        project: row.project.clone(),
        vm_state,
        task_state,
        power_state: row.observed.power_state,
        desired_power: row.desired_power,
        progress: silence.or_else(|| {
            let progress = row.observed.progress.clone();
            progress.filter(|_| vm_state != VmState::Deleted)
        }),
        fault,
        host: facts.host.map(|(_, name)| name.clone()),
        host_id: facts.host.map(|(id, _)| id),
        flavor: row.flavor,
        running: row.observed.running,
        pending: size_view::pending(row),
        image: row.boot_source.image().cloned(),
        root_volume: row.boot_source.volume().copied(),
        rescued: row.desired_rescue.is_some(),
        metadata: row.metadata.clone(),
        on_crash: row.on_crash,
        ports: facts
            .ports
            .iter()
            .map(|port| port_view(port, facts.networks))
            .collect(),
        volumes: facts
            .volumes
            .iter()
            .map(|(attachment, name)| AttachedVolume {
                id: attachment.volume_id,
                name: name.clone(),
                device: device(attachment.position, attachment.disk_bus),
                access: attachment.access,
                disk_bus: attachment.disk_bus,
            })
            .collect(),
        generation,
        observed_generation: row.observed.generation,
        created_at: row.created_at,
        updated_at: row.updated_at,
    }
}

/// The host of an instance went down before it was built.
fn not_built(row: &InstanceRow, silence: &str) -> Fault {
    let end = if row.desired_deleted {
        "it is deleted when the host is back or an operator deletes the host"
    } else {
        "building goes on when the host is back; delete the instance to have it elsewhere"
    };
    Fault {
        code: FaultCode::NoValidHost,
        message: format!("{silence}: {end}"),
    }
}

fn port_view(port: &PortRow, networks: &BTreeMap<NetworkId, NetworkName>) -> PortView {
    PortView {
        id: port.id,
        network_id: port.network_id,
        network: networks.get(&port.network_id).cloned(),
        mac_address: port.mac_address,
        fixed_ips: port.fixed_ips.clone(),
    }
}

/// In which part of its life an instance is, and why it is in error.
fn vm_state(row: &InstanceRow, root_fault: Option<&Fault>) -> (VmState, Option<Fault>) {
    if row.deleted_at.is_some() {
        return (VmState::Deleted, None);
    }
    if let Some(fault) = &row.placement_fault {
        return (VmState::Error, Some(fault.clone()));
    }
    let fault = row.observed.fault.clone();
    match row.observed.status {
        Some(ConvergeStatus::Failed) => (VmState::Error, fault),
        // It waits for its volume, and that is no state to wait in. It ends when the volume is made after all.
        _ if !row.observed.was_active && root_fault.is_some() => {
            (VmState::Error, root_fault.map(not_made))
        }
        _ if !row.observed.was_active => (VmState::Building, fault),
        _ => match row.observed.power_state {
            PowerState::Running => (VmState::Active, fault),
            PowerState::Paused => (VmState::Paused, fault),
            PowerState::Suspended => (VmState::Suspended, fault),
            PowerState::Crashed
                if row.on_crash == OnCrash::Stop && row.desired_power != DesiredPower::Stopped =>
            {
                (VmState::Error, fault.or_else(|| Some(crashed(row))))
            }
            PowerState::Shutdown | PowerState::Crashed | PowerState::Nostate => {
                (VmState::Stopped, fault)
            }
        },
    }
}

/// The volume it boots from could not be made.
fn not_made(fault: &Fault) -> Fault {
    Fault {
        code: fault.code,
        message: format!(
            "the volume that it boots from could not be made: {}",
            fault.message
        ),
    }
}

/// Its guest crashed, and is not to be started again by itself.
fn crashed(row: &InstanceRow) -> Fault {
    Fault {
        code: FaultCode::Hypervisor,
        message: format!(
            "the guest of instance {} crashed, and its on_crash is stop: start it when you have looked at it",
            row.name
        ),
    }
}

/// What is being done to an instance: where its wish and what was seen differ.
fn task_state(row: &InstanceRow, vm_state: VmState, generation: Generation) -> Option<TaskState> {
    match vm_state {
        VmState::Deleted => return None,
        _ if row.desired_deleted => return Some(TaskState::Deleting),
        VmState::Building => return Some(TaskState::Spawning),
        VmState::Error if row.observed.generation >= generation => return None,
        VmState::Error
        | VmState::Active
        | VmState::Paused
        | VmState::Suspended
        | VmState::Stopped => {}
    }
    let settled = row.observed.generation >= generation
        && row.observed.status == Some(ConvergeStatus::Converged);
    let rebooted = row.desired_reboot.map(|reboot| reboot.nonce) == row.observed.reboot_nonce;
    let booting = boots_otherwise(row);
    match (row.desired_power, row.observed.power_state) {
        _ if settled => None,
        (DesiredPower::Running, _)
        | (
            DesiredPower::Stopped,
            PowerState::Shutdown | PowerState::Crashed | PowerState::Nostate,
        ) if booting.is_some() => booting,
        (DesiredPower::Running, PowerState::Paused) => Some(TaskState::Unpausing),
        (DesiredPower::Running, PowerState::Suspended) => Some(TaskState::Resuming),
        (DesiredPower::Running, _) if !rebooted => Some(TaskState::Rebooting),
        (DesiredPower::Running, PowerState::Running) => None,
        (
            DesiredPower::Running,
            PowerState::Shutdown | PowerState::Crashed | PowerState::Nostate,
        ) => Some(TaskState::PoweringOn),
        (
            DesiredPower::Stopped,
            PowerState::Running | PowerState::Paused | PowerState::Suspended,
        ) => Some(TaskState::PoweringOff),
        (
            DesiredPower::Stopped,
            PowerState::Shutdown | PowerState::Crashed | PowerState::Nostate,
        ) => None,
        (DesiredPower::Paused, PowerState::Paused) => None,
        (DesiredPower::Paused, _) => Some(TaskState::Pausing),
        (DesiredPower::Suspended, PowerState::Suspended) => None,
        (DesiredPower::Suspended, _) => Some(TaskState::Suspending),
    }
}

/// What is being done to an instance whose host booted it, or would, from another disk than it shall have.
fn boots_otherwise(row: &InstanceRow) -> Option<TaskState> {
    let rebuilt = row
        .desired_incarnation
        .map(|it| BootDisk::Rebuilt(it.nonce));
    let rescue = row.desired_rescue.as_ref();
    let wanted = rescue.map(|it| BootDisk::Rescue(it.nonce)).or(rebuilt);
    let observed = row.observed.boot_disk;
    match (wanted, observed) {
        _ if wanted == observed => None,
        (Some(BootDisk::Rescue(_)), _) => Some(TaskState::Rescuing),
        (_, Some(BootDisk::Rescue(_))) => Some(TaskState::Unrescuing),
        (Some(BootDisk::Rebuilt(_)) | None, _) => Some(TaskState::Rebuilding),
    }
}

/// A subnet from outside.
#[must_use]
pub fn subnet(row: &SubnetRow) -> SubnetView {
    SubnetView {
        id: row.id,
        name: row.name.clone(),
        network_id: row.network_id,
        cidr: row.cidr,
        gateway_ip: row.gateway_ip,
        dhcp_ip: row.dhcp_ip,
        allocation_pools: address::pools(row),
        dns_nameservers: row.dns_nameservers.clone(),
        host_routes: row.host_routes.clone(),
        ipv6_address_mode: row.ipv6_address_mode,
        created_at: row.created_at,
    }
}

/// A network from outside.
#[must_use]
pub fn network(row: &NetworkRow, ports: u64) -> NetworkView {
    NetworkView {
        id: row.id,
        name: row.name.clone(),
        project: row.project.clone(),
        network_type: row.network_type,
        physical_network: row.physical_network.clone(),
        segmentation_id: row.segmentation_id,
        external: row.external,
        mtu: row.mtu,
        subnets: row.subnets.iter().map(subnet).collect(),
        ports,
        created_at: row.created_at,
    }
}

/// What is claimed of a storage pool of a host: by volumes, and by snapshots of such.
fn claimed_of_pool(
    pool: &PoolName,
    volumes: &[&VolumeClaim],
    snapshots: &[&SnapshotClaim],
) -> DiskGb {
    let volumes = volumes.iter().filter(|claim| claim.pool == *pool);
    let snapshots = snapshots.iter().filter(|claim| claim.pool == *pool);
    volumes
        .map(|claim| claim.size_gb)
        .chain(snapshots.map(|claim| claim.size_gb))
        .sum()
}

/// What is claimed of a host, each with its project: by instances, by volumes, and by snapshots.
fn claimed<'a>(
    seen: &HostSeen<'a>,
) -> impl Iterator<Item = (&'a ProjectName, Resources)> + use<'a> {
    let instances = seen.claims.iter();
    let instances = instances.map(|claim| (&claim.project, claim.resources));
    let disk = |disk_gb| Resources {
        disk_gb,
        ..Resources::default()
    };
    let volumes = seen.volumes.iter();
    let volumes = volumes.map(move |claim| (&claim.project, disk(claim.of_host_disk())));
    let snapshots = seen.snapshots.iter();
    let snapshots = snapshots.map(move |claim| (&claim.project, disk(claim.of_host_disk())));
    instances.chain(volumes).chain(snapshots)
}

/// Row `(used_max)`: the sum of the claims, plus what foreign domains take.
fn used_max(foreign: Resources, seen: &HostSeen<'_>) -> Resources {
    claimed(seen).fold(foreign, |sum, (_, resources)| sum.saturating_add(resources))
}

/// Everything that is known of a host.
#[derive(Debug, Clone, Copy)]
pub struct HostSeen<'a> {
    /// Its row.
    pub row: &'a HostRow,
    /// What is claimed of it.
    pub claims: &'a [&'a ClaimRow],
    /// What its volumes take.
    pub volumes: &'a [&'a VolumeClaim],
    /// What its snapshots take.
    pub snapshots: &'a [&'a SnapshotClaim],
    /// All aggregates there are.
    pub aggregates: &'a [Aggregate],
    /// How long ago it was heard of.
    pub age: Option<Duration>,
    /// Whether it counts as up.
    pub state: HostState,
}

/// A host from outside.
#[must_use]
pub fn host(seen: HostSeen<'_>, placement: &Placement) -> HostView {
    let HostSeen {
        row,
        claims,
        aggregates,
        age,
        state,
        volumes,
        snapshots,
    } = seen;
    let facts = facts::of_host(row, aggregates, state, placement);
    let mut projects: BTreeMap<&ProjectName, Resources> = BTreeMap::new();
    for (project, resources) in claimed(&seen) {
        let sum = projects.entry(project).or_default();
        *sum = sum.saturating_add(resources);
    }
    let mut of_aggregates: Vec<AggregateName> = facts::aggregates_of(row.id, aggregates)
        .map(|aggregate| aggregate.name.clone())
        .collect();
    of_aggregates.sort();
    HostView {
        id: row.id,
        name: row.name.clone(),
        status: row.status,
        disabled_reason: row.disabled_reason.clone(),
        state,
        last_heartbeat_seconds: age.map(|age| age.as_secs()),
        agent_version: row.agent_version.clone(),
        virt_type: row.virt_type.clone(),
        arch: row.arch.clone(),
        health: row.health.clone(),
        total: row.total,
        reserved: facts.reserved,
        allocation_ratios: facts.ratios,
        capacity: facts.capacity(),
        used_now: row.used_now,
        used_max: used_max(facts.foreign, &seen),
        projects: projects
            .into_iter()
            .map(|(project, claimed)| ProjectUsage {
                project: project.clone(),
                claimed,
            })
            .collect(),
        foreign_domains: row.foreign_domains.clone(),
        availability_zone: facts::zone(row.id, aggregates),
        aggregates: of_aggregates,
        physical_networks: row.physical_networks.clone(),
        network: row.network.clone(),
        resources: row
            .resources
            .iter()
            .map(|inventory| ResourceUsage {
                class: inventory.class.clone(),
                total: inventory.total,
                used: claims
                    .iter()
                    .filter_map(|claim| claim.extra.get(&inventory.class))
                    .fold(0, |sum, amount| sum.saturating_add(*amount)),
            })
            .collect(),
        pools: row
            .pools
            .iter()
            .map(|report| PoolUsage {
                report: report.clone(),
                claimed_gb: claimed_of_pool(&report.name, volumes, snapshots),
            })
            .collect(),
        instances: u64::try_from(claims.len()).unwrap_or(u64::MAX),
    }
}
