//! Security groups, their rules, and who has them.

use std::collections::{BTreeMap, BTreeSet};

use berth_common::{
    document::{AddressPair, NetworkType, RuleProtocol, RuleRemote, SecurityGroupRule},
    ids::{HostId, NetworkId, PortId, SecurityGroupId, SecurityGroupRuleId},
    names::{IpPrefix, ProjectName, SecurityGroupName},
};
use chrono::{DateTime, Utc};
use sea_orm::{
    ActiveModelTrait, ColumnTrait, Condition, ConnectionTrait, EntityTrait, FromQueryResult,
    IntoActiveModel, QueryFilter, QueryOrder, QuerySelect, sea_query::Expr,
};

use crate::{
    bulk,
    codec::{RowReader, json, millis, prose, word},
    entity::{
        port_security_group,
        security_group::{self, Column},
        security_group_rule::{self, Column as RuleColumn},
    },
    error::{StoreError, failed},
    executor::Executor,
};

const TABLE: &str = "security_groups";
const RULES: &str = "security_group_rules";

/// A security group.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SecurityGroupRow {
    /// Its id.
    pub id: SecurityGroupId,
    /// The owner.
    pub project: ProjectName,
    /// Its name, unique in the project.
    pub name: SecurityGroupName,
    /// What it is for, for people.
    pub description: String,
    /// What the request that made it contained, to recognise its repetition.
    pub fingerprint: String,
    /// When it was asked for.
    pub created_at: DateTime<Utc>,
}

/// A rule of a group.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SecurityGroupRuleRow {
    /// The group.
    pub group_id: SecurityGroupId,
    /// What it allows; only once in the group.
    pub rule: SecurityGroupRule,
    /// When it was asked for.
    pub created_at: DateTime<Utc>,
}

fn read(model: security_group::Model) -> Result<SecurityGroupRow, StoreError> {
    let row = RowReader {
        table: TABLE,
        id: &model.id,
    };
    Ok(SecurityGroupRow {
        id: row.parsed("id", model.id.parse())?,
        project: row.parsed("project", model.project.parse())?,
        name: row.parsed("name", model.name.parse())?,
        created_at: row.time("created_at", model.created_at)?,
        description: model.description,
        fingerprint: model.fingerprint,
    })
}

fn read_rule(model: &security_group_rule::Model) -> Result<SecurityGroupRuleRow, StoreError> {
    let row = RowReader {
        table: RULES,
        id: &model.id,
    };
    let remote = match (&model.remote_prefix, &model.remote_group_id) {
        (None, None) => None,
        (Some(prefix), None) => Some(RuleRemote::Prefix(
            row.parsed("remote_prefix", prefix.parse())?,
        )),
        (None, Some(group)) => Some(RuleRemote::Group(
            row.parsed("remote_group_id", group.parse())?,
        )),
        (Some(_), Some(_)) => {
            return Err(row.corrupt("remote_prefix", "there is a remote group too"));
        }
    };
    let protocol = model.protocol.as_deref();
    Ok(SecurityGroupRuleRow {
        group_id: row.parsed("group_id", model.group_id.parse())?,
        rule: SecurityGroupRule {
            id: row.parsed("id", model.id.parse())?,
            direction: row.word("direction", &model.direction)?,
            ethertype: row.word("ethertype", &model.ethertype)?,
            protocol: protocol
                .map(|protocol| row.json("protocol", protocol))
                .transpose()?,
            remote,
        },
        created_at: row.time("created_at", model.created_at)?,
    })
}

/// All of what a rule allows in one text, the same for rules that allow the same.
fn content(rule: &SecurityGroupRule) -> Result<String, StoreError> {
    const WHAT: &str = "security_group_rules.content";
    let any = || "any".to_owned();
    let protocol = rule.protocol.map_or_else(any, |protocol| match protocol {
        RuleProtocol::Tcp { ports } => ports.map_or_else(
            || "tcp".to_owned(),
            |of| format!("tcp/{}-{}", of.min, of.max),
        ),
        RuleProtocol::Udp { ports } => ports.map_or_else(
            || "udp".to_owned(),
            |of| format!("udp/{}-{}", of.min, of.max),
        ),
        RuleProtocol::Icmp { kind, code } => match (kind, code) {
            (None, _) => "icmp".to_owned(),
            (Some(kind), None) => format!("icmp/{kind}"),
            (Some(kind), Some(code)) => format!("icmp/{kind}/{code}"),
        },
        RuleProtocol::Number { number } => format!("number/{number}"),
    });
    let remote = rule.remote.map_or_else(any, |remote| match remote {
        RuleRemote::Prefix(prefix) => prefix.to_string(),
        RuleRemote::Group(group) => group.to_string(),
    });
    Ok(format!(
        "{} {} {protocol} {remote}",
        word(WHAT, &rule.direction)?,
        word(WHAT, &rule.ethertype)?,
    ))
}

fn write_rule(row: &SecurityGroupRuleRow) -> Result<security_group_rule::Model, StoreError> {
    let rule = &row.rule;
    let (prefix, group) = match rule.remote {
        None => (None, None),
        Some(RuleRemote::Prefix(prefix)) => (Some(prefix.to_string()), None),
        Some(RuleRemote::Group(group)) => (None, Some(group.to_string())),
    };
    Ok(security_group_rule::Model {
        id: rule.id.to_string(),
        group_id: row.group_id.to_string(),
        direction: word("security_group_rules.direction", &rule.direction)?,
        ethertype: word("security_group_rules.ethertype", &rule.ethertype)?,
        protocol: rule
            .protocol
            .as_ref()
            .map(|protocol| json("security_group_rules.protocol", protocol))
            .transpose()?,
        remote_prefix: prefix,
        remote_group_id: group,
        content: content(rule)?,
        created_at: millis(row.created_at),
    })
}

/// The groups that meet a condition, in order of creation.
async fn load(db: &impl Executor, which: Condition) -> Result<Vec<SecurityGroupRow>, StoreError> {
    let models = security_group::Entity::find()
        .filter(which)
        .order_by_asc(Column::CreatedAt)
        .order_by_asc(Column::Id)
        .all(&db.handle())
        .await
        .map_err(failed(TABLE))?;
    models.into_iter().map(read).collect()
}

/// Adds a group without rules.
///
/// # Errors
/// [`StoreError::Unique`] with `Id` or `SecurityGroupName`.
pub async fn insert(db: &impl Executor, group: &SecurityGroupRow) -> Result<(), StoreError> {
    let row = security_group::Model {
        id: group.id.to_string(),
        project: group.project.to_string(),
        name: group.name.to_string(),
        description: prose(&group.description),
        fingerprint: group.fingerprint.clone(),
        created_at: millis(group.created_at),
    };
    security_group::Entity::insert(row.into_active_model().reset_all())
        .exec_without_returning(&db.handle())
        .await
        .map(drop)
        .map_err(failed("security_groups::insert"))
}

/// Adds rules to groups, all or nothing if given a transaction.
///
/// # Errors
/// [`StoreError::Unique`] with `Id` or `SecurityGroupRule`; [`StoreError::ForeignKey`] if a group does not exist.
pub async fn insert_rules(
    db: &impl Executor,
    rules: &[SecurityGroupRuleRow],
) -> Result<(), StoreError> {
    let models = rules.iter().map(write_rule).collect::<Result<_, _>>()?;
    bulk::insert(&db.handle(), "security_groups::insert_rules", models, None).await
}

/// One group.
///
/// # Errors
/// See [`StoreError`].
pub async fn get(
    db: &impl Executor,
    id: SecurityGroupId,
) -> Result<Option<SecurityGroupRow>, StoreError> {
    let which = Condition::all().add(Column::Id.eq(id.to_string()));
    Ok(load(db, which).await?.pop())
}

/// Some groups, in order of creation.
///
/// # Errors
/// See [`StoreError`].
pub async fn of_ids(
    db: &impl Executor,
    ids: &[SecurityGroupId],
) -> Result<Vec<SecurityGroupRow>, StoreError> {
    let mut groups = Vec::new();
    for ids in bulk::id_lists(ids) {
        groups.append(&mut load(db, Condition::all().add(Column::Id.is_in(ids))).await?);
    }
    Ok(groups)
}

/// The group with this name.
///
/// # Errors
/// See [`StoreError`].
pub async fn find_by_name(
    db: &impl Executor,
    project: &ProjectName,
    name: &SecurityGroupName,
) -> Result<Option<SecurityGroupRow>, StoreError> {
    let which = Condition::all()
        .add(Column::Project.eq(project.as_str()))
        .add(Column::Name.eq(name.as_str()));
    Ok(load(db, which).await?.pop())
}

/// One page of the groups of a project, or of all, by id: those after this one, at most so many.
///
/// # Errors
/// See [`StoreError`].
pub async fn list(
    db: &impl Executor,
    project: Option<&ProjectName>,
    after: Option<SecurityGroupId>,
    limit: u32,
) -> Result<Vec<SecurityGroupRow>, StoreError> {
    let models = security_group::Entity::find()
        .filter(
            Condition::all()
                .add_option(project.map(|project| Column::Project.eq(project.as_str())))
                .add_option(after.map(|after| Column::Id.gt(after.to_string()))),
        )
        .order_by_asc(Column::Id)
        .limit(u64::from(limit))
        .all(&db.handle())
        .await
        .map_err(failed("security_groups::list"))?;
    models.into_iter().map(read).collect()
}

/// Names a group, and says what it is for.
///
/// # Errors
/// [`StoreError::NotFound`] if there is no such group; [`StoreError::Unique`] with `SecurityGroupName`.
pub async fn set(
    db: &impl Executor,
    id: SecurityGroupId,
    name: &SecurityGroupName,
    description: &str,
) -> Result<(), StoreError> {
    let updated = security_group::Entity::update_many()
        .col_expr(Column::Name, Expr::value(name.as_str()))
        .col_expr(Column::Description, Expr::value(prose(description)))
        .filter(Column::Id.eq(id.to_string()))
        .exec(&db.handle())
        .await
        .map_err(failed("security_groups::set"))?;
    if updated.rows_affected == 0 {
        return Err(StoreError::NotFound {
            table: TABLE,
            id: id.to_string(),
        });
    }
    Ok(())
}

/// Deletes a group that no port has, with its rules and the rules of others that name it (`ON DELETE CASCADE`).
///
/// # Errors
/// [`StoreError::ForeignKey`] if a port has it.
pub async fn delete(db: &impl Executor, id: SecurityGroupId) -> Result<(), StoreError> {
    security_group::Entity::delete_by_id(id.to_string())
        .exec(&db.handle())
        .await
        .map(drop)
        .map_err(failed("security_groups::delete"))
}

/// One rule.
///
/// # Errors
/// See [`StoreError`].
pub async fn rule(
    db: &impl Executor,
    id: SecurityGroupRuleId,
) -> Result<Option<SecurityGroupRuleRow>, StoreError> {
    let which = Condition::all().add(RuleColumn::Id.eq(id.to_string()));
    Ok(load_rules(db, which).await?.pop())
}

/// Deletes a rule, if it is there.
///
/// # Errors
/// See [`StoreError`].
pub async fn delete_rule(db: &impl Executor, id: SecurityGroupRuleId) -> Result<(), StoreError> {
    security_group_rule::Entity::delete_by_id(id.to_string())
        .exec(&db.handle())
        .await
        .map(drop)
        .map_err(failed("security_groups::delete_rule"))
}

async fn load_rules(
    db: &impl Executor,
    which: Condition,
) -> Result<Vec<SecurityGroupRuleRow>, StoreError> {
    let models = security_group_rule::Entity::find()
        .filter(which)
        .order_by_asc(RuleColumn::CreatedAt)
        .order_by_asc(RuleColumn::Id)
        .all(&db.handle())
        .await
        .map_err(failed(RULES))?;
    models.iter().map(read_rule).collect()
}

/// The rules of some groups, in order of creation.
///
/// # Errors
/// See [`StoreError`].
pub async fn rules_of(
    db: &impl Executor,
    ids: &[SecurityGroupId],
) -> Result<Vec<SecurityGroupRuleRow>, StoreError> {
    let mut rules = Vec::new();
    for ids in bulk::id_lists(ids) {
        let which = Condition::all().add(RuleColumn::GroupId.is_in(ids));
        rules.append(&mut load_rules(db, which).await?);
    }
    Ok(rules)
}

/// The groups with a rule that names this one as remote, but for itself.
///
/// # Errors
/// See [`StoreError`].
pub async fn referring(
    db: &impl Executor,
    id: SecurityGroupId,
) -> Result<BTreeSet<SecurityGroupId>, StoreError> {
    let which = Condition::all()
        .add(RuleColumn::RemoteGroupId.eq(id.to_string()))
        .add(RuleColumn::GroupId.ne(id.to_string()));
    let rules = load_rules(db, which).await?;
    Ok(rules.into_iter().map(|row| row.group_id).collect())
}

/// How many ports each of some groups has; those without any are not listed.
///
/// # Errors
/// See [`StoreError`].
pub async fn port_counts(
    db: &impl Executor,
    ids: &[SecurityGroupId],
) -> Result<BTreeMap<SecurityGroupId, u64>, StoreError> {
    let mut counts = BTreeMap::new();
    for ids in bulk::id_lists(ids) {
        let found: Vec<(String, i64)> = port_security_group::Entity::find()
            .select_only()
            .column(port_security_group::Column::GroupId)
            .column_as(port_security_group::Column::PortId.count(), "ports")
            .filter(port_security_group::Column::GroupId.is_in(ids))
            .group_by(port_security_group::Column::GroupId)
            .into_tuple()
            .all(&db.handle())
            .await
            .map_err(failed("security_groups::port_counts"))?;
        for (id, count) in found {
            let row = RowReader {
                table: "port_security_groups",
                id: &id,
            };
            counts.insert(
                row.parsed("group_id", id.parse())?,
                row.int("count", count)?,
            );
        }
    }
    Ok(counts)
}

/// The first ports that have a group, by id, at most so many.
///
/// # Errors
/// See [`StoreError`].
pub async fn some_ports(
    db: &impl Executor,
    id: SecurityGroupId,
    limit: u64,
) -> Result<Vec<PortId>, StoreError> {
    let ids: Vec<String> = port_security_group::Entity::find()
        .select_only()
        .column(port_security_group::Column::PortId)
        .filter(port_security_group::Column::GroupId.eq(id.to_string()))
        .order_by_asc(port_security_group::Column::PortId)
        .limit(limit)
        .into_tuple()
        .all(&db.handle())
        .await
        .map_err(failed("security_groups::some_ports"))?;
    ids.iter()
        .map(|id| {
            let row = RowReader {
                table: "port_security_groups",
                id,
            };
            row.parsed("port_id", id.parse())
        })
        .collect()
}

/// A place where a document depends on a group, as stored.
#[derive(Debug, FromQueryResult)]
struct Place {
    host_id: String,
    network_id: String,
}

async fn places(
    db: &impl Executor,
    queries: impl Iterator<Item = sea_orm::Statement>,
) -> Result<BTreeSet<(HostId, NetworkId)>, StoreError> {
    let mut places = BTreeSet::new();
    for query in queries {
        let found = Place::find_by_statement(query)
            .all(&db.handle())
            .await
            .map_err(failed("security_groups::places"))?;
        for place in found {
            let row = RowReader {
                table: "claims",
                id: &place.host_id,
            };
            places.insert((
                row.parsed("host_id", place.host_id.parse())?,
                row.parsed("network_id", place.network_id.parse())?,
            ));
        }
    }
    Ok(places)
}

/// The networks on hosts that have a port with one of these groups. One query for each 256 groups.
///
/// # Errors
/// See [`StoreError`].
pub async fn places_with(
    db: &impl Executor,
    groups: &BTreeSet<SecurityGroupId>,
) -> Result<BTreeSet<(HostId, NetworkId)>, StoreError> {
    let rows = groups.iter().map(|group| [group.to_string()]).collect();
    let queries = bulk::queries_from(
        db.handle().get_database_backend(),
        ["group_id"],
        rows,
        "SELECT DISTINCT c.host_id, p.network_id \
         FROM w CROSS JOIN port_security_groups AS s CROSS JOIN ports AS p CROSS JOIN claims AS c \
         WHERE s.group_id = w.group_id AND p.id = s.port_id \
         AND c.instance_id = p.instance_id AND c.role = 'current'",
    );
    places(db, queries).await
}

/// The networks on hosts that have a port in one of these networks, with a rule that names the group beside that network as
/// remote. Of networks that reach beyond a host; in others nobody elsewhere is meant. One query for each
/// 256 pairs.
///
/// # Errors
/// See [`StoreError`].
pub async fn places_that_name(
    db: &impl Executor,
    members: &BTreeSet<(NetworkId, SecurityGroupId)>,
) -> Result<BTreeSet<(HostId, NetworkId)>, StoreError> {
    let text = format!(
        "SELECT DISTINCT c.host_id, p.network_id \
             FROM w CROSS JOIN networks AS n CROSS JOIN security_group_rules AS r \
             CROSS JOIN port_security_groups AS s CROSS JOIN ports AS p CROSS JOIN claims AS c \
             WHERE n.id = w.network_id AND n.network_type IN ({}) \
             AND r.remote_group_id = w.group_id AND s.group_id = r.group_id AND p.id = s.port_id \
             AND p.network_id = w.network_id AND c.instance_id = p.instance_id AND c.role = 'current'",
        types_that_span_hosts()
    );
    let queries = bulk::queries_from(
        db.handle().get_database_backend(),
        ["network_id", "group_id"],
        pairs(members),
        &text,
    );
    places(db, queries).await
}

/// The types of networks that reach beyond a host, as a list in SQL.
pub(crate) fn types_that_span_hosts() -> String {
    let types = [
        NetworkType::Local,
        NetworkType::Nat,
        NetworkType::Flat,
        NetworkType::Vlan,
        NetworkType::Vxlan,
    ];
    let spanning = types.into_iter().filter(|of| of.spans_hosts());
    let quoted: Vec<String> = spanning.map(|of| format!("'{}'", of.as_str())).collect();
    quoted.join(", ")
}

fn pairs(members: &BTreeSet<(NetworkId, SecurityGroupId)>) -> Vec<[String; 2]> {
    members
        .iter()
        .map(|(network, group)| [network.to_string(), group.to_string()])
        .collect()
}

/// An address of a member, as stored.
#[derive(Debug, FromQueryResult)]
struct Member {
    port_id: String,
    network_id: String,
    group_id: String,
    /// An address, or pairs as JSON.
    addresses: String,
}

/// The addresses of ports by their network and their group.
pub type Members = BTreeMap<(NetworkId, SecurityGroupId), BTreeSet<IpPrefix>>;

/// The addresses of all ports with port security, in these networks and with the group beside it: their own, and the pairs
/// they may use. Two queries for each 256 pairs.
///
/// # Errors
/// See [`StoreError`].
pub async fn members(
    db: &impl Executor,
    wanted: &BTreeSet<(NetworkId, SecurityGroupId)>,
) -> Result<Members, StoreError> {
    let backend = db.handle().get_database_backend();
    let own = bulk::queries_from(
        backend,
        ["network_id", "group_id"],
        pairs(wanted),
        "SELECT s.port_id, p.network_id, s.group_id, f.ip_address AS addresses \
         FROM w CROSS JOIN port_security_groups AS s CROSS JOIN ports AS p CROSS JOIN fixed_ips AS f \
         WHERE s.group_id = w.group_id AND p.id = s.port_id AND p.network_id = w.network_id \
         AND p.port_security_enabled AND f.port_id = p.id",
    );
    let allowed = bulk::queries_from(
        backend,
        ["network_id", "group_id"],
        pairs(wanted),
        "SELECT s.port_id, p.network_id, s.group_id, p.allowed_address_pairs AS addresses \
         FROM w CROSS JOIN port_security_groups AS s CROSS JOIN ports AS p \
         WHERE s.group_id = w.group_id AND p.id = s.port_id AND p.network_id = w.network_id \
         AND p.port_security_enabled AND p.allowed_address_pairs IS NOT NULL",
    );
    let mut members = Members::new();
    for query in own {
        for found in find_members(db, query).await? {
            let row = found.row();
            let address: IpPrefix = row.parsed("ip_address", found.addresses.parse())?;
            members.entry(found.key()?).or_default().insert(address);
        }
    }
    for query in allowed {
        for found in find_members(db, query).await? {
            let row = found.row();
            let pairs: Vec<AddressPair> = row.json("allowed_address_pairs", &found.addresses)?;
            let addresses = pairs.into_iter().map(|pair| pair.ip_address);
            members.entry(found.key()?).or_default().extend(addresses);
        }
    }
    Ok(members)
}

impl Member {
    const fn row(&self) -> RowReader<'_> {
        RowReader {
            table: "ports",
            id: self.port_id.as_str(),
        }
    }

    fn key(&self) -> Result<(NetworkId, SecurityGroupId), StoreError> {
        let row = self.row();
        Ok((
            row.parsed("network_id", self.network_id.parse())?,
            row.parsed("group_id", self.group_id.parse())?,
        ))
    }
}

async fn find_members(
    db: &impl Executor,
    query: sea_orm::Statement,
) -> Result<Vec<Member>, StoreError> {
    Member::find_by_statement(query)
        .all(&db.handle())
        .await
        .map_err(failed("security_groups::members"))
}
