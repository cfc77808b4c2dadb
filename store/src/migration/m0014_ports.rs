//! Ports that live without an instance, what is wanted of them, and security groups.
//!
//! Ports that are there already are attached to their instances and go with them. Port security is off for them: nobody gave
//! their guests a rule, and an upgrade shall cut nobody off.
//!
//! SQLite cannot make a column nullable: there the tables are made anew, within the migration's transaction. The other
//! databases change them step by step.

use sea_orm_migration::{
    MigrationName, MigrationTrait, SchemaManager, async_trait,
    sea_orm::{ConnectionTrait, DbBackend, DbErr},
    sea_query::{
        ColumnDef, ForeignKeyAction, Index, IndexCreateStatement, Table, TableCreateStatement,
    },
};

use super::{
    columns::{
        ID, NAME, WORD, flag, int, key, new_table, opt_int, opt_prose, opt_text, prose, reference,
        text, unique,
    },
    dialect::table_options,
};
use crate::constraint::{
    FIXED_IP, PORT_MAC, PORT_NAME, PORT_POSITION, SECURITY_GROUP_NAME, SECURITY_GROUP_RULE,
};

/// An IPv6 address with its prefix: 39 characters, a slash and 3 digits.
const ADDRESS: u32 = 43;
/// All of what a rule allows: two words, a protocol with two numbers, and an id or an address.
const CONTENT: u32 = 128;

pub(super) struct Migration;

impl MigrationName for Migration {
    fn name(&self) -> &str {
        "m0014_ports"
    }
}

#[async_trait::async_trait]
impl MigrationTrait for Migration {
    async fn up(&self, manager: &SchemaManager) -> Result<(), DbErr> {
        let backend = manager.get_database_backend();
        if backend == DbBackend::Sqlite {
            if !manager.has_column("ports", "project").await? {
                made_anew(manager).await?;
            }
        } else {
            changed(manager).await?;
        }
        for table in [
            security_groups(backend),
            security_group_rules(backend),
            port_security_groups(),
        ] {
            manager.create_table(table_options(backend, table)).await?;
        }
        for (table, name, column) in [
            (
                "security_group_rules",
                "ix_security_group_rule_remote",
                "remote_group_id",
            ),
            ("port_security_groups", "ix_port_security_group", "group_id"),
        ] {
            if !manager.has_index(table, name).await? {
                let index = Index::create().name(name).table(table).col(column).take();
                manager.create_index(index).await?;
            }
        }
        Ok(())
    }
}

/// The columns that ports get, with what those that are there have.
fn new_columns(backend: DbBackend) -> Vec<(&'static str, ColumnDef)> {
    vec![
        ("project", text("project", NAME).default("").take()),
        ("name", opt_text("name", NAME)),
        ("state", opt_text("state", WORD)),
        (
            "delete_with_instance",
            flag("delete_with_instance").default(true).take(),
        ),
        (
            "admin_state_up",
            flag("admin_state_up").default(true).take(),
        ),
        (
            "port_security_enabled",
            flag("port_security_enabled").default(false).take(),
        ),
        (
            "allowed_address_pairs",
            opt_prose(backend, "allowed_address_pairs"),
        ),
        ("qos", opt_prose(backend, "qos")),
        ("mirrors", opt_prose(backend, "mirrors")),
        (
            "fingerprint",
            prose(backend, "fingerprint").default("").take(),
        ),
        ("created_at", int("created_at").default(0).take()),
    ]
}

/// PostgreSQL and MariaDB. Every step bears being repeated.
async fn changed(manager: &SchemaManager<'_>) -> Result<(), DbErr> {
    for (name, mut column) in new_columns(manager.get_database_backend()) {
        if !manager.has_column("ports", name).await? {
            manager
                .alter_table(Table::alter().table("ports").add_column(&mut column).take())
                .await?;
        }
    }
    for mut column in [opt_text("instance_id", ID), opt_int("position")] {
        manager
            .alter_table(
                Table::alter()
                    .table("ports")
                    .modify_column(&mut column)
                    .take(),
            )
            .await?;
    }
    let connection = manager.get_connection();
    for sql in [
        "UPDATE ports SET created_at = (SELECT created_at FROM instances WHERE instances.id = ports.instance_id) \
         WHERE project = '' AND instance_id IS NOT NULL",
        "UPDATE ports SET state = 'attached' WHERE project = '' AND instance_id IS NOT NULL",
        "UPDATE ports SET project = (SELECT project FROM instances WHERE instances.id = ports.instance_id) \
         WHERE project = '' AND instance_id IS NOT NULL",
    ] {
        connection.execute_unprepared(sql).await?;
    }
    if !manager.has_index("ports", PORT_NAME.name).await? {
        let mut index: IndexCreateStatement = unique(&PORT_NAME);
        manager.create_index(index.table("ports").take()).await?;
    }
    Ok(())
}

/// SQLite. Renaming a table takes what refers to it along; dropping one would take the addresses of all ports with it, so
/// they move first.
async fn made_anew(manager: &SchemaManager<'_>) -> Result<(), DbErr> {
    let backend = manager.get_database_backend();
    manager.create_table(ports(backend)).await?;
    manager.create_table(fixed_ips()).await?;
    let connection = manager.get_connection();
    for sql in [
        "INSERT INTO ports_m0014 (id, instance_id, network_id, position, mac_address, project, state, \
         delete_with_instance, admin_state_up, port_security_enabled, fingerprint, created_at) \
         SELECT p.id, p.instance_id, p.network_id, p.position, p.mac_address, i.project, 'attached', \
         1, 1, 0, '', i.created_at FROM ports AS p JOIN instances AS i ON i.id = p.instance_id",
        "INSERT INTO fixed_ips_m0014 (port_id, position, subnet_id, ip_address) \
         SELECT port_id, position, subnet_id, ip_address FROM fixed_ips",
        "DROP TABLE fixed_ips",
        "DROP TABLE ports",
        "ALTER TABLE ports_m0014 RENAME TO ports",
        "ALTER TABLE fixed_ips_m0014 RENAME TO fixed_ips",
    ] {
        connection.execute_unprepared(sql).await?;
    }
    Ok(())
}

fn ports(backend: DbBackend) -> TableCreateStatement {
    const TABLE: &str = "ports_m0014";
    let mut table = new_table(TABLE)
        .col(text("id", ID))
        .col(opt_text("instance_id", ID))
        .col(text("network_id", ID))
        .col(opt_int("position"))
        .col(text("mac_address", ADDRESS))
        .take();
    for (_, column) in new_columns(backend) {
        table.col(column);
    }
    table
        .primary_key(&mut key(&["id"]))
        .index(&mut unique(&PORT_MAC))
        .index(&mut unique(&PORT_POSITION))
        .index(&mut unique(&PORT_NAME))
        .foreign_key(&mut reference(
            "fk_port_instance",
            (TABLE, "instance_id"),
            "instances",
        ))
        .foreign_key(&mut reference(
            "fk_port_network",
            (TABLE, "network_id"),
            "networks",
        ))
        .take()
}

fn fixed_ips() -> TableCreateStatement {
    const TABLE: &str = "fixed_ips_m0014";
    new_table(TABLE)
        .col(text("port_id", ID))
        .col(int("position"))
        .col(text("subnet_id", ID))
        .col(text("ip_address", ADDRESS))
        .primary_key(&mut key(&["port_id", "position"]))
        .index(&mut unique(&FIXED_IP))
        .foreign_key(
            reference("fk_fixed_ip_port", (TABLE, "port_id"), "ports_m0014")
                .on_delete(ForeignKeyAction::Cascade),
        )
        .foreign_key(&mut reference(
            "fk_fixed_ip_subnet",
            (TABLE, "subnet_id"),
            "subnets",
        ))
        .take()
}

fn security_groups(backend: DbBackend) -> TableCreateStatement {
    new_table("security_groups")
        .col(text("id", ID))
        .col(text("project", NAME))
        .col(text("name", NAME))
        .col(prose(backend, "description"))
        .col(prose(backend, "fingerprint"))
        .col(int("created_at"))
        .primary_key(&mut key(&["id"]))
        .index(&mut unique(&SECURITY_GROUP_NAME))
        .take()
}

fn security_group_rules(backend: DbBackend) -> TableCreateStatement {
    new_table("security_group_rules")
        .col(text("id", ID))
        .col(text("group_id", ID))
        .col(text("direction", WORD))
        .col(text("ethertype", WORD))
        .col(opt_prose(backend, "protocol"))
        .col(opt_text("remote_prefix", ADDRESS))
        .col(opt_text("remote_group_id", ID))
        .col(text("content", CONTENT))
        .col(int("created_at"))
        .primary_key(&mut key(&["id"]))
        .index(&mut unique(&SECURITY_GROUP_RULE))
        .foreign_key(
            reference(
                "fk_security_group_rule_group",
                ("security_group_rules", "group_id"),
                "security_groups",
            )
            .on_delete(ForeignKeyAction::Cascade),
        )
        .foreign_key(
            reference(
                "fk_security_group_rule_remote",
                ("security_group_rules", "remote_group_id"),
                "security_groups",
            )
            .on_delete(ForeignKeyAction::Cascade),
        )
        .take()
}

fn port_security_groups() -> TableCreateStatement {
    new_table("port_security_groups")
        .col(text("port_id", ID))
        .col(text("group_id", ID))
        .primary_key(&mut key(&["port_id", "group_id"]))
        .foreign_key(
            reference(
                "fk_port_security_group_port",
                ("port_security_groups", "port_id"),
                "ports",
            )
            .on_delete(ForeignKeyAction::Cascade),
        )
        .foreign_key(&mut reference(
            "fk_port_security_group_group",
            ("port_security_groups", "group_id"),
            "security_groups",
        ))
        .take()
}
