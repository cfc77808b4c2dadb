//! Security groups and their rules.
//!
//! A project's group `default` is made when it is first needed, in the same transaction, as Neutron does: its ports may send
//! anything, and receive from one another. Nothing lets anybody else in until somebody adds a rule.

use std::collections::{BTreeMap, BTreeSet};

use berth_common::{
    document::{EtherType, RuleDirection, RuleProtocol, RuleRemote, SecurityGroupRule},
    ids::{SecurityGroupId, SecurityGroupRuleId},
    message::security_group::{
        SecurityGroupCreate, SecurityGroupDelete, SecurityGroupList, SecurityGroupListReply,
        SecurityGroupRuleCreate, SecurityGroupRuleDelete, SecurityGroupSet, SecurityGroupView,
    },
    names::{ProjectName, SecurityGroupName},
};
use berth_store::{
    Executor, StoreError, UniqueWhat, ports,
    security_groups::{self, SecurityGroupRow, SecurityGroupRuleRow},
};
use chrono::{DateTime, Utc};
use uuid::Uuid;

use super::{ClaimError, conflict, fingerprint, invalid, not_found};
use crate::{context::Writing, report::show};

/// The most rules of a group.
pub const MAX_RULES: usize = 100;
/// The most characters of a description, as in Neutron.
const MAX_DESCRIPTION: usize = 255;
/// How many of the ports that have a group a refusal names.
const NAMED_PORTS: u64 = 5;
/// The group that ports have unless others are named.
const DEFAULT: &str = "default";

/// Creates a group whose ports may send anything.
///
/// # Errors
/// A refusal, or a failure of the database; then nothing of it may be kept.
pub async fn create(
    writing: &Writing<'_>,
    request: &SecurityGroupCreate,
) -> Result<SecurityGroupView, ClaimError> {
    check_description(&request.description)?;
    let fingerprint = fingerprint(request)?;
    let txn = writing.txn();
    if let Some(existing) = security_groups::get(txn, request.id).await? {
        if existing.fingerprint != fingerprint {
            return Err(conflict(format!(
                "security group {} exists already and was asked for with another content; use a new id for a new group",
                existing.id
            )));
        }
        return view(txn, existing).await;
    }
    if request.name.as_str() == DEFAULT {
        return Err(conflict(format!(
            "every project has a security group {DEFAULT} of its own; use it, or choose another name"
        )));
    }
    let row = SecurityGroupRow {
        id: request.id,
        project: request.project.clone(),
        name: request.name.clone(),
        description: request.description.clone(),
        fingerprint,
        created_at: writing.now,
    };
    insert(txn, &row, &first_rules(&row, None)?).await?;
    view(txn, row).await
}

async fn insert(
    db: &impl Executor,
    row: &SecurityGroupRow,
    rules: &[SecurityGroupRuleRow],
) -> Result<(), ClaimError> {
    security_groups::insert(db, row)
        .await
        .map_err(|error| name_taken(error, &row.project, &row.name))?;
    security_groups::insert_rules(db, rules).await?;
    Ok(())
}

fn name_taken(error: StoreError, project: &ProjectName, name: &SecurityGroupName) -> ClaimError {
    match error {
        StoreError::Unique {
            constraint: UniqueWhat::SecurityGroupName,
            ..
        } => conflict(format!(
            "project {project} already has a security group named {name}"
        )),
        error => error.into(),
    }
}

fn check_description(description: &str) -> Result<(), ClaimError> {
    let count = description.chars().count();
    if count > MAX_DESCRIPTION {
        return Err(invalid(format!(
            "description must be at most {MAX_DESCRIPTION} characters; got {count}"
        )));
    }
    Ok(())
}

/// The rules that a group begins with: all that is sent is allowed, and what comes from this group is received.
fn first_rules(
    group: &SecurityGroupRow,
    from: Option<SecurityGroupId>,
) -> Result<Vec<SecurityGroupRuleRow>, ClaimError> {
    let mut wanted = vec![
        (RuleDirection::Egress, EtherType::IPv4, None),
        (RuleDirection::Egress, EtherType::IPv6, None),
    ];
    if let Some(from) = from.map(RuleRemote::Group) {
        wanted.push((RuleDirection::Ingress, EtherType::IPv4, Some(from)));
        wanted.push((RuleDirection::Ingress, EtherType::IPv6, Some(from)));
    }
    (0_u8..)
        .zip(wanted)
        .map(|(number, (direction, ethertype, remote))| {
            let name = format!("rule {number}");
            let id = Uuid::new_v5(&group.id.as_uuid(), name.as_bytes());
            Ok(SecurityGroupRuleRow {
                group_id: group.id,
                rule: SecurityGroupRule {
                    id: SecurityGroupRuleId::try_from(id)
                        .map_err(|error| invalid(error.to_string()))?,
                    direction,
                    ethertype,
                    protocol: None,
                    remote,
                },
                created_at: group.created_at,
            })
        })
        .collect()
}

fn default_name() -> Result<SecurityGroupName, ClaimError> {
    DEFAULT
        .parse()
        .map_err(|error: berth_common::names::InvalidText| invalid(error.to_string()))
}

/// The group `default` of a project, which is made if it is not there.
///
/// # Errors
/// When the database fails.
pub async fn default_of(
    db: &impl Executor,
    project: &ProjectName,
    now: DateTime<Utc>,
) -> Result<SecurityGroupRow, ClaimError> {
    let name = default_name()?;
    if let Some(row) = security_groups::find_by_name(db, project, &name).await? {
        return Ok(row);
    }
    let row = SecurityGroupRow {
        id: SecurityGroupId::new(),
        project: project.clone(),
        name,
        description: "what ports have unless other groups are named".to_owned(),
        fingerprint: DEFAULT.to_owned(),
        created_at: now,
    };
    insert(db, &row, &first_rules(&row, Some(row.id))?).await?;
    tracing::info!(%project, group = %row.id, "a project has its default security group");
    Ok(row)
}

/// The group that a change names, by id or by name; the group `default` is made if it is not there.
///
/// # Errors
/// A refusal when there is none, or a failure of the database.
pub async fn resolve_or_make(
    db: &impl Executor,
    project: &ProjectName,
    group: &str,
    now: DateTime<Utc>,
) -> Result<SecurityGroupRow, ClaimError> {
    if group == DEFAULT {
        return default_of(db, project, now).await;
    }
    resolve(db, project, group).await
}

/// The group that a change would name, by id or by name; none: the group `default`, which is not there yet.
///
/// # Errors
/// A refusal when there is none, or a failure of the database.
pub async fn resolve_if_made(
    db: &impl Executor,
    project: &ProjectName,
    group: &str,
) -> Result<Option<SecurityGroupRow>, ClaimError> {
    if group == DEFAULT {
        return Ok(security_groups::find_by_name(db, project, &default_name()?).await?);
    }
    resolve(db, project, group).await.map(Some)
}

/// The group that a request names, by id or by name.
///
/// # Errors
/// A refusal when there is none, or a failure of the database.
pub async fn resolve(
    db: &impl Executor,
    project: &ProjectName,
    group: &str,
) -> Result<SecurityGroupRow, ClaimError> {
    if let Ok(id) = group.parse::<SecurityGroupId>()
        && let Some(row) = security_groups::get(db, id).await?
    {
        return Ok(row);
    }
    if let Ok(name) = group.parse::<SecurityGroupName>()
        && let Some(row) = security_groups::find_by_name(db, project, &name).await?
    {
        return Ok(row);
    }
    let shown: String = group.chars().take(80).collect();
    Err(not_found(format!(
        "project {project} has no security group {shown:?}, neither by id nor by name"
    )))
}

/// Changes what a group is called and what is said of it.
///
/// # Errors
/// A refusal, or a failure of the database; then nothing of it may be kept.
pub async fn set(
    writing: &Writing<'_>,
    request: &SecurityGroupSet,
) -> Result<SecurityGroupView, ClaimError> {
    let txn = writing.txn();
    let before =
        resolve_or_make(txn, &request.project, &request.security_group, writing.now).await?;
    let row = SecurityGroupRow {
        name: request.name.clone().unwrap_or_else(|| before.name.clone()),
        description: request
            .description
            .clone()
            .unwrap_or_else(|| before.description.clone()),
        ..before.clone()
    };
    check_description(&row.description)?;
    if row.name != before.name && (before.name.as_str() == DEFAULT || row.name.as_str() == DEFAULT)
    {
        return Err(conflict(format!(
            "the security group {DEFAULT} keeps its name, and no other gets it"
        )));
    }
    security_groups::set(txn, row.id, &row.name, &row.description)
        .await
        .map_err(|error| name_taken(error, &row.project, &row.name))?;
    view(txn, row).await
}

/// Deletes a group that no port has, and the rules of others that name it.
///
/// # Errors
/// A refusal, or a failure of the database; then nothing of it may be kept.
pub async fn delete(
    writing: &mut Writing<'_>,
    request: &SecurityGroupDelete,
) -> Result<SecurityGroupView, ClaimError> {
    let row = resolve(writing.txn(), &request.project, &request.security_group).await?;
    if row.name.as_str() == DEFAULT {
        return Err(conflict(format!(
            "the security group {DEFAULT} of project {} stays; take its rules from it instead",
            row.project
        )));
    }
    let shown = view(writing.txn(), row).await?;
    if shown.ports > 0 {
        let some = security_groups::some_ports(writing.txn(), shown.id, NAMED_PORTS).await?;
        let some = ports::of_ids(writing.txn(), &some).await?;
        let mut names: Vec<String> = some.iter().map(super::ports::called).collect();
        if shown.ports > NAMED_PORTS {
            names.push("others".to_owned());
        }
        return Err(conflict(format!(
            "security group {} is on {} ports ({}); take it from them first",
            shown.name,
            shown.ports,
            names.join(", ")
        )));
    }
    for group in security_groups::referring(writing.txn(), shown.id).await? {
        writing.touch_rules(group);
    }
    // Found out before the rules are gone.
    writing.spread().await?;
    security_groups::delete(writing.txn(), shown.id).await?;
    tracing::info!(group = %shown.id, name = %shown.name, "a security group is gone");
    Ok(shown)
}

/// Adds a rule to a group.
///
/// # Errors
/// A refusal, or a failure of the database; then nothing of it may be kept.
pub async fn create_rule(
    writing: &mut Writing<'_>,
    request: &SecurityGroupRuleCreate,
) -> Result<SecurityGroupView, ClaimError> {
    let mistakes = rule_mistakes(request);
    if !mistakes.is_empty() {
        return Err(invalid(mistakes.join("; ")));
    }
    let (txn, now) = (writing.txn(), writing.now);
    let group = resolve_or_make(txn, &request.project, &request.security_group, now).await?;
    let remote = match (&request.remote_group, request.remote_ip_prefix) {
        (Some(remote), _) => {
            let remote = resolve_or_make(txn, &request.project, remote, now).await?;
            check_project(&group, &remote)?;
            Some(RuleRemote::Group(remote.id))
        }
        (None, prefix) => prefix.map(RuleRemote::Prefix),
    };
    let row = SecurityGroupRuleRow {
        group_id: group.id,
        rule: SecurityGroupRule {
            id: request.id,
            direction: request.direction,
            ethertype: request.ethertype,
            protocol: request.protocol,
            remote,
        },
        created_at: now,
    };
    if let Some(existing) = security_groups::rule(txn, request.id).await? {
        if existing.group_id != row.group_id || existing.rule != row.rule {
            return Err(conflict(format!(
                "security group rule {} exists already and was asked for with another content; use a new id for a new \
                 rule",
                request.id
            )));
        }
        return view(txn, group).await;
    }
    let rules = security_groups::rules_of(txn, &[group.id]).await?;
    let same = rules.iter().find(|of| {
        SecurityGroupRule {
            id: row.rule.id,
            ..of.rule.clone()
        } == row.rule
    });
    if let Some(same) = same {
        return Err(conflict(format!(
            "security group {} allows that already, by rule {}",
            group.name, same.rule.id
        )));
    }
    if rules.len() >= MAX_RULES {
        return Err(conflict(format!(
            "security group {} has {MAX_RULES} rules, which is the most; take one from it first, or make another group",
            group.name
        )));
    }
    security_groups::insert_rules(txn, &[row]).await?;
    writing.touch_rules(group.id);
    view(writing.txn(), group).await
}

fn check_project(group: &SecurityGroupRow, remote: &SecurityGroupRow) -> Result<(), ClaimError> {
    if group.project == remote.project {
        return Ok(());
    }
    Err(invalid(format!(
        "security group {} is of project {}, and {} of project {}: they must be of the same",
        remote.name, remote.project, group.name, group.project
    )))
}

/// Everything that can be said of a rule without looking at any row.
fn rule_mistakes(request: &SecurityGroupRuleCreate) -> Vec<String> {
    let mut mistakes = Vec::new();
    if request.remote_ip_prefix.is_some() && request.remote_group.is_some() {
        mistakes.push("remote_ip_prefix and remote_group exclude each other".to_owned());
    }
    if let Some(prefix) = request.remote_ip_prefix {
        let is_other = match request.ethertype {
            EtherType::IPv4 => prefix.is_ipv6(),
            EtherType::IPv6 => !prefix.is_ipv6(),
        };
        if is_other {
            mistakes.push(format!(
                "remote_ip_prefix {prefix} is not of the rule's ethertype; name addresses of that, or change it"
            ));
        }
    }
    match request.protocol {
        Some(
            RuleProtocol::Tcp { ports: Some(ports) } | RuleProtocol::Udp { ports: Some(ports) },
        ) if ports.min > ports.max || ports.min == 0 => {
            mistakes.push(format!(
                "protocol.ports must be from 1 to 65535, the first not above the last; got {}:{}",
                ports.min, ports.max
            ));
        }
        Some(RuleProtocol::Icmp {
            kind: None,
            code: Some(code),
        }) => mistakes.push(format!(
            "protocol.code {code} needs protocol.type beside it"
        )),
        Some(RuleProtocol::Number { number }) => {
            let named = match number {
                6 => Some("tcp"),
                17 => Some("udp"),
                1 | 58 => Some("icmp"),
                _ => None,
            };
            if let Some(named) = named {
                mistakes.push(format!(
                    "protocol number {number} has a name: say {named}, so that one rule has one form"
                ));
            }
        }
        Some(RuleProtocol::Tcp { .. } | RuleProtocol::Udp { .. } | RuleProtocol::Icmp { .. })
        | None => {}
    }
    mistakes
}

/// Takes a rule from its group.
///
/// # Errors
/// A refusal, or a failure of the database; then nothing of it may be kept.
pub async fn delete_rule(
    writing: &mut Writing<'_>,
    request: &SecurityGroupRuleDelete,
) -> Result<SecurityGroupView, ClaimError> {
    let missing = || not_found(format!("there is no security group rule {}", request.id));
    let row = security_groups::rule(writing.txn(), request.id).await?;
    let row = row.ok_or_else(missing)?;
    let group = security_groups::get(writing.txn(), row.group_id).await?;
    let group = group.ok_or_else(missing)?;
    security_groups::delete_rule(writing.txn(), request.id).await?;
    writing.touch_rules(group.id);
    view(writing.txn(), group).await
}

/// One page of groups, by id.
///
/// # Errors
/// When the database fails.
pub async fn list(
    db: &impl Executor,
    request: &SecurityGroupList,
) -> Result<SecurityGroupListReply, ClaimError> {
    let limit = request.limit.clamp(1, 1000);
    let project = request.project.as_ref();
    let mut rows = security_groups::list(db, project, request.after, limit + 1).await?;
    let limit = usize::try_from(limit).unwrap_or(usize::MAX);
    let more = rows.len() > limit;
    rows.truncate(limit);
    let mut security_groups = views(db, rows).await?;
    let is_cut = show::cut(&mut security_groups)?;
    Ok(SecurityGroupListReply {
        security_groups,
        more: more || is_cut,
    })
}

/// One group as it is now.
///
/// # Errors
/// When the database fails.
pub async fn view(
    db: &impl Executor,
    row: SecurityGroupRow,
) -> Result<SecurityGroupView, ClaimError> {
    let id = row.id;
    let view = views(db, vec![row]).await?.pop();
    view.ok_or_else(|| not_found(format!("security group {id} is gone")))
}

async fn views(
    db: &impl Executor,
    rows: Vec<SecurityGroupRow>,
) -> Result<Vec<SecurityGroupView>, ClaimError> {
    let ids: Vec<SecurityGroupId> = rows.iter().map(|row| row.id).collect();
    let counts = security_groups::port_counts(db, &ids).await?;
    let mut rules: BTreeMap<SecurityGroupId, Vec<SecurityGroupRule>> = BTreeMap::new();
    for row in security_groups::rules_of(db, &ids).await? {
        rules.entry(row.group_id).or_default().push(row.rule);
    }
    let view = |row: SecurityGroupRow| SecurityGroupView {
        rules: rules.remove(&row.id).unwrap_or_default(),
        ports: counts.get(&row.id).copied().unwrap_or_default(),
        id: row.id,
        name: row.name,
        project: row.project,
        description: row.description,
        created_at: row.created_at,
    };
    Ok(rows.into_iter().map(view).collect())
}

/// The names of some groups.
///
/// # Errors
/// When the database fails.
pub async fn names(
    db: &impl Executor,
    ids: &BTreeSet<SecurityGroupId>,
) -> Result<BTreeMap<SecurityGroupId, SecurityGroupName>, ClaimError> {
    let ids: Vec<SecurityGroupId> = ids.iter().copied().collect();
    let rows = security_groups::of_ids(db, &ids).await?;
    Ok(rows.into_iter().map(|row| (row.id, row.name)).collect())
}
