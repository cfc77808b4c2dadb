//! A connection that can be cut, or go silent: everything of a cloud reaches the broker through one, and what a test
//! puts behind another.

use std::{net::SocketAddr, time::Duration};

use anyhow::Context;
use tokio::{
    net::{TcpListener, TcpStream},
    sync::watch,
    task::{JoinHandle, JoinSet},
};

use crate::wait::{Seen, wait_for_blocking};

/// How long listener and connections may take to be closed.
const CUT_LIMIT: Duration = Duration::from_secs(30);

/// A forwarder from one address to another.
#[derive(Debug)]
pub struct Wire {
    listen: SocketAddr,
    upstream: SocketAddr,
    running: Option<JoinHandle<()>>,
    silent: watch::Sender<bool>,
}

impl Wire {
    /// A wire that is not plugged in yet.
    #[must_use]
    pub fn new(listen: SocketAddr, upstream: SocketAddr) -> Self {
        Self {
            listen,
            upstream,
            running: None,
            silent: watch::Sender::new(false),
        }
    }

    /// Forwards connections from now on.
    ///
    /// # Errors
    /// The address cannot be had.
    pub async fn plug(&mut self) -> anyhow::Result<()> {
        if self.running.is_none() {
            let listener = TcpListener::bind(self.listen)
                .await
                .with_context(|| format!("cannot listen on {}", self.listen))?;
            self.silent.send_replace(false);
            self.running = Some(tokio::spawn(forward(
                listener,
                self.upstream,
                self.silent.subscribe(),
            )));
        }
        Ok(())
    }

    /// Nothing comes through any more, and nobody is told: connections stay open, as when a router on the way dies.
    /// [`Self::cut`] and [`Self::plug`] end it.
    pub fn silence(&self) {
        self.silent.send_replace(true);
    }

    /// Cuts all connections and refuses new ones.
    pub async fn cut(&mut self) {
        if let Some(task) = self.running.take() {
            task.abort();
            // Ends with "cancelled"; only that it has ended matters: then listener and connections are closed.
            let _ = task.await;
        }
    }

    /// [`Self::cut`] where nothing can be awaited.
    ///
    /// # Errors
    /// It does not end.
    pub fn cut_blocking(&mut self) -> anyhow::Result<()> {
        let Some(task) = self.running.take() else {
            return Ok(());
        };
        task.abort();
        wait_for_blocking("the wire to be cut", CUT_LIMIT, || {
            Ok(Seen::when(task.is_finished(), "it forwards"))
        })
    }
}

impl Drop for Wire {
    fn drop(&mut self) {
        if let Some(task) = self.running.take() {
            task.abort();
        }
    }
}

async fn forward(listener: TcpListener, upstream: SocketAddr, silent: watch::Receiver<bool>) {
    let mut connections = JoinSet::new();
    loop {
        tokio::select! {
            accepted = listener.accept() => {
                let Ok((near, _)) = accepted else { continue };
                connections.spawn(connect(near, upstream, silent.clone()));
            }
            Some(_) = connections.join_next() => {}
        }
    }
}

async fn connect(mut near: TcpStream, upstream: SocketAddr, mut silent: watch::Receiver<bool>) {
    let Ok(mut far) = TcpStream::connect(upstream).await else {
        return;
    };
    let _ = near.set_nodelay(true);
    let _ = far.set_nodelay(true);
    let went_silent = tokio::select! {
        biased;
        changed = silent.wait_for(|silent| *silent) => changed.is_ok(),
        // However it ends, both ends are closed.
        _ = tokio::io::copy_bidirectional(&mut near, &mut far) => false,
    };
    if went_silent {
        // Both ends stay open for as long as this task lives.
        std::future::pending::<()>().await;
    }
}
