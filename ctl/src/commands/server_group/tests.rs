//! What the commands on server groups ask for.

use berth_common::refusal::RefusalCode;
use serde_json::json;

use super::*;
use crate::testing::{self, Play, server_group as web};

fn arguments(policy: Policy, max_server_per_host: Option<u32>) -> ServerGroupCreateArgs {
    ServerGroupCreateArgs {
        name: "web".parse().unwrap(),
        policy,
        max_server_per_host,
        id: Some(web().id),
    }
}

#[test]
fn only_anti_affinity_has_a_limit_per_host() {
    let check = |policy, limit| checked(ServerGroup::Create(arguments(policy, limit)));
    assert!(check(Policy::AntiAffinity, Some(2)).is_ok());
    assert!(check(Policy::SoftAffinity, None).is_ok());
    let error = check(Policy::SoftAntiAffinity, Some(2)).unwrap_err();
    assert_eq!(error.exit_code(), 2);
}

#[tokio::test]
async fn silence_on_a_creation_is_told_with_the_id_to_repeat_it_with() {
    let context = testing::context(Some("lab"), [Play::view(&web()), Play::Silence]);
    let create = || create(&context, arguments(Policy::AntiAffinity, Some(2)));
    assert_eq!(create().await.unwrap(), web());
    let error = create().await.unwrap_err().to_string();
    assert!(
        error.contains(&format!("with --id {}", web().id)),
        "{error}"
    );
    let asked = format!("server_group.create {}", web().id);
    assert_eq!(*context.caller.asked.borrow(), [asked.clone(), asked]);
}

#[tokio::test]
async fn a_server_group_is_deleted_by_its_id() {
    let script = [
        Play::Reply(json!({ "server_groups": [web()] })),
        Play::Refuse(RefusalCode::NotFound),
    ];
    let context = testing::context(Some("lab"), script);
    let gone = delete(&context, "web", context.project()).await.unwrap();
    assert_eq!(gone, web());
    assert_eq!(
        *context.caller.asked.borrow(),
        [
            "server_group.list -".to_owned(),
            format!("server_group.delete {}", web().id)
        ]
    );
}
