//! A shell in a guest, on its serial console.

use std::{
    io::{Read, Write},
    os::unix::fs::OpenOptionsExt,
};

use super::*;

/// The guest's serial console, where it has a shell. While nobody has it open, QEMU takes nothing from it; what comes from it is
/// in the console's log as well.
pub(super) struct Shell<'a> {
    config: &'a DomainConfig,
    terminal: fs::File,
}

impl<'a> Shell<'a> {
    pub(super) fn open(hypervisor: &Hypervisor, config: &'a DomainConfig) -> Self {
        let tty = hypervisor.virsh(&["ttyconsole", &names::domain(config.id)]);
        let terminal = fs::OpenOptions::new()
            .read(true)
            .write(true)
            .custom_flags(nix::libc::O_NOCTTY)
            .open(tty.trim())
            .unwrap();
        let mut output = terminal.try_clone().unwrap();
        // Until QEMU ends. What nobody reads would hold up the guest.
        thread::spawn(move || {
            let mut buffer = [0; 4096];
            while output.read(&mut buffer).is_ok_and(|count| count > 0) {}
        });
        Self { config, terminal }
    }

    pub(super) fn type_line(&self, line: &str) {
        let line = format!("{line}\n");
        (&self.terminal).write_all(line.as_bytes()).unwrap();
    }

    /// What a command prints, if it does in time. The end of the answer is put together by the guest, so that the echo of what was
    /// typed is not taken for one.
    pub(super) fn ask(&self, command: &str) -> Option<String> {
        let before = console(self.config).len();
        self.type_line(&format!("echo \"<<$({command})>\"\">\""));
        let limit = Instant::now() + Duration::from_secs(5);
        while Instant::now() < limit {
            let seen = console(self.config).split_off(before);
            let answer = seen.rsplit_once(">>").and_then(|(text, _)| {
                let (_, answer) = text.rsplit_once("<<")?;
                Some(answer.trim().to_owned())
            });
            if answer.is_some() {
                return answer;
            }
            thread::sleep(Duration::from_millis(50));
        }
        None
    }

    /// Types a command until what it prints has this in it.
    pub(super) fn expect(&self, command: &str, part: &str) {
        wait_for(&format!("{part:?} of {command:?}"), || {
            match self.ask(command) {
                Some(answer) if answer.contains(part) => Ok(()),
                answer => Err(format!("{answer:?}")),
            }
        });
    }

    /// What the guest calls the NIC with this address.
    pub(super) fn interface(&self, mac: MacAddress) -> String {
        let command = format!("cd /sys/class/net; grep -l {mac} */address");
        wait_for("a NIC with this address", || match self.ask(&command) {
            Some(answer) if answer.ends_with("/address") => {
                Ok(answer.trim_end_matches("/address").to_owned())
            }
            answer => Err(format!("{answer:?}")),
        })
    }
}
