//! What libvirt's states and reasons mean to berth: the one place where they are told apart.
//!
//! The numbers of libvirt's interface become enums first, with what a newer libvirt may say as a variant of its own; then one
//! `match` without a catch-all tells what each of them means. A reason that is added here does not compile before somebody has
//! said what it means.

use berth_common::message::report::PowerState;

use super::rpc::constants;
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

/// Enums of what libvirt numbers, as its header names them, up to the version they were copied from (9.0).
macro_rules! reasons {
    ($($(#[$doc:meta])* $name:ident { $($variant:ident = $constant:ident,)* })*) => {$(
        $(#[$doc])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq)]
        enum $name {
            $($variant,)*
            /// Of a newer libvirt.
            Newer(i32),
        }

        impl $name {
            fn of(number: i32) -> Self {
                match number {
                    $(constants::$constant => Self::$variant,)*
                    newer => Self::Newer(newer),
                }
            }

            /// All that are known, with their numbers.
            #[cfg(test)]
            const KNOWN: &'static [(i32, Self)] = &[$((constants::$constant, Self::$variant),)*];
        }
    )*};
}

reasons! {
    /// `virDomainNostateReason`.
    NoStateReason {
        Unknown = VIR_DOMAIN_NOSTATE_UNKNOWN,
    }
    /// `virDomainRunningReason`.
    RunningReason {
        Unknown = VIR_DOMAIN_RUNNING_UNKNOWN,
        Booted = VIR_DOMAIN_RUNNING_BOOTED,
        Migrated = VIR_DOMAIN_RUNNING_MIGRATED,
        Restored = VIR_DOMAIN_RUNNING_RESTORED,
        FromSnapshot = VIR_DOMAIN_RUNNING_FROM_SNAPSHOT,
        Unpaused = VIR_DOMAIN_RUNNING_UNPAUSED,
        MigrationCanceled = VIR_DOMAIN_RUNNING_MIGRATION_CANCELED,
        SaveCanceled = VIR_DOMAIN_RUNNING_SAVE_CANCELED,
        Wakeup = VIR_DOMAIN_RUNNING_WAKEUP,
        Crashed = VIR_DOMAIN_RUNNING_CRASHED,
        Postcopy = VIR_DOMAIN_RUNNING_POSTCOPY,
        PostcopyFailed = VIR_DOMAIN_RUNNING_POSTCOPY_FAILED,
    }
    /// `virDomainBlockedReason`.
    BlockedReason {
        Unknown = VIR_DOMAIN_BLOCKED_UNKNOWN,
    }
    /// `virDomainPausedReason`.
    PausedReason {
        Unknown = VIR_DOMAIN_PAUSED_UNKNOWN,
        User = VIR_DOMAIN_PAUSED_USER,
        Migration = VIR_DOMAIN_PAUSED_MIGRATION,
        Save = VIR_DOMAIN_PAUSED_SAVE,
        Dump = VIR_DOMAIN_PAUSED_DUMP,
        IoError = VIR_DOMAIN_PAUSED_IOERROR,
        Watchdog = VIR_DOMAIN_PAUSED_WATCHDOG,
        FromSnapshot = VIR_DOMAIN_PAUSED_FROM_SNAPSHOT,
        ShuttingDown = VIR_DOMAIN_PAUSED_SHUTTING_DOWN,
        Snapshot = VIR_DOMAIN_PAUSED_SNAPSHOT,
        Crashed = VIR_DOMAIN_PAUSED_CRASHED,
        StartingUp = VIR_DOMAIN_PAUSED_STARTING_UP,
        Postcopy = VIR_DOMAIN_PAUSED_POSTCOPY,
        PostcopyFailed = VIR_DOMAIN_PAUSED_POSTCOPY_FAILED,
        ApiError = VIR_DOMAIN_PAUSED_API_ERROR,
    }
    /// `virDomainShutdownReason`.
    ShutdownReason {
        Unknown = VIR_DOMAIN_SHUTDOWN_UNKNOWN,
        User = VIR_DOMAIN_SHUTDOWN_USER,
    }
    /// `virDomainShutoffReason`.
    ShutoffReason {
        Unknown = VIR_DOMAIN_SHUTOFF_UNKNOWN,
        Shutdown = VIR_DOMAIN_SHUTOFF_SHUTDOWN,
        Destroyed = VIR_DOMAIN_SHUTOFF_DESTROYED,
        Crashed = VIR_DOMAIN_SHUTOFF_CRASHED,
        Migrated = VIR_DOMAIN_SHUTOFF_MIGRATED,
        Saved = VIR_DOMAIN_SHUTOFF_SAVED,
        Failed = VIR_DOMAIN_SHUTOFF_FAILED,
        FromSnapshot = VIR_DOMAIN_SHUTOFF_FROM_SNAPSHOT,
        Daemon = VIR_DOMAIN_SHUTOFF_DAEMON,
    }
    /// `virDomainCrashedReason`.
    CrashedReason {
        Unknown = VIR_DOMAIN_CRASHED_UNKNOWN,
        Panicked = VIR_DOMAIN_CRASHED_PANICKED,
    }
    /// `virDomainPMSuspendedReason`.
    PmSuspendedReason {
        Unknown = VIR_DOMAIN_PMSUSPENDED_UNKNOWN,
    }
}

/// `virDomainState`, each with its reason.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum DomainState {
    NoState(NoStateReason),
    Running(RunningReason),
    Blocked(BlockedReason),
    Paused(PausedReason),
    Shutdown(ShutdownReason),
    Shutoff(ShutoffReason),
    Crashed(CrashedReason),
    PmSuspended(PmSuspendedReason),
    /// Of a newer libvirt.
    Newer(i32),
}

impl DomainState {
    fn of(state: i32, reason: i32) -> Self {
        match state {
            constants::VIR_DOMAIN_NOSTATE => Self::NoState(NoStateReason::of(reason)),
            constants::VIR_DOMAIN_RUNNING => Self::Running(RunningReason::of(reason)),
            constants::VIR_DOMAIN_BLOCKED => Self::Blocked(BlockedReason::of(reason)),
            constants::VIR_DOMAIN_PAUSED => Self::Paused(PausedReason::of(reason)),
            constants::VIR_DOMAIN_SHUTDOWN => Self::Shutdown(ShutdownReason::of(reason)),
            constants::VIR_DOMAIN_SHUTOFF => Self::Shutoff(ShutoffReason::of(reason)),
            constants::VIR_DOMAIN_CRASHED => Self::Crashed(CrashedReason::of(reason)),
            constants::VIR_DOMAIN_PMSUSPENDED => Self::PmSuspended(PmSuspendedReason::of(reason)),
            newer => Self::Newer(newer),
        }
    }
}

/// What a state means: whether it is on and how, and libvirt's words.
enum Meaning {
    On(PowerState, &'static str, &'static str),
    Off(OffReason, &'static str),
    /// A number that only a newer libvirt can explain, in a state that is known.
    OnNewer(PowerState, &'static str, i32),
    OffNewer(i32),
    NewerState(i32),
}

/// What each state and reason means. No arm takes what is left over: a guest that runs must never look off, nor one that was
/// migrated away as if it could be started.
fn meaning(state: DomainState) -> Meaning {
    use Meaning::{NewerState, Off, OffNewer, On, OnNewer};
    use PowerState::{Crashed, Nostate, Paused, Running, Suspended};
    const GOING_DOWN: &str = "being shut down";
    const ASLEEP: &str = "suspended by its guest";
    match state {
        DomainState::NoState(NoStateReason::Unknown) => On(Nostate, "no state", ""),
        DomainState::NoState(NoStateReason::Newer(it)) => OnNewer(Nostate, "no state", it),
        DomainState::Running(reason) => match reason {
            RunningReason::Unknown => On(Running, "running", ""),
            RunningReason::Booted => On(Running, "running", "booted"),
            RunningReason::Migrated => On(Running, "running", "migrated from another host"),
            RunningReason::Restored => On(Running, "running", "restored"),
            RunningReason::FromSnapshot => On(Running, "running", "from a snapshot"),
            RunningReason::Unpaused => On(Running, "running", "unpaused"),
            RunningReason::MigrationCanceled => On(Running, "running", "migration cancelled"),
            RunningReason::SaveCanceled => On(Running, "running", "save cancelled"),
            RunningReason::Wakeup => On(Running, "running", "woken up"),
            RunningReason::Crashed => On(Running, "running", "resumed after a crash"),
            RunningReason::Postcopy => On(Running, "running", "migrating, post-copy"),
            RunningReason::PostcopyFailed => On(Running, "running", "post-copy migration failed"),
            RunningReason::Newer(it) => OnNewer(Running, "running", it),
        },
        DomainState::Blocked(BlockedReason::Unknown) => On(Running, "blocked", ""),
        DomainState::Blocked(BlockedReason::Newer(it)) => OnNewer(Running, "blocked", it),
        DomainState::Paused(reason) => match reason {
            PausedReason::Unknown => On(Paused, "paused", ""),
            PausedReason::User => On(Paused, "paused", "by somebody"),
            PausedReason::Migration => On(Paused, "paused", "migrating"),
            PausedReason::Save => On(Paused, "paused", "being saved"),
            PausedReason::Dump => On(Paused, "paused", "being dumped"),
            PausedReason::IoError => On(Paused, "paused", "a disk failed or is full"),
            PausedReason::Watchdog => On(Paused, "paused", "by its watchdog"),
            PausedReason::FromSnapshot => On(Paused, "paused", "from a snapshot"),
            PausedReason::Snapshot => On(Paused, "paused", "being snapshotted"),
            PausedReason::Postcopy => On(Paused, "paused", "migrating, post-copy"),
            PausedReason::PostcopyFailed => On(Paused, "paused", "post-copy migration failed"),
            PausedReason::ApiError => On(Paused, "paused", "an operation of libvirt failed"),
            // On the way up or down: libvirt itself carries on, nobody has to resume it.
            PausedReason::ShuttingDown => On(Running, "paused", "shutting down"),
            PausedReason::StartingUp => On(Running, "paused", "starting up"),
            // libvirt does not resume a guest that panicked.
            PausedReason::Crashed => On(Crashed, "paused", "the guest crashed"),
            PausedReason::Newer(it) => OnNewer(Paused, "paused", it),
        },
        // The guest has powered off and QEMU is about to end: not off yet.
        DomainState::Shutdown(ShutdownReason::Unknown) => On(Running, GOING_DOWN, ""),
        DomainState::Shutdown(ShutdownReason::User) => On(Running, GOING_DOWN, "by somebody"),
        DomainState::Shutdown(ShutdownReason::Newer(it)) => OnNewer(Running, GOING_DOWN, it),
        DomainState::Shutoff(reason) => match reason {
            ShutoffReason::Unknown => Off(OffReason::Unknown, ""),
            ShutoffReason::Shutdown => Off(OffReason::Guest, "by its guest"),
            ShutoffReason::Destroyed => Off(OffReason::Destroyed, "switched off"),
            ShutoffReason::Crashed => Off(OffReason::Crashed, "crashed"),
            ShutoffReason::Migrated => Off(OffReason::Moved, "migrated to another host"),
            // By somebody, into a file of their own: what libvirt keeps itself is found by looking for it.
            ShutoffReason::Saved => Off(OffReason::Destroyed, "saved to a file"),
            ShutoffReason::Failed => Off(OffReason::Failed, "it could not be started"),
            ShutoffReason::FromSnapshot => {
                Off(OffReason::Destroyed, "reverted to a snapshot that was off")
            }
            ShutoffReason::Daemon => Off(OffReason::Unknown, "ended by libvirt when it started"),
            ShutoffReason::Newer(it) => OffNewer(it),
        },
        DomainState::Crashed(CrashedReason::Unknown) => On(Crashed, "crashed", ""),
        DomainState::Crashed(CrashedReason::Panicked) => {
            On(Crashed, "crashed", "the guest panicked")
        }
        DomainState::Crashed(CrashedReason::Newer(it)) => OnNewer(Crashed, "crashed", it),
        DomainState::PmSuspended(PmSuspendedReason::Unknown) => On(Suspended, ASLEEP, ""),
        DomainState::PmSuspended(PmSuspendedReason::Newer(it)) => OnNewer(Suspended, ASLEEP, it),
        // Whatever it is, it is not known to be off.
        DomainState::Newer(state) => NewerState(state),
    }
}

/// Reads libvirt's state and reason. Those of a newer libvirt than these lists are told by number.
#[must_use]
pub(super) fn read(state: i32, reason: i32) -> Power {
    match meaning(DomainState::of(state, reason)) {
        Meaning::On(state, text, reason) => on(state, text, reason),
        Meaning::Off(reason, text) => off(reason, text),
        Meaning::OnNewer(state, text, number) => on(state, text, &format!("reason {number}")),
        Meaning::OffNewer(number) => off(OffReason::Unknown, &format!("reason {number}")),
        Meaning::NewerState(state) => on(PowerState::Nostate, &format!("state {state}"), ""),
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

fn off(reason: OffReason, text: &str) -> Power {
    Power {
        off: Some(reason),
        ..on(PowerState::Shutdown, "shut off", text)
    }
}

/// Whether libvirt is on its way with it: it starts it, or restores it from saved memory.
#[must_use]
pub(super) fn is_starting(state: i32, reason: i32) -> bool {
    DomainState::of(state, reason) == DomainState::Paused(PausedReason::StartingUp)
}

/// Whether its guest stands still because QEMU could not read or write one of its disks.
#[must_use]
pub(super) fn is_halted(state: i32, reason: i32) -> bool {
    DomainState::of(state, reason) == DomainState::Paused(PausedReason::IoError)
}

/// A domain that is off and whose memory libvirt keeps.
#[must_use]
pub(super) fn saved() -> Power {
    off(OffReason::Saved, "its memory is saved")
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

    /// How many states and reasons libvirt 9.0 has: the `_LAST` of each list in `libvirt-domain.h`.
    #[test]
    fn every_state_and_reason_of_libvirt_9_0_is_known() {
        fn numbers<T>(known: &[(i32, T)]) -> Vec<i32> {
            known.iter().map(|(number, _)| *number).collect()
        }
        let all = |last: i32| (0..last).collect::<Vec<_>>();
        assert_eq!(numbers(NoStateReason::KNOWN), all(1));
        assert_eq!(numbers(RunningReason::KNOWN), all(12));
        assert_eq!(numbers(BlockedReason::KNOWN), all(1));
        assert_eq!(numbers(PausedReason::KNOWN), all(15));
        assert_eq!(numbers(ShutdownReason::KNOWN), all(2));
        assert_eq!(numbers(ShutoffReason::KNOWN), all(9));
        assert_eq!(numbers(CrashedReason::KNOWN), all(2));
        assert_eq!(numbers(PmSuspendedReason::KNOWN), all(1));
        for state in 0..8 {
            assert!(
                !matches!(DomainState::of(state, 0), DomainState::Newer(_)),
                "{state}"
            );
        }
        assert_eq!(DomainState::of(8, 0), DomainState::Newer(8));
    }

    /// The whole table, as libvirt numbers it: what is on, what is off and why.
    #[test]
    fn what_every_state_and_reason_means() {
        let table = [
            (0, 1, "nostate"),
            (1, 12, "running"),
            (2, 1, "running"),
            (4, 2, "running"),
            (6, 2, "crashed"),
            (7, 1, "suspended"),
        ];
        for (state, last, expected) in table {
            // One more than there are: what is newer means the same as its state.
            for reason in 0..=last {
                assert_eq!(read(state, reason).state.as_str(), expected);
            }
        }
        let paused: Vec<&str> = (0..16).map(|it| read(3, it).state.as_str()).collect();
        let mut expected = ["paused"; 16];
        (expected[8], expected[10], expected[11]) = ("running", "crashed", "running");
        assert_eq!(paused, expected);
        let shutoff: Vec<Option<OffReason>> = (0..10).map(|it| read(5, it).off).collect();
        let expected = [
            OffReason::Unknown,
            OffReason::Guest,
            OffReason::Destroyed,
            OffReason::Crashed,
            OffReason::Moved,
            OffReason::Destroyed,
            OffReason::Failed,
            OffReason::Destroyed,
            OffReason::Unknown,
            OffReason::Unknown,
        ];
        assert_eq!(shutoff, expected.map(Some));
    }

    #[test]
    fn states_that_matter_for_starting_again() {
        let check = |state, reason, expected: PowerState, off: Option<OffReason>, text: &str| {
            let power = read(state, reason);
            assert_eq!(
                (power.state, power.off, power.text.as_str()),
                (expected, off, text)
            );
        };
        let off = PowerState::Shutdown;
        check(
            constants::VIR_DOMAIN_SHUTOFF,
            constants::VIR_DOMAIN_SHUTOFF_SHUTDOWN,
            off,
            Some(OffReason::Guest),
            "shut off: by its guest",
        );
        check(
            constants::VIR_DOMAIN_SHUTOFF,
            constants::VIR_DOMAIN_SHUTOFF_DESTROYED,
            off,
            Some(OffReason::Destroyed),
            "shut off: switched off",
        );
        check(
            constants::VIR_DOMAIN_SHUTOFF,
            constants::VIR_DOMAIN_SHUTOFF_CRASHED,
            off,
            Some(OffReason::Crashed),
            "shut off: crashed",
        );
        check(
            constants::VIR_DOMAIN_SHUTOFF,
            99,
            off,
            Some(OffReason::Unknown),
            "shut off: reason 99",
        );
        check(
            constants::VIR_DOMAIN_SHUTOFF,
            constants::VIR_DOMAIN_SHUTOFF_MIGRATED,
            off,
            Some(OffReason::Moved),
            "shut off: migrated to another host",
        );
        check(
            constants::VIR_DOMAIN_PAUSED,
            constants::VIR_DOMAIN_PAUSED_STARTING_UP,
            PowerState::Running,
            None,
            "paused: starting up",
        );
        check(
            constants::VIR_DOMAIN_PAUSED,
            constants::VIR_DOMAIN_PAUSED_USER,
            PowerState::Paused,
            None,
            "paused: by somebody",
        );
        check(
            constants::VIR_DOMAIN_PAUSED,
            constants::VIR_DOMAIN_PAUSED_CRASHED,
            PowerState::Crashed,
            None,
            "paused: the guest crashed",
        );
        check(42, 0, PowerState::Nostate, None, "state 42");
        let starting = constants::VIR_DOMAIN_PAUSED_STARTING_UP;
        assert!(is_starting(constants::VIR_DOMAIN_PAUSED, starting));
        assert!(!is_starting(constants::VIR_DOMAIN_RUNNING, starting));
        let by_somebody = constants::VIR_DOMAIN_PAUSED_USER;
        assert!(!is_starting(constants::VIR_DOMAIN_PAUSED, by_somebody));
        let failed = constants::VIR_DOMAIN_PAUSED_IOERROR;
        for reason in -1..20 {
            let is = is_halted(constants::VIR_DOMAIN_PAUSED, reason);
            assert_eq!(is, reason == failed, "{reason}");
        }
        assert!(!is_halted(constants::VIR_DOMAIN_RUNNING, failed));
        assert!(!is_halted(constants::VIR_DOMAIN_SHUTOFF, failed));
    }
}
