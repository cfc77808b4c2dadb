//! A pass over one router: look, plan, do, and look again, until there is nothing left to do.

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
        router::{self, RouterPlan, RouterStep, RouterThen},
    },
};

/// How often a pass plans anew before it counts as going round in circles.
const ROUNDS: usize = 6;

type Wish = Desired<RouterId, RouterSpec>;

/// Carries out a router's document as far as it goes now.
pub(super) async fn pass(mut worker: Worker, wish: &Wish) -> PassEnd {
    let outcome = rounds(&mut worker, wish).await;
    PassEnd::of(outcome.unwrap_or(Outcome::Superseded))
}

async fn rounds(worker: &mut Worker, wish: &Wish) -> Result<Outcome, BrokenOff> {
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
            errors: carry_out(worker, &plan).await?,
            spoil_network: true,
        };
        if let Some(outcome) = failed(&failures) {
            return Ok(outcome);
        }
    }
    Ok(Outcome::unsettled(ROUNDS, &left))
}

/// Carries out the steps as far as the plan's rule for errors goes; answers all errors.
async fn carry_out(worker: &Worker, plan: &RouterPlan) -> Result<Vec<ActError>, BrokenOff> {
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
