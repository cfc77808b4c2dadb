//! What an external tool may use, imposed between fork and exec.
//!
//! The only unsafe code of the command runner. It must stay free of allocation, locks and logging: it runs in the
//! child of a process with many threads.

#![expect(
    unsafe_code,
    reason = "a closure between fork and exec is the only place where limits bind from the start"
)]

use std::{io, os::unix::process::CommandExt, process::Command};

use nix::sys::resource::{Resource, setrlimit};

/// What a tool may use; `None` leaves the agent's own limit.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Limits {
    /// Address space, in bytes.
    pub address_space: Option<u64>,
    /// CPU time, in seconds.
    pub cpu_seconds: Option<u64>,
    /// Size of any file it writes, in bytes.
    pub file_size: Option<u64>,
}

impl Limits {
    /// Makes the child impose these limits on itself before it becomes the tool. It leaves no core file either: a
    /// core of a tool that reads images holds a tenant's data.
    pub(super) fn impose_on(self, command: &mut Command) {
        let bounds = [
            (Resource::RLIMIT_AS, self.address_space),
            (Resource::RLIMIT_CPU, self.cpu_seconds),
            (Resource::RLIMIT_FSIZE, self.file_size),
            (Resource::RLIMIT_CORE, Some(0)),
        ];
        let impose = move || -> io::Result<()> {
            for (resource, bound) in bounds {
                if let Some(bound) = bound {
                    setrlimit(resource, bound, bound)?;
                }
            }
            Ok(())
        };
        // SAFETY: the closure only calls setrlimit(2), which is async-signal-safe, on values it owns; turning its
        // errno into an `io::Error` does not allocate.
        unsafe {
            command.pre_exec(impose);
        }
    }
}
