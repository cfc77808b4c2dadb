//! Placement against a brute-force oracle, its laws, its words, and numbers nobody should send.

mod extremes;
mod generate;
mod laws;
mod oracle;
mod sequences;
mod words;

use berth_common::{
    ids::HostId,
    message::view::Resources,
    units::{DiskGb, MemoryMb, Vcpus},
};

use super::*;

fn resources(vcpus: u64, memory_mb: u64, disk_gb: u64) -> Resources {
    Resources {
        vcpus: Vcpus::new(vcpus).unwrap(),
        memory_mb: MemoryMb::new(memory_mb).unwrap(),
        disk_gb: DiskGb::new(disk_gb).unwrap(),
    }
}

fn request(vcpus: u64, memory_mb: u64, disk_gb: u64) -> Request {
    Request::of(resources(vcpus, memory_mb, disk_gb))
}

fn host_id(number: u128) -> HostId {
    HostId::try_from(uuid::Uuid::from_u128(number)).unwrap()
}

/// A host with 4.0 and 1.5 as ratios and 512 MB reserved.
fn host(number: u128, total: Resources) -> HostFacts {
    let name = format!("hv{number}").parse().unwrap();
    let mut facts = HostFacts::new(host_id(number), name, total);
    facts.reserved = resources(0, 512, 0);
    facts.ratios.cpu = "4.0".parse().unwrap();
    facts.ratios.ram = "1.5".parse().unwrap();
    facts
}

/// A table of hosts, each with so much claimed.
fn table(hosts: impl IntoIterator<Item = (HostFacts, Resources)>) -> HostTable {
    table_with(Settings::default(), hosts)
}

fn table_with(
    settings: Settings,
    hosts: impl IntoIterator<Item = (HostFacts, Resources)>,
) -> HostTable {
    let mut table = HostTable::new(settings);
    for (facts, used) in hosts {
        let id = facts.id;
        table.upsert(facts);
        table.claim(id, &demand(used)).unwrap();
    }
    table.debug_validate().unwrap();
    table
}

fn demand(resources: Resources) -> Demand {
    Demand {
        resources,
        ..Demand::default()
    }
}

fn decide(request: &Request, table: &HostTable) -> Decision {
    place(request, table, &mut Scratch::default())
}

fn chosen(request: &Request, table: &HostTable) -> Option<String> {
    decide(request, table)
        .chosen
        .map(|chosen| chosen.host.to_string())
}
