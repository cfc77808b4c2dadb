//! What goes wrong on a fake host, and when: counted in steps, so that a test can try every one.

use std::sync::Arc;

use berth_common::message::report::FaultCode;
use tokio::sync::Notify;

use crate::act::ActError;

/// What befalls a host, or the agent on it, at one of the agent's steps.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mishap {
    /// Nothing: whoever waits for it hears that the step is due.
    Nothing,
    /// The step fails, with nothing done.
    StepFails,
    /// The step is done and told as failed.
    AnswerIsLost,
    /// The agent ends before the step.
    AgentEndsBefore,
    /// The agent ends in the step and leaves it half done. Steps of which there is no half do not count.
    AgentEndsWithin,
    /// The agent ends once the step is done, before it knows.
    AgentEndsAfter,
    /// libvirtd ends before the step. It is away until [`super::FakeHost::libvirt_is_back`].
    LibvirtEndsBefore,
    /// libvirtd ends in the step and leaves it half done; then as above. Steps of which there is no half do not count.
    LibvirtEndsWithin,
    /// The host loses power before the step.
    PowerFails,
}

/// What a step is like, as far as mishaps go.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Nature {
    /// Whether libvirt does it.
    pub(super) of_libvirt: bool,
    /// Whether an agent that ends in it leaves it half done.
    pub(super) halved_by_agent: bool,
    /// Whether a libvirtd that ends in it does.
    pub(super) halved_by_libvirt: bool,
}

/// What becomes of a step.
#[derive(Debug)]
pub(super) enum Fate {
    /// It is done.
    Done,
    /// It is done, and its agent hears this.
    Unanswered(ActError),
    /// Half of it is done, and its agent hears this.
    Halved(ActError),
    /// Nothing of it is done: the host is off.
    PowerCut(ActError),
}

#[derive(Debug, Default)]
pub(super) struct Faults {
    random: Option<Random>,
    done: u64,
    fail_at: Option<u64>,
    crash_at: Option<u64>,
    crashed: bool,
    due: Option<Due>,
    libvirt_is_away: bool,
    befell: Arc<Notify>,
}

/// A mishap that waits for its step.
#[derive(Debug, Clone, Copy)]
struct Due {
    mishap: Mishap,
    /// Steps before that one.
    left: u64,
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

    /// Whatever was due before is so no longer.
    pub(super) fn befall(&mut self, mishap: Mishap, steps: u64) {
        let left = steps;
        self.due = Some(Due { mishap, left });
        self.befell = Arc::default();
    }

    /// Told when what was due has happened.
    pub(super) fn befell(&self) -> Arc<Notify> {
        Arc::clone(&self.befell)
    }

    pub(super) fn libvirt_is_back(&mut self) {
        self.libvirt_is_away = false;
    }

    pub(super) fn libvirt_is_away(&self) -> bool {
        self.libvirt_is_away
    }

    /// Asked before looking at domains.
    pub(super) fn ask_libvirt(&self) -> Result<(), ActError> {
        self.look()?;
        if self.libvirt_is_away {
            return Err(away());
        }
        Ok(())
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
    pub(super) fn step(&mut self, nature: Nature) -> Result<Fate, ActError> {
        self.look()?;
        if nature.of_libvirt {
            self.ask_libvirt()?;
        }
        if self.crash_at.is_some_and(|at| self.done >= at) {
            return Err(self.crash());
        }
        if self.fail_at.is_some_and(|at| self.done >= at) {
            self.fail_at = None;
            return Err(injected("this step fails"));
        }
        if self.random.as_mut().is_some_and(Random::strikes) {
            return Err(injected("this step fails"));
        }
        let fate = match self.strikes(nature) {
            Some(mishap) => self.suffer(mishap, nature)?,
            None => Fate::Done,
        };
        self.done += 1;
        Ok(fate)
    }

    /// What befalls this step.
    fn strikes(&mut self, nature: Nature) -> Option<Mishap> {
        let due = self.due.as_mut()?;
        let counts = match due.mishap {
            Mishap::AgentEndsWithin => nature.halved_by_agent,
            Mishap::LibvirtEndsWithin => nature.halved_by_libvirt,
            Mishap::Nothing
            | Mishap::StepFails
            | Mishap::AnswerIsLost
            | Mishap::AgentEndsBefore
            | Mishap::AgentEndsAfter
            | Mishap::LibvirtEndsBefore
            | Mishap::PowerFails => true,
        };
        if !counts {
            return None;
        }
        match due.left.checked_sub(1) {
            Some(left) => {
                due.left = left;
                None
            }
            None => self.due.take().map(|due| due.mishap),
        }
    }

    fn suffer(&mut self, mishap: Mishap, nature: Nature) -> Result<Fate, ActError> {
        self.befell.notify_one();
        match mishap {
            Mishap::Nothing => Ok(Fate::Done),
            Mishap::StepFails => Err(injected("this step fails")),
            Mishap::AnswerIsLost => Ok(Fate::Unanswered(injected("no answer came"))),
            Mishap::AgentEndsBefore => Err(self.crash()),
            Mishap::AgentEndsWithin => Ok(Fate::Halved(self.crash())),
            Mishap::AgentEndsAfter => Ok(Fate::Unanswered(self.crash())),
            Mishap::LibvirtEndsBefore => {
                self.libvirt_is_away = true;
                if nature.of_libvirt {
                    return Err(away());
                }
                Ok(Fate::Done)
            }
            Mishap::LibvirtEndsWithin => {
                self.libvirt_is_away = true;
                Ok(Fate::Halved(away()))
            }
            Mishap::PowerFails => Ok(Fate::PowerCut(self.crash())),
        }
    }

    fn crash(&mut self) -> ActError {
        self.crashed = true;
        injected("the agent is dead")
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

fn away() -> ActError {
    ActError::retryable(
        FaultCode::Hypervisor,
        "cannot reach libvirt",
        "connection refused",
    )
}
