//! What the commands on security groups ask for.

use berth_common::document::{EtherType, PortRange, RuleDirection, RuleProtocol};

use super::*;
use crate::{
    cli::Command,
    testing::{self, Play, security_group as web},
};

fn asked_for(line: &str) -> Result<SecurityGroupRuleCreate, CtlError> {
    let line = format!("security-group rule create web {line}");
    let Command::SecurityGroup(SecurityGroup::Rule(SecurityGroupRuleCommand::Create(arguments))) =
        testing::parsed(&line).command
    else {
        panic!("{line}");
    };
    rule_request(arguments, ProjectName::default())
}

#[test]
fn a_command_line_says_all_of_a_rule() {
    let ssh = asked_for("--protocol tcp --dst-port 22 --remote-ip 10.0.0.0/8").unwrap();
    assert_eq!(
        (ssh.direction, ssh.ethertype, ssh.protocol),
        (
            RuleDirection::Ingress,
            EtherType::IPv4,
            Some(RuleProtocol::Tcp {
                ports: Some(PortRange { min: 22, max: 22 })
            })
        )
    );
    let out = asked_for("--egress --protocol udp --dst-port 1:100 --remote-ip fd00::/8").unwrap();
    assert_eq!(
        (out.direction, out.ethertype),
        (RuleDirection::Egress, EtherType::IPv6)
    );
    let ping = asked_for("--ethertype ipv6 --protocol icmp --icmp-type 128 --icmp-code 0").unwrap();
    assert_eq!(
        ping.protocol,
        Some(RuleProtocol::Icmp {
            kind: Some(128),
            code: Some(0)
        })
    );
    assert_eq!(ping.ethertype, EtherType::IPv6);
    assert_eq!(
        asked_for("--protocol 47").unwrap().protocol,
        Some(RuleProtocol::Number { number: 47 })
    );
    let any = asked_for("--remote-group web").unwrap();
    assert_eq!(
        (any.protocol, any.remote_group),
        (None, Some("web".to_owned()))
    );
    for wrong in [
        "--dst-port 22",
        "--protocol icmp --dst-port 22",
        "--protocol tcp --icmp-type 8",
        "--icmp-type 8",
    ] {
        assert_eq!(asked_for(wrong).unwrap_err().exit_code(), 2, "{wrong}");
    }
}

#[tokio::test]
async fn a_security_group_is_deleted_by_its_id() {
    let script = [Play::view(&web()), Play::Refuse(RefusalCode::NotFound)];
    let context = testing::context(Some("lab"), script);
    assert_eq!(delete(&context, "web".to_owned()).await.unwrap(), web());
    assert_eq!(
        *context.caller.asked.borrow(),
        [
            "security_group.show web".to_owned(),
            format!("security_group.delete {}", web().id)
        ]
    );
}
