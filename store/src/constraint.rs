//! The rules of uniqueness: their indexes in the schema, and which one an error is about.
//!
//! PostgreSQL and MariaDB name the violated index, SQLite lists its columns. Both forms are matched against one
//! table, which the migration also builds its indexes from.

use crate::error::UniqueWhat;

/// One unique index.
pub(crate) struct UniqueIndex {
    /// Its name, unique in the database.
    pub(crate) name: &'static str,
    /// Its table.
    pub(crate) table: &'static str,
    /// Its columns.
    pub(crate) columns: &'static [&'static str],
}

/// A living instance's name in its project.
pub(crate) const INSTANCE_NAME: UniqueIndex = UniqueIndex {
    name: "uq_instance_name",
    table: "instances",
    columns: &["project", "live_name"],
};
/// A living network's name in its project.
pub(crate) const NETWORK_NAME: UniqueIndex = UniqueIndex {
    name: "uq_network_name",
    table: "networks",
    columns: &["project", "live_name"],
};
/// A port's Ethernet address in its network.
pub(crate) const PORT_MAC: UniqueIndex = UniqueIndex {
    name: "uq_port_mac",
    table: "ports",
    columns: &["network_id", "mac_address"],
};
/// An instance's ports have one position each.
pub(crate) const PORT_POSITION: UniqueIndex = UniqueIndex {
    name: "uq_port_position",
    table: "ports",
    columns: &["instance_id", "position"],
};
/// A port's IP address in its subnet.
pub(crate) const FIXED_IP: UniqueIndex = UniqueIndex {
    name: "uq_fixed_ip",
    table: "fixed_ips",
    columns: &["subnet_id", "ip_address"],
};
/// A host's name.
pub(crate) const HOST_NAME: UniqueIndex = UniqueIndex {
    name: "uq_host_name",
    table: "hosts",
    columns: &["name"],
};
/// One subnet for each network: the first schema's rule, which a later migration takes away.
pub(crate) const NETWORK_SUBNET: UniqueIndex = UniqueIndex {
    name: "uq_subnet_network",
    table: "subnets",
    columns: &["network_id"],
};
/// A living subnet's name in its network.
pub(crate) const SUBNET_NAME: UniqueIndex = UniqueIndex {
    name: "uq_subnet_name",
    table: "subnets",
    columns: &["network_id", "live_name"],
};
/// What tells networks apart on a physical network, or between hosts.
pub(crate) const SEGMENT: UniqueIndex = UniqueIndex {
    name: "uq_segment",
    table: "segments",
    columns: &["network_type", "physical_network", "segmentation_id"],
};
/// An aggregate's name.
pub(crate) const AGGREGATE_NAME: UniqueIndex = UniqueIndex {
    name: "uq_aggregate_name",
    table: "aggregates",
    columns: &["name"],
};
/// A server group's name in its project.
pub(crate) const SERVER_GROUP_NAME: UniqueIndex = UniqueIndex {
    name: "uq_server_group_name",
    table: "server_groups",
    columns: &["project", "name"],
};

/// A living volume's name in its project.
pub(crate) const VOLUME_NAME: UniqueIndex = UniqueIndex {
    name: "uq_volume_name",
    table: "volumes",
    columns: &["project", "live_name"],
};
/// A living snapshot's name in its project.
pub(crate) const SNAPSHOT_NAME: UniqueIndex = UniqueIndex {
    name: "uq_snapshot_name",
    table: "snapshots",
    columns: &["project", "live_name"],
};
/// An instance's volumes have one position each.
pub(crate) const ATTACHMENT_POSITION: UniqueIndex = UniqueIndex {
    name: "uq_attachment_position",
    table: "attachments",
    columns: &["instance_id", "position"],
};

/// A port's name in its project, if it has one.
pub(crate) const PORT_NAME: UniqueIndex = UniqueIndex {
    name: "uq_port_name",
    table: "ports",
    columns: &["project", "name"],
};
/// A security group's name in its project.
pub(crate) const SECURITY_GROUP_NAME: UniqueIndex = UniqueIndex {
    name: "uq_security_group_name",
    table: "security_groups",
    columns: &["project", "name"],
};
/// What a security group allows, once.
pub(crate) const SECURITY_GROUP_RULE: UniqueIndex = UniqueIndex {
    name: "uq_security_group_rule",
    table: "security_group_rules",
    columns: &["group_id", "content"],
};
/// A living router's name in its project.
pub(crate) const ROUTER_NAME: UniqueIndex = UniqueIndex {
    name: "uq_router_name",
    table: "routers",
    columns: &["project", "live_name"],
};
/// The address of a router's leg in its subnet.
pub(crate) const ROUTER_INTERFACE: UniqueIndex = UniqueIndex {
    name: "uq_router_interface",
    table: "router_interfaces",
    columns: &["subnet_id", "ip_address"],
};
/// A host's address for a router in its subnet.
pub(crate) const ROUTER_GATEWAY: UniqueIndex = UniqueIndex {
    name: "uq_router_gateway",
    table: "router_gateways",
    columns: &["subnet_id", "ip_address"],
};
/// A floating IP in its subnet.
pub(crate) const FLOATING_IP: UniqueIndex = UniqueIndex {
    name: "uq_floating_ip",
    table: "floating_ips",
    columns: &["subnet_id", "ip_address"],
};
/// An address of a port has one floating IP.
pub(crate) const FLOATING_IP_PORT: UniqueIndex = UniqueIndex {
    name: "uq_floating_ip_port",
    table: "floating_ips",
    columns: &["port_id", "fixed_ip_address"],
};

/// The primary keys, as SQLite lists them.
const PRIMARY_KEYS: &[(&str, &[&str])] = &[
    ("hosts", &["id"]),
    ("networks", &["id"]),
    ("subnets", &["id"]),
    ("instances", &["id"]),
    ("ports", &["id"]),
    ("fixed_ips", &["port_id", "position"]),
    ("claims", &["instance_id", "host_id", "role"]),
    ("documents", &["host_id", "kind", "resource_id"]),
    ("nonces", &["instance_id", "nonce"]),
    ("aggregates", &["id"]),
    ("aggregate_hosts", &["aggregate_id", "host_id"]),
    ("server_groups", &["id"]),
    ("decisions", &["id"]),
    ("leadership", &["id"]),
    ("volumes", &["id"]),
    ("attachments", &["volume_id"]),
    ("snapshots", &["id"]),
    ("segments", &["network_id"]),
    ("security_groups", &["id"]),
    ("security_group_rules", &["id"]),
    ("port_security_groups", &["port_id", "group_id"]),
    ("routers", &["id"]),
    ("router_interfaces", &["router_id", "subnet_id"]),
    ("router_gateways", &["router_id", "host_id", "subnet_id"]),
    ("floating_ips", &["id"]),
    (
        "held_addresses",
        &["network_id", "ip_address", "host_id", "router_id"],
    ),
];

fn meaning(name: &str) -> Option<UniqueWhat> {
    let meanings = [
        (INSTANCE_NAME.name, UniqueWhat::InstanceName),
        (NETWORK_NAME.name, UniqueWhat::NetworkName),
        (PORT_MAC.name, UniqueWhat::MacAddress),
        (FIXED_IP.name, UniqueWhat::IpAddress),
        (HOST_NAME.name, UniqueWhat::HostName),
        (AGGREGATE_NAME.name, UniqueWhat::AggregateName),
        (SERVER_GROUP_NAME.name, UniqueWhat::ServerGroupName),
        (VOLUME_NAME.name, UniqueWhat::VolumeName),
        (SNAPSHOT_NAME.name, UniqueWhat::SnapshotName),
        (SUBNET_NAME.name, UniqueWhat::SubnetName),
        (SEGMENT.name, UniqueWhat::Segment),
        (PORT_NAME.name, UniqueWhat::PortName),
        (SECURITY_GROUP_NAME.name, UniqueWhat::SecurityGroupName),
        (SECURITY_GROUP_RULE.name, UniqueWhat::SecurityGroupRule),
        (ROUTER_NAME.name, UniqueWhat::RouterName),
        (ROUTER_INTERFACE.name, UniqueWhat::IpAddress),
        (ROUTER_GATEWAY.name, UniqueWhat::IpAddress),
        (FLOATING_IP.name, UniqueWhat::IpAddress),
        (FLOATING_IP_PORT.name, UniqueWhat::FloatingIpPort),
    ];
    meanings
        .into_iter()
        .find(|(index, _)| *index == name)
        .map(|(_, what)| what)
}

/// Which rule an error is about, from the name of the index if the driver tells it, else from the message.
pub(crate) fn violated(index: Option<&str>, message: &str) -> UniqueWhat {
    let name = match index.or_else(|| mariadb_key(message)) {
        Some(name) => name.to_owned(),
        None => sqlite_index(message),
    };
    if name == "PRIMARY" || name.ends_with("_pkey") {
        return UniqueWhat::Id;
    }
    meaning(&name).unwrap_or(UniqueWhat::Other(name))
}

/// MariaDB: `Duplicate entry 'web' for key 'uq_host_name'` (MySQL puts the table and a dot before the key).
fn mariadb_key(message: &str) -> Option<&str> {
    let key = message.strip_suffix('\'')?.rsplit_once(" for key '")?.1;
    Some(key.rsplit_once('.').map_or(key, |(_, key)| key))
}

/// SQLite: `UNIQUE constraint failed: instances.project, instances.live_name`.
fn sqlite_index(message: &str) -> String {
    let columns = message
        .rsplit_once(": ")
        .map_or(message, |(_, columns)| columns);
    let listed = |table: &str, names: &[&str]| {
        names
            .iter()
            .map(|name| format!("{table}.{name}"))
            .collect::<Vec<_>>()
            .join(", ")
            == columns
    };
    let unique = [
        INSTANCE_NAME,
        NETWORK_NAME,
        PORT_MAC,
        PORT_POSITION,
        FIXED_IP,
        HOST_NAME,
        AGGREGATE_NAME,
        SERVER_GROUP_NAME,
        VOLUME_NAME,
        SNAPSHOT_NAME,
        ATTACHMENT_POSITION,
        SUBNET_NAME,
        SEGMENT,
        PORT_NAME,
        SECURITY_GROUP_NAME,
        SECURITY_GROUP_RULE,
        ROUTER_NAME,
        ROUTER_INTERFACE,
        ROUTER_GATEWAY,
        FLOATING_IP,
        FLOATING_IP_PORT,
    ];
    if PRIMARY_KEYS
        .iter()
        .any(|(table, names)| listed(table, names))
    {
        return "PRIMARY".to_owned();
    }
    let index = unique
        .iter()
        .find(|index| listed(index.table, index.columns));
    index.map_or(columns, |index| index.name).to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_three_databases_say_the_same_in_their_own_words() {
        let check = |index: Option<&str>, message: &str, expected: UniqueWhat| {
            assert_eq!(violated(index, message), expected, "{message}");
        };
        check(
            Some("uq_fixed_ip"),
            "duplicate key value violates unique constraint \"uq_fixed_ip\"",
            UniqueWhat::IpAddress,
        );
        check(
            Some("hosts_pkey"),
            "duplicate key value violates …",
            UniqueWhat::Id,
        );
        check(
            None,
            "Duplicate entry 'a-web' for key 'uq_instance_name'",
            UniqueWhat::InstanceName,
        );
        check(
            None,
            "Duplicate entry 'a-web' for key 'instances.uq_instance_name'",
            UniqueWhat::InstanceName,
        );
        check(
            None,
            "Duplicate entry 'it's for key 'x'' for key 'PRIMARY'",
            UniqueWhat::Id,
        );
        check(
            None,
            "UNIQUE constraint failed: instances.project, instances.live_name",
            UniqueWhat::InstanceName,
        );
        check(
            None,
            "UNIQUE constraint failed: claims.instance_id, claims.host_id, claims.role",
            UniqueWhat::Id,
        );
        check(
            None,
            "UNIQUE constraint failed: ports.instance_id, ports.position",
            UniqueWhat::Other("uq_port_position".to_owned()),
        );
        check(
            None,
            "UNIQUE constraint failed: new.rule",
            UniqueWhat::Other("new.rule".to_owned()),
        );
    }
}
