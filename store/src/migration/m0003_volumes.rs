//! Volumes, and which instances have them.

use sea_orm_migration::{
    MigrationName, MigrationTrait, SchemaManager, async_trait,
    sea_orm::{DbBackend, DbErr},
    sea_query::{Index, TableCreateStatement},
};

use super::{
    columns::{
        ID, NAME, WORD, flag, int, key, new_table, opt_int, opt_prose, opt_text, prose, reference,
        text, unique,
    },
    dialect::table_options,
};
use crate::constraint::{ATTACHMENT_POSITION, VOLUME_NAME};

pub(super) struct Migration;

impl MigrationName for Migration {
    fn name(&self) -> &str {
        "m0003_volumes"
    }
}

#[async_trait::async_trait]
impl MigrationTrait for Migration {
    async fn up(&self, manager: &SchemaManager) -> Result<(), DbErr> {
        let backend = manager.get_database_backend();
        for table in [volumes(backend), attachments()] {
            manager.create_table(table_options(backend, table)).await?;
        }
        for (table, name, columns) in [
            (
                "volumes",
                "ix_volume_created",
                ["created_at", "id"].as_slice(),
            ),
            ("volumes", "ix_volume_host", &["host_id", "id"]),
            ("volumes", "ix_volume_source", &["source_volume_id"]),
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

fn volumes(backend: DbBackend) -> TableCreateStatement {
    new_table("volumes")
        .col(text("id", ID))
        .col(text("project", NAME))
        .col(text("name", NAME))
        .col(opt_text("live_name", NAME))
        .col(opt_text("host_id", ID))
        .col(int("size_gb"))
        .col(text("format", WORD))
        .col(opt_prose(backend, "source"))
        .col(opt_text("source_volume_id", ID))
        .col(opt_prose(backend, "limits"))
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
        .index(&mut unique(&VOLUME_NAME))
        .foreign_key(&mut reference(
            "fk_volume_host",
            ("volumes", "host_id"),
            "hosts",
        ))
        .take()
}

/// A volume is in one row at most: it is the key.
fn attachments() -> TableCreateStatement {
    new_table("attachments")
        .col(text("volume_id", ID))
        .col(text("instance_id", ID))
        .col(int("position"))
        .col(text("access", WORD))
        .col(text("state", WORD))
        .col(int("created_at"))
        .primary_key(&mut key(&["volume_id"]))
        .index(&mut unique(&ATTACHMENT_POSITION))
        .foreign_key(&mut reference(
            "fk_attachment_volume",
            ("attachments", "volume_id"),
            "volumes",
        ))
        .foreign_key(&mut reference(
            "fk_attachment_instance",
            ("attachments", "instance_id"),
            "instances",
        ))
        .take()
}
