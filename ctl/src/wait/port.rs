//! What is waited for of a port: pure.

use berth_common::message::{
    port::{PortShow, PortStatus},
    report::Fault,
    request::Method,
    view::PortView,
};

use super::{Awaited, Verdict};
use crate::error::CtlError;

/// What is waited for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum PortGoal {
    /// Its instance has it.
    PluggedIn,
    /// No instance has it, or it is gone.
    Unplugged,
}

impl Awaited for PortView {
    type Goal = PortGoal;
    type Show = PortShow;

    fn judge(&self, goal: PortGoal) -> Verdict {
        match (self.status, goal) {
            (PortStatus::Active, PortGoal::PluggedIn) | (PortStatus::Down, PortGoal::Unplugged) => {
                Verdict::Reached
            }
            (PortStatus::Attaching, PortGoal::PluggedIn)
            | (PortStatus::Detaching, PortGoal::Unplugged) => Verdict::Waiting,
            (PortStatus::Detaching | PortStatus::Down, PortGoal::PluggedIn) => {
                Verdict::Overtaken("somebody asked for it to be unplugged meanwhile".to_owned())
            }
            (PortStatus::Attaching | PortStatus::Active, PortGoal::Unplugged) => {
                Verdict::Overtaken("it was plugged in again meanwhile".to_owned())
            }
        }
    }

    fn word(goal: PortGoal) -> &'static str {
        match goal {
            PortGoal::PluggedIn => "plugged in",
            PortGoal::Unplugged => "unplugged",
        }
    }

    fn is_end(goal: PortGoal) -> bool {
        goal == PortGoal::Unplugged
    }

    fn show(&self) -> PortShow {
        PortShow {
            port: self.id.to_string(),
            project: self.project.clone(),
        }
    }

    fn gone(self) -> Self {
        Self {
            status: PortStatus::Down,
            instance_id: None,
            ..self
        }
    }

    fn name(&self) -> &str {
        self.name.as_ref().map_or("a port", |name| name.as_str())
    }

    fn subject(&self) -> String {
        format!("port {}", label(self))
    }

    fn summary(&self) -> String {
        summary(self)
    }

    fn fault(&self) -> Option<&Fault> {
        None
    }

    fn failed(&self, fault: Option<Fault>) -> CtlError {
        CtlError::Nonsense {
            method: PortShow::NAME,
            reason: fault.map_or_else(|| "a port failed".to_owned(), |fault| fault.message),
        }
    }

    fn look_again(&self) -> String {
        format!("berthctl port show {}", self.id)
    }
}

/// A port's state in a line: `active, 10.0.0.5 in net0`.
pub(crate) fn summary(view: &PortView) -> String {
    let addresses: Vec<String> = view
        .fixed_ips
        .iter()
        .map(|fixed| fixed.ip_address.to_string())
        .collect();
    let network = view
        .network
        .as_ref()
        .map_or_else(|| view.network_id.to_string(), ToString::to_string);
    format!(
        "{}, {} in {network}",
        view.status.as_str(),
        addresses.join(" ")
    )
}

/// `uplink (0191…)`, for messages.
pub(crate) fn label(view: &PortView) -> String {
    view.name.as_ref().map_or_else(
        || view.id.to_string(),
        |name| format!("{name} ({})", view.id),
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::port;

    #[test]
    fn one_look_decides() {
        let check = |status, goal, expected: fn(&Verdict) -> bool| {
            let verdict = PortView { status, ..port() }.judge(goal);
            assert!(expected(&verdict), "{status:?} {goal:?} {verdict:?}");
        };
        let reached: fn(&Verdict) -> bool = |verdict| matches!(verdict, Verdict::Reached);
        let waiting: fn(&Verdict) -> bool = |verdict| matches!(verdict, Verdict::Waiting);
        let overtaken: fn(&Verdict) -> bool = |verdict| matches!(verdict, Verdict::Overtaken(_));
        check(PortStatus::Active, PortGoal::PluggedIn, reached);
        check(PortStatus::Attaching, PortGoal::PluggedIn, waiting);
        check(PortStatus::Down, PortGoal::PluggedIn, overtaken);
        check(PortStatus::Down, PortGoal::Unplugged, reached);
        check(PortStatus::Detaching, PortGoal::Unplugged, waiting);
        check(PortStatus::Active, PortGoal::Unplugged, overtaken);
    }

    #[test]
    fn a_state_is_told_in_a_line() {
        assert_eq!(summary(&port()), "active, 10.0.0.5 in net0");
    }
}
