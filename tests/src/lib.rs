//! The harness of the integration tests: clouds made of real processes, on hypervisors made of namespaces.
//!
//! - [`lab`] plays machines: a network of their own, hypervisors with a libvirt each, wires that can be cut.
//! - [`cloud`] runs berth on them, asks it for things, and checks at the end that nothing is left behind.
//! - [`ctl`] types what an operator types.
//! - [`broker`] shakes the message broker; [`raw`] sends what no decent client would.
//! - [`wait`] waits for conditions, and says what it saw last when one does not come.
//!
//! It tests from outside: it knows berth's messages, files and names, and calls no code of the services. What it
//! needs and does not find (a service, a binary, the guest) is a failure that says what to do, never a skip. With
//! `BERTH_TEST_KEEP` in the environment the files of a site stay, for a look at the logs.

pub mod binaries;
pub mod broker;
pub mod cloud;
pub mod ctl;
pub mod http;
pub mod image;
pub mod lab;
pub mod raw;
pub mod run;
pub mod services;
pub mod wait;

/// Prints a figure that a test measured, for whoever reads its output; nothing depends on it.
#[expect(clippy::print_stderr, reason = "the output of a test")]
pub fn figure(text: &str) {
    eprintln!("figure {text}");
}

pub use cloud::{TestCloud, builder::Builder, with_cloud};
