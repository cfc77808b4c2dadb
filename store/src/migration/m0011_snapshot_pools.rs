//! The storage pool that a snapshot lies in. Whatever was there before is in `local`.

use sea_orm_migration::{
    MigrationName, MigrationTrait, SchemaManager, async_trait, sea_orm::DbErr, sea_query::Table,
};

use super::columns::{NAME, text};

pub(super) struct Migration;

impl MigrationName for Migration {
    fn name(&self) -> &str {
        "m0011_snapshot_pools"
    }
}

#[async_trait::async_trait]
impl MigrationTrait for Migration {
    async fn up(&self, manager: &SchemaManager) -> Result<(), DbErr> {
        if manager.has_column("snapshots", "pool").await? {
            return Ok(());
        }
        let mut column = text("pool", NAME).default("local").take();
        let mut change = Table::alter();
        manager
            .alter_table(change.table("snapshots").add_column(&mut column).take())
            .await
    }
}
