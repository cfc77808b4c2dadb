//! Every method of queue `scheduler`: decode, one call, encode.

use berth_common::{
    bus::Message,
    message::{
        port::{
            InstanceAttachInterface, InstanceDetachInterface, PortCreate, PortDelete, PortList,
            PortSet, PortShow,
        },
        question,
        request::{
            AggregateAddHost, AggregateCreate, AggregateDelete, AggregateList, AggregateRemoveHost,
            AggregateSet, CreateMode, HostDelete, HostDisable, HostDrain, HostEnable, HostList,
            HostSet, HostShow, InstanceCreate, InstanceCreateMany, InstanceCreateManyReply,
            InstanceCreateResult, InstanceDelete, InstanceList, InstancePause, InstanceReboot,
            InstanceRebuild, InstanceRescue, InstanceResize, InstanceResume, InstanceSet,
            InstanceShow, InstanceStart, InstanceStop, InstanceSuspend, InstanceUnpause,
            InstanceUnrescue, Method, NetworkCreate, NetworkDelete, NetworkList, NetworkSet,
            NetworkShow, PlacementCapacity, PlacementExplain, PlacementPlace, ServerGroupCreate,
            ServerGroupDelete, ServerGroupList, SnapshotCreate, SnapshotDelete, SnapshotList,
            SnapshotShow, SubnetCreate, SubnetDelete, SubnetList, SubnetSet, SubnetShow,
            VolumeAttach, VolumeCreate, VolumeDelete, VolumeDetach, VolumeExtend, VolumeList,
            VolumeShow,
        },
        router::{
            FloatingIpCreate, FloatingIpDelete, FloatingIpList, FloatingIpSet, FloatingIpShow,
            RouterAddInterface, RouterCreate, RouterDelete, RouterList, RouterRemoveInterface,
            RouterSet, RouterShow,
        },
        security_group::{
            SecurityGroupCreate, SecurityGroupDelete, SecurityGroupList, SecurityGroupRuleCreate,
            SecurityGroupRuleDelete, SecurityGroupSet, SecurityGroupShow,
        },
        view::HostStatus,
    },
    refusal::{Refusal, RefusalCode},
};

use serde::Serialize;
use serde_json::Value;

use super::{cut, requests::parse};
use crate::{
    claim::{
        ClaimError, aggregates, hosts,
        instances::{
            change::{Change, change as change_instance},
            create::create,
            resolve,
        },
        invalid, networks, ports,
        routers::{self, floating},
        security_groups, server_groups, snapshots, subnets, volumes,
    },
    context::{Context, Image, Writing},
    report::{explain, port_view, show, view},
};

/// The most instances of one request.
const MAX_INSTANCES: usize = 256;

/// The methods that change something.
const CHANGES: [&str; 58] = [
    InstanceCreate::NAME,
    InstanceCreateMany::NAME,
    InstanceDelete::NAME,
    InstanceStart::NAME,
    InstanceStop::NAME,
    InstancePause::NAME,
    InstanceUnpause::NAME,
    InstanceSuspend::NAME,
    InstanceResume::NAME,
    InstanceReboot::NAME,
    InstanceResize::NAME,
    InstanceRescue::NAME,
    InstanceUnrescue::NAME,
    InstanceRebuild::NAME,
    InstanceSet::NAME,
    VolumeCreate::NAME,
    VolumeDelete::NAME,
    VolumeExtend::NAME,
    VolumeAttach::NAME,
    VolumeDetach::NAME,
    SnapshotCreate::NAME,
    SnapshotDelete::NAME,
    NetworkCreate::NAME,
    NetworkSet::NAME,
    NetworkDelete::NAME,
    SubnetCreate::NAME,
    SubnetSet::NAME,
    SubnetDelete::NAME,
    PortCreate::NAME,
    PortSet::NAME,
    PortDelete::NAME,
    InstanceAttachInterface::NAME,
    InstanceDetachInterface::NAME,
    SecurityGroupCreate::NAME,
    SecurityGroupSet::NAME,
    SecurityGroupDelete::NAME,
    SecurityGroupRuleCreate::NAME,
    SecurityGroupRuleDelete::NAME,
    RouterCreate::NAME,
    RouterSet::NAME,
    RouterDelete::NAME,
    RouterAddInterface::NAME,
    RouterRemoveInterface::NAME,
    FloatingIpCreate::NAME,
    FloatingIpSet::NAME,
    FloatingIpDelete::NAME,
    HostEnable::NAME,
    HostDisable::NAME,
    HostDrain::NAME,
    HostSet::NAME,
    HostDelete::NAME,
    AggregateCreate::NAME,
    AggregateSet::NAME,
    AggregateDelete::NAME,
    AggregateAddHost::NAME,
    AggregateRemoveHost::NAME,
    ServerGroupCreate::NAME,
    ServerGroupDelete::NAME,
];

/// Whether a method changes nothing.
pub(super) fn only_reads(method: &str) -> bool {
    question::is_question(method) || shows(method)
}

/// Whether a method only takes away: it is never what a document is too large by.
pub(super) fn takes_away(method: &str) -> bool {
    [
        InstanceDelete::NAME,
        InstanceDetachInterface::NAME,
        VolumeDelete::NAME,
        VolumeDetach::NAME,
        SnapshotDelete::NAME,
        NetworkDelete::NAME,
        SubnetDelete::NAME,
        PortDelete::NAME,
        SecurityGroupDelete::NAME,
        SecurityGroupRuleDelete::NAME,
        RouterDelete::NAME,
        RouterRemoveInterface::NAME,
        FloatingIpDelete::NAME,
        HostDelete::NAME,
        AggregateDelete::NAME,
        AggregateRemoveHost::NAME,
        ServerGroupDelete::NAME,
    ]
    .contains(&method)
}

/// Whether the rows alone answer a method.
fn shows(method: &str) -> bool {
    [
        InstanceShow::NAME,
        InstanceList::NAME,
        VolumeShow::NAME,
        VolumeList::NAME,
        SnapshotShow::NAME,
        SnapshotList::NAME,
        NetworkShow::NAME,
        NetworkList::NAME,
        SubnetShow::NAME,
        SubnetList::NAME,
        PortShow::NAME,
        PortList::NAME,
        SecurityGroupShow::NAME,
        SecurityGroupList::NAME,
        RouterShow::NAME,
        RouterList::NAME,
        FloatingIpShow::NAME,
        FloatingIpList::NAME,
        HostList::NAME,
        HostShow::NAME,
        AggregateList::NAME,
        ServerGroupList::NAME,
        PlacementExplain::NAME,
        PlacementPlace::NAME,
        PlacementCapacity::NAME,
    ]
    .contains(&method)
}

/// Rows that belong together are read while nobody writes: else an instance that moves on would be seen on its new host
/// with the fault of its old one. What asks placement takes its turn by itself.
async fn turn<'a>(context: &'a Context, method: &str) -> Result<Option<Image<'a>>, ClaimError> {
    if [PlacementPlace::NAME, PlacementCapacity::NAME].contains(&method) {
        return Ok(None);
    }
    Ok(Some(context.image().await?))
}

/// Serves a request that changes nothing.
pub(super) async fn show(context: &Context, message: &Message) -> Result<Value, Unserved> {
    let pool = context.store.pool();
    let _turn = turn(context, &message.method).await?;
    match message.method.as_str() {
        InstanceShow::NAME => {
            let request: InstanceShow = read(message)?;
            let row = resolve(pool, &request.project, &request.instance).await?;
            reply(show::instance(context, pool, &row).await)
        }
        InstanceList::NAME => {
            let request: InstanceList = read(message)?;
            reply(show::instance_list(context, pool, &request).await)
        }
        VolumeShow::NAME => {
            let request: VolumeShow = read(message)?;
            let row = volumes::resolve(pool, &request.project, &request.volume).await?;
            reply(show::volume(context, pool, &row).await)
        }
        VolumeList::NAME => {
            let request: VolumeList = read(message)?;
            reply(show::volume_list(context, pool, &request).await)
        }
        SnapshotShow::NAME => {
            let request: SnapshotShow = read(message)?;
            let row = snapshots::resolve(pool, &request.project, &request.snapshot).await?;
            reply(show::snapshot(context, pool, &row).await)
        }
        SnapshotList::NAME => {
            let request: SnapshotList = read(message)?;
            reply(show::snapshot_list(context, pool, &request).await)
        }
        NetworkShow::NAME => {
            let request: NetworkShow = read(message)?;
            let row = networks::living(pool, &request.project, &request.network).await?;
            reply(show::network(pool, &row).await)
        }
        SubnetShow::NAME => {
            let request: SubnetShow = read(message)?;
            let row = subnets::living(pool, &request.project, &request.subnet).await?;
            reply(Ok(view::subnet(&row)))
        }
        SubnetList::NAME => {
            let request: SubnetList = read(message)?;
            reply(subnets::list(pool, &request).await)
        }
        NetworkList::NAME => {
            let request: NetworkList = read(message)?;
            reply(show::network_list(pool, &request).await)
        }
        PortShow::NAME => {
            let request: PortShow = read(message)?;
            let row = ports::resolve(pool, &request.project, &request.port).await?;
            reply(port_view::one(pool, row).await)
        }
        PortList::NAME => {
            let request: PortList = read(message)?;
            reply(port_view::list(pool, &request).await)
        }
        SecurityGroupShow::NAME => {
            let request: SecurityGroupShow = read(message)?;
            let group = &request.security_group;
            let row = security_groups::resolve(pool, &request.project, group).await?;
            reply(security_groups::view(pool, row).await)
        }
        SecurityGroupList::NAME => {
            let request: SecurityGroupList = read(message)?;
            reply(security_groups::list(pool, &request).await)
        }
        RouterShow::NAME => {
            let request: RouterShow = read(message)?;
            let row = routers::resolve(pool, &request.project, &request.router).await?;
            reply(routers::view(pool, &row).await)
        }
        RouterList::NAME => {
            let request: RouterList = read(message)?;
            reply(routers::list(pool, &request).await)
        }
        FloatingIpShow::NAME => {
            let request: FloatingIpShow = read(message)?;
            let row = floating::resolve(pool, &request.project, &request.floating_ip).await?;
            reply(floating::view(pool, &row).await)
        }
        FloatingIpList::NAME => {
            let request: FloatingIpList = read(message)?;
            reply(floating::list(pool, &request).await)
        }
        HostList::NAME => {
            let request: HostList = read(message)?;
            reply(show::host_list(context, pool, &request).await)
        }
        HostShow::NAME => {
            let request: HostShow = read(message)?;
            let row = hosts::resolve(pool, &request.host).await?;
            reply(show::host(context, pool, &row).await)
        }
        AggregateList::NAME => {
            let _: AggregateList = read(message)?;
            reply(aggregates::list(pool).await)
        }
        ServerGroupList::NAME => {
            let request: ServerGroupList = read(message)?;
            reply(server_groups::list(pool, &request).await)
        }
        PlacementExplain::NAME => {
            let request: PlacementExplain = read(message)?;
            reply(explain::explain(pool, &request).await)
        }
        PlacementPlace::NAME => {
            let request: PlacementPlace = read(message)?;
            reply(explain::place(context, &request).await)
        }
        PlacementCapacity::NAME => {
            let request: PlacementCapacity = read(message)?;
            reply(explain::capacity(context, &request).await)
        }
        method => Err(Unserved::Poison(unknown(method))),
    }
}

/// Serves a request that changes something, but for `instance.create`: those are served many at once. What it did when it
/// was refused is to be undone.
pub(super) async fn change(w: &mut Writing<'_>, message: &Message) -> Result<Value, Unserved> {
    match message.method.as_str() {
        InstanceCreateMany::NAME => {
            let request: InstanceCreateMany = read(message)?;
            reply(create_many(w, request).await)
        }
        InstanceDelete::NAME => {
            let request: InstanceDelete = read(message)?;
            reply(change_instance(w, &request.project, &request.instance, Change::Delete).await)
        }
        InstanceStart::NAME => {
            let request: InstanceStart = read(message)?;
            reply(change_instance(w, &request.project, &request.instance, Change::Start).await)
        }
        InstanceStop::NAME => {
            let request: InstanceStop = read(message)?;
            reply(change_instance(w, &request.project, &request.instance, Change::Stop).await)
        }
        InstancePause::NAME => {
            let request: InstancePause = read(message)?;
            reply(change_instance(w, &request.project, &request.instance, Change::Pause).await)
        }
        InstanceUnpause::NAME => {
            let request: InstanceUnpause = read(message)?;
            reply(change_instance(w, &request.project, &request.instance, Change::Unpause).await)
        }
        InstanceSuspend::NAME => {
            let request: InstanceSuspend = read(message)?;
            reply(change_instance(w, &request.project, &request.instance, Change::Suspend).await)
        }
        InstanceResume::NAME => {
            let request: InstanceResume = read(message)?;
            reply(change_instance(w, &request.project, &request.instance, Change::Resume).await)
        }
        InstanceResize::NAME => {
            let request: InstanceResize = read(message)?;
            let resize = Change::Resize(request.flavor);
            reply(change_instance(w, &request.project, &request.instance, resize).await)
        }
        InstanceRescue::NAME => {
            let request: InstanceRescue = read(message)?;
            let (project, instance) = (request.project.clone(), request.instance.clone());
            reply(change_instance(w, &project, &instance, request.into()).await)
        }
        InstanceUnrescue::NAME => {
            let request: InstanceUnrescue = read(message)?;
            reply(change_instance(w, &request.project, &request.instance, Change::Unrescue).await)
        }
        InstanceRebuild::NAME => {
            let request: InstanceRebuild = read(message)?;
            let (project, instance) = (request.project.clone(), request.instance.clone());
            reply(change_instance(w, &project, &instance, request.into()).await)
        }
        InstanceSet::NAME => {
            let request: InstanceSet = read(message)?;
            let (project, instance) = (request.project.clone(), request.instance.clone());
            let describe = Change::Describe(Box::new(request.into()));
            reply(change_instance(w, &project, &instance, describe).await)
        }
        InstanceReboot::NAME => {
            let request: InstanceReboot = read(message)?;
            let reboot = Change::from(&request);
            reply(change_instance(w, &request.project, &request.instance, reboot).await)
        }
        VolumeCreate::NAME => {
            let request: VolumeCreate = read(message)?;
            reply(volumes::create::create(w, &request).await)
        }
        VolumeDelete::NAME => {
            let request: VolumeDelete = read(message)?;
            reply(volumes::change::delete(w, &request).await)
        }
        VolumeExtend::NAME => {
            let request: VolumeExtend = read(message)?;
            reply(volumes::change::extend(w, &request).await)
        }
        VolumeAttach::NAME => {
            let request: VolumeAttach = read(message)?;
            reply(volumes::attach::attach(w, &request).await)
        }
        VolumeDetach::NAME => {
            let request: VolumeDetach = read(message)?;
            reply(volumes::attach::detach(w, &request).await)
        }
        SnapshotCreate::NAME => {
            let request: SnapshotCreate = read(message)?;
            reply(snapshots::create(w, &request).await)
        }
        SnapshotDelete::NAME => {
            let request: SnapshotDelete = read(message)?;
            reply(snapshots::delete(w, &request).await)
        }
        NetworkCreate::NAME => {
            let request: NetworkCreate = read(message)?;
            reply(networks::create(w, &request).await)
        }
        NetworkSet::NAME => {
            let request: NetworkSet = read(message)?;
            reply(networks::set(w, &request).await)
        }
        SubnetCreate::NAME => {
            let request: SubnetCreate = read(message)?;
            reply(subnets::create(w, &request).await)
        }
        SubnetSet::NAME => {
            let request: SubnetSet = read(message)?;
            reply(subnets::set(w, &request).await)
        }
        SubnetDelete::NAME => {
            let request: SubnetDelete = read(message)?;
            reply(subnets::delete(w, &request).await)
        }
        NetworkDelete::NAME => {
            let request: NetworkDelete = read(message)?;
            reply(networks::delete(w, &request).await)
        }
        PortCreate::NAME => {
            let request: PortCreate = read(message)?;
            reply(ports::change::create(w, &request).await)
        }
        PortSet::NAME => {
            let request: PortSet = read(message)?;
            reply(ports::change::set(w, &request).await)
        }
        PortDelete::NAME => {
            let request: PortDelete = read(message)?;
            reply(ports::change::delete(w, &request).await)
        }
        InstanceAttachInterface::NAME => {
            let request: InstanceAttachInterface = read(message)?;
            reply(ports::attach::attach(w, &request).await)
        }
        InstanceDetachInterface::NAME => {
            let request: InstanceDetachInterface = read(message)?;
            reply(ports::attach::detach(w, &request).await)
        }
        SecurityGroupCreate::NAME => {
            let request: SecurityGroupCreate = read(message)?;
            reply(security_groups::create(w, &request).await)
        }
        SecurityGroupSet::NAME => {
            let request: SecurityGroupSet = read(message)?;
            reply(security_groups::set(w, &request).await)
        }
        SecurityGroupDelete::NAME => {
            let request: SecurityGroupDelete = read(message)?;
            reply(security_groups::delete(w, &request).await)
        }
        SecurityGroupRuleCreate::NAME => {
            let request: SecurityGroupRuleCreate = read(message)?;
            reply(security_groups::create_rule(w, &request).await)
        }
        SecurityGroupRuleDelete::NAME => {
            let request: SecurityGroupRuleDelete = read(message)?;
            reply(security_groups::delete_rule(w, &request).await)
        }
        RouterCreate::NAME => {
            let request: RouterCreate = read(message)?;
            reply(routers::create(w, &request).await)
        }
        RouterSet::NAME => {
            let request: RouterSet = read(message)?;
            reply(routers::set(w, &request).await)
        }
        RouterDelete::NAME => {
            let request: RouterDelete = read(message)?;
            reply(routers::delete(w, &request).await)
        }
        RouterAddInterface::NAME => {
            let request: RouterAddInterface = read(message)?;
            reply(routers::add_interface(w, &request).await)
        }
        RouterRemoveInterface::NAME => {
            let request: RouterRemoveInterface = read(message)?;
            reply(routers::remove_interface(w, &request).await)
        }
        FloatingIpCreate::NAME => {
            let request: FloatingIpCreate = read(message)?;
            reply(floating::create(w, &request).await)
        }
        FloatingIpSet::NAME => {
            let request: FloatingIpSet = read(message)?;
            reply(floating::set(w, &request).await)
        }
        FloatingIpDelete::NAME => {
            let request: FloatingIpDelete = read(message)?;
            reply(floating::delete(w, &request).await)
        }
        HostEnable::NAME => {
            let request: HostEnable = read(message)?;
            reply(hosts::set_status(w, &request.host, HostStatus::Enabled, None).await)
        }
        HostDisable::NAME => {
            let request: HostDisable = read(message)?;
            let reason = request.reason.as_deref();
            reply(hosts::set_status(w, &request.host, HostStatus::Disabled, reason).await)
        }
        HostDrain::NAME => {
            let request: HostDrain = read(message)?;
            let reason = request.reason.as_deref();
            reply(hosts::set_status(w, &request.host, HostStatus::Draining, reason).await)
        }
        HostSet::NAME => {
            let request: HostSet = read(message)?;
            reply(hosts::set(w, &request).await)
        }
        HostDelete::NAME => {
            let request: HostDelete = read(message)?;
            reply(hosts::delete(w, &request).await)
        }
        AggregateCreate::NAME => {
            let request: AggregateCreate = read(message)?;
            reply(aggregates::create(w, &request).await)
        }
        AggregateSet::NAME => {
            let request: AggregateSet = read(message)?;
            reply(aggregates::set(w, &request).await)
        }
        AggregateDelete::NAME => {
            let request: AggregateDelete = read(message)?;
            reply(aggregates::delete(w, &request).await)
        }
        AggregateAddHost::NAME => {
            let request: AggregateAddHost = read(message)?;
            reply(aggregates::add_host(w, &request).await)
        }
        AggregateRemoveHost::NAME => {
            let request: AggregateRemoveHost = read(message)?;
            reply(aggregates::remove_host(w, &request).await)
        }
        ServerGroupCreate::NAME => {
            let request: ServerGroupCreate = read(message)?;
            reply(server_groups::create(w, &request).await)
        }
        ServerGroupDelete::NAME => {
            let request: ServerGroupDelete = read(message)?;
            reply(server_groups::delete(w, &request).await)
        }
        method => Err(Unserved::Poison(unknown(method))),
    }
}

/// What the sender of a request with an unknown method is told.
pub(super) fn unknown(method: &str) -> Refusal {
    let shown = cut(method, 80);
    let text =
        format!("there is no method {shown:?} (AMQP property `type`); docs/messages.md lists all");
    Refusal::new(RefusalCode::UnknownMethod, text)
}

/// Whether there is such a method.
pub(super) fn is_known(method: &str) -> bool {
    only_reads(method) || CHANGES.contains(&method)
}

/// Why a request got no reply.
#[derive(Debug)]
pub(super) enum Unserved {
    /// Nobody could use it.
    Poison(Refusal),
    /// It was refused, or the database failed.
    Failed(ClaimError),
}

impl From<ClaimError> for Unserved {
    fn from(error: ClaimError) -> Self {
        Self::Failed(error)
    }
}

fn read<M: Method>(message: &Message) -> Result<M, Unserved> {
    parse(message).map_err(Unserved::Poison)
}

fn reply<T: Serialize>(result: Result<T, ClaimError>) -> Result<Value, Unserved> {
    Ok(serde_json::to_value(result?).map_err(ClaimError::from)?)
}

/// Creates several instances, all or each by itself.
async fn create_many(
    writing: &mut Writing<'_>,
    request: InstanceCreateMany,
) -> Result<InstanceCreateManyReply, ClaimError> {
    let count = request.instances.len();
    if !(1..=MAX_INSTANCES).contains(&count) {
        return Err(invalid(format!(
            "instances must be 1 to {MAX_INSTANCES}; got {count}"
        )));
    }
    let answers = create(writing, &request.instances).await?;
    let mut results = Vec::with_capacity(count);
    for (instance, answer) in request.instances.iter().zip(answers) {
        if let (CreateMode::AllOrNothing, Err(refusal)) = (request.mode, &answer) {
            let message = format!(
                "none of the {count} instances was created, since {} cannot be: {}",
                instance.name, refusal.message
            );
            return Err(Refusal::new(refusal.code, message).into());
        }
        results.push(InstanceCreateResult {
            id: instance.id,
            outcome: answer.into(),
        });
    }
    Ok(InstanceCreateManyReply { results })
}

#[cfg(test)]
mod tests {
    use berth_common::message::catalogue::{self, Route};

    use super::*;

    #[test]
    fn every_method_of_the_catalogue_is_served_and_no_other() {
        let requests: Vec<String> = catalogue::all()
            .into_iter()
            .filter(|message| message.route == Route::Request)
            .map(|message| message.name)
            .collect();
        for name in &requests {
            assert!(is_known(name), "{name}");
        }
        assert!(
            CHANGES
                .iter()
                .all(|name| requests.iter().any(|request| request == name))
        );
        assert!(!is_known("instance.explode"));
    }
}
