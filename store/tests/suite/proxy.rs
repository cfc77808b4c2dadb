//! A way to a server that can be cut or fall silent: the tests share their servers, so they cannot stop them.

use std::{net::SocketAddr, sync::Arc};

use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    sync::{Mutex, watch},
    task::JoinSet,
};

use crate::database::TestDatabase;

/// Forwards connections to a server while it is up.
pub(crate) struct Proxy {
    pub(crate) address: SocketAddr,
    server: String,
    up: Arc<Mutex<Option<JoinSet<()>>>>,
    /// Whether connections that are made now forward anything.
    silent: Arc<Mutex<watch::Sender<bool>>>,
    /// The same of the silent connections of before: they stay so.
    left_silent: Mutex<Vec<watch::Sender<bool>>>,
}

impl Proxy {
    /// In front of the server of a database; with the database's address through it.
    pub(crate) async fn before(database: &TestDatabase) -> (Self, String) {
        let (scheme, rest) = database.url.split_once("://").unwrap();
        let (user, place) = rest.split_once('@').unwrap();
        let (server, name) = place.split_once('/').unwrap();
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let proxy = Self {
            address,
            server: server.to_owned(),
            up: Arc::default(),
            silent: Arc::default(),
            left_silent: Mutex::default(),
        };
        proxy.serve(listener).await;
        (proxy, format!("{scheme}://{user}@{address}/{name}"))
    }

    async fn serve(&self, listener: TcpListener) {
        let server = self.server.clone();
        let silent = Arc::clone(&self.silent);
        let mut tasks = JoinSet::new();
        tasks.spawn(async move {
            let mut connections = JoinSet::new();
            loop {
                let (client, _) = listener.accept().await.unwrap();
                let server = TcpStream::connect(&server).await.unwrap();
                let silent = silent.lock().await.subscribe();
                let (from_client, to_client) = client.into_split();
                let (from_server, to_server) = server.into_split();
                connections.spawn(async move {
                    tokio::select! {
                        () = forward(from_client, to_server, silent.clone()) => (),
                        () = forward(from_server, to_client, silent) => (),
                    }
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

    /// Swallows everything on all connections, and on new ones, without a word to either side.
    pub(crate) async fn fall_silent(&self) {
        self.silent.lock().await.send_replace(true);
    }

    /// Forwards what comes on new connections; the silent ones stay silent, and open.
    pub(crate) async fn heal(&self) {
        let fresh = watch::Sender::default();
        let old = std::mem::replace(&mut *self.silent.lock().await, fresh);
        self.left_silent.lock().await.push(old);
    }
}

/// Forwards until one side ends, but not while the connection is silent: then it neither reads nor ends.
async fn forward(
    mut from: impl AsyncRead + Unpin,
    mut to: impl AsyncWrite + Unpin,
    mut silent: watch::Receiver<bool>,
) {
    let mut buffer = vec![0; 64 * 1024];
    loop {
        // A connection that breaks is what this is for.
        let Ok(length) = from.read(&mut buffer).await else {
            return;
        };
        if silent.wait_for(|silent| !silent).await.is_err()
            || length == 0
            || to.write_all(&buffer[..length]).await.is_err()
        {
            return;
        }
    }
}
