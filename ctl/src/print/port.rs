//! What would become of a packet, as a table.

use berth_common::message::trace::PortTraced;

use super::table::{Width, fields};

/// Each thing that is asked of the packet, and what is answered.
pub(crate) fn traced(traced: &PortTraced, width: Width) -> String {
    let mut properties = vec![
        ("Port", traced.port_id.to_string()),
        ("Instance", traced.instance_id.to_string()),
        ("Host", traced.host.to_string()),
    ];
    for step in &traced.steps {
        let verdict = if step.passes { "passes" } else { "dropped" };
        properties.push((step.stage.as_str(), format!("{verdict}: {}", step.detail)));
    }
    let whole = if traced.passes {
        "passes"
    } else {
        "is dropped"
    };
    properties.push(("The packet", whole.to_owned()));
    fields(properties, width)
}

#[cfg(test)]
mod tests {
    use berth_common::message::trace::{TraceStage, TraceStep};

    use super::*;

    #[test]
    fn a_trace_tells_each_step_and_the_end() {
        let id = "0191e7a0-7c1f-7b5e-9d2a-3f6f5f0c2a11";
        let answer = PortTraced {
            port_id: id.parse().unwrap(),
            instance_id: id.parse().unwrap(),
            host: "hv1".parse().unwrap(),
            passes: false,
            steps: vec![TraceStep {
                stage: TraceStage::AntiSpoofing,
                port_id: None,
                passes: false,
                detail: "10.0.0.9 is another's".to_owned(),
            }],
        };
        let text = traced(&answer, Width::Unlimited);
        assert!(text.contains("anti_spoofing"), "{text}");
        assert!(text.contains("dropped: 10.0.0.9 is another's"), "{text}");
        assert!(text.contains("is dropped"), "{text}");
    }
}
