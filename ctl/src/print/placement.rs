//! Decisions of placement as text: why an instance is where it is, where one would go, how many would fit.

use berth_common::message::{
    placement::{CapacityView, DecisionView, NearMiss, ScoredHost},
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

/// One decision: in words, what the filters did, the best hosts with their scores, and who was close.
pub(crate) fn decision(decision: &DecisionView, width: Width) -> String {
    let mut text = format!("{}\n", decision.summary);
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
        let parts = host
            .parts
            .iter()
            .map(|part| format!("{} {:+}", part.weigher, part.score));
        vec![
            (*rank).to_owned(),
            host.host.to_string(),
            host.score.to_string(),
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

        2026-01-02T03:04:05+00:00, attempt 2
        none of 4 hosts fits: ram 2, enabled 1, alive 1; nearest hv3
        +-------------+---------+------+
        | Filter      | Removed | Left |
        +-------------+---------+------+
        | (all hosts) |       - |    4 |
        | enabled     |       1 |    3 |
        | alive       |       1 |    2 |
        | ram         |       2 |    0 |
        +-------------+---------+------+
        Nearest misses:
        +------+--------+---------+-----------------------------------------------------+
        | Host | Filter | Missing | Reason                                              |
        +------+--------+---------+-----------------------------------------------------+
        | hv3  | ram    |     128 | needs 512 memory_mb, 384 free of 35232, 128 missing |
        | hv4  | alive  |       - | its heartbeats do not arrive                        |
        +------+--------+---------+-----------------------------------------------------+
        "#);
    }

    #[test]
    fn a_placed_instance_is_explained_by_the_scores() {
        insta::assert_snapshot!(explained(&reply(vec![placed()]), Width::Unlimited), @r#"
        instance 0191e7a0-7c1f-7b5e-9d2a-3f6f5f0c2a11: 1 decision

        2026-01-02T03:04:05+00:00, attempt 1
        hv1 of 4 hosts, 2 of them fit
        +-------------+---------+------+
        | Filter      | Removed | Left |
        +-------------+---------+------+
        | (all hosts) |       - |    4 |
        | enabled     |       1 |    3 |
        | ram         |       1 |    2 |
        +-------------+---------+------+
        +-----------+------+-------+--------------------------+
        | Choice    | Host | Score | Parts                    |
        +-----------+------+-------+--------------------------+
        | chosen    | hv1  | 23000 | ram +24000, io_ops -1000 |
        | runner-up | hv2  | 11500 | ram +12500, io_ops -1000 |
        +-----------+------+-------+--------------------------+
        Nearest misses:
        +------+--------+---------+-----------------------------------------------------+
        | Host | Filter | Missing | Reason                                              |
        +------+--------+---------+-----------------------------------------------------+
        | hv3  | ram    |     128 | needs 512 memory_mb, 384 free of 35232, 128 missing |
        +------+--------+---------+-----------------------------------------------------+
        "#);
    }

    #[test]
    fn several_decisions_are_told_in_the_order_of_the_answer() {
        let text = explained(&reply(vec![refused(), placed()]), Width::Unlimited);
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
        none of 4 hosts fits: ram 2, enabled 1, alive 1; nearest hv3
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
