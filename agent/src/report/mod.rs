//! What the scheduler is told: the state of documents ([`reports`]), and the state of the host ([`heartbeat`]); and
//! what operators can read of it: what is used ([`usage`]).
//!
//! Nothing here changes anything on the host. [`glance`] is the one look at the whole host that both the engine
//! and the heartbeat use, so that heartbeats never wait for libvirt.

pub mod glance;
pub mod heartbeat;
pub mod reports;
pub mod usage;
