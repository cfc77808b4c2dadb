//! The bus that a guest has a volume on. Those that were attached before are on virtio.

use sea_orm_migration::{
    MigrationName, MigrationTrait, SchemaManager, async_trait, sea_orm::DbErr, sea_query::Table,
};

use super::columns::{WORD, text};

pub(super) struct Migration;

impl MigrationName for Migration {
    fn name(&self) -> &str {
        "m0009_disk_bus"
    }
}

#[async_trait::async_trait]
impl MigrationTrait for Migration {
    async fn up(&self, manager: &SchemaManager) -> Result<(), DbErr> {
        if manager.has_column("attachments", "disk_bus").await? {
            return Ok(());
        }
        manager
            .alter_table(
                Table::alter()
                    .table("attachments")
                    .add_column(text("disk_bus", WORD).default("virtio"))
                    .take(),
            )
            .await
    }
}
