//! `berthctl aggregate …`.

use std::collections::{BTreeMap, BTreeSet};

use berth_common::{
    ids::AggregateId,
    message::{
        placement::AggregateView,
        request::{
            AggregateAddHost, AggregateCreate, AggregateDelete, AggregateList, AggregateListReply,
            AggregateRemoveHost, AggregateSet, HostShow,
        },
    },
    names::{PropertyKey, PropertyValue},
};

use super::{
    Context,
    lookup::{Listed, Named},
    repeat_with_id,
};
use crate::{
    cli::{Aggregate, AggregateCreateArgs, AggregateSetArgs, Member},
    client::Caller,
    error::CtlError,
    print::aggregate,
};

impl Listed for AggregateView {
    type Id = AggregateId;
    const WHAT: &'static str = "aggregate";
    const COMMAND: &'static str = "aggregate";

    fn id(&self) -> AggregateId {
        self.id
    }
    fn name(&self) -> &str {
        self.name.as_str()
    }
}

/// Refuses what changes nothing and what contradicts itself.
pub(super) fn checked(command: Aggregate) -> Result<Aggregate, CtlError> {
    match &command {
        Aggregate::Create(arguments) => {
            create_request(arguments, AggregateId::new())?;
        }
        Aggregate::Set(arguments) => {
            let nothing = AggregateSet {
                aggregate: arguments.name.clone(),
                ..AggregateSet::default()
            };
            if set_request(arguments)? == nothing {
                return Err(CtlError::Usage(
                    "aggregate set was told to change nothing: give at least one of --zone, --cpu-allocation-ratio, \
                     --ram-allocation-ratio, --disk-allocation-ratio, --property and --unset-property"
                        .to_owned(),
                ));
            }
        }
        _ => {}
    }
    Ok(command)
}

pub(super) async fn run<C: Caller>(
    context: &Context<C>,
    command: Aggregate,
) -> Result<(), CtlError> {
    let view = match command {
        Aggregate::List => {
            let reply = list(context).await?;
            return context.print(&reply, |reply, width| {
                aggregate::list(&reply.aggregates, width)
            });
        }
        Aggregate::Delete { name } => {
            let view = delete(context, &name).await?;
            return context.print(&view, |view, _| aggregate::deleted(view));
        }
        Aggregate::Show { name } => {
            let named = whole_cloud(&name);
            let found = named.find(list(context).await?.aggregates);
            found.ok_or_else(|| named.nobody::<AggregateView>())?
        }
        Aggregate::Create(arguments) => create(context, &arguments).await?,
        Aggregate::Set(arguments) => context.wish(&set_request(&arguments)?).await?,
        Aggregate::AddHost(Member { name, host }) => {
            let request = AggregateAddHost {
                aggregate: name,
                host,
            };
            context.wish(&request).await?
        }
        Aggregate::RemoveHost(Member { name, host }) => {
            let request = AggregateRemoveHost {
                aggregate: name,
                host,
            };
            context.wish(&request).await?
        }
    };
    context.print(&view, aggregate::show)
}

/// Aggregates belong to no project.
fn whole_cloud(name: &str) -> Named<'_> {
    Named {
        name,
        project: None,
    }
}

async fn list<C: Caller>(context: &Context<C>) -> Result<AggregateListReply, CtlError> {
    context.ask(&AggregateList {}).await
}

async fn delete<C: Caller>(context: &Context<C>, name: &str) -> Result<AggregateView, CtlError> {
    let reply = list(context).await.map_err(CtlError::before_asking)?;
    whole_cloud(name)
        .delete(context, reply.aggregates, |aggregate| AggregateDelete {
            aggregate,
        })
        .await
}

/// Finds out whether all hosts are there before anything is created.
async fn create<C: Caller>(
    context: &Context<C>,
    arguments: &AggregateCreateArgs,
) -> Result<AggregateView, CtlError> {
    let mut hosts = Vec::new();
    for name in &arguments.hosts {
        let show = HostShow { host: name.clone() };
        hosts.push(context.ask(&show).await.map_err(CtlError::before_asking)?);
    }
    let id = arguments.id.unwrap_or_else(AggregateId::new);
    let request = create_request(arguments, id)?;
    let mut view = context
        .ask(&request)
        .await
        .map_err(|error| error.advise(&repeat_with_id(&id)))?;
    for (place, host) in hosts.iter().enumerate() {
        let member = AggregateAddHost {
            aggregate: id.to_string(),
            host: host.id.to_string(),
        };
        view = context
            .ask(&member)
            .await
            .map_err(|error| CtlError::WithoutHosts {
                aggregate: view.name.to_string(),
                without: hosts
                    .iter()
                    .skip(place)
                    .map(|host| host.name.to_string())
                    .collect(),
                error: Box::new(error),
            })?;
    }
    Ok(view)
}

fn create_request(
    arguments: &AggregateCreateArgs,
    id: AggregateId,
) -> Result<AggregateCreate, CtlError> {
    let traits = &arguments.traits;
    let properties = properties(&traits.properties, &[])?;
    Ok(AggregateCreate {
        id,
        name: arguments.name.clone(),
        availability_zone: traits.zone.clone().unwrap_or_default().apply(None),
        cpu_allocation_ratio: traits.cpu_allocation_ratio.unwrap_or_default().apply(None),
        ram_allocation_ratio: traits.ram_allocation_ratio.unwrap_or_default().apply(None),
        disk_allocation_ratio: traits.disk_allocation_ratio.unwrap_or_default().apply(None),
        properties: properties
            .into_iter()
            .filter_map(|(key, value)| Some((key, value?)))
            .collect(),
    })
}

fn set_request(arguments: &AggregateSetArgs) -> Result<AggregateSet, CtlError> {
    let traits = &arguments.traits;
    Ok(AggregateSet {
        aggregate: arguments.name.clone(),
        availability_zone: traits.zone.clone().unwrap_or_default(),
        cpu_allocation_ratio: traits.cpu_allocation_ratio.unwrap_or_default(),
        ram_allocation_ratio: traits.ram_allocation_ratio.unwrap_or_default(),
        disk_allocation_ratio: traits.disk_allocation_ratio.unwrap_or_default(),
        properties: properties(&traits.properties, &arguments.unset)?,
    })
}

/// What becomes of each property; one that is named twice is a mistake.
pub(super) fn properties(
    set: &[(PropertyKey, PropertyValue)],
    unset: &[PropertyKey],
) -> Result<BTreeMap<PropertyKey, Option<PropertyValue>>, CtlError> {
    let keys = set.iter().map(|(key, _)| key).chain(unset);
    let mut seen = BTreeSet::new();
    for key in keys {
        if !seen.insert(key) {
            let twice = format!("property {key} is named twice: set it once, or remove it once");
            return Err(CtlError::Usage(twice));
        }
    }
    let set = set
        .iter()
        .map(|(key, value)| (key.clone(), Some(value.clone())));
    let unset = unset.iter().map(|key| (key.clone(), None));
    Ok(set.chain(unset).collect())
}

#[cfg(test)]
mod tests;
