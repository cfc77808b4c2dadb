//! Table `subnets`. The addresses of a network.

use sea_orm::entity::prelude::*;

/// One row, as stored.
#[derive(Clone, Debug, PartialEq, Eq, DeriveEntityModel)]
#[sea_orm(table_name = "subnets")]
pub struct Model {
    #[sea_orm(primary_key, auto_increment = false)]
    pub id: String,
    pub network_id: String,
    pub name: Option<String>,
    /// The name while it lives, null once it is deleted: unique indexes ignore nulls, so the name is free again.
    pub live_name: Option<String>,
    pub cidr: String,
    pub gateway_ip: Option<String>,
    pub dhcp_ip: Option<String>,
    /// JSON: `[AllocationPool]`.
    pub allocation_pools: String,
    /// JSON: `[IpAddr]`.
    pub dns_nameservers: String,
    /// JSON: `[Route]`.
    pub host_routes: String,
    pub ipv6_address_mode: Option<String>,
    pub fingerprint: String,
    pub created_at: i64,
    pub deleted_at: Option<i64>,
}

/// What a subnet belongs to.
#[derive(Copy, Clone, Debug, EnumIter, DeriveRelation)]
pub enum Relation {
    /// Its network.
    #[sea_orm(
        belongs_to = "super::network::Entity",
        from = "Column::NetworkId",
        to = "super::network::Column::Id"
    )]
    Network,
}

impl Related<super::network::Entity> for Entity {
    fn to() -> RelationDef {
        Relation::Network.def()
    }
}

impl ActiveModelBehavior for ActiveModel {}
