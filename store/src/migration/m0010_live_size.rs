//! What the guests that are on have of their instances' sizes.

use sea_orm_migration::{
    MigrationName, MigrationTrait, SchemaManager, async_trait, sea_orm::DbErr, sea_query::Table,
};

use super::columns::opt_prose;

pub(super) struct Migration;

const COLUMN: &str = "observed_running";

impl MigrationName for Migration {
    fn name(&self) -> &str {
        "m0010_live_size"
    }
}

#[async_trait::async_trait]
impl MigrationTrait for Migration {
    async fn up(&self, manager: &SchemaManager) -> Result<(), DbErr> {
        if manager.has_column("instances", COLUMN).await? {
            return Ok(());
        }
        let mut column = opt_prose(manager.get_database_backend(), COLUMN);
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
