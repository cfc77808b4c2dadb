//! Table `segments`. What of a physical network, or of the VNIs, belongs to which living network.

use sea_orm::entity::prelude::*;

/// One row, as stored.
#[derive(Clone, Debug, PartialEq, Eq, DeriveEntityModel)]
#[sea_orm(table_name = "segments")]
pub struct Model {
    #[sea_orm(primary_key, auto_increment = false)]
    pub network_id: String,
    pub network_type: String,
    /// Empty where there is none: unique indexes ignore nulls.
    pub physical_network: String,
    /// 0 where there is none, for the same reason.
    pub segmentation_id: i64,
}

/// None that queries need.
#[derive(Copy, Clone, Debug, EnumIter, DeriveRelation)]
pub enum Relation {}

impl ActiveModelBehavior for ActiveModel {}
