//! Table `security_group_rules`. What a group allows; goes with the group.

use sea_orm::entity::prelude::*;

/// One row, as stored.
#[derive(Clone, Debug, PartialEq, Eq, DeriveEntityModel)]
#[sea_orm(table_name = "security_group_rules")]
pub struct Model {
    #[sea_orm(primary_key, auto_increment = false)]
    pub id: String,
    pub group_id: String,
    pub direction: String,
    pub ethertype: String,
    /// JSON; null: any.
    pub protocol: Option<String>,
    pub remote_prefix: Option<String>,
    pub remote_group_id: Option<String>,
    /// All of what it allows in one text, the same for rules that allow the same.
    pub content: String,
    pub created_at: i64,
}

/// None that queries need.
#[derive(Copy, Clone, Debug, EnumIter, DeriveRelation)]
pub enum Relation {}

impl ActiveModelBehavior for ActiveModel {}
