//! What the metadata service tells instances that have no config drive.

use sea_orm_migration::{
    MigrationName, MigrationTrait, SchemaManager, async_trait, sea_orm::DbErr, sea_query::Table,
};

use super::columns::opt_prose;

pub(super) struct Migration;

impl MigrationName for Migration {
    fn name(&self) -> &str {
        "m0016_guest_data"
    }
}

#[async_trait::async_trait]
impl MigrationTrait for Migration {
    async fn up(&self, manager: &SchemaManager) -> Result<(), DbErr> {
        if manager.has_column("instances", "guest_data").await? {
            return Ok(());
        }
        let mut column = opt_prose(manager.get_database_backend(), "guest_data");
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
