//! berth driven by a stock AMQP client of another language, which knows `docs/messages.md` and nothing else.

use berth_tests::{TestCloud, binaries, image, run, with_cloud};

/// Debian's Python, which has Debian's `python3-pika`.
const PYTHON: &str = "/usr/bin/python3";

#[test]
fn a_python_script_with_a_stock_amqp_client_creates_sees_and_deletes_an_instance() {
    with_cloud(TestCloud::builder(), async |cloud| {
        let script = binaries::repository()
            .join("tests/python/first_light.py")
            .display()
            .to_string();
        let guest = image::of_file(&cloud.services.guest_image)?;
        let url = cloud.broker_url();
        let printed = run::text(&[
            PYTHON,
            &script,
            &url,
            &guest.url.to_string(),
            &guest.sha256.to_string(),
        ])
        .await?;
        for line in [
            "network created",
            "instance accepted",
            "instance active",
            "instance deleted",
        ] {
            assert!(printed.contains(line), "no {line:?} in:\n{printed}");
        }
        Ok(())
    });
}
