//! Table `fixed_ips`. An address of a port; goes with the port.

use sea_orm::entity::prelude::*;

/// One row, as stored.
#[derive(Clone, Debug, PartialEq, Eq, DeriveEntityModel)]
#[sea_orm(table_name = "fixed_ips")]
pub struct Model {
    #[sea_orm(primary_key, auto_increment = false)]
    pub port_id: String,
    /// The order among the port's addresses, from 0.
    #[sea_orm(primary_key, auto_increment = false)]
    pub position: i64,
    pub subnet_id: String,
    pub ip_address: String,
}

/// None that queries need.
#[derive(Copy, Clone, Debug, EnumIter, DeriveRelation)]
pub enum Relation {}

impl ActiveModelBehavior for ActiveModel {}
