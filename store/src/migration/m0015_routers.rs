//! Routers with their legs, the addresses that hosts have of external networks for them, and floating IPs.

use sea_orm_migration::{
    MigrationName, MigrationTrait, SchemaManager, async_trait,
    sea_orm::{DbBackend, DbErr},
    sea_query::{Index, TableCreateStatement},
};

use super::{
    columns::{
        ID, NAME, flag, int, key, new_table, opt_int, opt_text, prose, reference, text, unique,
    },
    dialect::table_options,
};
use crate::constraint::{
    FLOATING_IP, FLOATING_IP_PORT, ROUTER_GATEWAY, ROUTER_INTERFACE, ROUTER_NAME,
};

/// An IPv6 address.
const ADDRESS: u32 = 43;
/// An Ethernet address.
const MAC: u32 = 17;

pub(super) struct Migration;

impl MigrationName for Migration {
    fn name(&self) -> &str {
        "m0015_routers"
    }
}

#[async_trait::async_trait]
impl MigrationTrait for Migration {
    async fn up(&self, manager: &SchemaManager) -> Result<(), DbErr> {
        let backend = manager.get_database_backend();
        for table in [
            routers(backend),
            interfaces(),
            gateways(),
            floating_ips(backend),
        ] {
            manager.create_table(table_options(backend, table)).await?;
        }
        for (table, name, columns) in [
            (
                "routers",
                "ix_router_created",
                ["created_at", "id"].as_slice(),
            ),
            ("routers", "ix_router_external", &["external_network_id"]),
            (
                "router_interfaces",
                "ix_router_interface_network",
                &["network_id"],
            ),
            (
                "floating_ips",
                "ix_floating_ip_created",
                &["created_at", "id"],
            ),
            ("floating_ips", "ix_floating_ip_router", &["router_id"]),
        ] {
            if !manager.has_index(table, name).await? {
                let mut index = Index::create();
                index.name(name).table(table);
                for column in columns {
                    index.col(*column);
                }
                manager.create_index(index).await?;
            }
        }
        Ok(())
    }
}

fn routers(backend: DbBackend) -> TableCreateStatement {
    new_table("routers")
        .col(text("id", ID))
        .col(text("project", NAME))
        .col(text("name", NAME))
        .col(opt_text("live_name", NAME))
        .col(flag("admin_state_up"))
        .col(opt_text("external_network_id", ID))
        .col(flag("enable_snat"))
        .col(prose(backend, "routes"))
        .col(prose(backend, "fingerprint"))
        .col(int("created_at"))
        .col(opt_int("deleted_at"))
        .primary_key(&mut key(&["id"]))
        .index(&mut unique(&ROUTER_NAME))
        .foreign_key(&mut reference(
            "fk_router_external",
            ("routers", "external_network_id"),
            "networks",
        ))
        .take()
}

/// The network is the subnet's: it is here so that the routers of a network are found at once.
fn interfaces() -> TableCreateStatement {
    new_table("router_interfaces")
        .col(text("router_id", ID))
        .col(text("subnet_id", ID))
        .col(text("network_id", ID))
        .col(text("ip_address", ADDRESS))
        .col(text("mac_address", MAC))
        .primary_key(&mut key(&["router_id", "subnet_id"]))
        .index(&mut unique(&ROUTER_INTERFACE))
        .foreign_key(&mut reference(
            "fk_router_interface_router",
            ("router_interfaces", "router_id"),
            "routers",
        ))
        .foreign_key(&mut reference(
            "fk_router_interface_subnet",
            ("router_interfaces", "subnet_id"),
            "subnets",
        ))
        .take()
}

fn gateways() -> TableCreateStatement {
    new_table("router_gateways")
        .col(text("router_id", ID))
        .col(text("host_id", ID))
        .col(text("subnet_id", ID))
        .col(text("ip_address", ADDRESS))
        .primary_key(&mut key(&["router_id", "host_id", "subnet_id"]))
        .index(&mut unique(&ROUTER_GATEWAY))
        .foreign_key(&mut reference(
            "fk_router_gateway_router",
            ("router_gateways", "router_id"),
            "routers",
        ))
        .foreign_key(&mut reference(
            "fk_router_gateway_subnet",
            ("router_gateways", "subnet_id"),
            "subnets",
        ))
        .take()
}

/// The port goes with its instance, and no reference holds it: a floating IP is free again then.
fn floating_ips(backend: DbBackend) -> TableCreateStatement {
    new_table("floating_ips")
        .col(text("id", ID))
        .col(text("project", NAME))
        .col(text("network_id", ID))
        .col(text("subnet_id", ID))
        .col(text("ip_address", ADDRESS))
        .col(opt_text("router_id", ID))
        .col(opt_text("port_id", ID))
        .col(opt_text("fixed_ip_address", ADDRESS))
        .col(prose(backend, "fingerprint"))
        .col(int("created_at"))
        .primary_key(&mut key(&["id"]))
        .index(&mut unique(&FLOATING_IP))
        .index(&mut unique(&FLOATING_IP_PORT))
        .foreign_key(&mut reference(
            "fk_floating_ip_subnet",
            ("floating_ips", "subnet_id"),
            "subnets",
        ))
        .foreign_key(&mut reference(
            "fk_floating_ip_router",
            ("floating_ips", "router_id"),
            "routers",
        ))
        .take()
}
