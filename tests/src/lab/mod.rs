//! Machines to play with: [`site`] is the cable and the room, [`hypervisor`] a machine in it, [`outside`] one that is none of the
//! cloud's, [`wire`] a connection that can be cut, [`service`] a process under test. Knows nothing of what runs on top.

pub mod hypervisor;
pub mod outside;
pub mod service;
pub mod site;
pub mod wire;

pub use hypervisor::{Hypervisor, Libvirtd};
pub use outside::Outside;
pub use service::Service;
pub use site::Site;
pub use wire::Wire;
