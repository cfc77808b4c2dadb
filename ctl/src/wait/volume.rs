//! What is waited for of a volume: pure.

use berth_common::message::{
    report::Fault,
    request::VolumeShow,
    view::{VolumeStatus, VolumeView},
};

use super::{Awaited, Verdict};
use crate::error::CtlError;

/// What is waited for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum VolumeGoal {
    /// It is there, with its content.
    Made,
    /// It is as large as it shall be.
    Extended,
    /// An instance has it.
    Attached,
    /// No instance has it.
    Detached,
    /// It is gone.
    Deleted,
}

impl Awaited for VolumeView {
    type Goal = VolumeGoal;
    type Show = VolumeShow;

    fn judge(&self, goal: VolumeGoal) -> Verdict {
        judge(self, goal)
    }

    fn word(goal: VolumeGoal) -> &'static str {
        match goal {
            VolumeGoal::Made => "available",
            VolumeGoal::Extended => "extended",
            VolumeGoal::Attached => "attached",
            VolumeGoal::Detached => "detached",
            VolumeGoal::Deleted => "deleted",
        }
    }

    fn is_end(goal: VolumeGoal) -> bool {
        goal == VolumeGoal::Deleted
    }

    fn show(&self) -> VolumeShow {
        VolumeShow {
            volume: self.id.to_string(),
            project: self.project.clone(),
        }
    }

    fn gone(self) -> Self {
        Self {
            status: VolumeStatus::Deleted,
            ..self
        }
    }

    fn name(&self) -> &str {
        self.name.as_str()
    }

    fn subject(&self) -> String {
        format!("volume {}", label(self))
    }

    fn summary(&self) -> String {
        summary(self)
    }

    fn fault(&self) -> Option<&Fault> {
        self.fault.as_ref()
    }

    fn failed(&self, fault: Option<Fault>) -> CtlError {
        CtlError::VolumeFailed {
            volume: label(self),
            fault,
        }
    }

    fn look_again(&self) -> String {
        format!("berthctl volume show {}", self.id)
    }
}

/// Decides what a look at the volume means for the goal.
fn judge(view: &VolumeView, goal: VolumeGoal) -> Verdict {
    use VolumeStatus::{Attaching, Available, Creating, Detaching, Extending, InUse};
    let overtaken = |what: &str| Verdict::Overtaken(what.to_owned());
    match (view.status, goal) {
        // No instance has it, whatever else becomes of it.
        (_, VolumeGoal::Detached) if view.attachment.is_none() => Verdict::Reached,
        (VolumeStatus::Deleted, VolumeGoal::Deleted) => Verdict::Reached,
        (VolumeStatus::Deleted, _) => overtaken("it was deleted meanwhile"),
        // A change makes a new document, and what was said of the one before it is no error any more.
        (VolumeStatus::Error, _) => Verdict::Failed(view.fault.clone()),
        (_, VolumeGoal::Deleted) => Verdict::Waiting,
        (VolumeStatus::Deleting, _) => overtaken("somebody asked for it to be deleted meanwhile"),
        (Available | InUse | Extending, VolumeGoal::Made)
        | (Available | InUse, VolumeGoal::Extended) => Verdict::Reached,
        (_, VolumeGoal::Made | VolumeGoal::Extended) => Verdict::Waiting,
        (Detaching, VolumeGoal::Attached) => {
            overtaken("somebody asked for it to be detached meanwhile")
        }
        (Attaching, VolumeGoal::Attached) => Verdict::Waiting,
        (_, VolumeGoal::Attached) if view.attachment.is_none() => {
            overtaken("it was detached meanwhile")
        }
        (_, VolumeGoal::Attached) => Verdict::Reached,
        (Detaching, VolumeGoal::Detached) => Verdict::Waiting,
        (Available | Attaching | Creating | Extending | InUse, VolumeGoal::Detached) => {
            overtaken("it was attached meanwhile")
        }
    }
}

/// A volume's state in a line: `in-use on hv1, /dev/vdb of web-1`.
pub(crate) fn summary(view: &VolumeView) -> String {
    let mut text = view.status.as_str().to_owned();
    if let Some(host) = &view.host {
        text = format!("{text} on {host}");
    }
    if let Some(to) = &view.attachment {
        text = format!("{text}, {} of {}", to.device, to.instance);
    }
    if let Some(progress) = &view.progress {
        text = format!("{text}: {progress}");
    }
    text
}

/// `data (0191…)`, for messages.
pub(crate) fn label(view: &VolumeView) -> String {
    format!("{} ({})", view.name, view.id)
}

#[cfg(test)]
mod tests {
    use berth_common::message::report::FaultCode;

    use super::*;
    use crate::testing::volume;

    #[test]
    fn one_look_decides() {
        let attached = |status| VolumeView { status, ..volume() };
        let free = |status| VolumeView {
            attachment: None,
            ..attached(status)
        };
        let check = |view: &VolumeView, goal, expected| {
            assert_eq!(judge(view, goal), expected, "{view:?} {goal:?}");
        };
        use VolumeStatus::{
            Attaching, Available, Creating, Deleted, Deleting, Detaching, Extending, InUse,
        };
        check(&free(Creating), VolumeGoal::Made, Verdict::Waiting);
        check(&free(Available), VolumeGoal::Made, Verdict::Reached);
        check(&attached(Extending), VolumeGoal::Made, Verdict::Reached);
        check(&attached(Extending), VolumeGoal::Extended, Verdict::Waiting);
        check(&attached(InUse), VolumeGoal::Extended, Verdict::Reached);
        check(&free(Available), VolumeGoal::Extended, Verdict::Reached);
        check(&attached(Attaching), VolumeGoal::Attached, Verdict::Waiting);
        check(&attached(InUse), VolumeGoal::Attached, Verdict::Reached);
        check(&attached(Extending), VolumeGoal::Attached, Verdict::Reached);
        check(&attached(Detaching), VolumeGoal::Detached, Verdict::Waiting);
        check(&free(Available), VolumeGoal::Detached, Verdict::Reached);
        check(&free(Extending), VolumeGoal::Detached, Verdict::Reached);
        check(&free(Deleting), VolumeGoal::Deleted, Verdict::Waiting);
        check(&free(Deleted), VolumeGoal::Deleted, Verdict::Reached);
        for (view, goal, reason) in [
            (free(Deleted), VolumeGoal::Made, "it was deleted"),
            (free(Deleting), VolumeGoal::Extended, "to be deleted"),
            (attached(Detaching), VolumeGoal::Attached, "to be detached"),
            (free(Available), VolumeGoal::Attached, "it was detached"),
            (attached(InUse), VolumeGoal::Detached, "it was attached"),
        ] {
            let verdict = judge(&view, goal);
            assert!(
                matches!(&verdict, Verdict::Overtaken(why) if why.contains(reason)),
                "{verdict:?}"
            );
        }
        let fault = Fault {
            code: FaultCode::DiskFull,
            message: "no space left".to_owned(),
        };
        let broken = VolumeView {
            fault: Some(fault.clone()),
            ..free(VolumeStatus::Error)
        };
        for goal in [VolumeGoal::Made, VolumeGoal::Deleted] {
            check(&broken, goal, Verdict::Failed(Some(fault.clone())));
        }
        check(&broken, VolumeGoal::Detached, Verdict::Reached);
        let kept = VolumeView {
            attachment: volume().attachment,
            ..broken
        };
        check(
            &kept,
            VolumeGoal::Detached,
            Verdict::Failed(Some(fault.clone())),
        );
        for (status, goal) in [
            (Detaching, VolumeGoal::Detached),
            (Deleting, VolumeGoal::Deleted),
        ] {
            let on_its_way = VolumeView {
                fault: Some(fault.clone()),
                ..attached(status)
            };
            check(&on_its_way, goal, Verdict::Waiting);
        }
    }

    #[test]
    fn a_state_is_told_in_a_line() {
        assert_eq!(summary(&volume()), "in-use on hv1, /dev/vdb of web-1");
        let copying = VolumeView {
            status: VolumeStatus::Creating,
            attachment: None,
            progress: Some("copying, 40 %".to_owned()),
            ..volume()
        };
        assert_eq!(summary(&copying), "creating on hv1: copying, 40 %");
    }
}
