//! How somebody reaches a guest's display and consoles: each with a command for an administrator of its host. Pure.
//!
//! None of it is open to the network: all are sockets, terminals and files of the host, which root reaches.

use berth_common::{
    message::question::{Endpoint, EndpointKind},
    names::HostName,
};

use super::domain_xml::{LiveDevices, VncAddress};

/// The local port that a viewer is told to connect to.
const VIEWER: &str = "127.0.0.1:5900";

/// What can be reached of a domain on a host.
#[must_use]
pub fn endpoints(host: &HostName, domain: &str, live: &LiveDevices) -> Vec<Endpoint> {
    let mut all: Vec<Endpoint> = live.vnc.iter().map(|vnc| display(host, vnc)).collect();
    if let Some(terminal) = &live.serial {
        all.push(Endpoint {
            kind: EndpointKind::Serial,
            address: format!("pty:{terminal}"),
            reach: format!(
                "ssh -t root@{host} virsh -c qemu:///system console {} (Ctrl-] ends it)",
                quoted(domain)
            ),
        });
    }
    if let Some(log) = &live.console_log {
        all.push(Endpoint {
            kind: EndpointKind::ConsoleLog,
            address: format!("file:{log}"),
            reach: format!(
                "ssh root@{host} {}, or `berthctl instance console`",
                quoted(&format!("cat -v {}", quoted(log)))
            ),
        });
    }
    if let Some(path) = live.guest_agent.as_ref().and_then(|it| it.path.as_ref()) {
        let ping = quoted(r#"{"execute":"guest-ping"}"#);
        let command = format!(
            "virsh -c qemu:///system qemu-agent-command {} {ping}",
            quoted(domain)
        );
        all.push(Endpoint {
            kind: EndpointKind::GuestAgent,
            address: format!("unix:{path}"),
            reach: format!("ssh root@{host} {}", quoted(&command)),
        });
    }
    all
}

fn display(host: &HostName, vnc: &VncAddress) -> Endpoint {
    let (address, remote) = match vnc {
        VncAddress::Unix(path) => (format!("unix:{path}"), path.clone()),
        VncAddress::Tcp { address, port } => {
            (format!("tcp:{address}:{port}"), format!("{address}:{port}"))
        }
    };
    let forward = quoted(&format!("{VIEWER}:{remote}"));
    Endpoint {
        kind: EndpointKind::Vnc,
        address,
        reach: format!("ssh -N -L {forward} root@{host}, then a VNC viewer at {VIEWER}"),
    }
}

/// A text as one word of a shell.
fn quoted(text: &str) -> String {
    let is_plain = |c: char| c.is_ascii_alphanumeric() || "/._-:@%+=,".contains(c);
    if !text.is_empty() && text.chars().all(is_plain) {
        text.to_owned()
    } else {
        format!("'{}'", text.replace('\'', r"'\''"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::decide::domain_xml::{AgentChannel, GuestAgentChannel};

    #[test]
    fn each_is_told_with_a_command_that_reaches_it() {
        let live = LiveDevices {
            vnc: vec![
                VncAddress::Unix("/var/lib/libvirt/qemu/domain-1/vnc.sock".to_owned()),
                VncAddress::Tcp {
                    address: "127.0.0.1".to_owned(),
                    port: 5901,
                },
            ],
            serial: Some("/dev/pts/3".to_owned()),
            console_log: Some("/srv/it's/console.log".to_owned()),
            guest_agent: Some(GuestAgentChannel {
                path: Some("/run/agent.0".to_owned()),
                state: AgentChannel::Disconnected,
            }),
        };
        let all = endpoints(&"hv1.example.org".parse().unwrap(), "berth-x", &live);
        let shown: Vec<String> = all
            .iter()
            .map(|it| format!("{} {}: {}", it.kind.as_str(), it.address, it.reach))
            .collect();
        insta::assert_snapshot!(shown.join("\n"), @r#"
        vnc unix:/var/lib/libvirt/qemu/domain-1/vnc.sock: ssh -N -L 127.0.0.1:5900:/var/lib/libvirt/qemu/domain-1/vnc.sock root@hv1.example.org, then a VNC viewer at 127.0.0.1:5900
        vnc tcp:127.0.0.1:5901: ssh -N -L 127.0.0.1:5900:127.0.0.1:5901 root@hv1.example.org, then a VNC viewer at 127.0.0.1:5900
        serial pty:/dev/pts/3: ssh -t root@hv1.example.org virsh -c qemu:///system console berth-x (Ctrl-] ends it)
        console_log file:/srv/it's/console.log: ssh root@hv1.example.org 'cat -v '\''/srv/it'\''\'\'''\''s/console.log'\''', or `berthctl instance console`
        guest_agent unix:/run/agent.0: ssh root@hv1.example.org 'virsh -c qemu:///system qemu-agent-command berth-x '\''{"execute":"guest-ping"}'\'''
        "#);
    }

    #[test]
    fn what_is_off_has_only_its_log() {
        let live = LiveDevices {
            console_log: Some("/log".to_owned()),
            guest_agent: Some(GuestAgentChannel {
                path: None,
                state: AgentChannel::Disconnected,
            }),
            ..LiveDevices::default()
        };
        let all = endpoints(&"hv1".parse().unwrap(), "berth-x", &live);
        assert_eq!(all.len(), 1);
        assert_eq!(all[0].kind, EndpointKind::ConsoleLog);
    }
}
