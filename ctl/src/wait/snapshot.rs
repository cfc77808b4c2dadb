//! What is waited for of a snapshot: pure.

use berth_common::message::{
    report::Fault,
    request::SnapshotShow,
    view::{SnapshotStatus, SnapshotView},
};

use super::{Awaited, Verdict};
use crate::error::CtlError;

/// What is waited for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum SnapshotGoal {
    /// It is there, whole.
    Made,
    /// It is gone.
    Deleted,
}

impl Awaited for SnapshotView {
    type Goal = SnapshotGoal;
    type Show = SnapshotShow;

    fn judge(&self, goal: SnapshotGoal) -> Verdict {
        judge(self, goal)
    }

    fn word(goal: SnapshotGoal) -> &'static str {
        match goal {
            SnapshotGoal::Made => "available",
            SnapshotGoal::Deleted => "deleted",
        }
    }

    fn is_end(goal: SnapshotGoal) -> bool {
        goal == SnapshotGoal::Deleted
    }

    fn show(&self) -> SnapshotShow {
        SnapshotShow {
            snapshot: self.id.to_string(),
            project: self.project.clone(),
        }
    }

    fn gone(self) -> Self {
        Self {
            status: SnapshotStatus::Deleted,
            ..self
        }
    }

    fn name(&self) -> &str {
        self.name.as_str()
    }

    fn subject(&self) -> String {
        format!("snapshot {}", label(self))
    }

    fn summary(&self) -> String {
        summary(self)
    }

    fn fault(&self) -> Option<&Fault> {
        self.fault.as_ref()
    }

    fn failed(&self, fault: Option<Fault>) -> CtlError {
        CtlError::SnapshotFailed {
            snapshot: label(self),
            fault,
        }
    }

    fn look_again(&self) -> String {
        format!("berthctl snapshot show {}", self.id)
    }
}

/// Decides what a look at the snapshot means for the goal.
fn judge(view: &SnapshotView, goal: SnapshotGoal) -> Verdict {
    let overtaken = |what: &str| Verdict::Overtaken(what.to_owned());
    match (view.status, goal) {
        (SnapshotStatus::Deleted, SnapshotGoal::Deleted)
        | (SnapshotStatus::Available, SnapshotGoal::Made) => Verdict::Reached,
        (SnapshotStatus::Deleted, SnapshotGoal::Made) => overtaken("it was deleted meanwhile"),
        (SnapshotStatus::Error, _) => Verdict::Failed(view.fault.clone()),
        (SnapshotStatus::Deleting, SnapshotGoal::Made) => {
            overtaken("somebody asked for it to be deleted meanwhile")
        }
        (SnapshotStatus::Creating, SnapshotGoal::Made)
        | (
            SnapshotStatus::Creating | SnapshotStatus::Available | SnapshotStatus::Deleting,
            SnapshotGoal::Deleted,
        ) => Verdict::Waiting,
    }
}

/// A snapshot's state in a line: `available on hv1, of volume data`.
pub(crate) fn summary(view: &SnapshotView) -> String {
    let mut text = view.status.as_str().to_owned();
    if let Some(host) = &view.host {
        text = format!("{text} on {host}");
    }
    text = format!("{text}, of volume {}", volume(view));
    if let Some(progress) = &view.progress {
        text = format!("{text}: {progress}");
    }
    text
}

/// Its volume, by name as long as it has one.
pub(crate) fn volume(view: &SnapshotView) -> String {
    view.volume
        .as_ref()
        .map_or_else(|| view.volume_id.to_string(), ToString::to_string)
}

/// `monday (0191…)`, for messages.
pub(crate) fn label(view: &SnapshotView) -> String {
    format!("{} ({})", view.name, view.id)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::snapshot;

    #[test]
    fn one_look_decides() {
        use SnapshotStatus::{Available, Creating, Deleted, Deleting, Error};
        let word = |status, goal| match judge(
            &SnapshotView {
                status,
                ..snapshot()
            },
            goal,
        ) {
            Verdict::Waiting => "waiting",
            Verdict::Reached => "reached",
            Verdict::Failed(_) => "failed",
            Verdict::Overtaken(_) => "overtaken",
        };
        for (status, made, deleted) in [
            (Creating, "waiting", "waiting"),
            (Available, "reached", "waiting"),
            (Deleting, "overtaken", "waiting"),
            (Error, "failed", "failed"),
            (Deleted, "overtaken", "reached"),
        ] {
            assert_eq!(word(status, SnapshotGoal::Made), made, "{status:?}");
            assert_eq!(word(status, SnapshotGoal::Deleted), deleted, "{status:?}");
        }
    }

    #[test]
    fn a_state_is_told_in_a_line() {
        assert_eq!(summary(&snapshot()), "available on hv1, of volume data");
        let copying = SnapshotView {
            status: SnapshotStatus::Creating,
            volume: None,
            progress: Some("copying, 40 %".to_owned()),
            ..snapshot()
        };
        assert_eq!(
            summary(&copying),
            "creating on hv1, of volume 0191e7a0-0000-7000-8000-000000000008: copying, 40 %"
        );
    }
}
