//! How a command asks: once, or with `--wait` until there is an answer and what was asked for is there. It knows
//! nothing of single commands.

use berth_common::message::request::Method;

use super::Context;
use crate::{
    cli::Wait,
    client::{Caller, is_question},
    error::CtlError,
    progress::{self, Progress},
    wait::{Awaited, Limits, Pace, Waited, send, until, until_all},
};

/// The requests of one command.
pub(super) struct Asking<'c, C> {
    context: &'c Context<C>,
    patience: Option<Patience>,
}

/// What `--wait` brings.
pub(super) struct Patience {
    pub(super) limits: Limits,
    pub(super) progress: Box<dyn Progress>,
}

impl<'c, C: Caller> Asking<'c, C> {
    /// As the command line says.
    pub(super) fn new(context: &'c Context<C>, wait: Wait) -> Self {
        let patience = wait.wait.then(|| Patience {
            limits: Limits::from_now(Pace::USUAL, context.timeout, wait.wait_timeout),
            progress: progress::for_output(context.output),
        });
        Self::with(context, patience)
    }

    /// With this patience; without any, every request is sent once.
    pub(super) fn with(context: &'c Context<C>, patience: Option<Patience>) -> Self {
        Self { context, patience }
    }

    /// Sends a request; with patience, until somebody answers.
    pub(super) async fn send<M: Method + Sync>(
        &mut self,
        request: &M,
    ) -> Result<M::Reply, CtlError> {
        let Some(Patience { limits, progress }) = &mut self.patience else {
            return self.context.ask(request).await;
        };
        progress.show(&format!("{}: waiting for the scheduler", M::NAME));
        tokio::select! {
            sent = send(&self.context.caller, request, *limits, &mut **progress) => sent,
            () = interrupt() => Err(interrupted(M::NAME)),
        }
    }

    /// Waits for what was accepted, if that is wanted.
    pub(super) async fn until<V: Awaited>(
        &mut self,
        accepted: V,
        goal: V::Goal,
    ) -> Result<V, CtlError> {
        let Some(Patience { limits, progress }) = &mut self.patience else {
            return Ok(accepted);
        };
        let subject = accepted.subject();
        tokio::select! {
            reached = until(&self.context.caller, accepted, goal, *limits, &mut **progress) => reached,
            () = interrupt() => Err(CtlError::Interrupted(subject)),
        }
    }

    /// The same for several instances at once.
    pub(super) async fn until_all<V: Awaited>(
        &mut self,
        accepted: Vec<V>,
        goal: V::Goal,
    ) -> Result<Vec<Waited<V>>, CtlError> {
        let Some(Patience { limits, progress }) = &mut self.patience else {
            let there = |view| Waited { view, end: Ok(()) };
            return Ok(accepted.into_iter().map(there).collect());
        };
        let instances = format!("{} instances", accepted.len());
        tokio::select! {
            ended = until_all(&self.context.caller, accepted, goal, *limits, &mut **progress) => Ok(ended),
            () = interrupt() => Err(CtlError::Interrupted(instances)),
        }
    }
}

/// What Ctrl-C before the answer means.
fn interrupted(method: &'static str) -> CtlError {
    if is_question(method) {
        CtlError::InterruptedEarly
    } else {
        CtlError::InterruptedUnanswered {
            method,
            hint: String::new(),
        }
    }
}

/// Ends with the first Ctrl-C. Where that cannot be noticed, the system's own way stays: the process ends.
async fn interrupt() {
    if tokio::signal::ctrl_c().await.is_err() {
        std::future::pending::<()>().await;
    }
}
