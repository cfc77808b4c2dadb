//! Requests about security groups and their replies.

use chrono::{DateTime, Utc};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::request::default_page;
use crate::{
    document::{EtherType, RuleDirection, RuleProtocol, SecurityGroupRule},
    ids::{SecurityGroupId, SecurityGroupRuleId},
    names::{IpPrefix, ProjectName, SecurityGroupName},
};

/// Create a security group. As in Neutron it begins with two rules: its ports may send anything, over IPv4 and IPv6.
/// Idempotent on its id, as instances are.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct SecurityGroupCreate {
    /// Chosen by the client.
    pub id: SecurityGroupId,
    /// Its name, unique in the project. Every project has one named `default`, made when it is first needed.
    pub name: SecurityGroupName,
    /// The owner.
    #[serde(default)]
    pub project: ProjectName,
    /// What it is for, at most 255 characters.
    #[serde(default)]
    pub description: String,
}

/// Change what a security group is called and what is said of it. What is not named stays.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
pub struct SecurityGroupSet {
    /// Id, or name within the project, of the security group.
    pub security_group: String,
    /// The project a name is looked up in.
    #[serde(default)]
    pub project: ProjectName,
    /// Its name. The group `default` keeps its own.
    #[serde(default)]
    pub name: Option<SecurityGroupName>,
    /// What it is for, at most 255 characters.
    #[serde(default)]
    pub description: Option<String>,
}

/// Delete a security group that no port has, with its rules and those of other groups that name it. The group `default` stays.
/// Deleting one that is not there is refused.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct SecurityGroupDelete {
    /// Id, or name within the project, of the security group.
    pub security_group: String,
    /// The project a name is looked up in.
    #[serde(default)]
    pub project: ProjectName,
}

/// Show one security group.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct SecurityGroupShow {
    /// Id, or name within the project, of the security group.
    pub security_group: String,
    /// The project a name is looked up in.
    #[serde(default)]
    pub project: ProjectName,
}

/// List security groups, by id.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct SecurityGroupList {
    /// Only this project's; null: all.
    #[serde(default)]
    pub project: Option<ProjectName>,
    /// Only after the group with this id, for the next page.
    #[serde(default)]
    pub after: Option<SecurityGroupId>,
    /// At most so many, 1 to 1000.
    #[serde(default = "default_page")]
    pub limit: u32,
}

/// One page of security groups.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct SecurityGroupListReply {
    /// The groups.
    pub security_groups: Vec<SecurityGroupView>,
    /// Whether more follow.
    pub more: bool,
}

/// Add a rule to a security group, which has at most 100. A rule that it has already, under another id, is refused. Idempotent
/// on its id, as instances are.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct SecurityGroupRuleCreate {
    /// Chosen by the client.
    pub id: SecurityGroupRuleId,
    /// Id, or name within the project, of the security group.
    pub security_group: String,
    /// The project names are looked up in.
    #[serde(default)]
    pub project: ProjectName,
    /// Seen from the guest.
    pub direction: RuleDirection,
    /// Of which protocol its packets are.
    pub ethertype: EtherType,
    /// Of which protocol above IP; null: any.
    #[serde(default)]
    pub protocol: Option<RuleProtocol>,
    /// Where from, or where to; null: anywhere, unless a group is named.
    #[serde(default)]
    pub remote_ip_prefix: Option<IpPrefix>,
    /// Id, or name within the project, of a group: from its ports, or to them.
    #[serde(default)]
    pub remote_group: Option<String>,
}

/// Take a rule from its security group. Taking one that is not there is refused.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct SecurityGroupRuleDelete {
    /// The rule.
    pub id: SecurityGroupRuleId,
}

/// A security group as it is now.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct SecurityGroupView {
    /// Its id.
    pub id: SecurityGroupId,
    /// Its name.
    pub name: SecurityGroupName,
    /// Its owner.
    pub project: ProjectName,
    /// What it is for.
    pub description: String,
    /// Its rules, in order of creation.
    pub rules: Vec<SecurityGroupRule>,
    /// How many ports have it.
    pub ports: u64,
    /// When it was asked for.
    pub created_at: DateTime<Utc>,
}

/// A security group that a port has.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct SecurityGroupRef {
    /// Its id.
    pub id: SecurityGroupId,
    /// Its name.
    pub name: SecurityGroupName,
}
