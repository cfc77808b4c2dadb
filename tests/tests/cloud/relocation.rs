//! A host that takes instances and cannot build them: they move on, and it is known why.

use berth_common::{
    message::{placement::SchedulerHints, report::FaultCode, view::VmState},
    names::HostName,
};
use berth_tests::{
    TestCloud,
    cloud::{CONVERGE_LIMIT, InstanceOptions, Sims, imaginary_image},
    ctl::Berthctl,
    wait::{Seen, wait_for},
    with_cloud,
};

const BAD: &str = "bad-0001";
/// Instances asked for after the first.
const MORE: usize = 10;

#[test]
fn instances_of_a_host_that_cannot_build_them_move_on_and_the_move_is_explained() {
    // The most room, and a full disk.
    let bad = Sims {
        prefix: "bad".to_owned(),
        broken: 1,
        memory_mb: 131_072,
        ..Sims::of(1)
    };
    let good = Sims {
        prefix: "good".to_owned(),
        ..Sims::of(2)
    };
    let builder = TestCloud::builder().agents(0).sims(bad).sims(good);
    with_cloud(builder, async |cloud| {
        let options = InstanceOptions {
            image: Some(imaginary_image()?),
            ..InstanceOptions::default()
        };
        let first = cloud.create_instance("first", &options).await?;
        assert_eq!(first.host.as_ref().map(HostName::as_str), Some(BAD));
        let moved = cloud.wait_active(first.id).await?;
        assert!(is_good(moved.host.as_ref()), "{:?}", moved.host);
        assert_eq!(moved.fault, None);
        assert_eq!(cloud.host(BAD).await?.instances, 0);
        let relocations = cloud
            .scheduler
            .metric("berth_scheduler_relocations_total")
            .await?;
        assert!((relocations - 1.0).abs() < 0.5, "{relocations}");
        the_move_is_explained(cloud).await?;

        let mut all = vec![first.id];
        for number in 1..=MORE {
            let name = format!("more-{number}");
            all.push(cloud.create_instance(&name, &options).await?.id);
        }
        for id in all {
            let view = cloud.wait_active(id).await?;
            assert!(is_good(view.host.as_ref()), "{:?}", view.host);
        }
        cloud.wait_all_run(u64::try_from(MORE + 1)?).await?;
        cloud.told_once()?;
        nowhere_else_to_go(cloud, &options).await
    });
}

fn is_good(host: Option<&HostName>) -> bool {
    host.is_some_and(|host| host.as_str().starts_with("good-"))
}

async fn the_move_is_explained(cloud: &TestCloud) -> anyhow::Result<()> {
    let ctl = Berthctl::new(cloud)?;
    let explained = ctl.json(&["explain", "first"]).await?;
    let decisions = &explained["decisions"];
    assert_eq!(decisions.as_array().map(Vec::len), Some(2), "{explained}");
    let (second, first) = (&decisions[0], &decisions[1]);
    assert_eq!(first["attempt"], 1, "{explained}");
    assert_eq!(first["chosen"]["host"], BAD, "{explained}");
    assert_eq!(second["attempt"], 2, "{explained}");
    assert_eq!(
        second["filters"],
        serde_json::json!([{"filter": "failed_recently", "removed": 1}]),
        "{explained}"
    );
    assert_eq!(second["nearest_misses"][0]["host"], BAD, "{explained}");
    let text = ctl.text(&["explain", "first"]).await?;
    for part in [
        "2 decisions, the newest first",
        "attempt 2",
        "attempt 1",
        "this request has failed there already",
    ] {
        assert!(text.contains(part), "no {part:?} in\n{text}");
    }
    Ok(())
}

/// Only the host that cannot build it will do: it is in error, and its owner is told what the host said.
async fn nowhere_else_to_go(cloud: &TestCloud, options: &InstanceOptions) -> anyhow::Result<()> {
    let mut request = cloud.instance_request("bound", options)?;
    request.hints = SchedulerHints {
        host: Some(BAD.to_owned()),
        ..SchedulerHints::default()
    };
    cloud.call(&request).await?;
    wait_for("it to be in error", CONVERGE_LIMIT, async || {
        let view = cloud.show(request.id).await?;
        let code = view.fault.as_ref().map(|fault| fault.code);
        let holds = view.vm_state == VmState::Error && code == Some(FaultCode::DiskFull);
        Ok(Seen::when(holds, view))
    })
    .await
}
