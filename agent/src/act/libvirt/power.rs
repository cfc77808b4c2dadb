//! What libvirt's states and reasons mean to berth: the one place where they are told apart.

use berth_common::message::report::PowerState;
use virt::sys;

use crate::decide::domain::OffReason;

/// A state of a domain, in berth's words.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Power {
    /// The state.
    pub(super) state: PowerState,
    /// Why it is off, if it is.
    pub(super) off: Option<OffReason>,
    /// libvirt's words for state and reason.
    pub(super) text: String,
}

/// Reads libvirt's state and reason. States and reasons of a newer libvirt than this list are told by number.
#[must_use]
pub(super) fn read(state: sys::virDomainState, reason: i32) -> Power {
    let number = u32::try_from(reason).unwrap_or_default();
    match state {
        sys::VIR_DOMAIN_NOSTATE => on(PowerState::Nostate, "no state", ""),
        sys::VIR_DOMAIN_RUNNING => on(PowerState::Running, "running", running(number)),
        sys::VIR_DOMAIN_BLOCKED => on(PowerState::Running, "blocked", ""),
        sys::VIR_DOMAIN_PAUSED => paused(number),
        // The guest has powered off and QEMU is about to end: not off yet.
        sys::VIR_DOMAIN_SHUTDOWN => on(
            PowerState::Running,
            "being shut down",
            shutting_down(number),
        ),
        sys::VIR_DOMAIN_SHUTOFF => off(number),
        sys::VIR_DOMAIN_CRASHED => on(PowerState::Crashed, "crashed", crashed(number)),
        sys::VIR_DOMAIN_PMSUSPENDED => on(PowerState::Suspended, "suspended by its guest", ""),
        unknown => on(PowerState::Nostate, &format!("state {unknown}"), ""),
    }
}

fn on(state: PowerState, text: &str, reason: &str) -> Power {
    let text = if reason.is_empty() {
        text.to_owned()
    } else {
        format!("{text}: {reason}")
    };
    Power {
        state,
        off: None,
        text,
    }
}

fn running(reason: u32) -> &'static str {
    match reason {
        sys::VIR_DOMAIN_RUNNING_BOOTED => "booted",
        sys::VIR_DOMAIN_RUNNING_MIGRATED => "migrated from another host",
        sys::VIR_DOMAIN_RUNNING_RESTORED => "restored",
        sys::VIR_DOMAIN_RUNNING_FROM_SNAPSHOT => "from a snapshot",
        sys::VIR_DOMAIN_RUNNING_UNPAUSED => "unpaused",
        sys::VIR_DOMAIN_RUNNING_MIGRATION_CANCELED => "migration cancelled",
        sys::VIR_DOMAIN_RUNNING_SAVE_CANCELED => "save cancelled",
        sys::VIR_DOMAIN_RUNNING_WAKEUP => "woken up",
        sys::VIR_DOMAIN_RUNNING_CRASHED => "resumed after a crash",
        sys::VIR_DOMAIN_RUNNING_POSTCOPY => "migrating, post-copy",
        sys::VIR_DOMAIN_RUNNING_POSTCOPY_FAILED => "post-copy migration failed",
        _ => "",
    }
}

fn paused(reason: u32) -> Power {
    use PowerState::{Crashed, Paused, Running};
    let (state, text) = match reason {
        sys::VIR_DOMAIN_PAUSED_USER => (Paused, "by somebody"),
        sys::VIR_DOMAIN_PAUSED_MIGRATION => (Paused, "migrating"),
        sys::VIR_DOMAIN_PAUSED_SAVE => (Paused, "being saved"),
        sys::VIR_DOMAIN_PAUSED_DUMP => (Paused, "being dumped"),
        sys::VIR_DOMAIN_PAUSED_IOERROR => (Paused, "a disk failed or is full"),
        sys::VIR_DOMAIN_PAUSED_WATCHDOG => (Paused, "by its watchdog"),
        sys::VIR_DOMAIN_PAUSED_FROM_SNAPSHOT => (Paused, "from a snapshot"),
        sys::VIR_DOMAIN_PAUSED_SNAPSHOT => (Paused, "being snapshotted"),
        sys::VIR_DOMAIN_PAUSED_POSTCOPY => (Paused, "migrating, post-copy"),
        sys::VIR_DOMAIN_PAUSED_POSTCOPY_FAILED => (Paused, "post-copy migration failed"),
        sys::VIR_DOMAIN_PAUSED_API_ERROR => (Paused, "an operation of libvirt failed"),
        // On the way up or down: libvirt itself carries on, nobody has to resume it.
        sys::VIR_DOMAIN_PAUSED_SHUTTING_DOWN => (Running, "shutting down"),
        sys::VIR_DOMAIN_PAUSED_STARTING_UP => (Running, "starting up"),
        // libvirt does not resume a guest that panicked.
        sys::VIR_DOMAIN_PAUSED_CRASHED => (Crashed, "the guest crashed"),
        _ => (Paused, ""),
    };
    on(state, "paused", text)
}

fn shutting_down(reason: u32) -> &'static str {
    match reason {
        sys::VIR_DOMAIN_SHUTDOWN_USER => "by somebody",
        _ => "",
    }
}

fn crashed(reason: u32) -> &'static str {
    match reason {
        sys::VIR_DOMAIN_CRASHED_PANICKED => "the guest panicked",
        _ => "",
    }
}

fn off(reason: u32) -> Power {
    let (off, text) = match reason {
        sys::VIR_DOMAIN_SHUTOFF_SHUTDOWN => (OffReason::Guest, "by its guest"),
        sys::VIR_DOMAIN_SHUTOFF_DESTROYED => (OffReason::Destroyed, "switched off"),
        sys::VIR_DOMAIN_SHUTOFF_CRASHED => (OffReason::Failed, "crashed"),
        sys::VIR_DOMAIN_SHUTOFF_MIGRATED => (OffReason::Moved, "migrated to another host"),
        // By somebody, into a file of their own: what libvirt keeps itself is found by looking for it.
        sys::VIR_DOMAIN_SHUTOFF_SAVED => (OffReason::Destroyed, "saved to a file"),
        sys::VIR_DOMAIN_SHUTOFF_FAILED => (OffReason::Failed, "it could not be started"),
        sys::VIR_DOMAIN_SHUTOFF_FROM_SNAPSHOT => {
            (OffReason::Destroyed, "reverted to a snapshot that was off")
        }
        sys::VIR_DOMAIN_SHUTOFF_DAEMON => (OffReason::Unknown, "ended by libvirt when it started"),
        _ => (OffReason::Unknown, ""),
    };
    Power {
        off: Some(off),
        ..on(PowerState::Shutdown, "shut off", text)
    }
}

/// Whether libvirt is on its way with it: it starts it, or restores it from saved memory.
#[must_use]
pub(super) fn is_starting(state: sys::virDomainState, reason: i32) -> bool {
    state == sys::VIR_DOMAIN_PAUSED
        && u32::try_from(reason) == Ok(sys::VIR_DOMAIN_PAUSED_STARTING_UP)
}

/// A domain that is off and whose memory libvirt keeps.
#[must_use]
pub(super) fn saved() -> Power {
    Power {
        off: Some(OffReason::Saved),
        ..on(PowerState::Shutdown, "shut off", "its memory is saved")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_reason_to_be_off_is_told_exactly_when_it_is_off() {
        for state in 0..20 {
            for reason in -1..20 {
                let power = read(state, reason);
                assert_eq!(
                    power.off.is_some(),
                    power.state == PowerState::Shutdown,
                    "{power:?}"
                );
                assert!(!power.text.is_empty());
            }
        }
    }

    #[test]
    fn states_that_matter_for_starting_again() {
        let check = |state, reason, expected: PowerState, off: Option<OffReason>, text: &str| {
            let power = read(state, i32::try_from(reason).unwrap());
            assert_eq!(
                (power.state, power.off, power.text.as_str()),
                (expected, off, text)
            );
        };
        let off = PowerState::Shutdown;
        check(
            sys::VIR_DOMAIN_SHUTOFF,
            sys::VIR_DOMAIN_SHUTOFF_SHUTDOWN,
            off,
            Some(OffReason::Guest),
            "shut off: by its guest",
        );
        check(
            sys::VIR_DOMAIN_SHUTOFF,
            sys::VIR_DOMAIN_SHUTOFF_DESTROYED,
            off,
            Some(OffReason::Destroyed),
            "shut off: switched off",
        );
        check(
            sys::VIR_DOMAIN_SHUTOFF,
            sys::VIR_DOMAIN_SHUTOFF_CRASHED,
            off,
            Some(OffReason::Failed),
            "shut off: crashed",
        );
        check(
            sys::VIR_DOMAIN_SHUTOFF,
            99,
            off,
            Some(OffReason::Unknown),
            "shut off",
        );
        check(
            sys::VIR_DOMAIN_SHUTOFF,
            sys::VIR_DOMAIN_SHUTOFF_MIGRATED,
            off,
            Some(OffReason::Moved),
            "shut off: migrated to another host",
        );
        check(
            sys::VIR_DOMAIN_PAUSED,
            sys::VIR_DOMAIN_PAUSED_STARTING_UP,
            PowerState::Running,
            None,
            "paused: starting up",
        );
        check(
            sys::VIR_DOMAIN_PAUSED,
            sys::VIR_DOMAIN_PAUSED_USER,
            PowerState::Paused,
            None,
            "paused: by somebody",
        );
        check(
            sys::VIR_DOMAIN_PAUSED,
            sys::VIR_DOMAIN_PAUSED_CRASHED,
            PowerState::Crashed,
            None,
            "paused: the guest crashed",
        );
        check(42, 0, PowerState::Nostate, None, "state 42");
        let reason = |reason| i32::try_from(reason).unwrap();
        let starting = reason(sys::VIR_DOMAIN_PAUSED_STARTING_UP);
        assert!(is_starting(sys::VIR_DOMAIN_PAUSED, starting));
        assert!(!is_starting(sys::VIR_DOMAIN_RUNNING, starting));
        let by_somebody = reason(sys::VIR_DOMAIN_PAUSED_USER);
        assert!(!is_starting(sys::VIR_DOMAIN_PAUSED, by_somebody));
    }
}
