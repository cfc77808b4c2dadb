//! Decisions of placement as text: why an instance is where it is, where one would go, how many would fit.

use berth_common::message::{
    placement::{CapacityView, DecisionView, NearMiss, Points, ScoredHost},
    request::PlacementExplainReply,
};

use super::{
    joined, or_none,
    table::{Column, Width, rows},
};

/// The decisions about an instance, in the order of the answer.
pub(crate) fn explained(reply: &PlacementExplainReply, width: Width) -> String {
    let mut text = match reply.decisions.len() {
        0 => format!("instance {}: no decision is kept\n", reply.instance_id),
        1 => format!("instance {}: 1 decision\n", reply.instance_id),
        many => format!(
            "instance {}: {many} decisions, the newest first\n",
            reply.instance_id
        ),
    };
    for one in &reply.decisions {
        text.push_str(&format!(
            "\n{}, attempt {}\n",
            one.decided_at.to_rfc3339(),
            one.attempt
        ));
        text.push_str(&decision(one, width));
    }
    text
}

/// How many more fit, and what refuses the next one.
pub(crate) fn capacity(view: &CapacityView, width: Width) -> String {
    let mut text = format!("{}\n", view.summary);
    if let Some(next) = &view.next {
        text.push_str("\nThe next one:\n");
        text.push_str(&decision(next, width));
    }
    text
}

/// One decision: in words, what was asked for, what the filters did, the best hosts with their scores, and who was
/// close.
pub(crate) fn decision(decision: &DecisionView, width: Width) -> String {
    let mut text = format!("{}\n", decision.summary);
    text.push_str(&asked(decision));
    text.push_str(&filters(decision, width));
    let best = [
        ("chosen", &decision.chosen),
        ("runner-up", &decision.runner_up),
    ];
    let best: Vec<_> = best
        .into_iter()
        .filter_map(|(rank, host)| Some((rank, host.as_ref()?)))
        .collect();
    if !best.is_empty() {
        text.push_str(&scores(&best, width));
    }
    if !decision.nearest_misses.is_empty() {
        text.push_str("Nearest misses:\n");
        text.push_str(&misses(&decision.nearest_misses, width));
    }
    text
}

/// What was asked for, as far as it is known.
fn asked(decision: &DecisionView) -> String {
    let size = decision.asked.map(|asked| {
        format!(
            "{}, {} of memory, {} of disk",
            asked.vcpus, asked.memory_mb, asked.disk_gb
        )
    });
    let all = size.into_iter().chain(decision.constraints.iter().cloned());
    let all = all.collect::<Vec<_>>().join("; ");
    if all.is_empty() {
        return all;
    }
    format!("Asked for: {all}\n")
}

fn filters(decision: &DecisionView, width: Width) -> String {
    let columns = [
        Column::Text("Filter"),
        Column::Number("Removed"),
        Column::Number("Left"),
    ];
    let mut left = decision.hosts;
    let start = vec![
        "(all hosts)".to_owned(),
        or_none::<u64>(None),
        left.to_string(),
    ];
    let results = decision.filters.iter().map(|result| {
        left = left.saturating_sub(result.removed);
        vec![
            result.filter.clone(),
            result.removed.to_string(),
            left.to_string(),
        ]
    });
    rows(&columns, std::iter::once(start).chain(results), width)
}

fn scores(hosts: &[(&str, &ScoredHost)], width: Width) -> String {
    let columns = [
        Column::Text("Choice"),
        Column::Text("Host"),
        Column::Number("Score"),
        Column::Text("Parts"),
    ];
    let row = |(rank, host): &(&str, &ScoredHost)| {
        let parts = host.parts.iter().filter(|part| part.score != 0);
        let parts = parts.map(|part| format!("{} {}", part.weigher, Points(part.score)));
        vec![
            (*rank).to_owned(),
            host.host.to_string(),
            Points(host.score).to_string(),
            joined(parts, ", "),
        ]
    };
    rows(&columns, hosts.iter().map(row), width)
}

fn misses(misses: &[NearMiss], width: Width) -> String {
    let columns = [
        Column::Text("Host"),
        Column::Text("Filter"),
        Column::Number("Missing"),
        Column::Text("Reason"),
    ];
    let row = |miss: &NearMiss| {
        vec![
            miss.host.to_string(),
            miss.filter.clone(),
            or_none(miss.missing),
            miss.reason.clone(),
        ]
    };
    rows(&columns, misses.iter().map(row), width)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{instance, placed, refused};

    fn reply(decisions: Vec<DecisionView>) -> PlacementExplainReply {
        PlacementExplainReply {
            instance_id: instance().id,
            decisions,
        }
    }

    #[test]
    fn a_refused_instance_is_explained_by_what_was_missing() {
        insta::assert_snapshot!(explained(&reply(vec![refused()]), Width::Unlimited), @r#"
        instance 0191e7a0-7c1f-7b5e-9d2a-3f6f5f0c2a11: 1 decision

        2026-01-02T03:04:05+00:00, attempt 1
        No valid host was found for 1 vCPU, 3500 MB of memory, 1 GB of disk: 5 hosts; enabled removed 1; alive removed 1; ram removed 2; availability_zone removed 1; nearest miss hv5: needs availability zone east, it is in nova
        Asked for: 1 vCPU, 3500 MB of memory, 1 GB of disk; availability zone east; architecture x86_64
        +-------------------+---------+------+
        | Filter            | Removed | Left |
        +-------------------+---------+------+
        | (all hosts)       |       - |    5 |
        | enabled           |       1 |    4 |
        | alive             |       1 |    3 |
        | ram               |       2 |    1 |
        | availability_zone |       1 |    0 |
        +-------------------+---------+------+
        Nearest misses:
        +------+-------------------+---------+----------------------------------------------------------+
        | Host | Filter            | Missing | Reason                                                   |
        +------+-------------------+---------+----------------------------------------------------------+
        | hv5  | availability_zone |       - | needs availability zone east, it is in nova              |
        | hv4  | ram               |     124 | needs 3500 MB of memory, 3376 free of 5376, 124 missing  |
        | hv3  | ram               |    1124 | needs 3500 MB of memory, 2376 free of 5376, 1124 missing |
        +------+-------------------+---------+----------------------------------------------------------+
        "#);
    }

    #[test]
    fn a_placed_instance_is_explained_by_the_scores() {
        insta::assert_snapshot!(explained(&reply(vec![placed()]), Width::Unlimited), @r#"
        instance 0191e7a0-7c1f-7b5e-9d2a-3f6f5f0c2a11: 1 decision

        2026-01-02T03:04:05+00:00, attempt 1
        large was chosen for 1 vCPU, 64 MB of memory, 1 GB of disk: 3 hosts; score 11536.100; runner-up hv1 with 5392.100
        Asked for: 1 vCPU, 64 MB of memory, 1 GB of disk
        +-------------+---------+------+
        | Filter      | Removed | Left |
        +-------------+---------+------+
        | (all hosts) |       - |    3 |
        +-------------+---------+------+
        +-----------+-------+-----------+---------------------------------------+
        | Choice    | Host  |     Score | Parts                                 |
        +-----------+-------+-----------+---------------------------------------+
        | chosen    | large | 11536.100 | ram 11520.000, cpu 16.000, disk 0.100 |
        | runner-up | hv1   |  5392.100 | ram 5376.000, cpu 16.000, disk 0.100  |
        +-----------+-------+-----------+---------------------------------------+
        "#);
    }

    #[test]
    fn a_decision_from_before_this_was_written_down_tells_no_size() {
        let mut old = serde_json::to_value(refused()).unwrap();
        for field in ["asked", "constraints"] {
            old.as_object_mut().unwrap().remove(field).unwrap();
        }
        let text = decision(&serde_json::from_value(old).unwrap(), Width::Unlimited);
        assert!(!text.contains("Asked for"), "{text}");
    }

    #[test]
    fn several_decisions_are_told_in_the_order_of_the_answer() {
        let again = DecisionView {
            attempt: 2,
            ..refused()
        };
        let text = explained(&reply(vec![again, placed()]), Width::Unlimited);
        let places: Vec<_> = ["2 decisions, the newest first", "attempt 2", "attempt 1"]
            .iter()
            .map(|expected| text.find(expected).expect(expected))
            .collect();
        assert!(places.is_sorted(), "{text}");
        let none = explained(&reply(Vec::new()), Width::Unlimited);
        assert!(none.contains("no decision is kept"), "{none}");
    }

    #[test]
    fn capacity_tells_how_many_fit_and_what_refuses_the_next() {
        let view = CapacityView {
            fits: 40,
            counted_out: false,
            next: Some(DecisionView {
                nearest_misses: Vec::new(),
                filters: Vec::new(),
                hosts: 0,
                ..refused()
            }),
            summary: "40 more fit; next limit: ram".to_owned(),
        };
        insta::assert_snapshot!(capacity(&view, Width::Unlimited), @r#"
        40 more fit; next limit: ram

        The next one:
        No valid host was found for 1 vCPU, 3500 MB of memory, 1 GB of disk: 5 hosts; enabled removed 1; alive removed 1; ram removed 2; availability_zone removed 1; nearest miss hv5: needs availability zone east, it is in nova
        Asked for: 1 vCPU, 3500 MB of memory, 1 GB of disk; availability zone east; architecture x86_64
        +-------------+---------+------+
        | Filter      | Removed | Left |
        +-------------+---------+------+
        | (all hosts) |       - |    0 |
        +-------------+---------+------+
        "#);
        let more = CapacityView {
            next: None,
            counted_out: true,
            summary: "at least 40 more fit".to_owned(),
            ..view
        };
        assert_eq!(capacity(&more, Width::Unlimited), "at least 40 more fit\n");
    }
}
