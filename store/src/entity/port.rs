//! Table `ports`. A virtual NIC in a network, of an instance or of none yet.

use sea_orm::entity::prelude::*;

/// One row, as stored.
#[derive(Clone, Debug, PartialEq, Eq, DeriveEntityModel)]
#[sea_orm(table_name = "ports")]
pub struct Model {
    #[sea_orm(primary_key, auto_increment = false)]
    pub id: String,
    /// With `position` and `state`: all three, or none.
    pub instance_id: Option<String>,
    pub network_id: String,
    /// The guest's order of NICs, from 0.
    pub position: Option<i64>,
    pub mac_address: String,
    pub project: String,
    pub name: Option<String>,
    pub state: Option<String>,
    pub delete_with_instance: bool,
    pub admin_state_up: bool,
    pub port_security_enabled: bool,
    /// JSON; null: none.
    pub allowed_address_pairs: Option<String>,
    /// JSON; null: no limits.
    pub qos: Option<String>,
    /// JSON; null: none.
    pub mirrors: Option<String>,
    pub fingerprint: String,
    pub created_at: i64,
}

/// None that queries need.
#[derive(Copy, Clone, Debug, EnumIter, DeriveRelation)]
pub enum Relation {}

impl ActiveModelBehavior for ActiveModel {}
