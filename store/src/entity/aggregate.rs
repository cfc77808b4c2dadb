//! Table `aggregates`. What hosts have in common, as operators say.

use sea_orm::entity::prelude::*;

/// One row, as stored.
#[derive(Clone, Debug, PartialEq, Eq, DeriveEntityModel)]
#[sea_orm(table_name = "aggregates")]
pub struct Model {
    #[sea_orm(primary_key, auto_increment = false)]
    pub id: String,
    pub name: String,
    pub availability_zone: Option<String>,
    /// Thousandths, as all ratios; null: it says nothing of it.
    pub cpu_ratio: Option<i64>,
    pub ram_ratio: Option<i64>,
    pub disk_ratio: Option<i64>,
    /// JSON: `{PropertyKey: PropertyValue}`.
    pub properties: String,
    pub fingerprint: String,
    pub created_at: i64,
}

/// None that queries need.
#[derive(Copy, Clone, Debug, EnumIter, DeriveRelation)]
pub enum Relation {}

impl ActiveModelBehavior for ActiveModel {}
