//! A pass over one router: look, plan, do, and look again, until there is nothing left to do.

use std::collections::BTreeSet;

use berth_common::{
    document::{Desired, RouterSpec},
    ids::RouterId,
};

use super::{
    network::{Failures, failed},
    outcome::{Outcome, PassEnd, Waiting},
    tools::{BrokenOff, Worker},
};
use crate::{
    act::ActError,
    decide::{
        network::OnError,
        router::{self, Leg, RouterPlan, RouterStep, RouterThen},
    },
};

/// How often a pass plans anew before it counts as going round in circles.
const ROUNDS: usize = 6;

type Wish = Desired<RouterId, RouterSpec>;

/// Carries out a router's document as far as it goes now.
pub(super) async fn pass(mut worker: Worker, wish: &Wish) -> PassEnd {
    let mut legs = false;
    let outcome = rounds(&mut worker, wish, &mut legs).await;
    PassEnd {
        legs,
        ..PassEnd::of(outcome.unwrap_or(Outcome::Superseded))
    }
}

/// Notes whether legs were taken away, however the pass ends.
async fn rounds(
    worker: &mut Worker,
    wish: &Wish,
    lost_legs: &mut bool,
) -> Result<Outcome, BrokenOff> {
    let legs = router::legs(wish);
    let mut left = String::new();
    for _ in 0..ROUNDS {
        worker.take_slot().await?;
        let net = &worker.tools.host.net;
        let mut observed = match net.observe_router(wish.id, &legs).await {
            Ok(observed) => observed,
            Err(error) => return Ok(Outcome::of_look(&error)),
        };
        let documents = worker.tools.journal.all();
        let documents = documents.iter().map(|entry| &*entry.document);
        observed.neighbours = router::neighbours(&legs, documents);
        observed.unfiltered = unfiltered(worker, wish);
        let plan = router::plan(wish, &observed);
        if plan.steps.is_empty() {
            return Ok(match plan.then {
                RouterThen::Converged => Outcome::Converged,
                RouterThen::Gone => Outcome::Gone,
                RouterThen::Wait(network) => Outcome::Waiting(Waiting::Network(network)),
                RouterThen::Refused(fault) => Outcome::Refused(fault),
            });
        }
        let names = plan.steps.iter().map(RouterStep::name);
        left = names.collect::<Vec<_>>().join(", ");
        let failures = Failures {
            errors: carry_out(worker, &plan, lost_legs).await?,
            spoil_network: true,
        };
        if let Some(outcome) = failed(&failures) {
            return Ok(outcome);
        }
    }
    Ok(Outcome::unsettled(ROUNDS, &left))
}

/// The legs that the packet filters of their networks do not know. The way out of a router they need not know.
fn unfiltered(worker: &Worker, wish: &Wish) -> BTreeSet<Leg> {
    let interfaces = wish.spec.iter().flat_map(|spec| &spec.interfaces);
    interfaces
        .filter(|it| !worker.tools.legs.knows(it.network_id, it.mac_address))
        .map(|it| Leg::inside(wish.id, it.network_id))
        .collect()
}

/// Carries out the steps as far as the plan's rule for errors goes; answers all errors.
async fn carry_out(
    worker: &Worker,
    plan: &RouterPlan,
    lost_legs: &mut bool,
) -> Result<Vec<ActError>, BrokenOff> {
    let net = &worker.tools.host.net;
    let text = match plan.then {
        RouterThen::Gone => "taking the router down",
        RouterThen::Converged | RouterThen::Wait(_) | RouterThen::Refused(_) => {
            "building the router"
        }
    };
    let mut errors = Vec::new();
    for step in &plan.steps {
        if worker.cancel.is_cancelled() {
            return Err(BrokenOff);
        }
        *lost_legs |= matches!(
            step,
            RouterStep::RemoveLink { .. } | RouterStep::RemoveHostEnd(_)
        );
        let done = worker.step(step.name(), text, async |_| net.apply_router(step).await);
        if let Err(error) = done.await {
            errors.push(error);
            if plan.on_error == OnError::Stop {
                break;
            }
        }
    }
    Ok(errors)
}
