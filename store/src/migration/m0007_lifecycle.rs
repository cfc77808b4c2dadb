//! What instances are rescued with, which of their root disks is theirs, what is said of them, and what becomes of them
//! when they crash.

use sea_orm_migration::{
    MigrationName, MigrationTrait, SchemaManager, async_trait, sea_orm::DbErr, sea_query::Table,
};

use super::columns::opt_prose;

pub(super) struct Migration;

/// The new columns of `instances`.
const COLUMNS: [&str; 5] = [
    "desired_rescue",
    "desired_incarnation",
    "observed_boot_disk",
    "metadata",
    "on_crash",
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
