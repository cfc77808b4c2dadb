//! What of an instance's size its running guest does not have yet: a pure function of its row.

use berth_common::{
    document::DesiredPower,
    message::view::{PendingSize, SizePart, TakesEffect},
};
use berth_store::instances::InstanceRow;

/// The parts of its size that its guest does not have, and how it gets them. Nothing waits for a guest that is off, or
/// will be: it has its size when it is on again.
#[must_use]
pub(super) fn pending(row: &InstanceRow) -> Vec<PendingSize> {
    let stays_on = match row.desired_power {
        DesiredPower::Running | DesiredPower::Paused => true,
        DesiredPower::Stopped | DesiredPower::Suspended => false,
    };
    let Some(running) = row.observed.running.filter(|_| stays_on) else {
        return Vec::new();
    };
    let when = |is_live| {
        if is_live {
            TakesEffect::Live
        } else {
            TakesEffect::NextStart
        }
    };
    let parts = [
        PendingSize {
            part: SizePart::Vcpus,
            running: running.vcpus.get(),
            wanted: row.flavor.vcpus.get(),
            takes_effect: when(running.takes_vcpus(row.flavor.vcpus)),
        },
        PendingSize {
            part: SizePart::MemoryMb,
            running: running.memory_mb.get(),
            wanted: row.flavor.memory_mb.get(),
            takes_effect: when(running.takes_memory(row.flavor.memory_mb)),
        },
    ];
    let differs = |part: &PendingSize| part.running != part.wanted;
    parts.into_iter().filter(differs).collect()
}
