//! Hypervisors as tables. `host show` begins with the rows operators know from `openstack host show`.

use berth_common::message::view::{HostState, HostStatus, HostView, Resources};

use super::{
    joined, or_none,
    table::{Column, Width, fields, rows},
};

/// All hypervisors.
pub(crate) fn list(hosts: &[HostView], width: Width) -> String {
    let columns = [
        Column::Text("Name"),
        Column::Text("Status"),
        Column::Text("State"),
        Column::Text("Virt"),
        Column::Number("Instances"),
        Column::Number("vCPU used"),
        Column::Number("vCPU"),
        Column::Number("RAM MB used"),
        Column::Number("RAM MB"),
        Column::Number("Disk GB used"),
        Column::Number("Disk GB"),
    ];
    let row = |host: &HostView| {
        let (used, capacity) = (host.used_max, host.capacity);
        vec![
            host.name.to_string(),
            status(host.status).to_owned(),
            state(host.state).to_owned(),
            host.virt_type.clone(),
            host.instances.to_string(),
            used.vcpus.get().to_string(),
            capacity.vcpus.get().to_string(),
            used.memory_mb.get().to_string(),
            capacity.memory_mb.get().to_string(),
            used.disk_gb.get().to_string(),
            capacity.disk_gb.get().to_string(),
        ]
    };
    rows(&columns, hosts.iter().map(row), width)
}

/// One hypervisor: usage, then everything else, then the domains berth did not make.
pub(crate) fn show(host: &HostView, width: Width) -> String {
    let mut text = usage(host, width);
    text.push_str(&details(host, width));
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

fn details(host: &HostView, width: Width) -> String {
    let heartbeat = match host.last_heartbeat_seconds {
        Some(seconds) => format!("{seconds} s ago"),
        None => "none since the scheduler started".to_owned(),
    };
    let ratios = host.allocation_ratios;
    let mut properties = vec![
        ("ID", host.id.to_string()),
        ("Status", status(host.status).to_owned()),
        ("State", state(host.state).to_owned()),
        ("Last heartbeat", heartbeat),
        ("Instances", host.instances.to_string()),
        ("Virtualization", host.virt_type.clone()),
        ("Architecture", host.arch.clone()),
        ("Agent version", host.agent_version.clone()),
        (
            "Allocation ratios",
            format!(
                "CPU {}, RAM {}, disk {}",
                ratios.cpu, ratios.ram, ratios.disk
            ),
        ),
        ("Reserved for the host", amounts(host.reserved)),
        ("Capacity", amounts(host.capacity)),
    ];
    if host.status != HostStatus::Enabled {
        properties.insert(
            2,
            ("Disabled because", or_none(host.disabled_reason.as_ref())),
        );
    }
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

/// What became of `host enable` and `host disable`, in a line.
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
    use crate::testing::host;

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
        +------+---------+-------+------+-----------+-----------+------+-------------+--------+--------------+---------+
        | Name | Status  | State | Virt | Instances | vCPU used | vCPU | RAM MB used | RAM MB | Disk GB used | Disk GB |
        +------+---------+-------+------+-----------+-----------+------+-------------+--------+--------------+---------+
        | hv1  | enabled | up    | qemu |         1 |         2 |    8 |         384 |  35232 |            2 |     100 |
        +------+---------+-------+------+-----------+-----------+------+-------------+--------+--------------+---------+
        "#);
    }
}
