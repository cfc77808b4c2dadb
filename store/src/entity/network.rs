//! Table `networks`. A network of a project.

use sea_orm::entity::prelude::*;

/// One row, as stored.
#[derive(Clone, Debug, PartialEq, Eq, DeriveEntityModel)]
#[sea_orm(table_name = "networks")]
pub struct Model {
    #[sea_orm(primary_key, auto_increment = false)]
    pub id: String,
    pub project: String,
    pub name: String,
    /// The name while it lives, null once it is deleted: unique indexes ignore nulls, so the name is free again.
    pub live_name: Option<String>,
    pub network_type: String,
    pub physical_network: Option<String>,
    pub segmentation_id: Option<i64>,
    pub external: bool,
    pub mtu: i64,
    pub fingerprint: String,
    pub created_at: i64,
    pub deleted_at: Option<i64>,
}

/// What belongs to a network.
#[derive(Copy, Clone, Debug, EnumIter, DeriveRelation)]
pub enum Relation {
    /// Its subnets.
    #[sea_orm(has_many = "super::subnet::Entity")]
    Subnet,
}

impl Related<super::subnet::Entity> for Entity {
    fn to() -> RelationDef {
        Relation::Subnet.def()
    }
}

impl ActiveModelBehavior for ActiveModel {}
