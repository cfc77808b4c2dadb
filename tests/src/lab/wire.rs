//! A connection that can be cut: everything of a cloud reaches the broker through it.

use std::net::SocketAddr;

use anyhow::Context;
use tokio::{
    net::{TcpListener, TcpStream},
    task::{JoinHandle, JoinSet},
};

/// A forwarder from one address to another.
#[derive(Debug)]
pub struct Wire {
    listen: SocketAddr,
    upstream: SocketAddr,
    running: Option<JoinHandle<()>>,
}

impl Wire {
    /// A wire that is not plugged in yet.
    #[must_use]
    pub fn new(listen: SocketAddr, upstream: SocketAddr) -> Self {
        Self {
            listen,
            upstream,
            running: None,
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
            self.running = Some(tokio::spawn(forward(listener, self.upstream)));
        }
        Ok(())
    }

    /// Cuts all connections and refuses new ones.
    pub async fn cut(&mut self) {
        if let Some(task) = self.running.take() {
            task.abort();
            // Ends with "cancelled"; only that it has ended matters: then listener and connections are closed.
            let _ = task.await;
        }
    }
}

impl Drop for Wire {
    fn drop(&mut self) {
        if let Some(task) = self.running.take() {
            task.abort();
        }
    }
}

async fn forward(listener: TcpListener, upstream: SocketAddr) {
    let mut connections = JoinSet::new();
    loop {
        tokio::select! {
            accepted = listener.accept() => {
                let Ok((near, _)) = accepted else { continue };
                connections.spawn(connect(near, upstream));
            }
            Some(_) = connections.join_next() => {}
        }
    }
}

async fn connect(mut near: TcpStream, upstream: SocketAddr) {
    let Ok(mut far) = TcpStream::connect(upstream).await else {
        return;
    };
    let _ = near.set_nodelay(true);
    let _ = far.set_nodelay(true);
    // However it ends, both ends are closed.
    let _ = tokio::io::copy_bidirectional(&mut near, &mut far).await;
}
