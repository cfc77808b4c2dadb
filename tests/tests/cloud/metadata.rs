//! The metadata service, as a guest uses it: its SSH key comes from there, and nothing else lets it in.

use std::{process::Command, time::Duration};

use berth_common::document::ConfigDrive;
use berth_tests::{
    TestCloud,
    cloud::InstanceOptions,
    wait::{Seen, wait_for},
    with_cloud,
};

#[test]
fn a_key_of_the_metadata_service_logs_into_its_guest_and_into_no_other() {
    with_cloud(TestCloud::builder(), async |cloud| {
        let network = cloud.create_network("front", 1).await?;
        let mut keys = Vec::new();
        for name in ["one", "two"] {
            let path = cloud.site.dir().join(format!("key-{name}"));
            let made = Command::new("ssh-keygen")
                .args(["-q", "-t", "ed25519", "-N", "", "-C", name, "-f"])
                .arg(&path)
                .status()?;
            anyhow::ensure!(made.success(), "ssh-keygen: {made}");
            let public = std::fs::read_to_string(path.with_extension("pub"))?;
            let options = InstanceOptions {
                networks: vec![network.id],
                guest_data: Some(ConfigDrive {
                    public_keys: [("me".parse()?, public.trim().parse()?)].into(),
                    ..ConfigDrive::default()
                }),
                ..InstanceOptions::default()
            };
            let id = cloud.create_instance(name, &options).await?.id;
            keys.push((path.display().to_string(), id));
        }
        let mut guests = Vec::new();
        for (key, id) in keys {
            let instance = cloud.wait_active(id).await?;
            cloud.guest_answers(&instance).await?;
            guests.push((key, TestCloud::address_of(&instance)?.to_string()));
        }
        let cloud = &*cloud;
        let log_in = async |key: &str, address: &str| {
            let user = format!("root@{address}");
            let argv = [
                "ssh",
                "-i",
                key,
                "-o",
                "BatchMode=yes",
                "-o",
                "StrictHostKeyChecking=no",
                "-o",
                "UserKnownHostsFile=/dev/null",
                "-o",
                "ConnectTimeout=5",
                &user,
                "hostname",
            ];
            cloud.hv1().exec_in_network(network.id, &argv).await
        };
        for ((key, address), name) in guests.iter().zip(["one", "two"]) {
            wait_for(
                "the key to open the door",
                Duration::from_secs(60),
                async || {
                    let output = log_in(key, address).await?;
                    let said = String::from_utf8_lossy(&output.stdout).into_owned();
                    if output.status.success() {
                        anyhow::ensure!(said.trim() == name, "another guest: {said}");
                        return Ok(Seen::Done(()));
                    }
                    Ok(Seen::NotYet(
                        String::from_utf8_lossy(&output.stderr).into_owned(),
                    ))
                },
            )
            .await?;
        }
        let crossed = log_in(&guests[0].0, &guests[1].1).await?;
        anyhow::ensure!(!crossed.status.success(), "the key of one opened the other");
        Ok(())
    });
}
