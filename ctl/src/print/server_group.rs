//! Server groups as tables.

use berth_common::message::placement::{ServerGroupPolicy, ServerGroupView};

use super::{
    joined, or_none,
    table::{Column, Width, fields, rows},
};

/// Server groups, one in a row.
pub(crate) fn list(groups: &[ServerGroupView], width: Width) -> String {
    let columns = [
        Column::Text("ID"),
        Column::Text("Name"),
        Column::Text("Project"),
        Column::Text("Policy"),
        Column::Number("Per host"),
        Column::Number("Members"),
    ];
    let row = |group: &ServerGroupView| {
        vec![
            group.id.to_string(),
            group.name.to_string(),
            group.project.to_string(),
            policy(group.policy).to_owned(),
            or_none(group.max_server_per_host),
            group.members.len().to_string(),
        ]
    };
    rows(&columns, groups.iter().map(row), width)
}

/// Everything about one server group.
pub(crate) fn show(group: &ServerGroupView, width: Width) -> String {
    let lines = [
        ("ID", group.id.to_string()),
        ("Name", group.name.to_string()),
        ("Project", group.project.to_string()),
        ("Policy", policy(group.policy).to_owned()),
        ("Most per host", or_none(group.max_server_per_host)),
        ("Members", joined(&group.members, ", ")),
        ("Created", group.created_at.to_rfc3339()),
    ];
    fields(lines, width)
}

/// What became of `server-group delete`, in a line.
pub(crate) fn deleted(group: &ServerGroupView) -> String {
    format!("server group {} ({}): deleted\n", group.name, group.id)
}

/// As the command line and Nova spell it.
const fn policy(policy: ServerGroupPolicy) -> &'static str {
    match policy {
        ServerGroupPolicy::Affinity => "affinity",
        ServerGroupPolicy::AntiAffinity => "anti-affinity",
        ServerGroupPolicy::SoftAffinity => "soft-affinity",
        ServerGroupPolicy::SoftAntiAffinity => "soft-anti-affinity",
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::server_group;

    #[test]
    fn server_groups_are_listed() {
        let bare = ServerGroupView {
            policy: ServerGroupPolicy::SoftAffinity,
            max_server_per_host: None,
            members: Vec::new(),
            ..server_group()
        };
        insta::assert_snapshot!(list(&[server_group(), bare], Width::Unlimited), @r#"
        +--------------------------------------+------+---------+---------------+----------+---------+
        | ID                                   | Name | Project | Policy        | Per host | Members |
        +--------------------------------------+------+---------+---------------+----------+---------+
        | 0191e7a0-0000-7000-8000-000000000007 | web  | lab     | anti-affinity |        2 |       1 |
        | 0191e7a0-0000-7000-8000-000000000007 | web  | lab     | soft-affinity |        - |       0 |
        +--------------------------------------+------+---------+---------------+----------+---------+
        "#);
    }

    #[test]
    fn a_server_group_is_shown_whole() {
        insta::assert_snapshot!(show(&server_group(), Width::Unlimited), @r#"
        +---------------+--------------------------------------+
        | Field         | Value                                |
        +---------------+--------------------------------------+
        | ID            | 0191e7a0-0000-7000-8000-000000000007 |
        | Name          | web                                  |
        | Project       | lab                                  |
        | Policy        | anti-affinity                        |
        | Most per host | 2                                    |
        | Members       | 0191e7a0-7c1f-7b5e-9d2a-3f6f5f0c2a11 |
        | Created       | 2026-01-02T03:04:05+00:00            |
        +---------------+--------------------------------------+
        "#);
    }
}
