//! Snapshots as tables.

use berth_common::message::view::SnapshotView;

use super::{
    or_none,
    table::{Column, Width, fields, rows},
};
use crate::wait::snapshot::{label, summary, volume};

/// Snapshots, one in a row.
pub(crate) fn list(snapshots: &[SnapshotView], width: Width) -> String {
    let columns = [
        Column::Text("ID"),
        Column::Text("Name"),
        Column::Text("Status"),
        Column::Number("Size GB"),
        Column::Text("Pool"),
        Column::Text("Volume"),
        Column::Text("Host"),
        Column::Text("Created"),
    ];
    let row = |view: &SnapshotView| {
        vec![
            view.id.to_string(),
            view.name.to_string(),
            view.status.as_str().to_owned(),
            view.size_gb.get().to_string(),
            view.pool.to_string(),
            volume(view),
            or_none(view.host.as_ref()),
            view.created_at.to_rfc3339(),
        ]
    };
    rows(&columns, snapshots.iter().map(row), width)
}

/// Everything about one snapshot, its fault in full.
pub(crate) fn show(view: &SnapshotView, width: Width) -> String {
    let fault = view.fault.as_ref();
    let lines = [
        ("ID", view.id.to_string()),
        ("Name", view.name.to_string()),
        ("Project", view.project.to_string()),
        ("Status", view.status.as_str().to_owned()),
        ("Progress", or_none(view.progress.as_ref())),
        ("Fault", or_none(fault.map(|fault| fault.code.as_str()))),
        ("Fault message", or_none(fault.map(|fault| &fault.message))),
        ("Size GB", view.size_gb.get().to_string()),
        ("Pool", view.pool.to_string()),
        ("Volume", or_none(view.volume.as_ref())),
        ("Volume ID", view.volume_id.to_string()),
        ("Host", or_none(view.host.as_ref())),
        ("Host ID", or_none(view.host_id)),
        (
            "Generation",
            format!(
                "{}, confirmed by the host: {}",
                view.generation, view.observed_generation
            ),
        ),
        ("Created", view.created_at.to_rfc3339()),
        ("Updated", view.updated_at.to_rfc3339()),
    ];
    fields(lines, width)
}

/// What became of a request, in a line.
pub(crate) fn outcome(view: &SnapshotView) -> String {
    format!("snapshot {}: {}\n", label(view), summary(view))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::snapshot;

    #[test]
    fn snapshots_are_listed_with_their_volumes() {
        insta::assert_snapshot!(list(&[snapshot()], Width::Unlimited), @r#"
        +--------------------------------------+--------+-----------+---------+------+--------+------+---------------------------+
        | ID                                   | Name   | Status    | Size GB | Pool | Volume | Host | Created                   |
        +--------------------------------------+--------+-----------+---------+------+--------+------+---------------------------+
        | 0191e7a0-0000-7000-8000-000000000009 | monday | available |      20 | fast | data   | hv1  | 2026-01-02T03:04:05+00:00 |
        +--------------------------------------+--------+-----------+---------+------+--------+------+---------------------------+
        "#);
    }

    #[test]
    fn a_snapshot_is_shown_whole() {
        insta::assert_snapshot!(show(&snapshot(), Width::Unlimited), @r#"
        +---------------+--------------------------------------+
        | Field         | Value                                |
        +---------------+--------------------------------------+
        | ID            | 0191e7a0-0000-7000-8000-000000000009 |
        | Name          | monday                               |
        | Project       | lab                                  |
        | Status        | available                            |
        | Progress      | -                                    |
        | Fault         | -                                    |
        | Fault message | -                                    |
        | Size GB       | 20                                   |
        | Pool          | fast                                 |
        | Volume        | data                                 |
        | Volume ID     | 0191e7a0-0000-7000-8000-000000000008 |
        | Host          | hv1                                  |
        | Host ID       | 0191e7a0-0000-7000-8000-000000000001 |
        | Generation    | 1, confirmed by the host: 1          |
        | Created       | 2026-01-02T03:04:05+00:00            |
        | Updated       | 2026-01-02T03:04:15+00:00            |
        +---------------+--------------------------------------+
        "#);
    }

    #[test]
    fn what_became_of_a_request_is_a_line() {
        assert_eq!(
            outcome(&snapshot()),
            "snapshot monday (0191e7a0-0000-7000-8000-000000000009): available on hv1, of volume data\n"
        );
    }
}
