//! Health and figures of the agents, and their restarts.

use std::time::Duration;

use super::TestCloud;
use crate::{
    http,
    lab::Hypervisor,
    wait::{Seen, wait_for},
};

const START_LIMIT: Duration = Duration::from_secs(30);

impl TestCloud {
    /// Waits until an agent's `/healthz` says ok.
    ///
    /// # Errors
    /// It does not in time.
    pub async fn wait_agent_healthy(&self, hypervisor: &Hypervisor) -> anyhow::Result<()> {
        wait_for(
            &format!("the agent of {} to be well", hypervisor.name()),
            START_LIMIT,
            async || {
                let (status, body) = Self::agent_healthz(hypervisor).await?;
                Ok(Seen::when(status == 200, body))
            },
        )
        .await
    }

    /// Status and body of an agent's `/healthz`.
    ///
    /// # Errors
    /// It does not answer.
    pub async fn agent_healthz(hypervisor: &Hypervisor) -> anyhow::Result<(u16, String)> {
        http::get(hypervisor.telemetry(), "/healthz").await
    }

    /// The text of an agent's `/metrics`.
    ///
    /// # Errors
    /// It does not answer.
    pub async fn agent_metrics(hypervisor: &Hypervisor) -> anyhow::Result<String> {
        Ok(http::get(hypervisor.telemetry(), "/metrics").await?.1)
    }
}
