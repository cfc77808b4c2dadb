//! What Prometheus thinks of the pages of metrics: whatever a test did, they can be read.

use anyhow::{Context, ensure};

use super::TestCloud;
use crate::run;

impl TestCloud {
    /// Has Prometheus' own checker read the pages of scheduler and agents, as they are now.
    pub(super) async fn pages_are_sound(&self) -> anyhow::Result<()> {
        self.is_sound("scheduler", &self.scheduler.metrics().await?)
            .await?;
        for hypervisor in &self.hypervisors {
            let page = Self::agent_metrics(hypervisor).await?;
            self.is_sound(hypervisor.name(), &page).await?;
        }
        Ok(())
    }

    async fn is_sound(&self, whose: &str, page: &str) -> anyhow::Result<()> {
        let path = self.site.dir().join(format!("metrics-{whose}"));
        std::fs::write(&path, page)?;
        let file = path.to_str().context("a path that is no text")?;
        let check = "promtool check metrics <\"$0\" 2>&1";
        let output = run::output(&["sh", "-c", check, file]).await?;
        let said = String::from_utf8_lossy(&output.stdout);
        ensure!(
            output.status.success() && said.is_empty(),
            "promtool says of the metrics of {whose}: {said}\n{page}"
        );
        Ok(())
    }
}
