//! What the commands on aggregates ask for, in which order, and what they make of the answers.

use berth_common::refusal::RefusalCode;
use serde_json::json;

use super::*;
use crate::{
    cli::Command,
    testing::{self, Play, aggregate as ssd, host as hv1},
};

const ID: &str = "0191e7a0-0000-7000-8000-000000000006";

fn parsed(line: &str) -> Aggregate {
    match testing::parsed(line).command {
        Command::Aggregate(command) => command,
        other => panic!("{other:?}"),
    }
}

fn created(line: &str) -> AggregateCreateArgs {
    match parsed(line) {
        Aggregate::Create(arguments) => arguments,
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_new_aggregate_has_what_the_line_says() {
    let arguments = created(
        "aggregate create ssd --zone rack-1 --cpu-allocation-ratio 2 --property disk=ssd --property a=b=c",
    );
    let request = create_request(&arguments, ID.parse().unwrap()).unwrap();
    assert_eq!(
        serde_json::to_value(request).unwrap(),
        json!({
            "id": ID,
            "name": "ssd",
            "availability_zone": "rack-1",
            "cpu_allocation_ratio": "2.0",
            "ram_allocation_ratio": null,
            "disk_allocation_ratio": null,
            "properties": { "a": "b=c", "disk": "ssd" },
        })
    );
}

#[test]
fn aggregate_set_names_only_what_changes_and_none_is_null() {
    let check = |line: &str, expected: serde_json::Value| {
        let Aggregate::Set(arguments) = checked(parsed(line)).unwrap() else {
            panic!("{line}");
        };
        let request = serde_json::to_value(set_request(&arguments).unwrap()).unwrap();
        assert_eq!(request, expected, "{line}");
    };
    check(
        "aggregate set ssd --zone none --ram-allocation-ratio 1.25",
        json!({ "aggregate": "ssd", "availability_zone": null, "ram_allocation_ratio": "1.25", "properties": {} }),
    );
    check(
        "aggregate set ssd --property disk=nvme --unset-property room",
        json!({ "aggregate": "ssd", "properties": { "disk": "nvme", "room": null } }),
    );
}

#[test]
fn what_changes_nothing_or_contradicts_itself_is_a_mistake() {
    let check = |line: &str, expected: &str| {
        let error = checked(parsed(line)).unwrap_err();
        assert_eq!(error.exit_code(), 2, "{line}");
        assert!(error.to_string().contains(expected), "{line}: {error}");
    };
    check(
        "aggregate set ssd",
        "change nothing: give at least one of --zone",
    );
    check(
        "aggregate set ssd --property a=1 --unset-property a",
        "property a is named twice",
    );
    check(
        "aggregate create ssd --property a=1 --property a=2",
        "property a is named twice",
    );
}

#[tokio::test]
async fn hosts_are_looked_for_before_anything_is_created_and_then_named_by_id() {
    let arguments = created(&format!("aggregate create ssd --host hv1 --id {ID}"));
    let script = [Play::view(&hv1()), Play::view(&ssd()), Play::view(&ssd())];
    let context = testing::context(None, script);
    assert_eq!(create(&context, &arguments).await.unwrap(), ssd());
    assert_eq!(
        *context.caller.asked.borrow(),
        [
            "host.show hv1".to_owned(),
            format!("aggregate.create {ID}"),
            format!("aggregate.add_host {ID}"),
        ]
    );

    let context = testing::context(None, [Play::Refuse(RefusalCode::NotFound)]);
    assert!(create(&context, &arguments).await.is_err());
    assert_eq!(*context.caller.asked.borrow(), ["host.show hv1"]);
}

#[tokio::test]
async fn an_aggregate_without_all_its_hosts_is_told_with_the_way_to_go_on() {
    let arguments = created("aggregate create ssd --host hv1 --host hv1");
    let script = [
        Play::view(&hv1()),
        Play::view(&hv1()),
        Play::view(&ssd()),
        Play::view(&ssd()),
        Play::Refuse(RefusalCode::Conflict),
    ];
    let context = testing::context(None, script);
    let error = create(&context, &arguments).await.unwrap_err();
    assert_eq!(error.exit_code(), 1);
    insta::assert_snapshot!(error.text(), @r#"berthctl: aggregate ssd was created, but hv1 could not be put into it: refused (conflict). Go on with `berthctl aggregate add-host ssd HOST`"#);
}

#[tokio::test]
async fn silence_on_a_creation_is_told_with_the_id_to_repeat_it_with() {
    let arguments = created(&format!("aggregate create ssd --id {ID}"));
    let context = testing::context(None, [Play::Silence]);
    let error = create(&context, &arguments).await.unwrap_err().to_string();
    assert!(error.contains(&format!("with --id {ID}")), "{error}");
}

#[tokio::test]
async fn an_aggregate_is_deleted_by_its_id() {
    let known = || Play::Reply(json!({ "aggregates": [ssd()] }));
    for answer in [Play::view(&ssd()), Play::Refuse(RefusalCode::NotFound)] {
        let context = testing::context(None, [known(), answer]);
        assert_eq!(delete(&context, "ssd").await.unwrap(), ssd());
        assert_eq!(
            *context.caller.asked.borrow(),
            [
                "aggregate.list -".to_owned(),
                format!("aggregate.delete {ID}")
            ]
        );
    }
    let context = testing::context(None, [known()]);
    let error = delete(&context, "hdd").await.unwrap_err();
    assert_eq!(
        error.to_string(),
        "there is no aggregate \"hdd\", neither by id nor by name; `berthctl aggregate list` shows all (not_found)"
    );
}
