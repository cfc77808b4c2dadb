//! Every method of queue `scheduler`: decode, one call, encode.

use berth_common::{
    bus::Message,
    message::{
        request::{
            AggregateAddHost, AggregateCreate, AggregateDelete, AggregateList, AggregateRemoveHost,
            AggregateSet, CreateMode, HostDelete, HostDisable, HostDrain, HostEnable, HostList,
            HostSet, HostShow, InstanceCreateMany, InstanceCreateManyReply,
            InstanceCreateResult, InstanceDelete, InstanceList, InstanceReboot, InstanceShow,
            InstanceStart, InstanceStop, Method, NetworkCreate, NetworkDelete, NetworkList,
            PlacementCapacity, PlacementExplain, PlacementPlace, ServerGroupCreate,
            ServerGroupDelete, ServerGroupList,
        },
        view::HostStatus,
    },
    refusal::{Refusal, RefusalCode},
};

use super::{
    cut,
    requests::{Outcome, encode, parse},
};
use crate::{
    claim::{
        ClaimError, aggregates, hosts,
        instances::{
            change::{Change, change as change_instance},
            create::create,
            resolve,
        },
        invalid, networks, server_groups,
    },
    context::{Context, Writing},
    report::{explain, show},
};

/// The most instances of one request.
const MAX_INSTANCES: usize = 256;

/// Whether a method changes nothing.
pub(super) fn only_reads(method: &str) -> bool {
    [
        InstanceShow::NAME,
        InstanceList::NAME,
        NetworkList::NAME,
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

/// Serves a request that changes nothing.
///
/// # Errors
/// When the database fails.
pub(super) async fn read(context: &Context, message: &Message) -> Result<Outcome, ClaimError> {
    let pool = context.store.pool();
    match message.method.as_str() {
        InstanceShow::NAME => {
            serve(message, async |request: InstanceShow| {
                let row = resolve(pool, &request.project, &request.instance).await?;
                show::instance(pool, &row).await
            })
            .await
        }
        InstanceList::NAME => {
            serve(message, async |request: InstanceList| {
                show::instance_list(pool, &request).await
            })
            .await
        }
        NetworkList::NAME => {
            serve(message, async |request: NetworkList| {
                show::network_list(pool, &request).await
            })
            .await
        }
        HostList::NAME => {
            serve(message, async |_: HostList| {
                show::host_list(context, pool).await
            })
            .await
        }
        HostShow::NAME => {
            serve(message, async |request: HostShow| {
                let row = hosts::resolve(pool, &request.host).await?;
                show::host(context, pool, &row).await
            })
            .await
        }
        AggregateList::NAME => {
            serve(message, async |_: AggregateList| {
                aggregates::list(pool).await
            })
            .await
        }
        ServerGroupList::NAME => {
            serve(message, async |request: ServerGroupList| {
                server_groups::list(pool, &request).await
            })
            .await
        }
        PlacementExplain::NAME => {
            serve(message, async |request: PlacementExplain| {
                explain::explain(pool, &request).await
            })
            .await
        }
        PlacementPlace::NAME => {
            serve(message, async |request: PlacementPlace| {
                explain::place(context, &request).await
            })
            .await
        }
        PlacementCapacity::NAME => {
            serve(message, async |request: PlacementCapacity| {
                explain::capacity(context, &request).await
            })
            .await
        }
        unknown => Ok(unknown_method(unknown)),
    }
}

/// Serves a request that changes something, but for `instance.create`: those are served many at once. A refusal undoes
/// what it did.
///
/// # Errors
/// When the database fails; then nothing of the transaction may be kept.
pub(super) async fn change(
    w: &mut Writing<'_>,
    message: &Message,
) -> Result<Outcome, ClaimError> {
    match message.method.as_str() {
        InstanceCreateMany::NAME => attempt(w, message, create_many).await,
        InstanceDelete::NAME => {
            attempt(w, message, async |w, request: InstanceDelete| {
                change_instance(w, &request.project, &request.instance, Change::Delete).await
            })
            .await
        }
        InstanceStart::NAME => {
            attempt(w, message, async |w, request: InstanceStart| {
                change_instance(w, &request.project, &request.instance, Change::Start).await
            })
            .await
        }
        InstanceStop::NAME => {
            attempt(w, message, async |w, request: InstanceStop| {
                change_instance(w, &request.project, &request.instance, Change::Stop).await
            })
            .await
        }
        InstanceReboot::NAME => {
            attempt(w, message, async |w, request: InstanceReboot| {
                let reboot = Change::from(&request);
                change_instance(w, &request.project, &request.instance, reboot).await
            })
            .await
        }
        NetworkCreate::NAME => {
            attempt(w, message, async |w, request: NetworkCreate| {
                networks::create(w, &request).await
            })
            .await
        }
        NetworkDelete::NAME => {
            attempt(w, message, async |w, request: NetworkDelete| {
                networks::delete(w, &request).await
            })
            .await
        }
        HostEnable::NAME => {
            attempt(w, message, async |w, request: HostEnable| {
                hosts::set_status(w, &request.host, HostStatus::Enabled, None).await
            })
            .await
        }
        HostDisable::NAME => {
            attempt(w, message, async |w, request: HostDisable| {
                let reason = request.reason.as_deref();
                hosts::set_status(w, &request.host, HostStatus::Disabled, reason).await
            })
            .await
        }
        HostDrain::NAME => {
            attempt(w, message, async |w, request: HostDrain| {
                let reason = request.reason.as_deref();
                hosts::set_status(w, &request.host, HostStatus::Draining, reason).await
            })
            .await
        }
        HostSet::NAME => {
            attempt(w, message, async |w, request: HostSet| {
                hosts::set(w, &request).await
            })
            .await
        }
        HostDelete::NAME => {
            attempt(w, message, async |w, request: HostDelete| {
                hosts::delete(w, &request).await
            })
            .await
        }
        AggregateCreate::NAME => {
            attempt(w, message, async |w, request: AggregateCreate| {
                aggregates::create(w, &request).await
            })
            .await
        }
        AggregateSet::NAME => {
            attempt(w, message, async |w, request: AggregateSet| {
                aggregates::set(w, &request).await
            })
            .await
        }
        AggregateDelete::NAME => {
            attempt(w, message, async |w, request: AggregateDelete| {
                aggregates::delete(w, &request).await
            })
            .await
        }
        AggregateAddHost::NAME => {
            attempt(w, message, async |w, request: AggregateAddHost| {
                aggregates::add_host(w, &request).await
            })
            .await
        }
        AggregateRemoveHost::NAME => {
            attempt(w, message, async |w, request: AggregateRemoveHost| {
                aggregates::remove_host(w, &request).await
            })
            .await
        }
        ServerGroupCreate::NAME => {
            attempt(w, message, async |w, request: ServerGroupCreate| {
                server_groups::create(w, &request).await
            })
            .await
        }
        ServerGroupDelete::NAME => {
            attempt(w, message, async |w, request: ServerGroupDelete| {
                server_groups::delete(w, &request).await
            })
            .await
        }
        unknown => Ok(unknown_method(unknown)),
    }
}

fn unknown_method(unknown: &str) -> Outcome {
    let shown = cut(unknown, 80);
    let text =
        format!("there is no method {shown:?} (AMQP property `type`); docs/messages.md lists all");
    Outcome::Poison(Refusal::new(RefusalCode::UnknownMethod, text))
}

async fn serve<M: Method>(
    message: &Message,
    call: impl AsyncFnOnce(M) -> Result<M::Reply, ClaimError>,
) -> Result<Outcome, ClaimError> {
    match parse::<M>(message) {
        Ok(request) => answered(call(request).await),
        Err(refusal) => Ok(Outcome::Poison(refusal)),
    }
}

async fn attempt<M: Method>(
    writing: &mut Writing<'_>,
    message: &Message,
    call: impl AsyncFnOnce(&mut Writing<'_>, M) -> Result<M::Reply, ClaimError>,
) -> Result<Outcome, ClaimError> {
    match parse::<M>(message) {
        Ok(request) => answered(
            writing
                .attempt(async |writing| call(writing, request).await)
                .await,
        ),
        Err(refusal) => Ok(Outcome::Poison(refusal)),
    }
}

/// A refusal is an answer; a failure of the database is the whole transaction's.
fn answered<T: serde::Serialize>(result: Result<T, ClaimError>) -> Result<Outcome, ClaimError> {
    match result {
        Ok(reply) => Ok(encode(Ok(reply))),
        Err(ClaimError::Refused(refusal)) => Ok(encode::<T>(Err(refusal))),
        Err(error) => Err(error),
    }
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
