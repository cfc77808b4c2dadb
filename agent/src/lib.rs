//! The agent: makes one hypervisor match the documents it was sent.
//!
//! Data flows `inbox → decide → act → report`, and the folders say so:
//!
//! - [`inbox`] takes documents off `compute.<host>`, journals them on disk and only then acknowledges them.
//! - [`decide`] is pure: desired × observed → an ordered plan that is plain data.
//! - [`act`] is I/O behind narrow traits: libvirt, the kernel's network, files and images.
//! - [`ask`] answers what somebody wants to know of a guest, and nothing else.
//! - [`report`] tells the scheduler what was observed, and sends heartbeats.
//! - [`engine`] runs the loop over all of it.
//! - [`metadata_service`] is another program: it tells guests who they are, and outlives the agent.
//! - [`wiring`] joins these to an agent; [`service`] runs one on its machine, [`sim`] many on hosts in memory.
//!
//! The agent knows no database. Nothing that carries a guest's traffic is its child: it may be stopped,
//! killed or upgraded at any instant.

// Whoever waits for a future holds it, and a debug build copies it often: large ones overflow a thread's stack.
#![warn(clippy::large_futures)]

pub mod act;
pub mod ask;
pub mod config;
pub mod decide;
pub mod engine;
pub mod heap;
pub mod inbox;
pub mod metadata_service;
pub mod metrics;
pub mod preflight;
pub mod process;
pub mod report;
pub mod service;
pub mod sim;
pub mod spread;
pub mod state;
pub mod wiring;
