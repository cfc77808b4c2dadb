//! A pass over one network: look, plan, do, and look again, until there is nothing left to do.

use std::collections::BTreeSet;

use berth_common::{
    document::{Desired, NetworkSpec},
    ids::NetworkId,
    message::report::Fault,
};

use super::{
    outcome::{Outcome, PassEnd, Waiting},
    tools::{BrokenOff, Worker},
};
use crate::{
    act::ActError,
    decide::{
        filter::{self, Rendered},
        network::{self, Herald, NetPlan, NetStep, NetThen, NetWait, NetworkObserved, OnError},
    },
};

/// How often a pass plans anew before it counts as going round in circles.
const ROUNDS: usize = 6;

type Wish = Desired<NetworkId, NetworkSpec>;

/// Carries out a network's document as far as it goes now.
pub(super) async fn pass(mut worker: Worker, wish: &Wish) -> PassEnd {
    let mut end = PassEnd::of(Outcome::Superseded);
    let mut rendered = worker.tools.rendered.take(wish.id);
    let outcome = rounds(&mut worker, wish, &mut end, &mut rendered)
        .await
        .unwrap_or(Outcome::Superseded);
    if wish.spec.is_some() {
        worker.tools.rendered.keep(wish.id, rendered);
    }
    match (&outcome, &wish.spec) {
        (outcome, Some(spec)) if outcome.is_built() => {
            worker.tools.networks.set(
                wish.id,
                Some(spec.ports.iter().map(|port| port.id).collect()),
            );
        }
        // Nothing was found to be wrong.
        (Outcome::Superseded | Outcome::Unseen(_), _) => {}
        _ => worker.tools.networks.set(wish.id, None),
    }
    PassEnd { outcome, ..end }
}

/// Notes whether the bridge was made and what the packet filter knows, however the pass ends.
async fn rounds(
    worker: &mut Worker,
    wish: &Wish,
    end: &mut PassEnd,
    rendered: &mut Rendered,
) -> Result<Outcome, BrokenOff> {
    let mut left = String::new();
    for _ in 0..ROUNDS {
        worker.take_slot().await?;
        let mut observed = match worker.tools.host.net.observe(wish.id).await {
            Ok(observed) => observed,
            Err(error) => return Ok(Outcome::of_look(&error)),
        };
        let documents = worker.tools.journal.all();
        let documents = documents.iter().map(|entry| &*entry.document);
        observed.filter.legs = filter::legs(wish.id, &observed.filter.legs, documents.clone());
        observed.filter.senders = filter::senders(wish.id, documents.clone());
        observed.tc.copies_beyond = network::tc::copies_beyond(wish.id, documents);
        let plan = network::plan_again(wish, &observed, rendered);
        end.legs |= note_legs(worker, wish, &observed, &plan);
        if plan.steps.is_empty() {
            let is_refused = matches!(plan.then, NetThen::Refused(_));
            let told = network::herald(wish, &observed).filter(|_| !is_refused);
            herald(worker, wish.id, told).await;
            return Ok(match plan.then {
                NetThen::Converged => Outcome::Converged,
                NetThen::Gone => Outcome::Gone,
                NetThen::Wait(NetWait::Members(names)) => Outcome::Waiting(Waiting::Members(names)),
                NetThen::Wait(NetWait::Mirrors(names)) => Outcome::Waiting(Waiting::Mirrors(names)),
                NetThen::Flawed(fault) => Outcome::Flawed(fault),
                NetThen::Refused(fault) => Outcome::Refused(fault),
            });
        }
        // What is remembered of the packet filter is changed in place once nobody else has it.
        drop(observed);
        left = plan.steps.iter().map(name).collect::<Vec<_>>().join(", ");
        let failures = carry_out(worker, &plan, &mut end.bridge).await?;
        if let Some(outcome) = failed(&failures) {
            return Ok(outcome);
        }
    }
    Ok(Outcome::unsettled(ROUNDS, &left))
}

/// Notes which legs the packet filter knows, once it does: routers plug in no others. Answers whether they are others than before.
fn note_legs(worker: &Worker, wish: &Wish, observed: &NetworkObserved, plan: &NetPlan) -> bool {
    if plan.then == NetThen::Gone {
        return worker.tools.legs.set(wish.id, BTreeSet::new());
    }
    let is_planned = wish.spec.is_some() && !matches!(plan.then, NetThen::Refused(_));
    let is_changed = || {
        let mut steps = plan.steps.iter();
        steps.any(|step| matches!(step, NetStep::Filter(_)))
    };
    if !is_planned || is_changed() {
        return false;
    }
    let legs = observed.filter.legs.iter().map(|leg| leg.mac_address);
    worker.tools.legs.set(wish.id, legs.collect())
}

/// Tells physical switches where guests are, if it is time. That it failed takes nothing from the network, and it is tried again.
async fn herald(worker: &Worker, network: NetworkId, herald: Option<Herald>) {
    let tools = &worker.tools;
    if tools.heralds.is_due(network, herald.as_ref())
        && let Some(herald) = herald
        && let Err(error) = tools.host.net.herald(&herald).await
    {
        let error = berth_common::telemetry::error_chain(&error);
        tracing::warn!(%network, error, "switches were not told where ports are");
        tools.heralds.forget(network);
    }
}

/// What went wrong with the steps of a plan.
#[derive(Debug, Default)]
pub(super) struct Failures {
    pub(super) errors: Vec<ActError>,
    /// Whether ports cannot be used for it: something else failed than their limits and copies, which come last.
    pub(super) spoil_network: bool,
}

/// Carries out the steps as far as the plan's rule for errors goes; answers all errors.
async fn carry_out(
    worker: &Worker,
    plan: &NetPlan,
    has_new_bridge: &mut bool,
) -> Result<Failures, BrokenOff> {
    let net = &worker.tools.host.net;
    let mut failures = Failures::default();
    for step in &plan.steps {
        if worker.cancel.is_cancelled() {
            return Err(BrokenOff);
        }
        // Also if it fails: the bridge may be there nevertheless, and the next look does not know since when.
        *has_new_bridge |= matches!(step, NetStep::CreateBridge { .. });
        if let Err(error) = worker
            .step(name(step), text(plan), async |_| net.apply(step).await)
            .await
        {
            failures.errors.push(error);
            failures.spoil_network |= !matches!(step, NetStep::Tc(_)) || plan.then == NetThen::Gone;
            if plan.on_error == OnError::Stop {
                break;
            }
        }
    }
    Ok(failures)
}

/// What failed steps come to: it is tried again if that may help with any of them.
pub(super) fn failed(failures: &Failures) -> Option<Outcome> {
    let errors = &failures.errors;
    let first = errors.first()?;
    let deciding = errors.iter().find(|error| error.retryable).unwrap_or(first);
    let texts: Vec<String> = errors
        .iter()
        .map(|error| berth_common::telemetry::error_chain(error))
        .collect();
    let fault = Fault {
        code: deciding.code,
        message: texts.join("; "),
    };
    Some(match (deciding.retryable, failures.spoil_network) {
        (true, true) => Outcome::Failed(fault),
        (true, false) => Outcome::Hampered(fault),
        (false, true) => Outcome::Refused(fault),
        (false, false) => Outcome::Flawed(fault),
    })
}

fn text(plan: &NetPlan) -> &'static str {
    match plan.then {
        NetThen::Gone => "taking the network down",
        NetThen::Converged | NetThen::Wait(_) | NetThen::Refused(_) | NetThen::Flawed(_) => {
            "building the network"
        }
    }
}

fn name(step: &NetStep) -> &'static str {
    match step {
        NetStep::WriteDhcp { .. } => "write_dhcp",
        NetStep::CreateBridge { .. } => "create_bridge",
        NetStep::CreateNamespace(_) => "create_namespace",
        NetStep::CreateVeth { .. } => "create_veth",
        NetStep::Mark(_) => "mark_link",
        NetStep::SetBridgeOptions(_) => "set_bridge_options",
        NetStep::Settle { .. } => "settle_link",
        NetStep::SetMtu { .. } => "set_mtu",
        NetStep::Plug(_) => "plug",
        NetStep::PlugTaps { .. } => "plug_taps",
        NetStep::ChangeAddresses { .. } => "change_addresses",
        NetStep::SetUp(_) => "set_up",
        NetStep::LoopbackUp(_) => "loopback_up",
        NetStep::StartDhcp(_) => "start_dhcp",
        NetStep::ReloadDhcp(_) => "reload_dhcp",
        NetStep::StopDhcp(_) => "stop_dhcp",
        NetStep::DeleteVeth(_) => "delete_veth",
        NetStep::DeleteNamespace(_) => "delete_namespace",
        NetStep::DeleteBridge(_) => "delete_bridge",
        NetStep::RemoveFiles(_) => "remove_dhcp_files",
        NetStep::Uplink(step) => step.name(),
        NetStep::Filter(step) => step.name(),
        NetStep::Tc(step) => step.word(),
        NetStep::Metadata(step) => step.name(),
    }
}

#[cfg(test)]
mod tests {
    use berth_common::message::report::FaultCode;

    use super::*;

    #[test]
    fn what_comes_last_and_fails_keeps_no_port_from_its_network() {
        /// Errors that may pass, and others.
        fn of(retryable: &[bool], spoil_network: bool) -> Option<Outcome> {
            let errors = retryable.iter().map(|retryable| ActError {
                retryable: *retryable,
                ..ActError::retryable(FaultCode::Network, "cannot limit", "busy")
            });
            failed(&Failures {
                errors: errors.collect(),
                spoil_network,
            })
        }
        let outcome = of(&[false, true], false);
        assert!(
            matches!(&outcome, Some(Outcome::Hampered(_))),
            "{outcome:?}"
        );
        assert!(outcome.is_some_and(|outcome| outcome.is_built()));
        let outcome = of(&[false], false);
        assert!(matches!(&outcome, Some(Outcome::Flawed(_))), "{outcome:?}");
        let outcome = of(&[true], true);
        assert!(matches!(&outcome, Some(Outcome::Failed(_))), "{outcome:?}");
        let outcome = of(&[false], true);
        assert!(matches!(&outcome, Some(Outcome::Refused(_))), "{outcome:?}");
        assert_eq!(of(&[], true), None);
    }
}
