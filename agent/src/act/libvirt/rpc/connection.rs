//! A handle of a connection. It may be cloned; when the last one is gone the connection is closed.

use std::sync::Arc;

use tokio::{
    net::UnixStream,
    sync::{Notify, mpsc, oneshot},
};

use super::{
    address::Address,
    error::{Ended, Error},
    link::{Answered, Order, serve},
    procedures::{self, AUTH_NONE, Procedure},
    xdr::{Pack, Reader, Unpack, Writer},
};

/// How many calls wait to be sent before callers wait.
const ORDERS: usize = 8;

/// A connection to libvirt.
#[derive(Debug, Clone)]
pub(crate) struct Connection {
    orders: mpsc::Sender<Order>,
}

impl Connection {
    /// Connects to a libvirt.
    pub(crate) async fn open(address: &Address) -> Result<Self, Error> {
        Self::over(connect(address).await?).opened().await
    }

    /// The same, and `events` is told when libvirt tells of one on this connection.
    pub(super) async fn open_for_events(
        address: &Address,
        events: Arc<Notify>,
    ) -> Result<Self, Error> {
        let socket = connect(address).await?;
        Self::served(socket, Some(events)).opened().await
    }

    /// Says what libvirt wants to hear first.
    async fn opened(self) -> Result<Self, Error> {
        let ways = self.call(&procedures::AUTH_LIST, ()).await?;
        // None at all means the same as libvirt's word for none.
        if let Some(first) = ways.first()
            && !ways.contains(&AUTH_NONE)
        {
            return Err(Error::Authentication(*first));
        }
        let question = (Some(Address::name()), 0);
        self.call(&procedures::CONNECT_OPEN, question).await?;
        Ok(self)
    }

    /// Speaks over a socket, on which nothing was said yet.
    pub(super) fn over(socket: UnixStream) -> Self {
        Self::served(socket, None)
    }

    pub(super) fn served(socket: UnixStream, events: Option<Arc<Notify>>) -> Self {
        let (orders, receiver) = mpsc::channel(ORDERS);
        tokio::spawn(serve(socket, receiver, events));
        Self { orders }
    }

    /// Waits until it has ended.
    pub(super) async fn ended(&self) {
        self.orders.closed().await;
    }

    /// Whether it can be used, as far as is known.
    pub(crate) fn is_alive(&self) -> bool {
        !self.orders.is_closed()
    }

    /// Calls a procedure, and waits for its answer.
    pub(super) async fn call<A: Pack, R: Unpack>(
        &self,
        procedure: &Procedure<A, R>,
        question: A,
    ) -> Result<R, Error> {
        let answered = self.send(procedure, &question, None).await?;
        Ok(Reader::whole(&answered.reply)?)
    }

    /// Calls a procedure that opens a stream, and waits for all that comes by it, of which there may be so much.
    pub(super) async fn download<A: Pack, R: Unpack>(
        &self,
        procedure: &Procedure<A, R>,
        question: A,
        most: usize,
    ) -> Result<(R, Vec<u8>), Error> {
        let answered = self.send(procedure, &question, Some(most)).await?;
        Ok((Reader::whole(&answered.reply)?, answered.data))
    }

    async fn send<A: Pack, R>(
        &self,
        procedure: &Procedure<A, R>,
        question: &A,
        download: Option<usize>,
    ) -> Result<Answered, Error> {
        let mut payload = Writer::default();
        question.pack(&mut payload);
        let (answer, answered) = oneshot::channel();
        let order = Order {
            program: procedure.program,
            procedure: procedure.number,
            payload: payload.finish()?,
            download,
            answer,
        };
        let lost = || Error::Lost(Ended::Closed);
        self.orders.send(order).await.map_err(|_| lost())?;
        answered.await.map_err(|_| lost())?
    }
}

/// The first socket that takes a connection. What is told of failures is what is told of the likeliest place.
async fn connect(address: &Address) -> Result<UnixStream, Error> {
    let mut nobody = None;
    for path in address.sockets() {
        match UnixStream::connect(path).await {
            Ok(socket) => return Ok(socket),
            Err(source) => {
                nobody.get_or_insert(Error::NobodyThere {
                    path: path.to_owned(),
                    source,
                });
            }
        }
    }
    // An address has a socket, so there was one to try.
    Err(nobody.unwrap_or(Error::Lost(Ended::Closed)))
}
