//! The service's own small HTTP server, for Prometheus, load balancers and people:
//!
//! | path | answer |
//! |---|---|
//! | `/metrics` | all metrics in Prometheus' text format |
//! | `/healthz` | 200 if every component is ok, else 503; JSON with components and reasons |
//! | `/livez` | 200 while the process answers at all |
//!
//! It has no secrets, changes nothing, and needs no login: listen on an address that only
//! operators reach.

use std::io;
use std::net::SocketAddr;
use std::time::Duration;

use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use axum::{Json, Router};
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

use super::error_chain;
use super::health::Health;
use super::registry::Metrics;
use crate::config::{Reader, parse};

/// The configuration key of the address.
pub const LISTEN_KEY: &str = "telemetry.listen";

/// How long requests under way may take once the service stops; no client can hold it longer.
const SHUTDOWN_GRACE: Duration = Duration::from_secs(2);

/// Prometheus' text format.
const METRICS_TYPE: &str = "text/plain; version=0.0.4; charset=utf-8";

/// Why the server does not run.
#[derive(Debug, thiserror::Error)]
pub enum HttpError {
    /// Somebody else listens there.
    #[error(
        "cannot serve metrics on {address}: the address is in use; stop the process that \
         listens there, or change {LISTEN_KEY} in the configuration"
    )]
    InUse {
        /// The address configured.
        address: SocketAddr,
    },
    /// The machine does not have this address.
    #[error(
        "cannot serve metrics on {address}: this machine has no such address; change \
         {LISTEN_KEY} in the configuration"
    )]
    NoSuchAddress {
        /// The address configured.
        address: SocketAddr,
    },
    /// The port is reserved.
    #[error(
        "cannot serve metrics on {address}: this user may not use that port; choose one from \
         1024 up for {LISTEN_KEY} in the configuration"
    )]
    Forbidden {
        /// The address configured.
        address: SocketAddr,
    },
    /// Anything else that keeps the socket from listening.
    #[error("cannot serve metrics on {address}; {LISTEN_KEY} in the configuration sets it")]
    Bind {
        /// The address configured.
        address: SocketAddr,
        /// What the system says.
        source: io::Error,
    },
    /// The running server failed.
    #[error("the metrics server failed")]
    Serve(#[source] io::Error),
}

/// Reads the address from the configuration.
pub fn read_listen(c: &mut Reader, default: SocketAddr) -> SocketAddr {
    c.optional(LISTEN_KEY, parse::socket_address, default)
}

/// Opens the listening socket. Do this early: an address in use should stop the start.
pub async fn bind(address: SocketAddr) -> Result<TcpListener, HttpError> {
    TcpListener::bind(address)
        .await
        .map_err(|source| match source.kind() {
            io::ErrorKind::AddrInUse => HttpError::InUse { address },
            io::ErrorKind::AddrNotAvailable => HttpError::NoSuchAddress { address },
            io::ErrorKind::PermissionDenied => HttpError::Forbidden { address },
            _ => HttpError::Bind { address, source },
        })
}

/// Serves until `shutdown` is cancelled.
pub async fn serve(
    listener: TcpListener,
    metrics: Metrics,
    health: Health,
    shutdown: CancellationToken,
) -> Result<(), HttpError> {
    let server = axum::serve(listener, router(metrics, health))
        .with_graceful_shutdown(shutdown.clone().cancelled_owned());
    let limit = async {
        shutdown.cancelled().await;
        tokio::time::sleep(SHUTDOWN_GRACE).await;
    };
    tokio::select! {
        result = async { server.await } => result.map_err(HttpError::Serve),
        () = limit => Ok(()),
    }
}

fn router(metrics: Metrics, health: Health) -> Router {
    Router::new()
        .route("/metrics", get(show_metrics).with_state(metrics))
        .route("/healthz", get(show_health).with_state(health))
        .route("/livez", get(|| async { "ok\n" }))
        .fallback(|| async {
            (
                StatusCode::NOT_FOUND,
                "not found; there are /metrics, /healthz and /livez\n",
            )
        })
}

async fn show_metrics(State(metrics): State<Metrics>) -> Response {
    match metrics.render() {
        Ok(text) => ([(header::CONTENT_TYPE, METRICS_TYPE)], text).into_response(),
        Err(error) => {
            let error = error_chain(&error);
            tracing::error!(error, "cannot answer /metrics");
            (StatusCode::INTERNAL_SERVER_ERROR, format!("{error}\n")).into_response()
        }
    }
}

async fn show_health(State(health): State<Health>) -> Response {
    let report = health.report();
    let status = if report.is_ok() {
        StatusCode::OK
    } else {
        StatusCode::SERVICE_UNAVAILABLE
    };
    (status, Json(report)).into_response()
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::TcpStream;
    use tokio::task::JoinHandle;

    use super::*;

    /// How long any step of these tests may take.
    const LIMIT: Duration = Duration::from_secs(10);

    struct Server {
        address: SocketAddr,
        health: Health,
        shutdown: CancellationToken,
        task: JoinHandle<Result<(), HttpError>>,
    }

    async fn server() -> Server {
        let listener = bind("127.0.0.1:0".parse().unwrap()).await.unwrap();
        let address = listener.local_addr().unwrap();
        let health = Health::new();
        let shutdown = CancellationToken::new();
        let metrics = Metrics::new("berth-test", "1.2.3").unwrap();
        let task = tokio::spawn(serve(listener, metrics, health.clone(), shutdown.clone()));
        Server {
            address,
            health,
            shutdown,
            task,
        }
    }

    /// Status line, headers (lower case) and body of a plain GET.
    async fn fetch(address: SocketAddr, path: &str) -> (String, String, String) {
        let exchange = async {
            let mut stream = TcpStream::connect(address).await.unwrap();
            let request = format!("GET {path} HTTP/1.0\r\n\r\n");
            stream.write_all(request.as_bytes()).await.unwrap();
            let mut answer = String::new();
            stream.read_to_string(&mut answer).await.unwrap();
            answer
        };
        let answer = tokio::time::timeout(LIMIT, exchange).await.unwrap();
        let (head, body) = answer.split_once("\r\n\r\n").unwrap();
        let (status, headers) = head.split_once("\r\n").unwrap();
        (status.to_owned(), headers.to_lowercase(), body.to_owned())
    }

    #[tokio::test]
    async fn metrics_are_served_with_prometheus_content_type() {
        let server = server().await;
        let (status, headers, body) = fetch(server.address, "/metrics").await;
        assert_eq!(status, "HTTP/1.0 200 OK");
        assert!(
            headers.contains("content-type: text/plain; version=0.0.4; charset=utf-8"),
            "{headers}"
        );
        assert!(
            body.contains("berth_build_info{component=\"berth-test\""),
            "{body}"
        );
        assert!(
            body.contains("# TYPE process_resident_memory_bytes gauge\n"),
            "{body}"
        );
        assert!(
            body.contains("# TYPE process_cpu_seconds_total counter\n"),
            "{body}"
        );
        server.task.abort();
    }

    #[tokio::test]
    async fn health_is_503_until_every_component_is_ok_and_names_the_reason() {
        let server = server().await;
        let bus = server.health.component("bus");
        bus.degraded("the broker refused the connection");
        let (status, headers, body) = fetch(server.address, "/healthz").await;
        assert_eq!(status, "HTTP/1.0 503 Service Unavailable");
        assert!(
            headers.contains("content-type: application/json"),
            "{headers}"
        );
        let json: serde_json::Value = serde_json::from_str(&body).unwrap();
        assert_eq!(json["status"], "degraded");
        assert_eq!(
            json["components"]["bus"]["reason"],
            "the broker refused the connection"
        );
        // The process is alive all the same.
        let (status, _, _) = fetch(server.address, "/livez").await;
        assert_eq!(status, "HTTP/1.0 200 OK");

        bus.ok();
        let (status, _, body) = fetch(server.address, "/healthz").await;
        assert_eq!(status, "HTTP/1.0 200 OK");
        let json: serde_json::Value = serde_json::from_str(&body).unwrap();
        assert_eq!(json["status"], "ok");
        assert_eq!(json["components"]["bus"]["status"], "ok");
        server.task.abort();
    }

    #[tokio::test]
    async fn other_paths_are_not_found() {
        let server = server().await;
        let (status, _, body) = fetch(server.address, "/").await;
        assert_eq!(status, "HTTP/1.0 404 Not Found");
        assert!(body.contains("/healthz"), "{body}");
        server.task.abort();
    }

    #[tokio::test]
    async fn shutdown_ends_it_even_with_a_client_that_never_asks() {
        let server = server().await;
        let _silent = TcpStream::connect(server.address).await.unwrap();
        fetch(server.address, "/livez").await;
        server.shutdown.cancel();
        let result = tokio::time::timeout(LIMIT, server.task).await;
        result.expect("the server stops in time").unwrap().unwrap();
    }

    #[tokio::test]
    async fn an_address_in_use_names_itself_and_the_key_to_change() {
        let first = bind("127.0.0.1:0".parse().unwrap()).await.unwrap();
        let address = first.local_addr().unwrap();
        let error = bind(address).await.unwrap_err();
        assert!(matches!(error, HttpError::InUse { .. }));
        assert_eq!(
            error.to_string(),
            format!(
                "cannot serve metrics on {address}: the address is in use; stop the process \
                 that listens there, or change telemetry.listen in the configuration"
            )
        );
    }

    #[tokio::test]
    async fn an_address_of_another_machine_is_told_apart() {
        // 192.0.2.0/24 is reserved for documentation.
        let error = bind("192.0.2.1:9101".parse().unwrap()).await.unwrap_err();
        assert!(matches!(error, HttpError::NoSuchAddress { .. }), "{error}");
    }
}
