//! berth driven by a stock AMQP client of another language, which knows `docs/messages.md` and nothing else.

use std::time::Duration;

use berth_tests::{TestCloud, binaries, cloud::CONVERGE_LIMIT, image, run, with_cloud};

/// Debian's Python, which has Debian's `python3-pika`.
const PYTHON: &str = "/usr/bin/python3";
/// The script waits once for the instance to come and once for it to go.
const LIMIT: Duration = CONVERGE_LIMIT.saturating_mul(3);

#[test]
fn a_python_script_with_a_stock_amqp_client_creates_sees_and_deletes_an_instance() {
    with_cloud(TestCloud::builder(), async |cloud| {
        let script = binaries::repository()
            .join("tests/python/first_light.py")
            .display()
            .to_string();
        let guest = image::of_file(&cloud.services.guest_image)?;
        let url = cloud.broker_url();
        let (image, sha256) = (guest.url.to_string(), guest.sha256.to_string());
        let argv = [PYTHON, &script, &url, &image, &sha256];
        let printed = run::text_within(LIMIT, &argv).await?;
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
