//! What instances are rescued with, and which of their root disks is theirs.

use sea_orm_migration::{
    MigrationName, MigrationTrait, SchemaManager, async_trait, sea_orm::DbErr, sea_query::Table,
};

use super::columns::opt_prose;

pub(super) struct Migration;

/// The new columns of `instances`.
const COLUMNS: [&str; 3] = [
    "desired_rescue",
    "desired_incarnation",
    "observed_boot_disk",
];

impl MigrationName for Migration {
    fn name(&self) -> &str {
        "m0007_lifecycle"
    }
}

#[async_trait::async_trait]
impl MigrationTrait for Migration {
    async fn up(&self, manager: &SchemaManager) -> Result<(), DbErr> {
        for name in COLUMNS {
            if manager.has_column("instances", name).await? {
                continue;
            }
            let mut column = opt_prose(manager.get_database_backend(), name);
            manager
                .alter_table(
                    Table::alter()
                        .table("instances")
                        .add_column(&mut column)
                        .take(),
                )
                .await?;
        }
        Ok(())
    }
}
