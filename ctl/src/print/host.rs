//! Hypervisors as tables. `host show` begins with the rows operators know from `openstack host show`.

use berth_common::message::{
    heartbeat::NetworkCapabilities,
    request::HostDeleteReply,
    view::{HostState, HostStatus, HostView, PoolUsage, ResourceUsage, Resources},
};
use berth_common::units::ByteCount;

use super::{
    NONE, joined, or_none,
    table::{Column, Width, fields, rows},
};

/// All hypervisors. Aggregates, physical networks and countable resources have columns where any host has some.
pub(crate) fn list(hosts: &[HostView], width: Width) -> String {
    let mut columns = vec![
        Column::Text("Name"),
        Column::Text("Status"),
        Column::Text("State"),
        Column::Text("Zone"),
        Column::Text("Virt"),
        Column::Number("Instances"),
        Column::Number("vCPU used"),
        Column::Number("vCPU"),
        Column::Number("RAM MB used"),
        Column::Number("RAM MB"),
        Column::Number("Disk GB used"),
        Column::Number("Disk GB"),
    ];
    let extras: Vec<Extra> = EXTRAS
        .into_iter()
        .filter(|extra| hosts.iter().any(|host| (extra.text)(host) != NONE))
        .collect();
    columns.extend(extras.iter().map(|extra| Column::Text(extra.title)));
    let row = |host: &HostView| {
        let (used, capacity) = (host.used_max, host.capacity);
        let mut cells = vec![
            host.name.to_string(),
            status(host.status).to_owned(),
            state(host.state).to_owned(),
            host.availability_zone.to_string(),
            host.virt_type.clone(),
            host.instances.to_string(),
            used.vcpus.get().to_string(),
            capacity.vcpus.get().to_string(),
            used.memory_mb.get().to_string(),
            capacity.memory_mb.get().to_string(),
            used.disk_gb.get().to_string(),
            capacity.disk_gb.get().to_string(),
        ];
        cells.extend(extras.iter().map(|extra| (extra.text)(host)));
        cells
    };
    rows(&columns, hosts.iter().map(row), width)
}

/// What only some hosts have.
struct Extra {
    title: &'static str,
    text: fn(&HostView) -> String,
}

const EXTRAS: [Extra; 3] = [
    Extra {
        title: "Aggregates",
        text: |host| joined(&host.aggregates, ", "),
    },
    Extra {
        title: "Physical networks",
        text: |host| joined(&host.physical_networks, ", "),
    },
    Extra {
        title: "Resources used",
        text: |host| {
            let used =
                |usage: &ResourceUsage| format!("{} {}/{}", usage.class, usage.used, usage.total);
            joined(host.resources.iter().map(used), ", ")
        },
    },
];

/// One hypervisor: usage, then everything else, then the domains berth did not make.
pub(crate) fn show(host: &HostView, width: Width) -> String {
    let mut text = usage(host, width);
    text.push_str(&details(host, width));
    if !host.resources.is_empty() {
        text.push_str("Countable resources:\n");
        text.push_str(&resources(host, width));
    }
    if !host.pools.is_empty() {
        text.push_str("Storage pools:\n");
        text.push_str(&pools(host, width));
    }
    if !host.foreign_domains.is_empty() {
        text.push_str("Domains that berth did not make and never touches:\n");
        text.push_str(&foreign_domains(host, width));
    }
    text
}

fn usage(host: &HostView, width: Width) -> String {
    let columns = [
        Column::Text("Host"),
        Column::Text("Project"),
        Column::Number("CPU"),
        Column::Number("Memory MB"),
        Column::Number("Disk GB"),
    ];
    let row = |project: &str, amount: Resources| {
        vec![
            host.name.to_string(),
            project.to_owned(),
            amount.vcpus.get().to_string(),
            amount.memory_mb.get().to_string(),
            amount.disk_gb.get().to_string(),
        ]
    };
    let host_rows = [
        row("(total)", host.total),
        row("(used_now)", host.used_now),
        row("(used_max)", host.used_max),
    ];
    let projects = host
        .projects
        .iter()
        .map(|usage| row(usage.project.as_str(), usage.claimed));
    rows(&columns, host_rows.into_iter().chain(projects), width)
}

/// What kinds of networks a host can build beside those that need nothing.
fn networks(able: &NetworkCapabilities) -> String {
    let kinds = [
        (able.vlan, "vlan"),
        (able.vxlan, "vxlan"),
        (able.stateful_filter, "security groups"),
    ];
    let kinds = kinds.into_iter().filter(|(has, _)| *has);
    joined(kinds.map(|(_, kind)| kind), ", ")
}

fn details(host: &HostView, width: Width) -> String {
    let heartbeat = match host.last_heartbeat_seconds {
        Some(seconds) => format!("{seconds} s ago"),
        None => "none since the scheduler started".to_owned(),
    };
    let mut properties = vec![
        ("ID", host.id.to_string()),
        ("Status", status(host.status).to_owned()),
        ("State", state(host.state).to_owned()),
        ("Last heartbeat", heartbeat),
        ("Availability zone", host.availability_zone.to_string()),
        ("Aggregates", joined(&host.aggregates, ", ")),
        ("Physical networks", joined(&host.physical_networks, ", ")),
        ("Networks it can build", networks(&host.network)),
        ("Address for VXLAN", or_none(host.network.tunnel_ip)),
        ("Instances", host.instances.to_string()),
        ("Virtualization", host.virt_type.clone()),
        ("Architecture", host.arch.clone()),
        ("Agent version", host.agent_version.clone()),
        ("Allocation ratios", ratios(host)),
        ("Reserved for the host", amounts(host.reserved)),
        ("Capacity", amounts(host.capacity)),
    ];
    let because = match host.status {
        HostStatus::Enabled => None,
        HostStatus::Disabled => Some("Disabled because"),
        HostStatus::Draining => Some("Draining because"),
    };
    properties.splice(
        2..2,
        because.map(|because| (because, or_none(host.disabled_reason.as_ref()))),
    );
    let health = joined(
        host.health
            .iter()
            .map(|part| match (&part.reason, part.ok) {
                (Some(reason), _) => format!(
                    "{}: {} ({reason})",
                    part.part,
                    if part.ok { "ok" } else { "failing" }
                ),
                (None, true) => format!("{}: ok", part.part),
                (None, false) => format!("{}: failing", part.part),
            }),
        "; ",
    );
    properties.push(("Health", health));
    fields(properties, width)
}

fn resources(host: &HostView, width: Width) -> String {
    let columns = [
        Column::Text("Class"),
        Column::Number("Total"),
        Column::Number("Used"),
    ];
    let row = |usage: &ResourceUsage| {
        vec![
            usage.class.to_string(),
            usage.total.to_string(),
            usage.used.to_string(),
        ]
    };
    rows(&columns, host.resources.iter().map(row), width)
}

fn pools(host: &HostView, width: Width) -> String {
    let columns = [
        Column::Text("Pool"),
        Column::Text("Type"),
        Column::Number("Total GB"),
        Column::Number("Used GB"),
        Column::Number("Provisioned GB"),
        Column::Number("Claimed GB"),
        Column::Number("Metadata %"),
    ];
    let row = |pool: &PoolUsage| {
        let report = &pool.report;
        let gb = |bytes: ByteCount| bytes.whole_gb().get().to_string();
        vec![
            report.name.to_string(),
            report.kind.as_str().to_owned(),
            gb(report.total_bytes),
            gb(report.used_bytes),
            gb(report.provisioned_bytes),
            pool.claimed_gb.get().to_string(),
            or_none(report.metadata_percent),
        ]
    };
    rows(&columns, host.pools.iter().map(row), width)
}

fn foreign_domains(host: &HostView, width: Width) -> String {
    let columns = [
        Column::Text("UUID"),
        Column::Text("Name"),
        Column::Text("Power"),
        Column::Number("vCPU"),
        Column::Number("RAM MB"),
    ];
    let foreign = host.foreign_domains.iter().map(|domain| {
        vec![
            domain.uuid.to_string(),
            domain.name.clone(),
            domain.power_state.as_str().to_owned(),
            domain.vcpus.get().to_string(),
            domain.memory_mb.get().to_string(),
        ]
    });
    rows(&columns, foreign, width)
}

/// What became of `host enable`, `disable` and `drain`, in a line.
pub(crate) fn outcome(host: &HostView) -> String {
    let reason = host
        .disabled_reason
        .as_ref()
        .map(|reason| format!(" ({reason})"))
        .unwrap_or_default();
    format!(
        "host {}: {}{reason}, {} instances\n",
        host.name,
        status(host.status),
        host.instances
    )
}

/// What became of `host set`, in a line: how the host is counted now.
pub(crate) fn settings(host: &HostView) -> String {
    format!(
        "host {}: allocation ratios {}; reserved {}; capacity {}\n",
        host.name,
        ratios(host),
        amounts(host.reserved),
        amounts(host.capacity)
    )
}

/// What became of `host delete`, and what that means.
pub(crate) fn deleted(host: &HostDeleteReply) -> String {
    format!(
        "host {} ({}): forgotten. berth knows it no more and places nothing on it; should its agent start again, it is a \
         new hypervisor\n",
        host.name, host.id
    )
}

fn ratios(host: &HostView) -> String {
    let ratios = host.allocation_ratios;
    format!(
        "CPU {}, RAM {}, disk {}",
        ratios.cpu, ratios.ram, ratios.disk
    )
}

fn amounts(amount: Resources) -> String {
    format!("{}, {}, {}", amount.vcpus, amount.memory_mb, amount.disk_gb)
}

const fn status(status: HostStatus) -> &'static str {
    match status {
        HostStatus::Enabled => "enabled",
        HostStatus::Disabled => "disabled",
        HostStatus::Draining => "draining",
    }
}

const fn state(state: HostState) -> &'static str {
    match state {
        HostState::Up => "up",
        HostState::Down => "down",
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{host, rich_host};

    #[test]
    fn a_host_shows_the_rows_operators_know() {
        insta::assert_snapshot!(show(&host(), Width::Unlimited), @r#"
        +------+------------+-----+-----------+---------+
        | Host | Project    | CPU | Memory MB | Disk GB |
        +------+------------+-----+-----------+---------+
        | hv1  | (total)    |   2 |     24000 |     100 |
        | hv1  | (used_now) |   2 |      1200 |      11 |
        | hv1  | (used_max) |   2 |       384 |       2 |
        | hv1  | lab        |   1 |       256 |       2 |
        +------+------------+-----+-----------+---------+
        +-----------------------+-----------------------------------------+
        | Field                 | Value                                   |
        +-----------------------+-----------------------------------------+
        | ID                    | 0191e7a0-0000-7000-8000-000000000001    |
        | Status                | enabled                                 |
        | State                 | up                                      |
        | Last heartbeat        | 3 s ago                                 |
        | Availability zone     | nova                                    |
        | Aggregates            | -                                       |
        | Physical networks     | -                                       |
        | Instances             | 1                                       |
        | Virtualization        | qemu                                    |
        | Architecture          | x86_64                                  |
        | Agent version         | 0.1.0                                   |
        | Allocation ratios     | CPU 4.0, RAM 1.5, disk 1.0              |
        | Reserved for the host | 0 vCPU, 512 MB, 0 GB                    |
        | Capacity              | 8 vCPU, 35232 MB, 100 GB                |
        | Health                | agent: ok; libvirt: failing (no answer) |
        +-----------------------+-----------------------------------------+
        Domains that berth did not make and never touches:
        +--------------------------------------+---------+---------+------+--------+
        | UUID                                 | Name    | Power   | vCPU | RAM MB |
        +--------------------------------------+---------+---------+------+--------+
        | 3f6f5f0c-0000-4000-8000-000000000005 | by-hand | running |    1 |    128 |
        +--------------------------------------+---------+---------+------+--------+
        "#);
    }

    #[test]
    fn a_host_that_is_out_of_order_says_why() {
        let mut view = host();
        view.status = HostStatus::Disabled;
        view.disabled_reason = Some("new \x1b[5mdisk".to_owned());
        view.state = HostState::Down;
        view.last_heartbeat_seconds = None;
        view.foreign_domains.clear();
        view.projects.clear();
        let text = show(&view, Width::Unlimited);
        for expected in [
            "| disabled",
            "| new ^[[5mdisk",
            "| down",
            "none since the scheduler started",
        ] {
            assert!(text.contains(expected), "{expected}: {text}");
        }
        assert!(!text.contains("Domains that berth"), "{text}");
    }

    #[test]
    fn hosts_are_listed_with_claims_and_capacity() {
        insta::assert_snapshot!(list(&[host()], Width::Unlimited), @r#"
        +------+---------+-------+------+------+-----------+-----------+------+-------------+--------+--------------+---------+
        | Name | Status  | State | Zone | Virt | Instances | vCPU used | vCPU | RAM MB used | RAM MB | Disk GB used | Disk GB |
        +------+---------+-------+------+------+-----------+-----------+------+-------------+--------+--------------+---------+
        | hv1  | enabled | up    | nova | qemu |         1 |         2 |    8 |         384 |  35232 |            2 |     100 |
        +------+---------+-------+------+------+-----------+-----------+------+-------------+--------+--------------+---------+
        "#);
    }

    #[test]
    fn what_only_some_hosts_have_is_listed_where_any_has_it() {
        insta::assert_snapshot!(list(&[host(), rich_host()], Width::Unlimited), @r#"
        +------+----------+-------+--------+------+-----------+-----------+------+-------------+--------+--------------+---------+-------------+--------------------+---------------------------------------+
        | Name | Status   | State | Zone   | Virt | Instances | vCPU used | vCPU | RAM MB used | RAM MB | Disk GB used | Disk GB | Aggregates  | Physical networks  | Resources used                        |
        +------+----------+-------+--------+------+-----------+-----------+------+-------------+--------+--------------+---------+-------------+--------------------+---------------------------------------+
        | hv1  | enabled  | up    | nova   | qemu |         1 |         2 |    8 |         384 |  35232 |            2 |     100 | -           | -                  | -                                     |
        | hv1  | draining | up    | rack-1 | qemu |         1 |         2 |    8 |         384 |  35232 |            2 |     100 | rack-1, ssd | physnet1, physnet2 | HUGEPAGES_2048K 512/1024, PCI_GPU 1/2 |
        +------+----------+-------+--------+------+-----------+-----------+------+-------------+--------+--------------+---------+-------------+--------------------+---------------------------------------+
        "#);
    }

    #[test]
    fn a_host_that_is_emptied_shows_all_that_placement_counts() {
        let text = show(&rich_host(), Width::Unlimited);
        let (_, details) = text.split_once("| Field").unwrap();
        let (details, _) = details.split_once("Domains that berth").unwrap();
        insta::assert_snapshot!(details, @r#"
                         | Value                                   |
        +-----------------------+-----------------------------------------+
        | ID                    | 0191e7a0-0000-7000-8000-000000000001    |
        | Status                | draining                                |
        | Draining because      | new memory                              |
        | State                 | up                                      |
        | Last heartbeat        | 3 s ago                                 |
        | Availability zone     | rack-1                                  |
        | Aggregates            | rack-1, ssd                             |
        | Physical networks     | physnet1, physnet2                      |
        | Instances             | 1                                       |
        | Virtualization        | qemu                                    |
        | Architecture          | x86_64                                  |
        | Agent version         | 0.1.0                                   |
        | Allocation ratios     | CPU 4.0, RAM 1.5, disk 1.0              |
        | Reserved for the host | 0 vCPU, 512 MB, 0 GB                    |
        | Capacity              | 8 vCPU, 35232 MB, 100 GB                |
        | Health                | agent: ok; libvirt: failing (no answer) |
        +-----------------------+-----------------------------------------+
        Countable resources:
        +-----------------+-------+------+
        | Class           | Total | Used |
        +-----------------+-------+------+
        | HUGEPAGES_2048K |  1024 |  512 |
        | PCI_GPU         |     2 |    1 |
        +-----------------+-------+------+
        Storage pools:
        +-------+----------+----------+---------+----------------+------------+------------+
        | Pool  | Type     | Total GB | Used GB | Provisioned GB | Claimed GB | Metadata % |
        +-------+----------+----------+---------+----------------+------------+------------+
        | local | dir      |      100 |      11 |             30 |         30 |          - |
        | thin  | lvm_thin |      500 |      20 |            800 |        810 |          3 |
        +-------+----------+----------+---------+----------------+------------+------------+
        "#);
    }

    #[test]
    fn what_became_of_a_change_is_told_in_a_line() {
        insta::assert_snapshot!(outcome(&rich_host()), @r#"host hv1: draining (new memory), 1 instances"#);
        insta::assert_snapshot!(settings(&host()), @r#"host hv1: allocation ratios CPU 4.0, RAM 1.5, disk 1.0; reserved 0 vCPU, 512 MB, 0 GB; capacity 8 vCPU, 35232 MB, 100 GB"#);
        let gone = HostDeleteReply {
            id: host().id,
            name: host().name,
        };
        insta::assert_snapshot!(deleted(&gone), @r#"host hv1 (0191e7a0-0000-7000-8000-000000000001): forgotten. berth knows it no more and places nothing on it; should its agent start again, it is a new hypervisor"#);
    }
}
