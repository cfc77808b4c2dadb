//! `berthctl instance create --count N`: several instances by one request, told apart by a number.

use berth_common::{
    ids::InstanceId,
    message::{
        request::{
            CreateMode, InstanceCreate, InstanceCreateMany, InstanceCreateManyReply,
            InstanceCreateResult, Method, Reply,
        },
        view::InstanceView,
    },
    names::InstanceName,
    refusal::{Refusal, RefusalCode},
};

use super::{Context, repeat_with_id};
use crate::{
    cli::{InstanceCreateArgs, Wait},
    client::Caller,
    commands::asking::Asking,
    error::{CtlError, Missing},
    print::instance,
    wait::Goal,
};

/// The part of an id that counts up: the last 62 bits, which are random in a new one.
const COUNTING_BITS: u128 = (1 << 62) - 1;

/// What is asked for.
pub(in crate::commands) struct Prepared {
    request: InstanceCreateMany,
    /// The id of the first.
    first: InstanceId,
    goal: Goal,
    wait: Wait,
}

/// Several instances after one pattern.
pub(super) fn prepare(
    pattern: &InstanceCreate,
    count: u32,
    arguments: &InstanceCreateArgs,
) -> Result<Prepared, CtlError> {
    let mode = if arguments.best_effort {
        CreateMode::BestEffort
    } else {
        CreateMode::AllOrNothing
    };
    Ok(Prepared {
        request: InstanceCreateMany {
            instances: instances(pattern, count)?,
            mode,
        },
        first: pattern.id,
        goal: Goal::Built(pattern.power),
        wait: arguments.wait,
    })
}

fn instances(pattern: &InstanceCreate, count: u32) -> Result<Vec<InstanceCreate>, CtlError> {
    let only_one = |key: &str| {
        let what = format!(
            "--count cannot be used with a file that sets {key} of a network: only one instance can have it"
        );
        Err(CtlError::Usage(what))
    };
    for network in &pattern.networks {
        if network.ip_address.is_some() {
            return only_one("ip_address");
        }
        if network.mac_address.is_some() {
            return only_one("mac_address");
        }
    }
    (1..=count)
        .map(|number| {
            Ok(InstanceCreate {
                id: numbered_id(pattern.id, number)?,
                name: numbered_name(&pattern.name, number)?,
                ..pattern.clone()
            })
        })
        .collect()
}

fn numbered_name(name: &InstanceName, number: u32) -> Result<InstanceName, CtlError> {
    format!("{name}-{number}").parse().map_err(|_| {
        let what = format!(
            "--count puts a number behind the name, and {name}-{number} would be longer than the 63 characters of a name; \
             give a shorter one with --name"
        );
        CtlError::Usage(what)
    })
}

/// The ids follow from the first one, so that the whole request can be repeated as it was.
fn numbered_id(first: InstanceId, number: u32) -> Result<InstanceId, CtlError> {
    let first = first.as_uuid().as_u128();
    let counted = first.wrapping_add(u128::from(number - 1)) & COUNTING_BITS;
    let id = (first & !COUNTING_BITS) | counted;
    format!("{id:032x}").parse().map_err(|_| {
        CtlError::Usage("--id cannot be counted up from; choose another one".to_owned())
    })
}

/// Creates them, waits for them if that is wanted, and prints those that there are.
pub(super) async fn create<C: Caller>(
    context: &Context<C>,
    prepared: Prepared,
) -> Result<(), CtlError> {
    let mut asking = Asking::new(context, prepared.wait);
    let Created { reply, missing } = created(&mut asking, &prepared).await?;
    context.print(&reply, |reply, width| {
        let views: Vec<_> = reply.results.iter().filter_map(view).cloned().collect();
        if views.is_empty() {
            String::new()
        } else {
            instance::list(&views, width)
        }
    })?;
    if missing.is_empty() {
        return Ok(());
    }
    Err(CtlError::SomeMissing {
        first: prepared.first,
        all: reply.results.len(),
        missing,
    })
}

fn view(result: &InstanceCreateResult) -> Option<&InstanceView> {
    match &result.outcome {
        Reply::Ok(view) => Some(view),
        Reply::Error(_) => None,
    }
}

/// What became of the request.
struct Created {
    /// The answer, with the instances as they were seen last.
    reply: InstanceCreateManyReply,
    /// Those that were refused, and those that were waited for in vain.
    missing: Vec<Missing>,
}

async fn created<C: Caller>(
    asking: &mut Asking<'_, C>,
    prepared: &Prepared,
) -> Result<Created, CtlError> {
    let Prepared {
        request,
        first,
        goal,
        ..
    } = prepared;
    let mut reply = asking.send(request).await.map_err(|error| match error {
        CtlError::Refused(refusal) => none_created(refusal, request),
        error => error.advise(&repeat_with_id(first)),
    })?;
    if !answers(&reply, request) {
        return Err(CtlError::Nonsense {
            method: InstanceCreateMany::NAME,
            reason: "it is not about the instances that were asked for".to_owned(),
        });
    }
    let accepted = reply.results.iter().filter_map(view).cloned().collect();
    let mut waited = asking.until_all(accepted, *goal).await?.into_iter();
    let mut missing = Vec::new();
    for (result, asked) in reply.results.iter_mut().zip(&request.instances) {
        let error = match &mut result.outcome {
            Reply::Error(refusal) => Some(CtlError::Refused(refusal.clone())),
            Reply::Ok(view) => waited.next().and_then(|waited| {
                *view = waited.view;
                waited.end.err()
            }),
        };
        missing.extend(error.map(|error| Missing {
            instance: asked.name.clone(),
            id: asked.id,
            error,
        }));
    }
    Ok(Created { reply, missing })
}

/// A refusal of the whole request. Where one instance is to blame, the others may do without it.
fn none_created(refusal: Refusal, request: &InstanceCreateMany) -> CtlError {
    let one_is_to_blame = matches!(
        refusal.code,
        RefusalCode::NoValidHost | RefusalCode::Conflict
    );
    if one_is_to_blame && request.mode == CreateMode::AllOrNothing {
        let count = request.instances.len();
        CtlError::NoneCreated { refusal, count }
    } else {
        CtlError::Refused(refusal)
    }
}

/// Whether each instance has its answer.
fn answers(reply: &InstanceCreateManyReply, request: &InstanceCreateMany) -> bool {
    let asked = request.instances.iter().map(|instance| instance.id);
    reply.results.iter().map(|result| result.id).eq(asked)
}

#[cfg(test)]
mod tests;
