//! What `network delete` asks for, and what it makes of the answers.

use berth_common::refusal::RefusalCode;
use serde_json::json;

use super::*;
use crate::testing::{self, Play, Scheduler, network as net0};

fn context(script: impl IntoIterator<Item = Play>) -> Context<Scheduler> {
    testing::context(Some("lab"), script)
}

fn known() -> Play {
    Play::Reply(json!({ "networks": [net0()] }))
}

#[tokio::test]
async fn a_network_is_deleted_by_its_id() {
    let answers = [
        Play::Reply(serde_json::to_value(net0()).unwrap()),
        Play::Refuse(RefusalCode::NotFound),
    ];
    for answer in answers {
        let context = context([known(), answer]);
        assert_eq!(delete(&context, "net0").await.unwrap(), net0());
        assert_eq!(
            *context.caller.asked.borrow(),
            [
                "network.list -".to_owned(),
                format!("network.delete {}", net0().id)
            ]
        );
    }
}

#[tokio::test]
async fn a_name_that_no_network_has_deletes_nothing() {
    let context = context([known()]);
    let error = delete(&context, "net1").await.unwrap_err();
    assert_eq!(
        error.to_string(),
        "project lab has no network \"net1\", neither by id nor by name (not_found)"
    );
    assert_eq!(context.caller.asked.borrow().len(), 1);
}

#[tokio::test]
async fn an_id_that_the_project_does_not_list_is_the_schedulers_to_judge() {
    let id = NetworkId::new().to_string();
    let context = context([known(), Play::Refuse(RefusalCode::NotFound)]);
    assert!(delete(&context, &id).await.is_err());
    assert_eq!(
        context.caller.asked.borrow()[1],
        format!("network.delete {id}")
    );
}

#[tokio::test]
async fn silence_is_told_by_what_may_have_happened() {
    let error = delete(&context([Play::Silence]), "net0").await.unwrap_err();
    assert!(
        error.to_string().contains("Nothing was changed."),
        "{error}"
    );
    let error = delete(&context([known(), Play::Silence]), "net0")
        .await
        .unwrap_err();
    let hint = format!("as `berthctl network delete {}` is harmless.", net0().id);
    assert!(error.to_string().contains(&hint), "{error}");
}
