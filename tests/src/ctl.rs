//! `berthctl` as an operator types it, at the address of one cloud.

use std::time::Duration;

use serde_json::Value;

use crate::{TestCloud, binaries, cloud::CONVERGE_LIMIT, run};

/// How long a call may take: with `--wait` it takes until the cloud has converged, and starts and asks besides.
const LIMIT: Duration = CONVERGE_LIMIT.saturating_add(run::LIMIT);

/// The program with the address of one cloud.
#[derive(Debug)]
pub struct Berthctl {
    program: String,
    url: String,
}

/// How a call ended.
#[derive(Debug)]
pub struct Outcome {
    /// The exit code.
    pub code: Option<i32>,
    /// Standard output.
    pub text: String,
    /// Standard error.
    pub error: String,
}

impl Berthctl {
    /// The one that was built with this test.
    ///
    /// # Errors
    /// It was not built.
    pub fn new(cloud: &TestCloud) -> anyhow::Result<Self> {
        Ok(Self {
            program: binaries::path("berthctl")?.display().to_string(),
            url: cloud.broker_url(),
        })
    }

    fn argv<'a>(&'a self, arguments: &[&'a str]) -> Vec<&'a str> {
        [self.program.as_str(), "--url", &self.url]
            .into_iter()
            .chain(arguments.iter().copied())
            .collect()
    }

    /// What a call prints that must succeed.
    ///
    /// # Errors
    /// It fails.
    pub async fn text(&self, arguments: &[&str]) -> anyhow::Result<String> {
        run::text_within(LIMIT, &self.argv(arguments)).await
    }

    /// The same as JSON.
    ///
    /// # Errors
    /// It fails, or prints none.
    pub async fn json(&self, arguments: &[&str]) -> anyhow::Result<Value> {
        let text = self.text(&[&["-o", "json"], arguments].concat()).await?;
        Ok(serde_json::from_str(&text)?)
    }

    /// How a call ends, whatever that is.
    ///
    /// # Errors
    /// It does not end.
    pub async fn outcome(&self, arguments: &[&str]) -> anyhow::Result<Outcome> {
        let output = run::output_within(LIMIT, &self.argv(arguments)).await?;
        Ok(Outcome {
            code: output.status.code(),
            text: String::from_utf8_lossy(&output.stdout).into_owned(),
            error: String::from_utf8_lossy(&output.stderr).into_owned(),
        })
    }

    /// Exit code and standard error of a call that must fail.
    ///
    /// # Errors
    /// It succeeds.
    pub async fn fails(&self, arguments: &[&str]) -> anyhow::Result<(Option<i32>, String)> {
        let outcome = self.outcome(arguments).await?;
        anyhow::ensure!(outcome.code != Some(0), "{arguments:?} succeeded");
        Ok((outcome.code, outcome.error))
    }
}
