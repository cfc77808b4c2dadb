//! Host aggregates as tables.

use berth_common::message::placement::AggregateView;

use super::{
    joined, or_none,
    table::{Column, Width, fields, rows},
};

/// Aggregates, one in a row.
pub(crate) fn list(aggregates: &[AggregateView], width: Width) -> String {
    let columns = [
        Column::Text("ID"),
        Column::Text("Name"),
        Column::Text("Zone"),
        Column::Number("CPU ratio"),
        Column::Number("RAM ratio"),
        Column::Number("Disk ratio"),
        Column::Text("Properties"),
        Column::Number("Hosts"),
    ];
    let row = |aggregate: &AggregateView| {
        vec![
            aggregate.id.to_string(),
            aggregate.name.to_string(),
            or_none(aggregate.availability_zone.as_ref()),
            or_none(aggregate.cpu_allocation_ratio),
            or_none(aggregate.ram_allocation_ratio),
            or_none(aggregate.disk_allocation_ratio),
            properties(aggregate),
            aggregate.hosts.len().to_string(),
        ]
    };
    rows(&columns, aggregates.iter().map(row), width)
}

/// Everything about one aggregate.
pub(crate) fn show(aggregate: &AggregateView, width: Width) -> String {
    let lines = [
        ("ID", aggregate.id.to_string()),
        ("Name", aggregate.name.to_string()),
        (
            "Availability zone",
            or_none(aggregate.availability_zone.as_ref()),
        ),
        ("CPU ratio", or_none(aggregate.cpu_allocation_ratio)),
        ("RAM ratio", or_none(aggregate.ram_allocation_ratio)),
        ("Disk ratio", or_none(aggregate.disk_allocation_ratio)),
        ("Properties", properties(aggregate)),
        ("Hosts", joined(&aggregate.hosts, ", ")),
        ("Created", aggregate.created_at.to_rfc3339()),
    ];
    fields(lines, width)
}

/// What became of `aggregate delete`, in a line.
pub(crate) fn deleted(aggregate: &AggregateView) -> String {
    format!(
        "aggregate {} ({}): deleted; its hosts stay\n",
        aggregate.name, aggregate.id
    )
}

fn properties(aggregate: &AggregateView) -> String {
    let pairs = aggregate.properties.iter();
    joined(pairs.map(|(key, value)| format!("{key}={value}")), ", ")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::aggregate;

    #[test]
    fn aggregates_are_listed() {
        let bare = AggregateView {
            availability_zone: None,
            cpu_allocation_ratio: None,
            properties: Default::default(),
            hosts: Vec::new(),
            ..aggregate()
        };
        insta::assert_snapshot!(list(&[aggregate(), bare], Width::Unlimited), @r#"
        +--------------------------------------+------+--------+-----------+-----------+------------+------------------+-------+
        | ID                                   | Name | Zone   | CPU ratio | RAM ratio | Disk ratio | Properties       | Hosts |
        +--------------------------------------+------+--------+-----------+-----------+------------+------------------+-------+
        | 0191e7a0-0000-7000-8000-000000000006 | ssd  | rack-1 |       2.0 |         - |          - | disk=ssd, room=2 |     1 |
        | 0191e7a0-0000-7000-8000-000000000006 | ssd  | -      |         - |         - |          - | -                |     0 |
        +--------------------------------------+------+--------+-----------+-----------+------------+------------------+-------+
        "#);
    }

    #[test]
    fn an_aggregate_is_shown_whole() {
        insta::assert_snapshot!(show(&aggregate(), Width::Unlimited), @r#"
        +-------------------+--------------------------------------+
        | Field             | Value                                |
        +-------------------+--------------------------------------+
        | ID                | 0191e7a0-0000-7000-8000-000000000006 |
        | Name              | ssd                                  |
        | Availability zone | rack-1                               |
        | CPU ratio         | 2.0                                  |
        | RAM ratio         | -                                    |
        | Disk ratio        | -                                    |
        | Properties        | disk=ssd, room=2                     |
        | Hosts             | hv1                                  |
        | Created           | 2026-01-02T03:04:05+00:00            |
        +-------------------+--------------------------------------+
        "#);
    }
}
