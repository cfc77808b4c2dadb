//! Decisions, as pure functions: no I/O, no clock, no async. What they return is plain data that leaves nothing
//! to choose at execution.

pub mod breaker;
pub mod config_drive;
pub mod console;
pub mod dhcp;
pub mod disk_target;
pub mod domain;
pub mod domain_xml;
pub mod endpoints;
pub mod filter;
pub mod image_cache;
pub mod image_header;
pub mod image_server;
pub mod instance;
pub mod lvm;
pub mod metadata;
pub mod names;
pub mod network;
pub mod orphan;
pub mod pool;
pub mod room;
pub mod router;
pub mod snapshot;
pub mod usage;
pub mod volume;
