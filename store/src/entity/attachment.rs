//! Table `attachments`. Which instance has which volume; a volume has one at most.

use sea_orm::entity::prelude::*;

/// One row, as stored.
#[derive(Clone, Debug, PartialEq, Eq, DeriveEntityModel)]
#[sea_orm(table_name = "attachments")]
pub struct Model {
    #[sea_orm(primary_key, auto_increment = false)]
    pub volume_id: String,
    pub instance_id: String,
    /// The guest's order of volumes, from 1.
    pub position: i64,
    pub access: String,
    pub disk_bus: String,
    pub state: String,
    pub created_at: i64,
}

/// None that queries need.
#[derive(Copy, Clone, Debug, EnumIter, DeriveRelation)]
pub enum Relation {}

impl ActiveModelBehavior for ActiveModel {}
