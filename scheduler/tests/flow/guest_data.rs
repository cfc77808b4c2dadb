//! What guests are told at their first boot: from a request to the document, with and without a config drive.

use berth_common::{
    document::{Document, InstanceSpec},
    ids::InstanceId,
    message::request::{InstanceCreate, InstanceSet},
    refusal::RefusalCode,
    units::Generation,
};
use serde_json::{Value, json};

use crate::{ask::body, cloud::Cloud, host::Host};

const KEY: &str =
    "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIOMqqnkVzrm0SdG6UOoqKLsabgH5C9okWi0dh2l9GKJl me";

fn told(name: &str, field: &str) -> InstanceCreate {
    let mut body = body(name, json!({}));
    body[field] = json!({
        "user_data": "#!/bin/sh\n",
        "public_keys": { "me": KEY },
        "metadata": { "role": "front" },
    });
    serde_json::from_value(body).unwrap()
}

/// The instance's document of this generation. Those before it are told until it is confirmed.
async fn document(host: &mut Host, instance: InstanceId, generation: u64) -> InstanceSpec {
    loop {
        let Document::Instance(document) = host.next_about(instance).await else {
            panic!()
        };
        if document.generation == Generation(generation) {
            return document.spec.unwrap();
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn keys_and_user_data_are_told_with_and_without_a_config_drive() {
    let cloud = Cloud::start().await;
    let mut host = Host::join(&cloud, "hv1").await;
    let request = told("plain", "guest_data");
    cloud.call(request.clone()).await.unwrap();
    let spec = document(&mut host, request.id, 1).await;
    assert_eq!(
        (spec.config_drive, spec.guest_data.clone()),
        (None, request.guest_data.clone())
    );
    // What is said of the instance is told as it is now.
    let set: InstanceSet = serde_json::from_value(json!({
        "instance": "plain", "metadata": { "role": null, "tier": "db" },
    }))
    .unwrap();
    cloud.call(set).await.unwrap();
    let after = document(&mut host, request.id, 2).await.guest_data.unwrap();
    assert_eq!(json!(after.metadata), json!({ "tier": "db" }));
    assert_eq!(after.public_keys, request.guest_data.unwrap().public_keys);

    let request = told("drive", "config_drive");
    cloud.call(request.clone()).await.unwrap();
    let spec = document(&mut host, request.id, 1).await;
    assert_eq!(
        (spec.config_drive, spec.guest_data),
        (request.config_drive, None)
    );

    let mut both: Value = serde_json::to_value(told("both", "guest_data")).unwrap();
    both["config_drive"] = json!({});
    let both: InstanceCreate = serde_json::from_value(both).unwrap();
    let refusal = cloud.call(both).await.unwrap_err();
    assert_eq!(refusal.code, RefusalCode::Invalid);
    assert!(
        refusal.message.contains("guest_data must be absent"),
        "{}",
        refusal.message
    );
}
