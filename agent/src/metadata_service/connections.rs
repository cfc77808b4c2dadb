//! Connections: how many there may be, who is at the other end, and what it is told.

use std::{
    cell::{Cell, RefCell},
    collections::HashMap,
    io,
    net::{IpAddr, SocketAddr},
    rc::Rc,
    time::Duration,
};

use berth_common::ids::InstanceId;
use tokio::{
    net::{TcpListener, TcpStream},
    task::LocalSet,
    time::{Instant, sleep},
};

use super::{
    Files,
    counts::Counts,
    http::{self, Claims, Question, Response, Status},
    read_bounded,
};
use crate::decide::metadata::{GuestFiles, Sources};

/// Connections at once, of all guests of the network.
const CONNECTIONS: usize = 256;
/// Of one guest: none can take the places of all others.
const CONNECTIONS_EACH: usize = 8;
/// How large the file of a network's sources may be: some ten thousand ports.
const SOURCES_MAX: u64 = 8 << 20;
/// How large the file of an instance may be: user data twice, each byte of it escaped, and the rest.
const GUEST_MAX: u64 = 4 << 20;
/// The pause after a connection could not be accepted: there is no file descriptor left, say.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);
/// The pause between two lines in the log: a guest can ask as often as it likes.
const LOG_EVERY: Duration = Duration::from_secs(60);

/// Serves on all of the sockets; it never ends by itself.
///
/// # Errors
/// They are not sockets that connections come from.
pub(super) async fn serve(listeners: Vec<std::net::TcpListener>, files: Files) -> io::Result<()> {
    let service = Rc::new(Service {
        counts: Counts::new(files.counts.clone()),
        files,
        open: RefCell::default(),
        logged: Cell::new(None),
    });
    let local = LocalSet::new();
    let writer = Rc::clone(&service);
    local.spawn_local(async move { writer.keep_counts().await });
    for listener in listeners {
        let listener = TcpListener::from_std(listener)?;
        local.spawn_local(accept(listener, Rc::clone(&service)));
    }
    local.await;
    Ok(())
}

struct Service {
    files: Files,
    /// Who claimed to be somebody.
    counts: Counts,
    /// How many connections each address has.
    open: RefCell<HashMap<IpAddr, usize>>,
    /// When something was logged last.
    logged: Cell<Option<Instant>>,
}

/// A connection's place, given back with it.
struct Place {
    service: Rc<Service>,
    source: IpAddr,
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut open = self.service.open.borrow_mut();
        if let Some(count) = open.get_mut(&self.source) {
            *count -= 1;
            if *count == 0 {
                open.remove(&self.source);
            }
        }
    }
}

async fn accept(listener: TcpListener, service: Rc<Service>) {
    loop {
        match listener.accept().await {
            // One that gets no place is closed at once.
            Ok((stream, peer)) => {
                if let Some(place) = Service::place(&service, peer) {
                    tokio::task::spawn_local(converse(stream, place));
                }
            }
            Err(error) => {
                service.log("could not accept a connection", &error);
                sleep(ACCEPT_PAUSE).await;
            }
        }
    }
}

async fn converse(mut stream: TcpStream, place: Place) {
    // A guest that breaks off, or takes too long, has nobody to be told.
    let Ok(asked) = http::read(&mut stream).await else {
        return;
    };
    let Place { service, source } = &place;
    if asked.claims == Claims::ToBeSomebody {
        service.note_forged(*source);
    }
    let response = service.respond(*source, &asked.question);
    let _ = http::answer(&mut stream, &asked.question, &response).await;
}

impl Service {
    fn place(service: &Rc<Self>, peer: SocketAddr) -> Option<Place> {
        let source = peer.ip();
        let mut open = service.open.borrow_mut();
        let all: usize = open.values().sum();
        let own = open.entry(source).or_default();
        if all >= CONNECTIONS || *own >= CONNECTIONS_EACH {
            if *own == 0 {
                open.remove(&source);
            }
            return None;
        }
        *own += 1;
        Some(Place {
            service: Rc::clone(service),
            source,
        })
    }

    fn respond(&self, source: IpAddr, question: &Question) -> Response {
        let path = match question {
            Question::Get(path) | Question::Head(path) => path,
            Question::OtherMethod => return Response::refusal(Status::MethodNotAllowed),
            Question::Nonsense => return Response::refusal(Status::BadRequest),
            Question::TooLong => return Response::refusal(Status::TooLong),
        };
        match self.look_up(source) {
            Ok(files) => match files.and_then(|files| files.answer(path)) {
                Some(answer) => Response {
                    status: Status::Ok,
                    content_type: answer.content_type,
                    content: answer.content,
                },
                None => Response::refusal(Status::NotFound),
            },
            Err(error) => {
                self.log("could not read what a guest asked for", &error);
                Response::refusal(Status::Failed)
            }
        }
    }

    /// What the guest with this address may ask for; `None`: there is no such guest. The files are small and the host's own, so
    /// the one thread reads them itself.
    fn look_up(&self, source: IpAddr) -> io::Result<Option<GuestFiles>> {
        let Some(sources) = self.sources()? else {
            return Ok(None);
        };
        let Some(instance) = sources.get(&source) else {
            return Ok(None);
        };
        let Some(bytes) = read_bounded(&self.instance(*instance), GUEST_MAX)? else {
            return Ok(None);
        };
        Ok(Some(serde_json::from_slice(&bytes)?))
    }

    fn sources(&self) -> io::Result<Option<Sources>> {
        let bytes = read_bounded(&self.files.sources, SOURCES_MAX)?;
        Ok(bytes
            .map(|bytes| serde_json::from_slice(&bytes))
            .transpose()?)
    }

    /// Counts a request with forged headers, if it is known whose it is.
    fn note_forged(&self, source: IpAddr) {
        match self.sources() {
            Ok(sources) => {
                let sources = sources.unwrap_or_default();
                if let Some(instance) = sources.get(&source) {
                    self.counts.note(source, *instance);
                }
            }
            Err(error) => self.log(
                "could not read whose a request with forged headers is",
                &error,
            ),
        }
    }

    async fn keep_counts(&self) {
        let failed = |error: &io::Error| {
            self.log(
                "could not write how many requests had forged headers",
                error,
            );
        };
        self.counts.keep_written(|| self.sources(), failed).await;
    }

    fn instance(&self, instance: InstanceId) -> std::path::PathBuf {
        self.files.instances.join(format!("{instance}.json"))
    }

    fn log(&self, what: &str, error: &io::Error) {
        let now = Instant::now();
        let is_due = self
            .logged
            .get()
            .is_none_or(|at| now.duration_since(at) >= LOG_EVERY);
        if is_due {
            self.logged.set(Some(now));
            tracing::warn!(sources = %self.files.sources.display(), %error, "{what}");
        }
    }
}

#[cfg(test)]
mod tests;
