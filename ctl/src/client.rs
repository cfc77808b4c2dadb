//! Talks to the scheduler: connects, sends one request, understands the answer and every way there is none.
//!
//! It decides nothing about repeating: see [`crate::wait`].

use std::{sync::Arc, time::Duration};

use berth_common::{
    bus::{
        Bus, BusError, BusHealth, Message, PublishError, RabbitBus, RabbitConfig, RpcClient,
        RpcError, topology,
    },
    config::Secret,
    message::{
        app, question,
        request::{Method, Reply},
    },
    telemetry::{error_chain, trace::TraceContext},
};

use crate::error::{CtlError, Fate};

/// Whoever answers requests: the scheduler over the broker, or a script in tests.
pub(crate) trait Caller {
    /// Sends a request and waits for its answer.
    async fn call<M: Method + Sync>(
        &self,
        request: &M,
        limit: Duration,
    ) -> Result<M::Reply, CtlError>;
}

/// A connection to the broker, with a queue for answers.
#[derive(Debug)]
pub(crate) struct Client {
    bus: Arc<RabbitBus>,
    rpc: RpcClient,
    address: String,
}

impl Client {
    /// Connects to the broker. The first failure ends it: a person is waiting, and can try again.
    pub(crate) async fn connect(url: &Secret<String>, limit: Duration) -> Result<Self, CtlError> {
        let mut config = RabbitConfig::new(
            url.expose().clone(),
            format!("{} {}", app::CTL, std::process::id()),
        );
        config.connect_timeout = limit;
        config.publish_timeout = limit;
        let address = config.display_url();
        let bus = Arc::new(RabbitBus::start(config).map_err(|error| bus_error(&error, &address))?);
        reached(&*bus, &address, limit).await?;
        let rpc = RpcClient::start(bus.clone(), topology::SCHEDULER, app::CTL)
            .await
            .map_err(|error| bus_error(&error, &address))?;
        Ok(Self { bus, rpc, address })
    }

    /// Says goodbye to the broker.
    pub(crate) async fn close(self) {
        self.bus.close().await;
    }
}

/// Waits for the outcome of the first try to connect.
async fn reached(bus: &dyn Bus, address: &str, limit: Duration) -> Result<(), CtlError> {
    let unreachable = |reason: String| CtlError::Unreachable {
        address: address.to_owned(),
        reason,
    };
    let mut health = bus.health();
    let known = health.wait_for(|health| {
        !matches!(
            health,
            BusHealth::Connecting {
                last_error: None,
                ..
            }
        )
    });
    match tokio::time::timeout(limit, known).await {
        Err(_) => Err(unreachable(format!(
            "no answer within {} s",
            limit.as_secs()
        ))),
        Ok(Err(_)) => Err(unreachable("the connection ended".to_owned())),
        Ok(Ok(health)) => match &*health {
            BusHealth::Connected | BusHealth::Degraded { .. } => Ok(()),
            BusHealth::Connecting { last_error, .. } => {
                Err(unreachable(last_error.clone().unwrap_or_default()))
            }
            other @ (BusHealth::Blocked { .. } | BusHealth::Closed) => {
                Err(unreachable(other.to_string()))
            }
        },
    }
}

impl Caller for Client {
    async fn call<M: Method + Sync>(
        &self,
        request: &M,
        limit: Duration,
    ) -> Result<M::Reply, CtlError> {
        let mut message = Message::new(M::NAME, M::VERSION, app::CTL, request)
            .map_err(|error| CtlError::Unsendable(error_chain(&error)))?;
        message.traceparent = Some(TraceContext::new_root().to_string());
        if is_question(M::NAME) {
            // Nobody reads a late answer to a question. A wish stays wished.
            message.expiration = Some(limit);
        }
        let answer = self
            .rpc
            .call_message(message, limit)
            .await
            .map_err(|error| rpc_error(&error, M::NAME, &self.address))?;
        let reply: Reply<M::Reply> = answer.decode().map_err(|error| CtlError::Nonsense {
            method: M::NAME,
            reason: error_chain(&error),
        })?;
        Result::from(reply).map_err(CtlError::Refused)
    }
}

/// Whether a method only asks, and changes nothing.
pub(crate) fn is_question(method: &str) -> bool {
    question::is_question(method)
        || method.ends_with(".show")
        || method.ends_with(".list")
        || method.starts_with("placement.")
}

fn bus_error(error: &BusError, address: &str) -> CtlError {
    match error {
        BusError::Config { .. } => CtlError::Usage(error_chain(error)),
        _ => CtlError::Unreachable {
            address: address.to_owned(),
            reason: error_chain(error),
        },
    }
}

fn rpc_error(error: &RpcError, method: &str, address: &str) -> CtlError {
    let address = address.to_owned();
    let reason = error_chain(error);
    let unanswered = |reason| CtlError::Unanswered {
        reason,
        fate: if is_question(method) {
            Fate::Question
        } else {
            Fate::Open {
                hint: String::new(),
            }
        },
    };
    match error {
        RpcError::Encode(_) => CtlError::Unsendable(reason),
        RpcError::Unroutable { .. } => CtlError::NoScheduler { address },
        RpcError::Publish { source, .. } => match source {
            PublishError::TooLarge { .. } | PublishError::Invalid { .. } => {
                CtlError::Unsendable(reason)
            }
            PublishError::Unroutable { .. } => CtlError::NoScheduler { address },
            PublishError::Blocked { .. } | PublishError::Refused { .. } | PublishError::Closed => {
                CtlError::Unreachable { address, reason }
            }
            PublishError::Disconnected { .. } | PublishError::Unconfirmed { .. } => {
                unanswered(reason)
            }
        },
        RpcError::NotConnected { .. } | RpcError::Closed { .. } => unanswered(reason),
        RpcError::Timeout { waited, .. } if question::is_question(method) => unanswered(format!(
            "no answer to {method} within {} s. The instance's hypervisor may have stopped just now: `berthctl host \
             list` shows how it is",
            waited.as_secs()
        )),
        RpcError::Timeout { waited, .. } => unanswered(format!(
            "no answer to {method} within {} s",
            waited.as_secs()
        )),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn asking_about_placement_changes_nothing() {
        let check = |method, expected| assert_eq!(is_question(method), expected, "{method}");
        check("host.list", true);
        check("placement.explain", true);
        check("placement.place", true);
        check("placement.capacity", true);
        check("instance.console_output", true);
        check("instance.ping_guest_agent", true);
        check("host.drain", false);
        check("aggregate.set", false);
    }

    #[test]
    fn every_failure_has_its_exit_code() {
        let check = |error: RpcError, code: u8, text: &str| {
            let error = rpc_error(&error, "instance.start", "amqp://berth@mq:5672/berth");
            assert_eq!(error.exit_code(), code, "{error}");
            assert!(error.to_string().contains(text), "{error}");
        };
        let method = || "instance.start".to_owned();
        check(
            RpcError::Unroutable {
                queue: "scheduler".to_owned(),
            },
            3,
            "amqp://berth@mq:5672/berth has no queue",
        );
        check(
            RpcError::Timeout {
                method: method(),
                waited: Duration::from_secs(5),
            },
            3,
            "no answer to instance.start within 5 s. The request may still be carried out",
        );
        let source = PublishError::TooLarge { bytes: 2, limit: 1 };
        check(
            RpcError::Publish {
                method: method(),
                source,
            },
            2,
            "over the limit of 1",
        );
        let source = PublishError::Blocked {
            reason: "low on memory".to_owned(),
        };
        check(
            RpcError::Publish {
                method: method(),
                source,
            },
            3,
            "low on memory",
        );
    }

    #[tokio::test]
    async fn a_broker_that_is_not_there_is_named_without_its_password() {
        // A port that was free a moment ago: nobody listens.
        let port = std::net::TcpListener::bind("127.0.0.1:0")
            .unwrap()
            .local_addr()
            .unwrap()
            .port();
        let url = Secret::new(format!("amqp://berth:hunter2@127.0.0.1:{port}/berth"));
        let error = Client::connect(&url, Duration::from_secs(10))
            .await
            .unwrap_err();
        assert_eq!(error.exit_code(), 3);
        assert!(
            error.to_string().contains(&format!("127.0.0.1:{port}")),
            "{error}"
        );
        assert!(!error.to_string().contains("hunter2"), "{error}");
    }

    #[tokio::test]
    async fn an_address_that_is_none_is_a_mistake_of_the_command() {
        let url = Secret::new("hunter2".to_owned());
        let error = Client::connect(&url, Duration::from_secs(10))
            .await
            .unwrap_err();
        assert_eq!(error.exit_code(), 2);
        assert!(
            error
                .to_string()
                .contains("amqp://user:password@host:5672/vhost"),
            "{error}"
        );
        assert!(!error.to_string().contains("hunter2"), "{error}");
    }
}
