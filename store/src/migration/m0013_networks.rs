//! Networks of all types and with any number of subnets; what hosts can build of them; and which segment belongs to which
//! network.
//!
//! The first schema allowed a network one subnet, by an index that is part of the table. SQLite cannot take that away: there
//! the table is made anew, in the one transaction of all migrations.

use sea_orm_migration::{
    MigrationName, MigrationTrait, SchemaManager, async_trait,
    sea_orm::{ConnectionTrait, DbBackend, DbErr, Value},
    sea_query::{ColumnDef, Index, Table, TableCreateStatement},
};

use super::{
    columns::{
        ID, NAME, WORD, flag, int, key, new_table, opt_int, opt_text, prose, reference, text,
        unique,
    },
    dialect::table_options,
};
use crate::constraint::{NETWORK_SUBNET, SEGMENT, SUBNET_NAME};

/// An IPv6 address with its prefix.
const ADDRESS: u32 = 43;
/// What a host can build of which nothing was heard.
const NOTHING: &str = r#"{"vlan":false,"vxlan":false,"stateful_filter":false,"tunnel_ip":null}"#;
/// The index of the reference to the network, which MariaDB demands: the rule of one subnet served it until now.
const SUBNET_NETWORK: &str = "ix_subnet_network";

pub(super) struct Migration;

impl MigrationName for Migration {
    fn name(&self) -> &str {
        "m0013_networks"
    }
}

#[async_trait::async_trait]
impl MigrationTrait for Migration {
    async fn up(&self, manager: &SchemaManager) -> Result<(), DbErr> {
        let backend = manager.get_database_backend();
        manager
            .create_table(table_options(backend, segments()))
            .await?;
        add_columns(
            manager,
            vec![
                (
                    "networks",
                    "physical_network",
                    opt_text("physical_network", NAME),
                ),
                ("networks", "segmentation_id", opt_int("segmentation_id")),
                (
                    "networks",
                    "external",
                    flag("external").default(false).take(),
                ),
                (
                    "hosts",
                    "network",
                    prose(backend, "network")
                        .default(Value::from(NOTHING))
                        .take(),
                ),
            ],
        )
        .await?;
        if backend == DbBackend::Sqlite {
            if !manager.has_column("subnets", "live_name").await? {
                rebuild_subnets(manager).await?;
            }
        } else {
            widen_subnets(manager).await?;
        }
        if !manager.has_index("subnets", SUBNET_NETWORK).await? {
            let mut index = Index::create();
            index.name(SUBNET_NETWORK).table("subnets");
            manager
                .create_index(index.col("network_id").col("created_at").take())
                .await?;
        }
        free_rule(manager).await?;
        // Those of before are as old as their networks.
        manager
            .get_connection()
            .execute_unprepared(
                "UPDATE subnets SET created_at = (SELECT n.created_at FROM networks AS n WHERE n.id = subnets.network_id) \
                 WHERE created_at = 0",
            )
            .await
            .map(drop)
    }
}

async fn add_columns(
    manager: &SchemaManager<'_>,
    columns: Vec<(&'static str, &'static str, ColumnDef)>,
) -> Result<(), DbErr> {
    for (table, name, mut column) in columns {
        if !manager.has_column(table, name).await? {
            let mut change = Table::alter();
            manager
                .alter_table(change.table(table).add_column(&mut column).take())
                .await?;
        }
    }
    Ok(())
}

/// The columns that subnets get.
fn new_columns(backend: DbBackend) -> Vec<(&'static str, &'static str, ColumnDef)> {
    let none = || Value::from("[]");
    vec![
        ("subnets", "name", opt_text("name", NAME)),
        ("subnets", "live_name", opt_text("live_name", NAME)),
        (
            "subnets",
            "allocation_pools",
            prose(backend, "allocation_pools").default(none()).take(),
        ),
        (
            "subnets",
            "host_routes",
            prose(backend, "host_routes").default(none()).take(),
        ),
        (
            "subnets",
            "ipv6_address_mode",
            opt_text("ipv6_address_mode", WORD),
        ),
        (
            "subnets",
            "fingerprint",
            prose(backend, "fingerprint")
                .default(Value::from(""))
                .take(),
        ),
        (
            "subnets",
            "created_at",
            int("created_at").default(0_i64).take(),
        ),
        ("subnets", "deleted_at", opt_int("deleted_at")),
    ]
}

/// Where columns can be changed: each step bears repetition.
async fn widen_subnets(manager: &SchemaManager<'_>) -> Result<(), DbErr> {
    let backend = manager.get_database_backend();
    add_columns(manager, new_columns(backend)).await?;
    let mut dhcp = opt_text("dhcp_ip", ADDRESS);
    let mut change = Table::alter();
    manager
        .alter_table(change.table("subnets").modify_column(&mut dhcp).take())
        .await?;
    if !manager.has_index("subnets", SUBNET_NAME.name).await? {
        let mut index = unique(&SUBNET_NAME);
        manager.create_index(index.table("subnets").take()).await?;
    }
    Ok(())
}

/// Takes the rule of one subnet away, once another index serves the reference.
async fn free_rule(manager: &SchemaManager<'_>) -> Result<(), DbErr> {
    let name = NETWORK_SUBNET.name;
    let sql = match manager.get_database_backend() {
        DbBackend::Postgres => format!("ALTER TABLE subnets DROP CONSTRAINT IF EXISTS {name}"),
        DbBackend::MySql if manager.has_index("subnets", name).await? => {
            format!("ALTER TABLE subnets DROP INDEX {name}")
        }
        _ => return Ok(()),
    };
    manager
        .get_connection()
        .execute_unprepared(&sql)
        .await
        .map(drop)
}

/// SQLite: the same rows in a new table. What refers to them is looked at when the transaction is committed.
async fn rebuild_subnets(manager: &SchemaManager<'_>) -> Result<(), DbErr> {
    const KEPT: &str = "id, network_id, cidr, gateway_ip, dhcp_ip, dns_nameservers";
    let connection = manager.get_connection();
    for sql in [
        "PRAGMA defer_foreign_keys = ON",
        "DROP TABLE IF EXISTS subnets_before",
        "CREATE TABLE subnets_before AS SELECT * FROM subnets",
        "DROP TABLE subnets",
    ] {
        connection.execute_unprepared(sql).await?;
    }
    manager.create_table(subnets()).await?;
    for sql in [
        format!("INSERT INTO subnets ({KEPT}) SELECT {KEPT} FROM subnets_before"),
        "DROP TABLE subnets_before".to_owned(),
    ] {
        connection.execute_unprepared(&sql).await?;
    }
    Ok(())
}

fn subnets() -> TableCreateStatement {
    let backend = DbBackend::Sqlite;
    let mut table = new_table("subnets");
    table
        .col(text("id", ID))
        .col(text("network_id", ID))
        .col(text("cidr", ADDRESS))
        .col(opt_text("gateway_ip", ADDRESS))
        .col(opt_text("dhcp_ip", ADDRESS))
        .col(prose(backend, "dns_nameservers"));
    for (_, _, column) in new_columns(backend) {
        table.col(column);
    }
    table
        .primary_key(&mut key(&["id"]))
        .index(&mut unique(&SUBNET_NAME))
        .foreign_key(&mut reference(
            "fk_subnet_network",
            ("subnets", "network_id"),
            "networks",
        ))
        .take()
}

fn segments() -> TableCreateStatement {
    new_table("segments")
        .col(text("network_id", ID))
        .col(text("network_type", WORD))
        .col(text("physical_network", NAME))
        .col(int("segmentation_id"))
        .primary_key(&mut key(&["network_id"]))
        .index(&mut unique(&SEGMENT))
        .foreign_key(&mut reference(
            "fk_segment_network",
            ("segments", "network_id"),
            "networks",
        ))
        .take()
}
