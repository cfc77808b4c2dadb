//! A plain GET, as a monitoring system would do it.

use std::{net::SocketAddr, time::Duration};

use anyhow::{Context, ensure};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
};

const LIMIT: Duration = Duration::from_secs(5);

/// Status and body of a GET.
///
/// # Errors
/// Nobody answers in HTTP.
pub async fn get(address: SocketAddr, path: &str) -> anyhow::Result<(u16, String)> {
    let exchange = async {
        let mut stream = TcpStream::connect(address).await?;
        stream
            .write_all(format!("GET {path} HTTP/1.0\r\n\r\n").as_bytes())
            .await?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await?;
        anyhow::Ok(answer)
    };
    let answer = tokio::time::timeout(LIMIT, exchange)
        .await
        .with_context(|| format!("http://{address}{path} did not answer"))?
        .with_context(|| format!("http://{address}{path}"))?;
    let (head, body) = answer.split_once("\r\n\r\n").context("no HTTP answer")?;
    let status = head.split(' ').nth(1).context("no HTTP status")?.parse()?;
    Ok((status, body.to_owned()))
}

/// The value of a series, named as in the text: `name` or `name{label="value"}`. `None`: there is no such series yet.
///
/// # Errors
/// Nobody answers with figures.
pub async fn metric(address: SocketAddr, series: &str) -> anyhow::Result<Option<f64>> {
    let (status, text) = get(address, "/metrics").await?;
    ensure!(status == 200, "/metrics answers {status}");
    let mut values = text
        .lines()
        .filter_map(|line| line.strip_prefix(series)?.strip_prefix(' '));
    values
        .next()
        .map(|value| value.trim().parse().with_context(|| series.to_owned()))
        .transpose()
}
