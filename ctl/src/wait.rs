//! Waiting for an instance, a volume or a snapshot: [`Awaited::judge`] decides (pure), [`until`] asks again and again, within a
//! limit. What is waited for of a volume is in [`volume`], and of a
//! snapshot in [`snapshot`].
//!
//! Waiting changes nothing: what was accepted goes on, whether somebody waits for it or not.

pub(crate) mod port;
pub(crate) mod snapshot;
pub(crate) mod volume;

use std::time::Duration;

use berth_common::{
    document::DesiredPower,
    message::{
        report::Fault,
        request::{
            InstanceCreate, InstanceCreateMany, InstanceDelete, InstanceReboot, InstanceRebuild,
            InstanceRescue, InstanceShow, Method, SnapshotCreate, SnapshotDelete, VolumeCreate,
            VolumeDelete,
        },
        view::{InstanceView, VmState},
    },
    refusal::RefusalCode,
};
use tokio::time::{Instant, sleep};

use crate::{
    client::{Caller, is_question},
    error::{CtlError, Fate},
    progress::Progress,
};

/// Something that can be waited for, as its scheduler shows it.
pub(crate) trait Awaited: Clone {
    /// What is waited for.
    type Goal: Copy;
    /// The request that looks at it.
    type Show: Method<Reply = Self> + Sync;

    /// Decides what a look at it means for the goal.
    fn judge(&self, goal: Self::Goal) -> Verdict;
    /// The state that is waited for, in a word.
    fn word(goal: Self::Goal) -> &'static str;
    /// Whether not to find it any more is what is waited for.
    fn is_end(goal: Self::Goal) -> bool;
    /// The request for the next look, by its id.
    fn show(&self) -> Self::Show;
    /// As it was seen last, once it is not found any more.
    fn gone(self) -> Self;
    /// Its name.
    fn name(&self) -> &str;
    /// `instance web-1 (0191…)`, for messages.
    fn subject(&self) -> String;
    /// Its state in a line.
    fn summary(&self) -> String;
    /// Its last fault.
    fn fault(&self) -> Option<&Fault>;
    /// The error where it failed.
    fn failed(&self, fault: Option<Fault>) -> CtlError;
    /// The command that looks at it.
    fn look_again(&self) -> String;
}

impl Awaited for InstanceView {
    type Goal = Goal;
    type Show = InstanceShow;

    fn judge(&self, goal: Goal) -> Verdict {
        judge(self, goal)
    }

    fn word(goal: Goal) -> &'static str {
        goal.word()
    }

    fn is_end(goal: Goal) -> bool {
        goal == Goal::Deleted
    }

    fn show(&self) -> InstanceShow {
        InstanceShow {
            instance: self.id.to_string(),
            project: self.project.clone(),
        }
    }

    fn gone(self) -> Self {
        gone(self)
    }

    fn name(&self) -> &str {
        self.name.as_str()
    }

    fn subject(&self) -> String {
        format!("instance {}", label(self))
    }

    fn summary(&self) -> String {
        summary(self)
    }

    fn fault(&self) -> Option<&Fault> {
        self.fault.as_ref()
    }

    fn failed(&self, fault: Option<Fault>) -> CtlError {
        CtlError::Failed {
            instance: label(self),
            id: self.id,
            fault,
        }
    }

    fn look_again(&self) -> String {
        format!("berthctl instance show {}", self.id)
    }
}

/// What is waited for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Goal {
    /// A new instance is as it shall be.
    Built(DesiredPower),
    /// It runs.
    Running,
    /// It is powered off.
    Stopped,
    /// Its processors stand still.
    Paused,
    /// Its memory is kept on disk.
    Suspended,
    /// It runs again.
    Rebooted,
    /// It runs from its rescue disk.
    Rescued,
    /// It is as it was, with a root disk that was made anew.
    Rebuilt(DesiredPower),
    /// It is gone.
    Deleted,
}

impl Goal {
    /// The same, of an instance that shall run so far by now: the request may have settled that one which switched itself
    /// off stays off.
    pub(crate) const fn with_power(self, power: DesiredPower) -> Self {
        match self {
            Self::Built(_) => Self::Built(power),
            Self::Rebuilt(_) => Self::Rebuilt(power),
            Self::Running
            | Self::Stopped
            | Self::Paused
            | Self::Suspended
            | Self::Rebooted
            | Self::Rescued
            | Self::Deleted => self,
        }
    }

    /// The state that is waited for, in a word.
    pub(crate) const fn word(self) -> &'static str {
        match self {
            Self::Built(DesiredPower::Running) | Self::Running => "active",
            Self::Built(DesiredPower::Stopped) | Self::Stopped => "stopped",
            Self::Built(DesiredPower::Paused) | Self::Paused => "paused",
            Self::Built(DesiredPower::Suspended) | Self::Suspended => "suspended",
            Self::Rebooted => "rebooted",
            Self::Rescued => "rescued",
            Self::Rebuilt(_) => "rebuilt",
            Self::Deleted => "deleted",
        }
    }

    /// The power the instance has to be wanted in, for the goal ever to be reached.
    const fn power(self) -> Option<DesiredPower> {
        match self {
            Self::Built(power) | Self::Rebuilt(power) => Some(power),
            Self::Running | Self::Rebooted | Self::Rescued => Some(DesiredPower::Running),
            Self::Stopped => Some(DesiredPower::Stopped),
            Self::Paused => Some(DesiredPower::Paused),
            Self::Suspended => Some(DesiredPower::Suspended),
            Self::Deleted => None,
        }
    }
}

/// What a look at the instance means.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Verdict {
    /// Not there yet.
    Waiting,
    /// There.
    Reached,
    /// It will not get there by itself.
    Failed(Option<Fault>),
    /// Somebody wants something else by now.
    Overtaken(String),
}

/// Decides what a look at the instance means for the goal.
pub(crate) fn judge(view: &InstanceView, goal: Goal) -> Verdict {
    let idle = view.task_state.is_none();
    let confirmed = view.observed_generation >= view.generation;
    match (view.vm_state, goal.power()) {
        (VmState::Deleted, None) => Verdict::Reached,
        (VmState::Deleted, Some(_)) => Verdict::Overtaken("it was deleted meanwhile".to_owned()),
        // While a task is under way, an error is one of before it.
        (VmState::Error, _) if idle => Verdict::Failed(view.fault.clone()),
        (_, None) => Verdict::Waiting,
        (_, Some(power)) if power != view.desired_power => {
            let wanted = view.desired_power.as_str();
            Verdict::Overtaken(format!("somebody asked for it to be {wanted} meanwhile"))
        }
        (VmState::Active, Some(DesiredPower::Running))
        | (VmState::Stopped, Some(DesiredPower::Stopped))
        | (VmState::Paused, Some(DesiredPower::Paused))
        | (VmState::Suspended, Some(DesiredPower::Suspended))
            if idle && confirmed =>
        {
            Verdict::Reached
        }
        // Its guest switched itself off first: there is nothing left whose processors or memory could be kept.
        (VmState::Stopped, Some(DesiredPower::Paused)) if idle && confirmed => {
            Verdict::Overtaken("it went off before it could be paused".to_owned())
        }
        (VmState::Stopped, Some(DesiredPower::Suspended)) if idle && confirmed => {
            Verdict::Overtaken("it went off before it could be suspended".to_owned())
        }
        (
            VmState::Active
            | VmState::Stopped
            | VmState::Paused
            | VmState::Suspended
            | VmState::Building
            | VmState::Error,
            Some(_),
        ) => Verdict::Waiting,
    }
}

/// An instance's state in a line: `building, spawning on hv1: downloading the image, 40 %`.
pub(crate) fn summary(view: &InstanceView) -> String {
    let mut text = view.vm_state.as_str().to_owned();
    if let Some(task) = view.task_state {
        text = format!("{text}, {}", task.as_str());
    }
    if let Some(host) = &view.host {
        text = format!("{text} on {host}");
    }
    if let Some(progress) = &view.progress {
        text = format!("{text}: {progress}");
    }
    text
}

/// `web-1 (0191…)`, for messages.
pub(crate) fn label(view: &InstanceView) -> String {
    format!("{} ({})", view.name, view.id)
}

/// How often to ask: every `first`, growing by half each time, at most every `last`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Pace {
    /// The first pause.
    pub(crate) first: Duration,
    /// The longest pause.
    pub(crate) last: Duration,
}

impl Pace {
    /// For people: quick at first, and kind to the scheduler when it takes long.
    pub(crate) const USUAL: Self = Self {
        first: Duration::from_millis(250),
        last: Duration::from_secs(2),
    };

    /// The pause after `pause`.
    fn next(self, pause: Duration) -> Duration {
        (pause + pause / 2).min(self.last)
    }
}

/// The limits of one wait.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Limits {
    /// How often to ask.
    pub(crate) pace: Pace,
    /// How long one answer may take.
    pub(crate) answer: Duration,
    /// How long all of it may take.
    pub(crate) whole: Duration,
    /// When it ends.
    pub(crate) deadline: Instant,
}

impl Limits {
    /// Limits that begin now.
    pub(crate) fn from_now(pace: Pace, answer: Duration, whole: Duration) -> Self {
        Self {
            pace,
            answer,
            whole,
            deadline: Instant::now() + whole,
        }
    }

    fn left(&self) -> Duration {
        self.deadline.saturating_duration_since(Instant::now())
    }

    /// The time for the next answer; a moment even at the very end, so that the last look is not cut off.
    fn for_answer(&self) -> Duration {
        self.answer.min(self.left()).max(Duration::from_secs(1))
    }
}

/// Sends a request until somebody answers it. Only for requests that name what they mean by its id: sent again,
/// a name could mean another instance by then.
pub(crate) async fn send<M: Method + Sync>(
    caller: &impl Caller,
    request: &M,
    limits: Limits,
    progress: &mut dyn Progress,
) -> Result<M::Reply, CtlError> {
    let mut pause = limits.pace.first;
    let mut asked = 0_u32;
    let mut unanswered: Option<Fate> = None;
    loop {
        asked += 1;
        let error = match caller.call(request, limits.for_answer()).await {
            Ok(reply) => return Ok(reply),
            Err(error) => error,
        };
        let repeat = match &error {
            CtlError::Unanswered { fate, .. } => {
                unanswered = Some(fate.clone());
                true
            }
            // What was there once may come back; what never was there is told at once.
            CtlError::Unreachable { .. } | CtlError::NoScheduler { .. } => asked > 1,
            _ => false,
        };
        if !repeat {
            return Err(error);
        }
        if limits.left() <= pause {
            return Err(given_up(error, unanswered, asked, limits.whole));
        }
        progress.note(&format!("{}; {}", reason(&error), again(M::NAME)));
        sleep(pause).await;
        pause = limits.pace.next(pause);
    }
}

/// What sending a request again does.
fn again(method: &str) -> &'static str {
    match method {
        InstanceCreate::NAME
        | InstanceCreateMany::NAME
        | VolumeCreate::NAME
        | SnapshotCreate::NAME => {
            "sending the same request again, with the same id: it is carried out only once"
        }
        InstanceReboot::NAME | InstanceRescue::NAME | InstanceRebuild::NAME => {
            "sending the same request again, with the same nonce: it is carried out only once"
        }
        InstanceDelete::NAME => {
            "sending the same request again, with the instance's id: no other can be meant"
        }
        VolumeDelete::NAME => {
            "sending the same request again, with the volume's id: no other can be meant"
        }
        SnapshotDelete::NAME => {
            "sending the same request again, with the snapshot's id: no other can be meant"
        }
        method if is_question(method) => "asking again",
        method if method.starts_with("volume.") => {
            "sending the same request again: it only says how the volume shall be"
        }
        _ => "sending the same request again: it only says how the instance shall be",
    }
}

/// The end of a request that was sent again and again. What one of them may have caused is not forgotten because
/// the last could not even be sent.
fn given_up(error: CtlError, unanswered: Option<Fate>, asked: u32, whole: Duration) -> CtlError {
    match unanswered {
        Some(fate) => CtlError::Unanswered {
            reason: format!(
                "asked {asked} times within {} s: {}",
                whole.as_secs(),
                reason(&error)
            ),
            fate,
        },
        None => error,
    }
}

/// An instance that is not found any more, as it was seen last.
pub(crate) fn gone(last: InstanceView) -> InstanceView {
    InstanceView {
        vm_state: VmState::Deleted,
        task_state: None,
        ..last
    }
}

/// How the wait for one ended.
#[derive(Debug)]
pub(crate) struct Waited<V> {
    /// As it was seen last.
    pub(crate) view: V,
    /// Whether it is there.
    pub(crate) end: Result<(), CtlError>,
}

/// Looks at one until the goal is reached, failed or overtaken, or the limit is.
pub(crate) async fn until<V: Awaited>(
    caller: &impl Caller,
    accepted: V,
    goal: V::Goal,
    limits: Limits,
    progress: &mut dyn Progress,
) -> Result<V, CtlError> {
    let mut watch = Watch::new(accepted, goal);
    watch_all(
        caller,
        std::slice::from_mut(&mut watch),
        limits,
        &mut *progress,
    )
    .await;
    let Waited { view, end } = watch.ended(limits);
    end.map(|()| view)
}

/// The same for several at once; the answers are in their order.
pub(crate) async fn until_all<V: Awaited>(
    caller: &impl Caller,
    accepted: Vec<V>,
    goal: V::Goal,
    limits: Limits,
    progress: &mut dyn Progress,
) -> Vec<Waited<V>> {
    let mut watches: Vec<Watch<V>> = accepted
        .into_iter()
        .map(|view| Watch::new(view, goal))
        .collect();
    watch_all(caller, &mut watches, limits, progress).await;
    watches
        .into_iter()
        .map(|watch| watch.ended(limits))
        .collect()
}

/// Looks at all that are waited for, round after round, until none is left or the limit is reached.
async fn watch_all<V: Awaited>(
    caller: &impl Caller,
    watches: &mut [Watch<V>],
    limits: Limits,
    progress: &mut dyn Progress,
) {
    let mut pause = limits.pace.first;
    loop {
        for watch in &mut *watches {
            watch.judge();
        }
        progress.show(&overview(watches));
        if watches.iter().all(|watch| watch.end.is_some()) || limits.left().is_zero() {
            return;
        }
        sleep(pause.min(limits.left())).await;
        pause = limits.pace.next(pause);
        for watch in watches.iter_mut().filter(|watch| watch.end.is_none()) {
            // Where one gets no answer, the others would get none either.
            if watch.look(caller, limits, progress).await == Heard::Nothing {
                break;
            }
        }
    }
}

/// One that is waited for.
struct Watch<V: Awaited> {
    view: V,
    goal: V::Goal,
    /// Why there was no answer last time.
    silent: Option<String>,
    end: Option<Result<(), CtlError>>,
}

/// Whether a look was answered.
#[derive(Debug, PartialEq, Eq)]
enum Heard {
    Answer,
    Nothing,
}

impl<V: Awaited> Watch<V> {
    fn new(view: V, goal: V::Goal) -> Self {
        Self {
            view,
            goal,
            silent: None,
            end: None,
        }
    }

    /// Ends the watch, if what was seen last is an end.
    fn judge(&mut self) {
        if self.end.is_some() {
            return;
        }
        self.end = match self.view.judge(self.goal) {
            Verdict::Reached => Some(Ok(())),
            Verdict::Failed(fault) => Some(Err(self.view.failed(fault))),
            Verdict::Overtaken(reason) => Some(Err(CtlError::Overtaken {
                subject: self.view.subject(),
                reason,
            })),
            Verdict::Waiting => None,
        };
    }

    async fn look(
        &mut self,
        caller: &impl Caller,
        limits: Limits,
        progress: &mut dyn Progress,
    ) -> Heard {
        match look(caller, &self.view, limits).await {
            Ok(now) => {
                self.view = now;
                self.silent = None;
            }
            Err(CtlError::Refused(refusal))
                if refusal.code == RefusalCode::NotFound && V::is_end(self.goal) =>
            {
                self.view = self.view.clone().gone();
            }
            Err(error) if passing(&error) => {
                let why = reason(&error);
                if self.silent.as_ref() != Some(&why) {
                    progress.note(&format!("{}: {why}; asking again", self.view.name()));
                }
                self.silent = Some(why);
                return Heard::Nothing;
            }
            Err(error) => self.end = Some(Err(error)),
        }
        Heard::Answer
    }

    fn ended(self, limits: Limits) -> Waited<V> {
        let end = self
            .end
            .unwrap_or_else(|| Err(not_yet(&self.view, self.goal, limits.whole, self.silent)));
        Waited {
            view: self.view,
            end,
        }
    }
}

/// How many of several instances are told one by one.
const MOST_TOLD: usize = 4;

/// One instance in a line; several as `3 of 5 active, 1 failed; web-4: building, spawning on hv2`.
fn overview<V: Awaited>(watches: &[Watch<V>]) -> String {
    let line = |watch: &Watch<V>| format!("{}: {}", watch.view.name(), watch.view.summary());
    if let [watch] = watches {
        return line(watch);
    }
    let there = |watch: &&Watch<V>| matches!(watch.end, Some(Ok(())));
    let failed = |watch: &&Watch<V>| matches!(watch.end, Some(Err(_)));
    let goal = watches.first().map_or("there", |watch| V::word(watch.goal));
    let mut text = format!(
        "{} of {} {goal}",
        watches.iter().filter(there).count(),
        watches.len()
    );
    let failed = watches.iter().filter(failed).count();
    if failed > 0 {
        text = format!("{text}, {failed} failed");
    }
    let mut waiting = watches.iter().filter(|watch| watch.end.is_none());
    for watch in waiting.by_ref().take(MOST_TOLD) {
        text = format!("{text}; {}", line(watch));
    }
    match waiting.count() {
        0 => text,
        more => format!("{text}; {more} more"),
    }
}

async fn look<V: Awaited>(caller: &impl Caller, last: &V, limits: Limits) -> Result<V, CtlError> {
    caller.call(&last.show(), limits.for_answer()).await
}

/// Whether asking again may help.
fn passing(error: &CtlError) -> bool {
    match error {
        CtlError::Unanswered { .. }
        | CtlError::Unreachable { .. }
        | CtlError::NoScheduler { .. } => true,
        CtlError::Refused(refusal) => refusal.retryable,
        _ => false,
    }
}

/// What happened, without the advice for somebody who does not wait.
fn reason(error: &CtlError) -> String {
    match error {
        CtlError::Unanswered { reason, .. } | CtlError::Unreachable { reason, .. } => {
            reason.clone()
        }
        CtlError::NoScheduler { .. } => "the broker has no queue `scheduler` just now".to_owned(),
        other => other.to_string(),
    }
}

fn not_yet<V: Awaited>(
    view: &V,
    goal: V::Goal,
    waited: Duration,
    silent: Option<String>,
) -> CtlError {
    let mut last = format!("last seen {}", view.summary());
    if let Some(fault) = view.fault() {
        last = format!("{last}; its last fault: {}", fault.message);
    }
    if let Some(silent) = silent {
        last = format!("{last}; since then: {silent}");
    }
    CtlError::NotYet {
        subject: view.subject(),
        look_again: view.look_again(),
        goal: V::word(goal),
        waited,
        last,
    }
}

#[cfg(test)]
mod tests;
