//! Config drives, as a guest reads them: by the label, from a CD that its kernel has a driver for.

use berth_common::document::ConfigDrive;
use berth_tests::{TestCloud, cloud::InstanceOptions, with_cloud};

#[test]
fn a_guest_finds_its_name_its_keys_and_its_user_data() {
    with_cloud(TestCloud::builder(), async |cloud| {
        let network = cloud.create_network("front", 1).await?;
        let user_data = "#cloud-config\nruncmd:\n  - \"echo 'a=b' \\\\ ü\"\n";
        let key =
            "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIOMqqnkVzrm0SdG6UOoqKLsabgH5C9okWi0dh2l9GKJl me";
        let options = InstanceOptions {
            networks: vec![network.id],
            config_drive: Some(ConfigDrive {
                user_data: Some(user_data.parse()?),
                public_keys: [("me".parse()?, key.parse()?)].into(),
                metadata: [("role".parse()?, "front".parse()?)].into(),
            }),
            ..InstanceOptions::default()
        };
        let instance = cloud
            .wait_active(cloud.create_instance("told", &options).await?.id)
            .await?;
        cloud.guest_answers(&instance).await?;
        for path in ["openstack/latest/user_data", "ec2/latest/user-data"] {
            assert_eq!(cloud.config_file(&instance, path).await?, user_data);
        }
        let read = async |path: &str| -> anyhow::Result<serde_json::Value> {
            let text = cloud.config_file(&instance, path).await?;
            Ok(serde_json::from_str(&text)?)
        };
        let meta_data = read("openstack/latest/meta_data.json").await?;
        assert_eq!(meta_data["uuid"], instance.id.to_string());
        assert_eq!(meta_data["hostname"], "told");
        assert_eq!(meta_data["public_keys"]["me"], key);
        assert_eq!(meta_data["meta"]["role"], "front");
        let network_data = read("openstack/latest/network_data.json").await?;
        assert_eq!(
            network_data["links"][0]["ethernet_mac_address"],
            instance.ports[0].mac_address.to_string()
        );
        let ec2 = read("ec2/latest/meta-data.json").await?;
        assert_eq!(
            ec2["local-ipv4"],
            TestCloud::address_of(&instance)?.to_string()
        );

        // An instance without one has no CD at all.
        let bare = InstanceOptions {
            networks: vec![network.id],
            ..InstanceOptions::default()
        };
        let bare = cloud
            .wait_active(cloud.create_instance("bare", &bare).await?.id)
            .await?;
        let path = "openstack/latest/meta_data.json";
        assert_eq!(cloud.config_file(&bare, path).await?, "");
        Ok(())
    });
}
