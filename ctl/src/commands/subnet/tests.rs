//! What `subnet …` asks for, and what it makes of the answers.

use berth_common::refusal::RefusalCode;
use clap::Parser;
use serde_json::json;

use super::*;
use crate::{
    cli::{Cli, Command},
    testing::{self, Play, Scheduler, network as net0},
};

fn context(script: impl IntoIterator<Item = Play>) -> Context<Scheduler> {
    testing::context(Some("lab"), script)
}

fn first() -> SubnetView {
    net0().subnets.remove(0)
}

#[tokio::test]
async fn a_subnet_is_deleted_by_its_id() {
    let known = || Play::Reply(json!({ "subnets": [first()] }));
    let answers = [
        Play::Reply(serde_json::to_value(first()).unwrap()),
        Play::Refuse(RefusalCode::NotFound),
    ];
    for answer in answers {
        let context = context([known(), answer]);
        assert_eq!(delete(&context, "first").await.unwrap(), first());
        assert_eq!(
            *context.caller.asked.borrow(),
            [
                "subnet.list -".to_owned(),
                format!("subnet.delete {}", first().id)
            ]
        );
    }
}

#[tokio::test]
async fn of_two_with_one_name_none_is_deleted() {
    let mut second = first();
    second.id = SubnetId::new();
    let known = Play::Reply(json!({ "subnets": [first(), second] }));
    let context = context([known, Play::Refuse(RefusalCode::Conflict)]);
    assert!(delete(&context, "first").await.is_err());
    assert_eq!(context.caller.asked.borrow()[1], "subnet.delete first");
}

#[test]
fn what_is_not_named_is_not_changed() {
    let context = context([]);
    let check = |words: &str, expected: serde_json::Value| {
        let line = format!("berthctl subnet set first {words}");
        let cli = Cli::try_parse_from(line.split_whitespace()).unwrap();
        let Command::Subnet(Subnet::Set(arguments)) = cli.command else {
            panic!("{line}");
        };
        let mut expected = expected;
        expected["subnet"] = "first".into();
        expected["project"] = "lab".into();
        let expected: SubnetSet = serde_json::from_value(expected).unwrap();
        assert_eq!(change(&context, arguments), expected, "{line}");
    };
    check("--gateway none", json!({ "gateway_ip": null }));
    check("--gateway 10.0.0.1", json!({ "gateway_ip": "10.0.0.1" }));
    check(
        "--name second --no-dns-nameservers",
        json!({ "name": "second", "dns_nameservers": [] }),
    );
    check(
        "--allocation-pool start=10.0.0.5,end=10.0.0.9 --host-route destination=10.9.0.0/16,gateway=10.0.0.3",
        json!({
            "allocation_pools": [{ "start": "10.0.0.5", "end": "10.0.0.9" }],
            "host_routes": [{ "destination": "10.9.0.0/16", "nexthop": "10.0.0.3" }],
        }),
    );
}
