//! Listens to what libvirt tells of domains, on a connection that does nothing else, and says that there was something.
//!
//! ```text
//!   connect ──▶ ask to be told ──▶ listen ──(libvirt is asked now and then whether it is there)──┐
//!      ▲                                                                                         │
//!      └── a pause: 1 s, 2 s, 4 s, 8 s, 10 s ◀── it ended, libvirt refused, nobody is there ◀────┘
//! ```
//!
//! What happened, and to which domain, is not read: whoever is told looks at all of them. Nothing may depend on it: events are lost
//! with their connection, and libvirt has told of none before it was asked to.

use std::{convert::Infallible, sync::Arc, time::Duration};

use berth_common::telemetry::error_chain;
use tokio::{
    sync::Notify,
    time::{Instant, sleep},
};

use super::{address::Address, connection::Connection, error::Error, procedures::EVENTS};

/// The pause after a connection that ended; doubled with each further one.
const FIRST_PAUSE: Duration = Duration::from_secs(1);
/// The longest pause. A look at the host is made as often anyway.
pub(super) const LONGEST_PAUSE: Duration = Duration::from_secs(10);
/// How long a connection must have been open to count as one that works.
const SETTLED: Duration = Duration::from_secs(30);
/// How often libvirt is asked whether it is there: one that hangs, or is dead and not buried, closes nothing.
pub(super) const ASK_EVERY: Duration = Duration::from_secs(30);

/// Listens, and connects again when it has to. Never ends.
pub(crate) async fn listen(address: &Address, events: &Arc<Notify>) {
    let mut pause = FIRST_PAUSE;
    loop {
        let begun = Instant::now();
        let Err(error) = hear(address, events).await;
        if begun.elapsed() >= SETTLED {
            pause = FIRST_PAUSE;
        }
        if pause == FIRST_PAUSE {
            tracing::info!(
                %address, error = %error_chain(&error),
                "libvirt's events are not heard; until they are, what happens to a domain is seen by the regular look"
            );
        }
        sleep(pause).await;
        pause = (pause * 2).min(LONGEST_PAUSE);
    }
}

/// Listens until that ends, and answers why.
async fn hear(address: &Address, events: &Arc<Notify>) -> Result<Infallible, Error> {
    let connection = Connection::open_for_events(address, Arc::clone(events)).await?;
    for event in EVENTS {
        connection.domain_event_register_any(*event).await?;
    }
    tracing::info!(%address, "libvirt's events are heard");
    // Of what happened before, nobody was told.
    events.notify_one();
    loop {
        tokio::select! {
            () = sleep(ASK_EVERY) => {}
            () = connection.ended() => {}
        }
        // Of one that has ended, this tells it.
        connection.get_lib_version().await?;
    }
}
