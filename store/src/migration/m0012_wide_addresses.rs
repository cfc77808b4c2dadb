//! Room for IPv6 in the columns that hold addresses. SQLite's columns have no length.

use sea_orm_migration::{
    MigrationName, MigrationTrait, SchemaManager, async_trait,
    sea_orm::{DbBackend, DbErr},
    sea_query::{ColumnDef, Table},
};

use super::columns::{opt_text, text};

/// An IPv6 address with its prefix: 39 characters, a slash and 3 digits.
const ADDRESS: u32 = 43;

pub(super) struct Migration;

impl MigrationName for Migration {
    fn name(&self) -> &str {
        "m0012_wide_addresses"
    }
}

#[async_trait::async_trait]
impl MigrationTrait for Migration {
    async fn up(&self, manager: &SchemaManager) -> Result<(), DbErr> {
        if manager.get_database_backend() == DbBackend::Sqlite {
            return Ok(());
        }
        let columns: [(&'static str, ColumnDef); 4] = [
            ("subnets", text("cidr", ADDRESS)),
            ("subnets", opt_text("gateway_ip", ADDRESS)),
            ("subnets", text("dhcp_ip", ADDRESS)),
            ("fixed_ips", text("ip_address", ADDRESS)),
        ];
        for (table, mut column) in columns {
            let mut change = Table::alter();
            manager
                .alter_table(change.table(table).modify_column(&mut column).take())
                .await?;
        }
        Ok(())
    }
}
