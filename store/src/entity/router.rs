//! Table `routers`. A router of a project.

use sea_orm::entity::prelude::*;

/// One row, as stored.
#[derive(Clone, Debug, PartialEq, Eq, DeriveEntityModel)]
#[sea_orm(table_name = "routers")]
pub struct Model {
    #[sea_orm(primary_key, auto_increment = false)]
    pub id: String,
    pub project: String,
    pub name: String,
    /// The name while it lives, null once it is deleted: unique indexes ignore nulls, so the name is free again.
    pub live_name: Option<String>,
    pub admin_state_up: bool,
    pub external_network_id: Option<String>,
    pub enable_snat: bool,
    /// JSON: `[Route]`.
    pub routes: String,
    pub fingerprint: String,
    pub created_at: i64,
    pub deleted_at: Option<i64>,
}

/// None that queries need.
#[derive(Copy, Clone, Debug, EnumIter, DeriveRelation)]
pub enum Relation {}

impl ActiveModelBehavior for ActiveModel {}
