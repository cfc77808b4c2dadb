//! The schema's history: each migration once, in order, never edited after a release.
//!
//! The applied ones are listed in the table `berth_migrations`. All of it happens under a lock of the database,
//! so that services that start together wait for each other. On SQLite and PostgreSQL it is one transaction; on
//! MariaDB every change of the schema commits by itself, so each step of a migration must bear being repeated.

mod columns;
mod dialect;
mod m0001_first_light;
mod m0002_placement;
mod m0003_volumes;
mod m0004_config_drive;
mod m0005_pools;
mod m0006_snapshots;
mod m0007_lifecycle;
mod m0008_root_volume;
mod m0009_disk_bus;
mod m0010_live_size;
mod m0011_snapshot_pools;
mod m0012_wide_addresses;
mod m0013_networks;
mod m0014_ports;
mod m0015_routers;
mod m0016_guest_data;
mod m0017_held_addresses;

use sea_orm::{DatabaseExecutor, DatabaseTransaction};
use sea_orm_migration::{
    MigrationTrait, MigratorTrait, async_trait,
    sea_orm::{DbErr, DynIden},
    sea_query::{Alias, IntoIden},
};

use crate::error::{StoreError, failed};

struct Migrator;

#[async_trait::async_trait]
impl MigratorTrait for Migrator {
    fn migrations() -> Vec<Box<dyn MigrationTrait>> {
        vec![
            Box::new(m0001_first_light::Migration),
            Box::new(m0002_placement::Migration),
            Box::new(m0003_volumes::Migration),
            Box::new(m0004_config_drive::Migration),
            Box::new(m0005_pools::Migration),
            Box::new(m0006_snapshots::Migration),
            Box::new(m0007_lifecycle::Migration),
            Box::new(m0008_root_volume::Migration),
            Box::new(m0009_disk_bus::Migration),
            Box::new(m0010_live_size::Migration),
            Box::new(m0011_snapshot_pools::Migration),
            Box::new(m0012_wide_addresses::Migration),
            Box::new(m0013_networks::Migration),
            Box::new(m0014_ports::Migration),
            Box::new(m0015_routers::Migration),
            Box::new(m0016_guest_data::Migration),
            Box::new(m0017_held_addresses::Migration),
        ]
    }

    fn migration_table_name() -> DynIden {
        Alias::new("berth_migrations").into_iden()
    }
}

/// Applies what is missing; refuses a database that knows more than this version.
pub(crate) async fn run(transaction: DatabaseTransaction) -> Result<(), StoreError> {
    dialect::lock(&transaction).await?;
    let migrated = apply_missing(&transaction).await;
    // MariaDB's lock belongs to the connection and would outlive the transaction.
    let unlocked = dialect::unlock(&transaction).await;
    migrated?;
    unlocked?;
    transaction
        .commit()
        .await
        .map_err(failed("the commit of the schema"))
}

async fn apply_missing(transaction: &DatabaseTransaction) -> Result<(), StoreError> {
    let unknown = unknown_migrations(transaction)
        .await
        .map_err(failed("reading the schema's version"))?;
    if !unknown.is_empty() {
        return Err(StoreError::NewerSchema { unknown });
    }
    Migrator::up(DatabaseExecutor::Transaction(transaction), None)
        .await
        .map_err(failed("the migration of the schema"))
}

async fn unknown_migrations(transaction: &DatabaseTransaction) -> Result<Vec<String>, DbErr> {
    let applied = Migrator::get_migration_models(transaction).await?;
    let known = Migrator::get_migration_files();
    Ok(applied
        .into_iter()
        .map(|model| model.version)
        .filter(|version| known.iter().all(|migration| migration.name() != version))
        .collect())
}
