//! Table `held_addresses`. An outside address that was taken from a host which has not given it up yet.

use sea_orm::entity::prelude::*;

/// One row, as stored.
#[derive(Clone, Debug, PartialEq, Eq, DeriveEntityModel)]
#[sea_orm(table_name = "held_addresses")]
pub struct Model {
    #[sea_orm(primary_key, auto_increment = false)]
    pub network_id: String,
    #[sea_orm(primary_key, auto_increment = false)]
    pub ip_address: String,
    #[sea_orm(primary_key, auto_increment = false)]
    pub host_id: String,
    #[sea_orm(primary_key, auto_increment = false)]
    pub router_id: String,
    pub generation: i64,
}

/// None that queries need.
#[derive(Copy, Clone, Debug, EnumIter, DeriveRelation)]
pub enum Relation {}

impl ActiveModelBehavior for ActiveModel {}
