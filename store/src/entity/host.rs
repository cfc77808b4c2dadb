//! Table `hosts`. A hypervisor: what its heartbeats say, and what operators decided about it.

use sea_orm::entity::prelude::*;

/// One row, as stored.
#[derive(Clone, Debug, PartialEq, Eq, DeriveEntityModel)]
#[sea_orm(table_name = "hosts")]
pub struct Model {
    #[sea_orm(primary_key, auto_increment = false)]
    pub id: String,
    pub name: String,
    pub status: String,
    pub disabled_reason: Option<String>,
    pub session: i64,
    pub sequence: i64,
    pub agent_version: String,
    pub arch: String,
    pub virt_type: String,
    pub total_vcpus: i64,
    pub total_memory_mb: i64,
    pub total_disk_gb: i64,
    pub used_vcpus: i64,
    pub used_memory_mb: i64,
    pub used_disk_gb: i64,
    /// JSON: `[PartHealth]`.
    pub health: String,
    /// JSON: `[ForeignDomain]`.
    pub foreign_domains: String,
    pub last_heartbeat_at: i64,
    pub created_at: i64,
    /// Thousandths, as all ratios; null: the scheduler's own.
    pub cpu_ratio: Option<i64>,
    pub ram_ratio: Option<i64>,
    pub disk_ratio: Option<i64>,
    /// Kept for the host itself; null: as much as the scheduler's own.
    pub reserved_vcpus: Option<i64>,
    pub reserved_memory_mb: Option<i64>,
    pub reserved_disk_gb: Option<i64>,
    /// JSON: `[PhysicalNetworkName]`.
    pub physical_networks: String,
    /// JSON: `[ResourceInventory]`.
    pub resources: String,
    /// JSON: `[PoolReport]`.
    pub pools: String,
    /// JSON: `NetworkCapabilities`.
    pub network: String,
}

/// None that queries need.
#[derive(Copy, Clone, Debug, EnumIter, DeriveRelation)]
pub enum Relation {}

impl ActiveModelBehavior for ActiveModel {}
