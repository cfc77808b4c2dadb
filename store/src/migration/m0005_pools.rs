//! Storage pools: those of a host, and the one a volume is in. Whatever was there before is in `local`.

use sea_orm_migration::{
    MigrationName, MigrationTrait, SchemaManager, async_trait,
    sea_orm::{DbBackend, DbErr},
    sea_query::{ColumnDef, Table, Value},
};

use super::columns::{NAME, prose, text};

pub(super) struct Migration;

impl MigrationName for Migration {
    fn name(&self) -> &str {
        "m0005_pools"
    }
}

#[async_trait::async_trait]
impl MigrationTrait for Migration {
    async fn up(&self, manager: &SchemaManager) -> Result<(), DbErr> {
        for (table, name, mut column) in new_columns(manager.get_database_backend()) {
            if !manager.has_column(table, name).await? {
                let mut change = Table::alter();
                manager
                    .alter_table(change.table(table).add_column(&mut column).take())
                    .await?;
            }
        }
        Ok(())
    }
}

fn new_columns(backend: DbBackend) -> [(&'static str, &'static str, ColumnDef); 2] {
    let none = Value::from("[]");
    [
        (
            "hosts",
            "pools",
            prose(backend, "pools").default(none).take(),
        ),
        (
            "volumes",
            "pool",
            text("pool", NAME).default("local").take(),
        ),
    ]
}
