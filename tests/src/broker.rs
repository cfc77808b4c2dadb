//! A vhost of its own for each cloud, and what can be done to it.

use std::sync::atomic::{AtomicBool, Ordering};

use crate::{run, services::Services};

/// A vhost that goes with its cloud.
#[derive(Debug)]
pub struct Vhost {
    name: String,
    rabbitmqctl: String,
    user: String,
    exists: AtomicBool,
}

impl Vhost {
    /// A vhost with this name, empty; one left over from a test that was killed goes first.
    ///
    /// # Errors
    /// The broker does not answer.
    pub async fn create(services: &Services, name: &str) -> anyhow::Result<Self> {
        let user = services
            .amqp_login()?
            .split(':')
            .next()
            .unwrap_or_default()
            .to_owned();
        let vhost = Self {
            name: name.to_owned(),
            rabbitmqctl: services.rabbitmqctl.clone(),
            user,
            exists: AtomicBool::new(false),
        };
        let known = vhost.ctl(&["list_vhosts"]).await?;
        if known.lines().any(|line| line == name) {
            vhost.ctl(&["delete_vhost", name]).await?;
        }
        vhost.add().await?;
        Ok(vhost)
    }

    /// Its name.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Makes it (again).
    ///
    /// # Errors
    /// The broker does not answer.
    pub async fn add(&self) -> anyhow::Result<()> {
        self.ctl(&["add_vhost", &self.name]).await?;
        self.exists.store(true, Ordering::SeqCst);
        self.ctl(&[
            "set_permissions",
            "-p",
            &self.name,
            &self.user,
            ".*",
            ".*",
            ".*",
        ])
        .await?;
        Ok(())
    }

    /// Deletes it with every queue and message, and every connection to it.
    ///
    /// # Errors
    /// The broker does not answer.
    pub async fn delete(&self) -> anyhow::Result<()> {
        self.ctl(&["delete_vhost", &self.name]).await?;
        self.exists.store(false, Ordering::SeqCst);
        Ok(())
    }

    /// The names of its queues.
    ///
    /// # Errors
    /// The broker does not answer.
    pub async fn queues(&self) -> anyhow::Result<Vec<String>> {
        let text = self.ctl(&["list_queues", "-p", &self.name, "name"]).await?;
        Ok(text
            .lines()
            .filter(|line| *line != "name")
            .map(str::to_owned)
            .collect())
    }

    async fn ctl(&self, arguments: &[&str]) -> anyhow::Result<String> {
        let argv: Vec<&str> = [self.rabbitmqctl.as_str(), "-q"]
            .into_iter()
            .chain(arguments.iter().copied())
            .collect();
        run::text(&argv).await
    }

    /// Deletes it for good, if it is there: before the site's number is free, since the next site of that number has
    /// a vhost of the same name.
    ///
    /// # Errors
    /// The broker does not answer.
    pub fn remove(&mut self) -> anyhow::Result<()> {
        if self.exists.swap(false, Ordering::SeqCst) {
            run::text_blocking(&[&self.rabbitmqctl, "-q", "delete_vhost", &self.name])?;
        }
        Ok(())
    }
}

impl Drop for Vhost {
    fn drop(&mut self) {
        // A leftover is deleted by the next test that gets this name.
        let _ = self.remove();
    }
}
