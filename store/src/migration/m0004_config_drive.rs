//! What instances find on their config drives.

use sea_orm_migration::{
    MigrationName, MigrationTrait, SchemaManager, async_trait, sea_orm::DbErr, sea_query::Table,
};

use super::columns::opt_prose;

pub(super) struct Migration;

impl MigrationName for Migration {
    fn name(&self) -> &str {
        "m0004_config_drive"
    }
}

#[async_trait::async_trait]
impl MigrationTrait for Migration {
    async fn up(&self, manager: &SchemaManager) -> Result<(), DbErr> {
        if manager.has_column("instances", "config_drive").await? {
            return Ok(());
        }
        let mut column = opt_prose(manager.get_database_backend(), "config_drive");
        manager
            .alter_table(
                Table::alter()
                    .table("instances")
                    .add_column(&mut column)
                    .take(),
            )
            .await
    }
}
