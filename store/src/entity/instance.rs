//! Table `instances`. A virtual machine: what its owner wants, and apart from that what its host last said.

use sea_orm::entity::prelude::*;

/// One row, as stored.
#[derive(Clone, Debug, PartialEq, Eq, DeriveEntityModel)]
#[sea_orm(table_name = "instances")]
pub struct Model {
    #[sea_orm(primary_key, auto_increment = false)]
    pub id: String,
    pub project: String,
    pub name: String,
    /// The name while it lives, null once it is deleted: unique indexes ignore nulls, so the name is free again.
    pub live_name: Option<String>,
    pub vcpus: i64,
    pub memory_mb: i64,
    pub disk_gb: i64,
    /// Empty, as the other two: it boots from a volume.
    pub image_url: String,
    pub image_sha256: String,
    pub image_format: String,
    pub stop_timeout_seconds: i64,
    pub fingerprint: String,
    pub desired_power: String,
    pub desired_reboot_nonce: Option<String>,
    pub desired_reboot_kind: Option<String>,
    pub desired_deleted: bool,
    pub placement_fault_code: Option<String>,
    pub placement_fault_message: Option<String>,
    pub observed_status: Option<String>,
    pub observed_generation: i64,
    pub observed_power_state: String,
    pub observed_reboot_nonce: Option<String>,
    pub observed_progress: Option<String>,
    pub observed_fault_code: Option<String>,
    pub observed_fault_message: Option<String>,
    pub observed_was_active: bool,
    pub observed_at: Option<i64>,
    pub created_at: i64,
    pub updated_at: i64,
    pub deleted_at: Option<i64>,
    /// JSON: `SchedulerHints`; null: none.
    pub hints: Option<String>,
    pub server_group_id: Option<String>,
    /// The how-manieth attempt to place it, from 1.
    pub attempt: i64,
    /// JSON: `[HostId]`.
    pub failed_hosts: String,
    /// JSON: `ConfigDrive`; null: it has none.
    pub config_drive: Option<String>,
    /// JSON: `ConfigDrive`; null: nothing of its own, or what is on its config drive.
    pub guest_data: Option<String>,
    /// JSON: `Rescue`; null: it is not rescued.
    pub desired_rescue: Option<String>,
    /// JSON: `Incarnation`; null: its root disk is the first.
    pub desired_incarnation: Option<String>,
    /// JSON: `BootDisk`; null: the first, or none.
    pub observed_boot_disk: Option<String>,
    /// JSON: `RunningSize`; null: its guest is off, or its host does not tell.
    pub observed_running: Option<String>,
    /// JSON: properties; null: those of its config drive.
    pub metadata: Option<String>,
    /// JSON: `OnCrash`; null: it is started again.
    pub on_crash: Option<String>,
    /// JSON: `RootVolume`; null: it boots from a disk of its own.
    pub root_volume: Option<String>,
}

/// None that queries need.
#[derive(Copy, Clone, Debug, EnumIter, DeriveRelation)]
pub enum Relation {}

impl ActiveModelBehavior for ActiveModel {}
