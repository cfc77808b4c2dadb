//! Outside addresses that were taken from hosts which have not given them up yet.

use sea_orm_migration::{
    MigrationName, MigrationTrait, SchemaManager, async_trait, sea_orm::DbErr, sea_query::Index,
};

use super::{
    columns::{ID, int, key, new_table, text},
    dialect::table_options,
};

/// An IPv6 address.
const ADDRESS: u32 = 43;

pub(super) struct Migration;

impl MigrationName for Migration {
    fn name(&self) -> &str {
        "m0017_held_addresses"
    }
}

#[async_trait::async_trait]
impl MigrationTrait for Migration {
    /// No references: what a host still has does not depend on whether the network or the router it was for is there.
    async fn up(&self, manager: &SchemaManager) -> Result<(), DbErr> {
        let table = new_table("held_addresses")
            .col(text("network_id", ID))
            .col(text("ip_address", ADDRESS))
            .col(text("host_id", ID))
            .col(text("router_id", ID))
            .col(int("generation"))
            .primary_key(&mut key(&[
                "network_id",
                "ip_address",
                "host_id",
                "router_id",
            ]))
            .take();
        let table = table_options(manager.get_database_backend(), table);
        manager.create_table(table).await?;
        let (table, name) = ("held_addresses", "ix_held_address_host");
        if !manager.has_index(table, name).await? {
            let mut index = Index::create();
            index
                .name(name)
                .table(table)
                .col("host_id")
                .col("router_id");
            manager.create_index(index).await?;
        }
        Ok(())
    }
}
