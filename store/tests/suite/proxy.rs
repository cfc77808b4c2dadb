//! A way to a server that can be cut: the tests share their servers, so they cannot stop them.

use std::{net::SocketAddr, sync::Arc};

use tokio::{
    io::copy_bidirectional,
    net::{TcpListener, TcpStream},
    sync::Mutex,
    task::JoinSet,
};

/// Forwards connections to a server while it is up.
pub(crate) struct Proxy {
    pub(crate) address: SocketAddr,
    server: String,
    up: Arc<Mutex<Option<JoinSet<()>>>>,
}

impl Proxy {
    pub(crate) async fn to(server: &str) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let proxy = Self {
            address,
            server: server.to_owned(),
            up: Arc::default(),
        };
        proxy.serve(listener).await;
        proxy
    }

    async fn serve(&self, listener: TcpListener) {
        let server = self.server.clone();
        let mut tasks = JoinSet::new();
        tasks.spawn(async move {
            let mut connections = JoinSet::new();
            loop {
                let (mut client, _) = listener.accept().await.unwrap();
                let mut server = TcpStream::connect(&server).await.unwrap();
                connections.spawn(async move {
                    // A connection that breaks is what this is for.
                    let _ = copy_bidirectional(&mut client, &mut server).await;
                });
            }
        });
        *self.up.lock().await = Some(tasks);
    }

    /// Cuts all connections and refuses new ones.
    pub(crate) async fn cut(&self) {
        if let Some(mut tasks) = self.up.lock().await.take() {
            tasks.shutdown().await;
        }
    }

    /// Serves again, at the same address.
    pub(crate) async fn restore(&self) {
        let listener = TcpListener::bind(self.address).await.unwrap();
        self.serve(listener).await;
    }
}
