//! Why an instance is where it is, where one would go, and how many more would fit.

use berth_common::{
    ids::InstanceId,
    message::{
        placement::{CapacityView, DecisionView},
        request::{
            NetworkAttachment, PlacementCapacity, PlacementExplain, PlacementExplainReply,
            PlacementPlace,
        },
    },
};
use berth_store::{Executor, decisions};
use chrono::Utc;

use super::decision;
use crate::{
    claim::{
        ClaimError,
        hints::{self, Asker, Lookups, Resolved},
        instances::{
            create::{flavor_mistakes, network_mistakes},
            resolve,
        },
        invalid,
        ports::{Addresses, Planned, PortsOf, Purpose},
        routers::joined::Joined,
    },
    context::{Context, Image},
};

/// The most decisions about one instance that are told, and kept of one that is asked for again and again.
pub const MOST_DECISIONS: u32 = 20;
/// The furthest that capacity is counted.
const MOST_COUNTED: u32 = 100_000;

/// The decisions about an instance that are still kept, the newest first.
///
/// # Errors
/// A refusal when there is no such instance, or a failure of the database.
pub async fn explain(
    db: &impl Executor,
    request: &PlacementExplain,
) -> Result<PlacementExplainReply, ClaimError> {
    let instance = resolve(db, &request.project, &request.instance).await?;
    let rows = decisions::of_instance(db, instance.id, MOST_DECISIONS).await?;
    Ok(PlacementExplainReply {
        instance_id: instance.id,
        decisions: rows.into_iter().map(|row| row.decision).collect(),
    })
}

/// Where such an instance would be placed now.
///
/// # Errors
/// A refusal of what the hints and networks name, or a failure of the database.
pub async fn place(
    context: &Context,
    request: &PlacementPlace,
) -> Result<DecisionView, ClaimError> {
    let wanted = Wanted {
        project: &request.project,
        flavor: request.flavor,
        hints: &request.hints,
        networks: &request.networks,
    };
    let ports = wanted.ports(context, Purpose::Question).await?;
    let mut image = context.image().await?;
    let Resolved { request, .. } = wanted.resolve(context, &image, &ports).await?;
    let decided = image.decide(&request);
    Ok(decision::view(&decided, 1, Utc::now()))
}

/// How many such instances would fit now.
///
/// # Errors
/// A refusal of what the hints and networks name, or a failure of the database.
pub async fn capacity(
    context: &Context,
    request: &PlacementCapacity,
) -> Result<CapacityView, ClaimError> {
    if !(1..=MOST_COUNTED).contains(&request.most) {
        return Err(invalid(format!(
            "most must be from 1 to {MOST_COUNTED}; got {}",
            request.most
        )));
    }
    let wanted = Wanted {
        project: &request.project,
        flavor: request.flavor,
        hints: &request.hints,
        networks: &request.networks,
    };
    let ports = wanted.ports(context, Purpose::Count).await?;
    let mut image = context.image().await?;
    let resolved = wanted.resolve(context, &image, &ports).await?;
    let answer = image.capacity(&resolved.request, u64::from(request.most));
    Ok(decision::capacity(&answer, Utc::now()))
}

/// What is asked about.
struct Wanted<'a> {
    project: &'a berth_common::names::ProjectName,
    flavor: berth_common::document::Flavor,
    hints: &'a berth_common::message::placement::SchedulerHints,
    networks: &'a [NetworkAttachment],
}

impl Wanted<'_> {
    /// The ports that it would have. While they are looked up nobody's writing waits.
    async fn ports(&self, context: &Context, purpose: Purpose) -> Result<Planned, ClaimError> {
        let mut mistakes = flavor_mistakes(self.flavor);
        mistakes.extend(hints::mistakes(self.hints, None));
        mistakes.extend(network_mistakes(self.networks));
        if !mistakes.is_empty() {
            return Err(invalid(mistakes.join("; ")));
        }
        let of = PortsOf {
            instance: InstanceId::new(),
            project: self.project,
            networks: self.networks,
        };
        Addresses::of(purpose)
            .plan(context.store.pool(), of, Utc::now())
            .await
    }

    /// What creating it with these ports would ask of hosts, and what that would refuse.
    async fn resolve(
        &self,
        context: &Context,
        image: &Image<'_>,
        ports: &Planned,
    ) -> Result<Resolved, ClaimError> {
        let asker = Asker {
            project: self.project,
            seed: 0,
            now: context.millis(),
        };
        let db = context.store.pool();
        let mut resolved = Lookups::default()
            .resolve(db, image, asker, self.flavor, self.hints)
            .await?;
        ports
            .demand(db, image, &mut Joined::default(), &mut resolved.request)
            .await?;
        Ok(resolved)
    }
}
