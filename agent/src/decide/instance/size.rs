//! The part of an instance's plan that is about the size of a guest that is on: it is given more processors and memory while
//! it runs, as far as its domain was defined with room for them.
//!
//! It is never made smaller while it is on, and what there is no room for waits: the definition has it already, and the
//! next start takes that.

use berth_common::message::report::PowerState;

use crate::decide::domain::{DomainConfig, DomainObserved, DomainStep};

/// What a guest that is on has to be given to have the size of its definition.
pub(super) fn more(config: &DomainConfig, domain: &DomainObserved) -> Vec<DomainStep> {
    let is_on = matches!(domain.power_state, PowerState::Running | PowerState::Paused);
    let Some(running) = domain.running.filter(|_| is_on) else {
        return Vec::new();
    };
    let vcpus = running
        .takes_vcpus(config.vcpus)
        .then_some(DomainStep::SetVcpus {
            instance: config.id,
            vcpus: config.vcpus,
            cpu_shares: config.cpu_shares,
        });
    let memory = running
        .takes_memory(config.memory_mb)
        .then_some(DomainStep::PlugMemory {
            instance: config.id,
            before: running.memory_mb,
            with: config.memory_mb,
        });
    vcpus.into_iter().chain(memory).collect()
}
