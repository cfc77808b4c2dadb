//! Table `router_gateways`. An address that a host has of an external subnet, for a router.

use sea_orm::entity::prelude::*;

/// One row, as stored.
#[derive(Clone, Debug, PartialEq, Eq, DeriveEntityModel)]
#[sea_orm(table_name = "router_gateways")]
pub struct Model {
    #[sea_orm(primary_key, auto_increment = false)]
    pub router_id: String,
    #[sea_orm(primary_key, auto_increment = false)]
    pub host_id: String,
    #[sea_orm(primary_key, auto_increment = false)]
    pub subnet_id: String,
    pub ip_address: String,
}

/// None that queries need.
#[derive(Copy, Clone, Debug, EnumIter, DeriveRelation)]
pub enum Relation {}

impl ActiveModelBehavior for ActiveModel {}
