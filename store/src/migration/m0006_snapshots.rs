//! Snapshots of volumes, and volumes that are made from them.

use sea_orm_migration::{
    MigrationName, MigrationTrait, SchemaManager, async_trait,
    sea_orm::{DbBackend, DbErr},
    sea_query::{Index, Table, TableCreateStatement},
};

use super::{
    columns::{
        ID, NAME, WORD, flag, int, key, new_table, opt_int, opt_prose, opt_text, prose, reference,
        text, unique,
    },
    dialect::table_options,
};
use crate::constraint::SNAPSHOT_NAME;

pub(super) struct Migration;

impl MigrationName for Migration {
    fn name(&self) -> &str {
        "m0006_snapshots"
    }
}

#[async_trait::async_trait]
impl MigrationTrait for Migration {
    async fn up(&self, manager: &SchemaManager) -> Result<(), DbErr> {
        let backend = manager.get_database_backend();
        manager
            .create_table(table_options(backend, snapshots(backend)))
            .await?;
        if !manager.has_column("volumes", "source_snapshot_id").await? {
            let mut column = opt_text("source_snapshot_id", ID);
            manager
                .alter_table(
                    Table::alter()
                        .table("volumes")
                        .add_column(&mut column)
                        .take(),
                )
                .await?;
        }
        for (table, name, columns) in [
            (
                "snapshots",
                "ix_snapshot_created",
                ["created_at", "id"].as_slice(),
            ),
            ("snapshots", "ix_snapshot_host", &["host_id", "id"]),
            ("snapshots", "ix_snapshot_volume", &["volume_id"]),
            (
                "volumes",
                "ix_volume_source_snapshot",
                &["source_snapshot_id"],
            ),
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
        Ok(())
    }
}

/// The volume is a fact about a snapshot's past and no reference: it may go first.
fn snapshots(backend: DbBackend) -> TableCreateStatement {
    new_table("snapshots")
        .col(text("id", ID))
        .col(text("project", NAME))
        .col(text("name", NAME))
        .col(opt_text("live_name", NAME))
        .col(text("volume_id", ID))
        .col(text("volume_format", WORD))
        .col(opt_text("host_id", ID))
        .col(int("size_gb"))
        .col(prose(backend, "fingerprint"))
        .col(flag("desired_deleted"))
        .col(opt_text("observed_status", WORD))
        .col(int("observed_generation"))
        .col(opt_prose(backend, "observed_progress"))
        .col(opt_text("observed_fault_code", WORD))
        .col(opt_prose(backend, "observed_fault_message"))
        .col(flag("observed_was_available"))
        .col(opt_int("observed_at"))
        .col(int("created_at"))
        .col(int("updated_at"))
        .col(opt_int("deleted_at"))
        .primary_key(&mut key(&["id"]))
        .index(&mut unique(&SNAPSHOT_NAME))
        .foreign_key(&mut reference(
            "fk_snapshot_host",
            ("snapshots", "host_id"),
            "hosts",
        ))
        .take()
}
