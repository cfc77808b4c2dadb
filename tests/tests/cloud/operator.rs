//! An operator at the command line: `berthctl` from the first network to the last deletion.

use berth_common::document::ImageRef;
use berth_tests::{TestCloud, binaries, ctl::Berthctl, image, with_cloud};

#[test]
fn an_operator_gets_from_nothing_to_a_guest_and_back_with_berthctl() {
    with_cloud(TestCloud::builder(), async |cloud| {
        let ctl = Berthctl::new(cloud)?;
        ctl.text(&["network", "create", "front", "--cidr", "10.77.1.0/24"])
            .await?;
        // Nothing comes in but what a rule allows.
        for what in [&["icmp"][..], &["tcp", "--dst-port", "80"]] {
            let rule = ["security-group", "rule", "create", "default", "--protocol"];
            ctl.text(&[&rule[..], what].concat()).await?;
        }
        let file = cloud.site.dir().join("web.toml");
        std::fs::write(
            &file,
            instance_file(&image::of_file(&cloud.services.guest_image)?),
        )?;
        let file = file.display().to_string();
        ctl.text(&["instance", "create", "-f", &file, "--wait"])
            .await?;

        let shown = ctl.json(&["instance", "show", "web-1"]).await?;
        assert_eq!(shown["vm_state"], "active", "{shown}");
        assert_eq!(
            shown["ports"][0]["fixed_ips"][0]["ip_address"], "10.77.1.20",
            "{shown}"
        );
        let list = ctl.text(&["instance", "list"]).await?;
        assert!(
            list.contains("web-1") && list.contains("hv1") && list.contains("active"),
            "{list}"
        );
        let host = ctl.text(&["host", "show", "hv1"]).await?;
        for row in ["(total)", "(used_now)", "(used_max)", "default"] {
            assert!(host.contains(row), "no row {row}:\n{host}");
        }
        the_console_is_shown(cloud).await?;

        ctl.text(&["instance", "stop", "web-1"]).await?;
        ctl.text(&["instance", "delete", "web-1", "--wait"]).await?;
        ctl.text(&["network", "delete", "front"]).await?;
        mistakes_have_helpful_answers(&ctl, &file).await
    });
}

/// `console` works from anywhere, and on the hypervisor itself from the file.
async fn the_console_is_shown(cloud: &TestCloud) -> anyhow::Result<()> {
    let instance = cloud.instances().await?.remove(0);
    cloud.guest_answers(&instance).await?;
    let program = binaries::path("berthctl")?.display().to_string();
    let broker = format!(
        "amqp://{}@{}:5672/{}",
        cloud.services.amqp_login()?,
        cloud.site.address(1),
        cloud.vhost.name()
    );
    let local = [
        &program, "--url", &broker, "instance", "console", "web-1", "--local",
    ];
    let consoles = [
        Berthctl::new(cloud)?
            .text(&["instance", "console", "web-1"])
            .await?,
        cloud.hv1().text(&local).await?,
    ];
    for console in consoles {
        assert!(
            console.contains("berth-guest: ready address=10.77.1.20 hostname=web-1"),
            "{console}"
        );
    }
    Ok(())
}

async fn mistakes_have_helpful_answers(ctl: &Berthctl, file: &str) -> anyhow::Result<()> {
    // The network is gone by now.
    let (code, text) = ctl.fails(&["instance", "create", "-f", file]).await?;
    assert_eq!(code, Some(1), "{text}");
    assert!(text.contains("no network \"front\""), "{text}");
    let (code, text) = ctl.fails(&["host", "show", "hv99"]).await?;
    assert_eq!(code, Some(1), "{text}");
    assert!(
        text.contains("hv99") && text.contains("host list"),
        "{text}"
    );
    let (code, text) = ctl
        .fails(&["instance", "create", "-f", "/nonexistent.toml"])
        .await?;
    assert_eq!(code, Some(2), "{text}");
    Ok(())
}

fn instance_file(image: &ImageRef) -> String {
    format!(
        "name = \"web-1\"\nvcpus = 1\nmemory_mb = 96\ndisk_gb = 1\n\n[image]\nurl = \"{}\"\nsha256 = \"{}\"\n\
         format = \"qcow2\"\n\n[[networks]]\nnetwork = \"front\"\nip_address = \"10.77.1.20\"\n",
        image.url, image.sha256
    )
}
