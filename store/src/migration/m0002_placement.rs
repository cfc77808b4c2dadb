//! Placement: what operators decide about hosts, aggregates, server groups, hints, countable resources, decisions,
//! and which scheduler is the one that writes.
//!
//! Columns are added one by one, each only if it is not there: on MariaDB every statement commits by itself, and all
//! of this bears being repeated.

use sea_orm_migration::{
    MigrationName, MigrationTrait, SchemaManager, async_trait,
    sea_orm::{ConnectionTrait, DbBackend, DbErr},
    sea_query::{ColumnDef, ForeignKeyAction, Index, Query, Table, TableCreateStatement, Value},
};

use super::{
    columns::{
        ID, NAME, WORD, int, key, new_table, opt_int, opt_prose, opt_text, prose, reference, text,
        unique,
    },
    dialect::table_options,
};
use crate::constraint::{AGGREGATE_NAME, SERVER_GROUP_NAME};

pub(super) struct Migration;

impl MigrationName for Migration {
    fn name(&self) -> &str {
        "m0002_placement"
    }
}

#[async_trait::async_trait]
impl MigrationTrait for Migration {
    async fn up(&self, manager: &SchemaManager) -> Result<(), DbErr> {
        let backend = manager.get_database_backend();
        for (table, name, column) in new_columns(backend) {
            if !manager.has_column(table, name).await? {
                let mut column = column;
                manager
                    .alter_table(Table::alter().table(table).add_column(&mut column).take())
                    .await?;
            }
        }
        let tables = [
            aggregates(backend),
            aggregate_hosts(),
            server_groups(backend),
            decisions(backend),
            leadership(backend),
        ];
        for table in tables {
            manager.create_table(table_options(backend, table)).await?;
        }
        for (table, name, columns) in [
            (
                "aggregate_hosts",
                "ix_aggregate_host",
                ["host_id"].as_slice(),
            ),
            ("instances", "ix_instance_group", &["server_group_id"]),
            (
                "decisions",
                "ix_decision_instance",
                &["instance_id", "decided_at", "id"],
            ),
            ("decisions", "ix_decision_time", &["decided_at"]),
        ] {
            if !manager.has_index(table, name).await? {
                let mut index = Index::create();
                index.name(name).table(table);
                for column in columns {
                    index.col(*column);
                }
                manager.create_index(index).await?;
            }
        }
        nobody_leads(manager).await
    }
}

/// The one row of `leadership`: nobody took the lead yet.
async fn nobody_leads(manager: &SchemaManager<'_>) -> Result<(), DbErr> {
    let connection = manager.get_connection();
    let row = Query::select()
        .column("id")
        .from("leadership")
        .limit(1)
        .take();
    if connection.query_one(&row).await?.is_some() {
        return Ok(());
    }
    let insert = Query::insert()
        .into_table("leadership")
        .columns(["id", "epoch", "holder", "taken_at", "writes"])
        .values_panic([
            1_i64.into(),
            0_i64.into(),
            "".into(),
            0_i64.into(),
            0_i64.into(),
        ])
        .take();
    connection.execute(&insert).await.map(drop)
}

/// The columns that tables of before get, each with its table and name.
fn new_columns(backend: DbBackend) -> Vec<(&'static str, &'static str, ColumnDef)> {
    let none = || Value::from("[]");
    vec![
        ("hosts", "reserved_vcpus", opt_int("reserved_vcpus")),
        ("hosts", "reserved_memory_mb", opt_int("reserved_memory_mb")),
        ("hosts", "reserved_disk_gb", opt_int("reserved_disk_gb")),
        (
            "hosts",
            "physical_networks",
            prose(backend, "physical_networks").default(none()).take(),
        ),
        (
            "hosts",
            "resources",
            prose(backend, "resources").default(none()).take(),
        ),
        ("instances", "hints", opt_prose(backend, "hints")),
        (
            "instances",
            "server_group_id",
            opt_text("server_group_id", ID),
        ),
        ("instances", "attempt", int("attempt").default(1).take()),
        (
            "instances",
            "failed_hosts",
            prose(backend, "failed_hosts").default(none()).take(),
        ),
        ("claims", "extra", opt_prose(backend, "extra")),
    ]
}

fn aggregates(backend: DbBackend) -> TableCreateStatement {
    new_table("aggregates")
        .col(text("id", ID))
        .col(text("name", NAME))
        .col(opt_text("availability_zone", NAME))
        .col(opt_int("cpu_ratio"))
        .col(opt_int("ram_ratio"))
        .col(opt_int("disk_ratio"))
        .col(prose(backend, "properties"))
        .col(prose(backend, "fingerprint"))
        .col(int("created_at"))
        .primary_key(&mut key(&["id"]))
        .index(&mut unique(&AGGREGATE_NAME))
        .take()
}

fn aggregate_hosts() -> TableCreateStatement {
    new_table("aggregate_hosts")
        .col(text("aggregate_id", ID))
        .col(text("host_id", ID))
        .primary_key(&mut key(&["aggregate_id", "host_id"]))
        .foreign_key(
            reference(
                "fk_aggregate_host_aggregate",
                ("aggregate_hosts", "aggregate_id"),
                "aggregates",
            )
            .on_delete(ForeignKeyAction::Cascade),
        )
        .foreign_key(&mut reference(
            "fk_aggregate_host_host",
            ("aggregate_hosts", "host_id"),
            "hosts",
        ))
        .take()
}

fn server_groups(backend: DbBackend) -> TableCreateStatement {
    new_table("server_groups")
        .col(text("id", ID))
        .col(text("project", NAME))
        .col(text("name", NAME))
        .col(text("policy", WORD))
        .col(opt_int("max_server_per_host"))
        .col(prose(backend, "fingerprint"))
        .col(int("created_at"))
        .primary_key(&mut key(&["id"]))
        .index(&mut unique(&SERVER_GROUP_NAME))
        .take()
}

/// Without a reference to `instances`: their rows stay for ever, and what is bounded here shall not lock them.
fn decisions(backend: DbBackend) -> TableCreateStatement {
    new_table("decisions")
        .col(text("id", ID))
        .col(text("instance_id", ID))
        .col(int("decided_at"))
        .col(prose(backend, "decision"))
        .primary_key(&mut key(&["id"]))
        .take()
}

fn leadership(backend: DbBackend) -> TableCreateStatement {
    new_table("leadership")
        .col(int("id"))
        .col(int("epoch"))
        .col(prose(backend, "holder"))
        .col(int("taken_at"))
        .col(int("writes"))
        .primary_key(&mut key(&["id"]))
        .take()
}
