//! Table `snapshots`. What a volume held at one moment: what its owner wants, and apart from that what its host last said.

use sea_orm::entity::prelude::*;

/// One row, as stored.
#[derive(Clone, Debug, PartialEq, Eq, DeriveEntityModel)]
#[sea_orm(table_name = "snapshots")]
pub struct Model {
    #[sea_orm(primary_key, auto_increment = false)]
    pub id: String,
    pub project: String,
    pub name: String,
    /// The name while it lives, null once it is deleted: unique indexes ignore nulls, so the name is free again.
    pub live_name: Option<String>,
    /// Also of a volume that is long gone.
    pub volume_id: String,
    pub volume_format: String,
    /// Where it lies, and its volume lay.
    pub pool: String,
    /// Null: it has none any more.
    pub host_id: Option<String>,
    pub size_gb: i64,
    pub fingerprint: String,
    pub desired_deleted: bool,
    pub observed_status: Option<String>,
    pub observed_generation: i64,
    pub observed_progress: Option<String>,
    pub observed_fault_code: Option<String>,
    pub observed_fault_message: Option<String>,
    pub observed_was_available: bool,
    pub observed_at: Option<i64>,
    pub created_at: i64,
    pub updated_at: i64,
    pub deleted_at: Option<i64>,
}

/// None that queries need.
#[derive(Copy, Clone, Debug, EnumIter, DeriveRelation)]
pub enum Relation {}

impl ActiveModelBehavior for ActiveModel {}
