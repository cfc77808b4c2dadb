//! The first schema: hosts, networks with their subnets, instances with their ports and claims, documents.
//!
//! Keys and indexed text have a length that MariaDB can index in four-byte characters. Unique rules are part of
//! `CREATE TABLE`, so that a table is never there without them; every statement bears being repeated.

use sea_orm_migration::{
    MigrationName, MigrationTrait, SchemaManager, async_trait,
    sea_orm::{DbBackend, DbErr},
    sea_query::{
        ColumnDef, ForeignKey, ForeignKeyAction, Index, IndexCreateStatement, Table,
        TableCreateStatement,
    },
};

use super::dialect::{long_text, table_options};
use crate::constraint::{
    FIXED_IP, HOST_NAME, INSTANCE_NAME, NETWORK_NAME, NETWORK_SUBNET, PORT_MAC, PORT_POSITION,
    UniqueIndex,
};

/// A UUID as text.
const ID: u32 = 36;
/// Instance, network and project names.
const NAME: u32 = 63;
/// Host names.
const HOST_NAME_LENGTH: u32 = 200;
/// The words of enums, and methods.
const WORD: u32 = 64;
/// Ethernet and IPv4 addresses, and CIDRs.
const ADDRESS: u32 = 18;

pub(super) struct Migration;

impl MigrationName for Migration {
    fn name(&self) -> &str {
        "m0001_first_light"
    }
}

#[async_trait::async_trait]
impl MigrationTrait for Migration {
    async fn up(&self, manager: &SchemaManager) -> Result<(), DbErr> {
        let backend = manager.get_database_backend();
        let tables = [
            hosts(backend),
            networks(backend),
            subnets(backend),
            instances(backend),
            ports(),
            fixed_ips(),
            claims(),
            documents(backend),
            nonces(),
        ];
        for table in tables {
            manager.create_table(table_options(backend, table)).await?;
        }
        for (table, name, columns) in [
            (
                "instances",
                "ix_instance_created",
                ["created_at", "id"].as_slice(),
            ),
            ("claims", "ix_claim_host", &["host_id", "role"]),
            (
                "documents",
                "ix_document_due",
                &["unconfirmed", "next_publish_at"],
            ),
            ("documents", "ix_document_resource", &["resource_id"]),
            ("nonces", "ix_nonce_created", &["created_at"]),
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

fn new_table(name: &'static str) -> TableCreateStatement {
    Table::create().table(name).if_not_exists().take()
}

fn key(columns: &[&'static str]) -> IndexCreateStatement {
    let mut key = Index::create();
    for column in columns {
        key.col(*column);
    }
    key
}

fn unique(index: &UniqueIndex) -> IndexCreateStatement {
    key(index.columns).unique().name(index.name).take()
}

fn reference(
    name: &'static str,
    from: (&'static str, &'static str),
    to: &'static str,
) -> sea_orm_migration::sea_query::ForeignKeyCreateStatement {
    ForeignKey::create()
        .name(name)
        .from(from.0, from.1)
        .to(to, "id")
        .take()
}

fn text(name: &'static str, length: u32) -> ColumnDef {
    ColumnDef::new(name).string_len(length).not_null().take()
}

fn opt_text(name: &'static str, length: u32) -> ColumnDef {
    ColumnDef::new(name).string_len(length).null().take()
}

fn int(name: &'static str) -> ColumnDef {
    ColumnDef::new(name).big_integer().not_null().take()
}

fn opt_int(name: &'static str) -> ColumnDef {
    ColumnDef::new(name).big_integer().null().take()
}

fn flag(name: &'static str) -> ColumnDef {
    ColumnDef::new(name).boolean().not_null().take()
}

fn prose(backend: DbBackend, name: &'static str) -> ColumnDef {
    long_text(backend, name).not_null().take()
}

fn opt_prose(backend: DbBackend, name: &'static str) -> ColumnDef {
    long_text(backend, name).null().take()
}

fn hosts(backend: DbBackend) -> TableCreateStatement {
    new_table("hosts")
        .col(text("id", ID))
        .col(text("name", HOST_NAME_LENGTH))
        .col(text("status", WORD))
        .col(opt_prose(backend, "disabled_reason"))
        .col(int("session"))
        .col(int("sequence"))
        .col(prose(backend, "agent_version"))
        .col(prose(backend, "arch"))
        .col(prose(backend, "virt_type"))
        .col(int("total_vcpus"))
        .col(int("total_memory_mb"))
        .col(int("total_disk_gb"))
        .col(int("used_vcpus"))
        .col(int("used_memory_mb"))
        .col(int("used_disk_gb"))
        .col(prose(backend, "health"))
        .col(prose(backend, "foreign_domains"))
        .col(int("last_heartbeat_at"))
        .col(int("created_at"))
        .col(opt_int("cpu_ratio"))
        .col(opt_int("ram_ratio"))
        .col(opt_int("disk_ratio"))
        .primary_key(&mut key(&["id"]))
        .index(&mut unique(&HOST_NAME))
        .take()
}

fn networks(backend: DbBackend) -> TableCreateStatement {
    new_table("networks")
        .col(text("id", ID))
        .col(text("project", NAME))
        .col(text("name", NAME))
        .col(opt_text("live_name", NAME))
        .col(text("network_type", WORD))
        .col(int("mtu"))
        .col(prose(backend, "fingerprint"))
        .col(int("created_at"))
        .col(opt_int("deleted_at"))
        .primary_key(&mut key(&["id"]))
        .index(&mut unique(&NETWORK_NAME))
        .take()
}

fn subnets(backend: DbBackend) -> TableCreateStatement {
    new_table("subnets")
        .col(text("id", ID))
        .col(text("network_id", ID))
        .col(text("cidr", ADDRESS))
        .col(opt_text("gateway_ip", ADDRESS))
        .col(text("dhcp_ip", ADDRESS))
        .col(prose(backend, "dns_nameservers"))
        .primary_key(&mut key(&["id"]))
        .index(&mut unique(&NETWORK_SUBNET))
        .foreign_key(&mut reference(
            "fk_subnet_network",
            ("subnets", "network_id"),
            "networks",
        ))
        .take()
}

fn instances(backend: DbBackend) -> TableCreateStatement {
    new_table("instances")
        .col(text("id", ID))
        .col(text("project", NAME))
        .col(text("name", NAME))
        .col(opt_text("live_name", NAME))
        .col(int("vcpus"))
        .col(int("memory_mb"))
        .col(int("disk_gb"))
        .col(prose(backend, "image_url"))
        .col(text("image_sha256", 64))
        .col(text("image_format", WORD))
        .col(int("stop_timeout_seconds"))
        .col(prose(backend, "fingerprint"))
        .col(text("desired_power", WORD))
        .col(opt_text("desired_reboot_nonce", ID))
        .col(opt_text("desired_reboot_kind", WORD))
        .col(flag("desired_deleted"))
        .col(opt_text("placement_fault_code", WORD))
        .col(opt_prose(backend, "placement_fault_message"))
        .col(opt_text("observed_status", WORD))
        .col(int("observed_generation"))
        .col(text("observed_power_state", WORD))
        .col(opt_text("observed_reboot_nonce", ID))
        .col(opt_prose(backend, "observed_progress"))
        .col(opt_text("observed_fault_code", WORD))
        .col(opt_prose(backend, "observed_fault_message"))
        .col(flag("observed_was_active"))
        .col(opt_int("observed_at"))
        .col(int("created_at"))
        .col(int("updated_at"))
        .col(opt_int("deleted_at"))
        .primary_key(&mut key(&["id"]))
        .index(&mut unique(&INSTANCE_NAME))
        .take()
}

fn ports() -> TableCreateStatement {
    new_table("ports")
        .col(text("id", ID))
        .col(text("instance_id", ID))
        .col(text("network_id", ID))
        .col(int("position"))
        .col(text("mac_address", ADDRESS))
        .primary_key(&mut key(&["id"]))
        .index(&mut unique(&PORT_MAC))
        .index(&mut unique(&PORT_POSITION))
        .foreign_key(&mut reference(
            "fk_port_instance",
            ("ports", "instance_id"),
            "instances",
        ))
        .foreign_key(&mut reference(
            "fk_port_network",
            ("ports", "network_id"),
            "networks",
        ))
        .take()
}

fn fixed_ips() -> TableCreateStatement {
    new_table("fixed_ips")
        .col(text("port_id", ID))
        .col(int("position"))
        .col(text("subnet_id", ID))
        .col(text("ip_address", ADDRESS))
        .primary_key(&mut key(&["port_id", "position"]))
        .index(&mut unique(&FIXED_IP))
        .foreign_key(
            reference("fk_fixed_ip_port", ("fixed_ips", "port_id"), "ports")
                .on_delete(ForeignKeyAction::Cascade),
        )
        .foreign_key(&mut reference(
            "fk_fixed_ip_subnet",
            ("fixed_ips", "subnet_id"),
            "subnets",
        ))
        .take()
}

fn claims() -> TableCreateStatement {
    new_table("claims")
        .col(text("instance_id", ID))
        .col(text("host_id", ID))
        .col(text("role", WORD))
        .col(int("vcpus"))
        .col(int("memory_mb"))
        .col(int("disk_gb"))
        .col(text("project", NAME))
        .primary_key(&mut key(&["instance_id", "host_id", "role"]))
        .foreign_key(&mut reference(
            "fk_claim_instance",
            ("claims", "instance_id"),
            "instances",
        ))
        .foreign_key(&mut reference(
            "fk_claim_host",
            ("claims", "host_id"),
            "hosts",
        ))
        .take()
}

fn documents(backend: DbBackend) -> TableCreateStatement {
    new_table("documents")
        .col(text("host_id", ID))
        .col(text("kind", WORD))
        .col(text("resource_id", ID))
        .col(int("generation"))
        .col(opt_prose(backend, "spec_json"))
        .col(int("observed_generation"))
        .col(opt_text("observed_status", WORD))
        .col(flag("unconfirmed"))
        .col(int("changed_at"))
        .col(opt_int("published_at"))
        .col(int("attempts"))
        .col(opt_int("next_publish_at"))
        .primary_key(&mut key(&["host_id", "kind", "resource_id"]))
        .foreign_key(&mut reference(
            "fk_document_host",
            ("documents", "host_id"),
            "hosts",
        ))
        .take()
}

fn nonces() -> TableCreateStatement {
    new_table("nonces")
        .col(text("instance_id", ID))
        .col(text("nonce", ID))
        .col(text("method", WORD))
        .col(text("token", ID))
        .col(int("created_at"))
        .primary_key(&mut key(&["instance_id", "nonce"]))
        .take()
}
