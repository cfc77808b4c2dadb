//! The volumes that instances boot from. Those that were there before boot from disks of their own.

use sea_orm_migration::{
    MigrationName, MigrationTrait, SchemaManager, async_trait, sea_orm::DbErr, sea_query::Table,
};

use super::columns::opt_prose;

pub(super) struct Migration;

impl MigrationName for Migration {
    fn name(&self) -> &str {
        "m0008_root_volume"
    }
}

#[async_trait::async_trait]
impl MigrationTrait for Migration {
    async fn up(&self, manager: &SchemaManager) -> Result<(), DbErr> {
        if manager.has_column("instances", "root_volume").await? {
            return Ok(());
        }
        let mut column = opt_prose(manager.get_database_backend(), "root_volume");
        let mut change = Table::alter();
        manager
            .alter_table(change.table("instances").add_column(&mut column).take())
            .await
    }
}
