//! What `host set` and `host delete` ask for.

use berth_common::refusal::RefusalCode;

use super::*;
use crate::{
    cli::Command,
    testing::{self, Play, host as hv1},
};

fn parsed(line: &str) -> Host {
    match testing::parsed(line).command {
        Command::Host(command) => command,
        other => panic!("{other:?}"),
    }
}

#[test]
fn host_set_names_only_what_changes_and_default_is_null() {
    let check = |line: &str, expected: &str| {
        let Host::Set(arguments) = checked(parsed(line)).unwrap() else {
            panic!("{line}");
        };
        let request = serde_json::to_string(&set(&arguments)).unwrap();
        assert_eq!(request, expected, "{line}");
    };
    check(
        "host set hv1 --cpu-allocation-ratio 2.50 --reserved-memory-mb default",
        r#"{"host":"hv1","cpu_allocation_ratio":"2.5","reserved_host_memory_mb":null}"#,
    );
    check(
        "host set hv1 --ram-allocation-ratio default --disk-allocation-ratio 1 --reserved-cpus 0 --reserved-disk-gb 5",
        r#"{"host":"hv1","ram_allocation_ratio":null,"disk_allocation_ratio":"1.0","reserved_host_cpus":0,"reserved_host_disk_gb":5}"#,
    );
}

#[test]
fn host_set_without_a_change_is_a_mistake() {
    let error = checked(parsed("host set hv1")).unwrap_err();
    assert_eq!(error.exit_code(), 2);
    assert!(
        error
            .to_string()
            .starts_with("host set was told to change nothing: give at least one of --cpu-"),
        "{error}"
    );
}

#[tokio::test]
async fn a_host_is_forgotten_by_its_id() {
    let gone = HostDeleteReply {
        id: hv1().id,
        name: hv1().name,
    };
    for answer in [Play::view(&gone), Play::Refuse(RefusalCode::NotFound)] {
        let context = testing::context(None, [Play::view(&hv1()), answer]);
        assert_eq!(delete(&context, "hv1".to_owned()).await.unwrap(), gone);
        assert_eq!(
            *context.caller.asked.borrow(),
            [
                "host.show hv1".to_owned(),
                format!("host.delete {}", gone.id)
            ]
        );
    }
    let context = testing::context(None, [Play::Refuse(RefusalCode::NotFound)]);
    assert!(delete(&context, "hv9".to_owned()).await.is_err());
}

#[tokio::test]
async fn hosts_are_listed_page_by_page() {
    let page = |more| {
        Play::view(&HostListReply {
            hosts: vec![hv1()],
            more,
        })
    };
    let context = testing::context(None, [page(true), page(false)]);
    list(&context).await.unwrap();
    assert_eq!(context.caller.asked.borrow().len(), 2);
    let empty = Play::view(&HostListReply {
        hosts: Vec::new(),
        more: true,
    });
    let context = testing::context(None, [empty]);
    assert!(list(&context).await.is_err());
}
