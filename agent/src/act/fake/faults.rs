//! What goes wrong on a fake host, and when: counted in steps, so that a test can try every one.

use berth_common::message::report::FaultCode;

use crate::act::ActError;

#[derive(Debug, Default)]
pub(super) struct Faults {
    done: u64,
    fail_at: Option<u64>,
    crash_at: Option<u64>,
    crashed: bool,
}

impl Faults {
    pub(super) fn fail_after(&mut self, steps: u64) {
        self.fail_at = Some(self.done.saturating_add(steps));
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
        self.done += 1;
        Ok(())
    }
}

fn injected(what: &str) -> ActError {
    ActError::retryable(FaultCode::Internal, what, "injected")
}
