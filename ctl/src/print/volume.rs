//! Volumes as tables.

use berth_common::{
    document::VolumeSource,
    message::view::{AttachmentView, VolumeView},
};

use super::{
    or_none,
    table::{Column, Width, fields, rows},
};
use crate::wait::volume::{label, summary};

/// Volumes, one in a row.
pub(crate) fn list(volumes: &[VolumeView], width: Width) -> String {
    let columns = [
        Column::Text("ID"),
        Column::Text("Name"),
        Column::Text("Status"),
        Column::Number("Size GB"),
        Column::Text("Format"),
        Column::Text("Pool"),
        Column::Text("Host"),
        Column::Text("Attached to"),
    ];
    let row = |view: &VolumeView| {
        vec![
            view.id.to_string(),
            view.name.to_string(),
            view.status.as_str().to_owned(),
            view.size_gb.get().to_string(),
            view.format.as_str().to_owned(),
            view.pool.to_string(),
            or_none(view.host.as_ref()),
            or_none(view.attachment.as_ref().map(place)),
        ]
    };
    rows(&columns, volumes.iter().map(row), width)
}

/// Everything about one volume, its fault in full.
pub(crate) fn show(view: &VolumeView, width: Width) -> String {
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
        ("Format", view.format.as_str().to_owned()),
        ("Pool", view.pool.to_string()),
        ("Made from", or_none(view.source.as_ref().map(source))),
        ("IOPS limit", or_none(view.limits.total_iops)),
        (
            "Bytes per second limit",
            or_none(view.limits.total_bytes_per_second),
        ),
        ("Host", or_none(view.host.as_ref())),
        ("Host ID", or_none(view.host_id)),
        (
            "Attached to",
            or_none(view.attachment.as_ref().map(describe)),
        ),
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
pub(crate) fn outcome(view: &VolumeView) -> String {
    format!("volume {}: {}\n", label(view), summary(view))
}

/// `web-1=/dev/vdb`.
fn place(to: &AttachmentView) -> String {
    format!("{}={}", to.instance, to.device)
}

fn describe(to: &AttachmentView) -> String {
    format!(
        "{}, {}, {}, id {}",
        place(to),
        to.access.as_str(),
        to.disk_bus.as_str(),
        to.instance_id
    )
}

fn source(source: &VolumeSource) -> String {
    match source {
        VolumeSource::Image(image) => format!("image {}", image.url),
        VolumeSource::Volume(volume) => format!("volume {}", volume.id),
        VolumeSource::Snapshot(snapshot) => format!("snapshot {}", snapshot.id),
    }
}

#[cfg(test)]
mod tests {
    use berth_common::message::view::VolumeStatus;

    use super::*;
    use crate::testing::volume;

    #[test]
    fn volumes_are_listed_with_their_instances() {
        let bare = VolumeView {
            status: VolumeStatus::Available,
            host: None,
            attachment: None,
            ..volume()
        };
        insta::assert_snapshot!(list(&[volume(), bare], Width::Unlimited), @r#"
        +--------------------------------------+------+-----------+---------+--------+-------+------+----------------+
        | ID                                   | Name | Status    | Size GB | Format | Pool  | Host | Attached to    |
        +--------------------------------------+------+-----------+---------+--------+-------+------+----------------+
        | 0191e7a0-0000-7000-8000-000000000008 | data | in-use    |      20 | raw    | local | hv1  | web-1=/dev/vdb |
        | 0191e7a0-0000-7000-8000-000000000008 | data | available |      20 | raw    | local | -    | -              |
        +--------------------------------------+------+-----------+---------+--------+-------+------+----------------+
        "#);
    }

    #[test]
    fn a_volume_is_shown_whole() {
        insta::assert_snapshot!(show(&volume(), Width::Unlimited), @r#"
        +------------------------+-----------------------------------------------------------------------------+
        | Field                  | Value                                                                       |
        +------------------------+-----------------------------------------------------------------------------+
        | ID                     | 0191e7a0-0000-7000-8000-000000000008                                        |
        | Name                   | data                                                                        |
        | Project                | lab                                                                         |
        | Status                 | in-use                                                                      |
        | Progress               | -                                                                           |
        | Fault                  | -                                                                           |
        | Fault message          | -                                                                           |
        | Size GB                | 20                                                                          |
        | Format                 | raw                                                                         |
        | Pool                   | local                                                                       |
        | Made from              | image file:///srv/guest.qcow2                                               |
        | IOPS limit             | 500                                                                         |
        | Bytes per second limit | -                                                                           |
        | Host                   | hv1                                                                         |
        | Host ID                | 0191e7a0-0000-7000-8000-000000000001                                        |
        | Attached to            | web-1=/dev/vdb, read_write, virtio, id 0191e7a0-7c1f-7b5e-9d2a-3f6f5f0c2a11 |
        | Generation             | 2, confirmed by the host: 2                                                 |
        | Created                | 2026-01-02T03:04:05+00:00                                                   |
        | Updated                | 2026-01-02T03:04:15+00:00                                                   |
        +------------------------+-----------------------------------------------------------------------------+
        "#);
    }

    #[test]
    fn what_became_of_a_request_is_a_line() {
        assert_eq!(
            outcome(&volume()),
            "volume data (0191e7a0-0000-7000-8000-000000000008): in-use on hv1, /dev/vdb of web-1\n"
        );
    }
}
