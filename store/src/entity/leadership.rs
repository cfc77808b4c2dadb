//! Table `leadership`. One row: which scheduler is the one that writes.

use sea_orm::entity::prelude::*;

/// One row, as stored.
#[derive(Clone, Debug, PartialEq, Eq, DeriveEntityModel)]
#[sea_orm(table_name = "leadership")]
pub struct Model {
    #[sea_orm(primary_key, auto_increment = false)]
    pub id: i64,
    /// Counts who took over, from 0: nobody yet.
    pub epoch: i64,
    pub holder: String,
    pub taken_at: i64,
    /// Counts the transactions of leaders; each changes the row, and so excludes every other one.
    pub writes: i64,
}

/// None that queries need.
#[derive(Copy, Clone, Debug, EnumIter, DeriveRelation)]
pub enum Relation {}

impl ActiveModelBehavior for ActiveModel {}
