//! Figures out of `/metrics`.

use std::net::SocketAddr;

use anyhow::{Context as _, ensure};
use berth_tests::http;

/// The value of a series, named as in the text: `name` or `name{label="value"}`. `None`: there is no such series yet.
pub(crate) async fn metric(address: SocketAddr, series: &str) -> anyhow::Result<Option<f64>> {
    let (status, text) = http::get(address, "/metrics").await?;
    ensure!(status == 200, "/metrics answers {status}");
    let mut values = text
        .lines()
        .filter_map(|line| line.strip_prefix(series)?.strip_prefix(' '));
    values
        .next()
        .map(|value| value.trim().parse().with_context(|| series.to_owned()))
        .transpose()
}
