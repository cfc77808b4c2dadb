//! Where the services of the tests are: what `scripts/test-services.sh env` says.

use std::{net::SocketAddr, path::PathBuf};

use anyhow::Context;

const ADVICE: &str = "run `scripts/test-services.sh start; eval \"$(scripts/test-services.sh env)\"` and \
                      `scripts/guest-image.sh`, or `make test`, which does";

/// The broker, the databases and the guest image.
#[derive(Debug, Clone)]
pub struct Services {
    /// The broker, without a vhost: `amqp://user:password@host:port`.
    pub amqp: String,
    /// A program that is `rabbitmqctl` for this broker.
    pub rabbitmqctl: String,
    /// `postgres://user:password@host:port/`.
    pub postgres: String,
    /// `mysql://user:password@host:port/`.
    pub mariadb: String,
    /// The guest that boots.
    pub guest_image: PathBuf,
}

impl Services {
    /// Reads the environment.
    ///
    /// # Errors
    /// A variable is missing, or the guest image; with what to do.
    pub fn from_env() -> anyhow::Result<Self> {
        let get = |name: &str| {
            std::env::var(name).with_context(|| format!("{name} is not set: {ADVICE}"))
        };
        let services = Self {
            amqp: get("BERTH_TEST_AMQP")?,
            rabbitmqctl: get("BERTH_TEST_RABBITMQCTL")?,
            postgres: get("BERTH_TEST_POSTGRES")?,
            mariadb: get("BERTH_TEST_MARIADB")?,
            guest_image: get("BERTH_TEST_GUEST_IMAGE")?.into(),
        };
        anyhow::ensure!(
            services.guest_image.is_file(),
            "there is no guest image {}: {ADVICE}",
            services.guest_image.display()
        );
        Ok(services)
    }

    /// User and password of the broker.
    ///
    /// # Errors
    /// The address has none.
    pub fn amqp_login(&self) -> anyhow::Result<&str> {
        let (login, _) = self.amqp_parts()?;
        Ok(login)
    }

    /// Address and port of the broker.
    ///
    /// # Errors
    /// The address is not one.
    pub fn amqp_socket(&self) -> anyhow::Result<SocketAddr> {
        let (_, host) = self.amqp_parts()?;
        host.parse()
            .with_context(|| format!("BERTH_TEST_AMQP has no IP address and port: {host}"))
    }

    /// Address and port of PostgreSQL.
    ///
    /// # Errors
    /// The address is not one.
    pub fn postgres_socket(&self) -> anyhow::Result<SocketAddr> {
        let (_, host) = self
            .postgres
            .trim_end_matches('/')
            .rsplit_once('@')
            .context("BERTH_TEST_POSTGRES must be postgres://user:password@address:port/")?;
        host.parse()
            .with_context(|| format!("BERTH_TEST_POSTGRES has no IP address and port: {host}"))
    }

    fn amqp_parts(&self) -> anyhow::Result<(&str, &str)> {
        self.amqp
            .strip_prefix("amqp://")
            .and_then(|rest| rest.trim_end_matches('/').split_once('@'))
            .context("BERTH_TEST_AMQP must be amqp://user:password@address:port")
    }
}
