//! What goes wrong on a fake host, and when: counted in steps, so that a test can try every one.

use berth_common::message::report::FaultCode;

use crate::act::ActError;

#[derive(Debug, Default)]
pub(super) struct Faults {
    random: Option<Random>,
    done: u64,
    fail_at: Option<u64>,
    crash_at: Option<u64>,
    crashed: bool,
}

impl Faults {
    pub(super) fn fail_after(&mut self, steps: u64) {
        self.fail_at = Some(self.done.saturating_add(steps));
    }

    pub(super) fn fail_at_random(&mut self, rate: f64, seed: u64) {
        self.random = Some(Random { rate, state: seed });
    }

    pub(super) fn crash_after(&mut self, steps: u64) {
        self.crash_at = Some(self.done.saturating_add(steps));
    }

    pub(super) fn is_crashed(&self) -> bool {
        self.crashed
    }

    pub(super) fn restart(&mut self) {
        self.crashed = false;
        self.crash_at = None;
    }

    pub(super) fn steps_done(&self) -> u64 {
        self.done
    }

    /// Asked before looking at anything.
    pub(super) fn look(&self) -> Result<(), ActError> {
        if self.crashed {
            Err(injected("the agent is dead"))
        } else {
            Ok(())
        }
    }

    /// Asked before each step.
    pub(super) fn step(&mut self) -> Result<(), ActError> {
        self.look()?;
        if self.crash_at.is_some_and(|at| self.done >= at) {
            self.crashed = true;
            return self.look();
        }
        if self.fail_at.is_some_and(|at| self.done >= at) {
            self.fail_at = None;
            return Err(injected("this step fails"));
        }
        if self.random.as_mut().is_some_and(Random::strikes) {
            return Err(injected("this step fails"));
        }
        self.done += 1;
        Ok(())
    }
}

/// Steps that fail by chance, the same ones for the same seed.
#[derive(Debug)]
struct Random {
    rate: f64,
    state: u64,
}

impl Random {
    fn strikes(&mut self) -> bool {
        // One step of SplitMix64 (Steele, Lea, Flood 2014).
        self.state = self.state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.state;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^= mixed >> 31;
        let high = u32::try_from(mixed >> 32).unwrap_or(u32::MAX);
        f64::from(high) / 4_294_967_296.0 < self.rate
    }
}

fn injected(what: &str) -> ActError {
    ActError::retryable(FaultCode::Internal, what, "injected")
}
