//! Table `documents`. The last document of a resource for a host, and how far the host is with it.

use sea_orm::entity::prelude::*;

/// One row, as stored.
#[derive(Clone, Debug, PartialEq, Eq, DeriveEntityModel)]
#[sea_orm(table_name = "documents")]
pub struct Model {
    #[sea_orm(primary_key, auto_increment = false)]
    pub host_id: String,
    #[sea_orm(primary_key, auto_increment = false)]
    pub kind: String,
    #[sea_orm(primary_key, auto_increment = false)]
    pub resource_id: String,
    pub generation: i64,
    /// JSON of the document's `spec`; null: a tombstone.
    pub spec_json: Option<String>,
    pub observed_generation: i64,
    pub observed_status: Option<String>,
    /// Whether it must still be published: no settled state of this generation was reported since it was
    /// written, or since all of the host's documents were made due. Kept as a column for its index.
    pub unconfirmed: bool,
    pub changed_at: i64,
    pub published_at: Option<i64>,
    pub attempts: i64,
    /// Null: at once.
    pub next_publish_at: Option<i64>,
}

/// None that queries need.
#[derive(Copy, Clone, Debug, EnumIter, DeriveRelation)]
pub enum Relation {}

impl ActiveModelBehavior for ActiveModel {}
