//! The weighers: how good a host is for a request, as one absolute number per host.
//!
//! A score is a sum of parts, each an amount of that host alone times a multiplier, in thousandths of a point (see
//! [`Weights`](super::settings::Weights)). No host's score depends on another host, so no order of comparison can
//! matter. The parts that only change when the host changes are summed once, then ([`base`]); those that depend on
//! the request or on the time are added for the few hosts that have any ([`adjustment`]).

use super::{
    amounts::Resource,
    host::Host,
    request::{GroupPolicy, Request},
    settings::Settings,
};

/// What each weigher gave a host, in thousandths of a point.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct ScoreParts {
    /// Free memory.
    pub ram: i64,
    /// Free vCPUs.
    pub cpu: i64,
    /// Free disk.
    pub disk: i64,
    /// Builds in flight.
    pub io_ops: i64,
    /// Parts of the host that do not work.
    pub ailing: i64,
    /// Members of the request's server group, under a soft policy.
    pub soft_group: i64,
    /// Failed builds.
    pub build_failures: i64,
}

impl ScoreParts {
    /// Every part with the name of its weigher.
    #[must_use]
    pub const fn named(self) -> [(&'static str, i64); 7] {
        [
            ("ram", self.ram),
            ("cpu", self.cpu),
            ("disk", self.disk),
            ("io_ops", self.io_ops),
            ("ailing", self.ailing),
            ("soft_group", self.soft_group),
            ("build_failures", self.build_failures),
        ]
    }

    /// The parts that change only with the host.
    fn base(self) -> i64 {
        self.ram
            .saturating_add(self.cpu)
            .saturating_add(self.disk)
            .saturating_add(self.io_ops)
            .saturating_add(self.ailing)
    }

    /// The parts that depend on the request or on the time.
    fn adjustment(self) -> i64 {
        self.soft_group.saturating_add(self.build_failures)
    }

    /// The score; bounded by 64 bits.
    #[must_use]
    pub fn total(self) -> i64 {
        self.base().saturating_add(self.adjustment())
    }
}

/// Every part of a host's score.
pub(super) fn parts(request: &Request, host: &Host, settings: &Settings) -> ScoreParts {
    let weights = &settings.weights;
    ScoreParts {
        ram: weights.ram.times(host.free(Resource::MemoryMb)),
        cpu: weights.cpu.times(host.free(Resource::Vcpus)),
        disk: weights.disk.times(host.free(Resource::DiskGb)),
        io_ops: weights.io_ops.times(host.builds_in_flight()),
        ailing: weights.build_failures.times(host.facts().ailing),
        soft_group: soft_group(request, host, settings),
        build_failures: build_failures(request, host, settings),
    }
}

/// The part of the score that changes only with the host.
pub(super) fn base(host: &Host, settings: &Settings) -> i64 {
    let weights = &settings.weights;
    ScoreParts {
        ram: weights.ram.times(host.free(Resource::MemoryMb)),
        cpu: weights.cpu.times(host.free(Resource::Vcpus)),
        disk: weights.disk.times(host.free(Resource::DiskGb)),
        io_ops: weights.io_ops.times(host.builds_in_flight()),
        ailing: weights.build_failures.times(host.facts().ailing),
        ..ScoreParts::default()
    }
    .base()
}

/// The part of the score that depends on the request or on the time.
pub(super) fn adjustment(request: &Request, host: &Host, settings: &Settings) -> i64 {
    ScoreParts {
        soft_group: soft_group(request, host, settings),
        build_failures: build_failures(request, host, settings),
        ..ScoreParts::default()
    }
    .adjustment()
}

/// Members of the group draw under soft affinity and push away under soft anti-affinity.
fn soft_group(request: &Request, host: &Host, settings: &Settings) -> i64 {
    let Some(group) = &request.group else {
        return 0;
    };
    let weights = &settings.weights;
    let multiplier = match group.policy {
        GroupPolicy::SoftAffinity => weights.soft_affinity,
        GroupPolicy::SoftAntiAffinity => weights.soft_anti_affinity.negated(),
        GroupPolicy::Affinity | GroupPolicy::AntiAffinity => return 0,
    };
    multiplier.times(group.on(host.facts().id))
}

/// Failed builds, in thousandths of one, halving with time.
fn build_failures(request: &Request, host: &Host, settings: &Settings) -> i64 {
    let failures = host.failures();
    let failures = failures.decayed(request.now, settings.failure_half_life);
    settings.weights.build_failures.times(failures.0) / 1000
}
