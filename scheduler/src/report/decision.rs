//! A decision as it is shown and kept: pure.

use berth_common::message::placement::{
    CapacityView, DecisionView, FilterResult, NearMiss, ScorePart, ScoredHost,
};
use chrono::{DateTime, Utc};

use crate::place::{self, CapacityAnswer, Decision, Rejection};

/// A decision from outside, with the names of hosts.
#[must_use]
pub fn view(decision: &Decision, attempt: u32, decided_at: DateTime<Utc>) -> DecisionView {
    DecisionView {
        decided_at,
        attempt,
        asked: Some(decision.asked.resources),
        constraints: decision.asked.constraints.clone(),
        hosts: count(decision.hosts),
        filters: decision
            .filters
            .iter()
            .filter(|removed| removed.hosts > 0)
            .map(|removed| FilterResult {
                filter: removed.filter.as_str().to_owned(),
                removed: count(removed.hosts),
            })
            .collect(),
        chosen: decision.chosen.as_ref().map(scored),
        runner_up: decision.runner_up.as_ref().map(scored),
        nearest_misses: decision.nearest.iter().map(near_miss).collect(),
        summary: decision.operator_text(),
        public_summary: public_text(decision),
    }
}

/// A decision in words that name no host: for the owner of the instance. The numbers of the nearest miss are told, not
/// whose they are.
#[must_use]
pub fn public_text(decision: &Decision) -> String {
    if decision.hosts == 0 {
        // It names none either.
        return decision.operator_text();
    }
    let mut text = decision.tenant_text();
    if decision.chosen.is_some() {
        return text;
    }
    for removed in decision.filters.iter().filter(|removed| removed.hosts > 0) {
        text.push_str(&format!("; {} removed {}", removed.filter, removed.hosts));
    }
    if let Some(why) = decision
        .nearest
        .first()
        .and_then(|near| public_reason(&near.rejection))
    {
        text.push_str(&format!("; nearest miss: {why}"));
    }
    text
}

/// Why a host was refused, as far as the owner of an instance may know: what is missing, yes; which host it is and what
/// its operator gave it, no.
fn public_reason(rejection: &Rejection) -> Option<String> {
    match rejection {
        Rejection::Disabled
        | Rejection::Draining
        | Rejection::Down
        | Rejection::LargerThanHost { .. }
        | Rejection::Full { .. }
        | Rejection::TooFew { .. }
        | Rejection::OtherZone { .. }
        | Rejection::OtherArchitecture { .. }
        | Rejection::OtherVirtType { .. }
        | Rejection::HoldsOther
        | Rejection::HoldsNone
        | Rejection::GroupElsewhere
        | Rejection::GroupFull { .. }
        | Rejection::VolumeOutOfReach
        | Rejection::NoPool { .. }
        | Rejection::PoolFormat { .. }
        | Rejection::PoolFull { .. }
        | Rejection::NoVlan
        | Rejection::NoVxlan
        | Rejection::NoTunnelIp
        | Rejection::NoStatefulFilter
        | Rejection::FailedThisRequest
        | Rejection::FailedRecently { .. } => Some(rejection.to_string()),
        Rejection::Routed {
            router,
            network,
            reason,
        } => public_reason(reason)
            .map(|reason| format!("router {router} joins network {network}, which {reason}")),
        Rejection::NatAddresses { .. } => Some(rejection.for_owner()),
        // It has the id of the one that was.
        Rejection::NotRequested { .. } => Some("another host was asked for".to_owned()),
        Rejection::NoProperty { .. } | Rejection::NoPhysicalNetwork { .. } => None,
    }
}

/// How many more fit, from outside.
#[must_use]
pub fn capacity(answer: &CapacityAnswer, decided_at: DateTime<Utc>) -> CapacityView {
    let next = answer
        .then
        .as_ref()
        .filter(|_| !answer.more)
        .map(|then| view(then, 1, decided_at));
    let limit = match (&answer.then, answer.more) {
        (_, true) => "counted no further".to_owned(),
        (None, false) => "nothing runs out".to_owned(),
        (Some(then), false) => match (answer.runs_out, then.nearest.first()) {
            (Some(filter), Some(near)) => format!(
                "next limit: {filter}, nearest on {}: {}",
                near.host, near.rejection
            ),
            (Some(filter), None) => format!("next limit: {filter}"),
            (None, _) => "there is no host".to_owned(),
        },
    };
    CapacityView {
        fits: answer.fits,
        counted_out: answer.more,
        next,
        summary: format!("{} more fit; {limit}", answer.fits),
    }
}

fn scored(host: &place::ScoredHost) -> ScoredHost {
    let parts = host.parts.named();
    ScoredHost {
        host_id: host.host_id,
        host: host.host.clone(),
        score: host.score,
        parts: parts
            .into_iter()
            .map(|(weigher, score)| ScorePart {
                weigher: weigher.to_owned(),
                score,
            })
            .collect(),
    }
}

fn near_miss(near: &place::NearMiss) -> NearMiss {
    NearMiss {
        host_id: near.host_id,
        host: near.host.clone(),
        filter: near.filter.as_str().to_owned(),
        reason: near.rejection.to_string(),
        missing: Some(near.rejection.missing()).filter(|missing| *missing > 0),
    }
}

fn count(hosts: usize) -> u64 {
    u64::try_from(hosts).unwrap_or(u64::MAX)
}
