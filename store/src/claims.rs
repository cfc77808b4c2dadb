//! Claims: what instances take of hosts. Usage is the sum of these rows, never a counter.

use std::collections::BTreeMap;

use berth_common::{
    ids::{HostId, InstanceId, ServerGroupId},
    message::{report::ConvergeStatus, view::Resources},
    names::{ProjectName, ResourceClass},
};
use sea_orm::{
    ActiveModelTrait, ColumnTrait, Condition, ConnectionTrait, EntityTrait, FromQueryResult,
    IntoActiveModel, JoinType, QueryFilter, QueryOrder, QuerySelect, RelationDef,
};

use crate::{
    bulk,
    codec::{self, Amounts, RowReader},
    entity::{claim, instance},
    error::{StoreError, failed},
    executor::{Executor, scope},
};

/// Why an instance takes something of a host.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum ClaimRole {
    /// It is there.
    Current,
    /// It is moving there.
    Incoming,
}

impl ClaimRole {
    /// The name in the database.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Current => "current",
            Self::Incoming => "incoming",
        }
    }

    fn from_name(name: &str) -> Result<Self, String> {
        let mut roles = [Self::Current, Self::Incoming].into_iter();
        roles
            .find(|role| role.as_str() == name)
            .ok_or_else(|| format!("{name:?} is not a role"))
    }
}

/// What one instance takes of one host in one role; unique by these three.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ClaimRow {
    /// The instance, the claim's owner.
    pub instance_id: InstanceId,
    /// The host.
    pub host_id: HostId,
    /// Why.
    pub role: ClaimRole,
    /// How much.
    pub resources: Resources,
    /// The instance's owner.
    pub project: ProjectName,
    /// Countable resources besides, each at least 1.
    pub extra: BTreeMap<ResourceClass, u64>,
}

/// A claim with what decides about the neighbours of its owner.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct GroupedClaim {
    /// The claim.
    pub claim: ClaimRow,
    /// The server group of its instance.
    pub server_group_id: Option<ServerGroupId>,
    /// Whether the host has yet to build the instance, and has not given it up.
    pub is_building: bool,
}

/// The primary key of a claim: where a page ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ClaimKey {
    /// The instance.
    pub instance_id: InstanceId,
    /// The host.
    pub host_id: HostId,
    /// Why.
    pub role: ClaimRole,
}

impl ClaimRow {
    /// Its primary key.
    #[must_use]
    pub const fn key(&self) -> ClaimKey {
        ClaimKey {
            instance_id: self.instance_id,
            host_id: self.host_id,
            role: self.role,
        }
    }
}

fn read(model: claim::Model) -> Result<ClaimRow, StoreError> {
    let id = format!("{}/{}/{}", model.instance_id, model.host_id, model.role);
    let row = RowReader {
        table: "claims",
        id: &id,
    };
    let amounts = Amounts {
        vcpus: model.vcpus,
        memory_mb: model.memory_mb,
        disk_gb: model.disk_gb,
    };
    Ok(ClaimRow {
        instance_id: row.parsed("instance_id", model.instance_id.parse())?,
        host_id: row.parsed("host_id", model.host_id.parse())?,
        role: row.parsed("role", ClaimRole::from_name(&model.role))?,
        resources: row.amounts("resources", &amounts)?,
        project: row.parsed("project", ProjectName::try_from(model.project))?,
        extra: row.opt_json("extra", model.extra.as_deref())?,
    })
}

async fn load(db: &impl Executor, which: Condition) -> Result<Vec<ClaimRow>, StoreError> {
    let models = claim::Entity::find()
        .filter(which)
        .order_by_asc(claim::Column::HostId)
        .order_by_asc(claim::Column::InstanceId)
        .order_by_asc(claim::Column::Role)
        .all(&db.handle())
        .await
        .map_err(failed("claims"))?;
    models.into_iter().map(read).collect()
}

fn write(claim: &ClaimRow) -> Result<claim::Model, StoreError> {
    let amounts = codec::amounts("claims.resources", claim.resources)?;
    Ok(claim::Model {
        instance_id: claim.instance_id.to_string(),
        host_id: claim.host_id.to_string(),
        role: claim.role.as_str().to_owned(),
        vcpus: amounts.vcpus,
        memory_mb: amounts.memory_mb,
        disk_gb: amounts.disk_gb,
        project: claim.project.to_string(),
        extra: codec::opt_json("claims.extra", &claim.extra)?,
    })
}

/// Adds a claim.
///
/// # Errors
/// [`StoreError::Unique`] with `Id` if it is there; [`StoreError::ForeignKey`] if instance or host do not exist.
pub async fn insert(db: &impl Executor, claim: &ClaimRow) -> Result<(), StoreError> {
    claim::Entity::insert(write(claim)?.into_active_model().reset_all())
        .exec_without_returning(&db.handle())
        .await
        .map(drop)
        .map_err(failed("claims::insert"))
}

/// Adds claims, all or nothing.
///
/// # Errors
/// As [`insert`], without saying which.
pub async fn insert_many(db: &impl Executor, claims: &[ClaimRow]) -> Result<(), StoreError> {
    let models = claims.iter().map(write).collect::<Result<_, _>>()?;
    let scope = scope(db).await?;
    bulk::insert(&scope.handle(), "claims::insert_many", models, None).await?;
    scope.finish().await
}

/// The claims of an instance.
///
/// # Errors
/// See [`StoreError`].
pub async fn of_instance(db: &impl Executor, id: InstanceId) -> Result<Vec<ClaimRow>, StoreError> {
    load(
        db,
        Condition::all().add(claim::Column::InstanceId.eq(id.to_string())),
    )
    .await
}

/// The claims of some instances.
///
/// # Errors
/// See [`StoreError`].
pub async fn of_instances(
    db: &impl Executor,
    ids: &[InstanceId],
) -> Result<Vec<ClaimRow>, StoreError> {
    let mut claims = Vec::new();
    for ids in bulk::id_lists(ids) {
        let which = Condition::all().add(claim::Column::InstanceId.is_in(ids));
        claims.append(&mut load(db, which).await?);
    }
    Ok(claims)
}

/// The claims on some hosts.
///
/// # Errors
/// See [`StoreError`].
pub async fn of_hosts(db: &impl Executor, ids: &[HostId]) -> Result<Vec<ClaimRow>, StoreError> {
    let mut claims = Vec::new();
    for ids in bulk::id_lists(ids) {
        let which = Condition::all().add(claim::Column::HostId.is_in(ids));
        claims.append(&mut load(db, which).await?);
    }
    Ok(claims)
}

/// All claims with the server groups of their instances, page by page in the order of the primary key: at most `limit`
/// after the one given. One query, which reads nothing but the page.
///
/// Pages are no snapshot. Whoever writes alone, as the leader does, or reads all pages in one transaction of the
/// leader, sees all claims as they are.
///
/// # Errors
/// See [`StoreError`].
pub async fn page_with_groups(
    db: &impl Executor,
    after: Option<ClaimKey>,
    limit: u32,
) -> Result<Vec<GroupedClaim>, StoreError> {
    let instance: RelationDef = claim::Entity::belongs_to(instance::Entity)
        .from(claim::Column::InstanceId)
        .to(instance::Column::Id)
        .into();
    let rows = claim::Entity::find()
        .join(JoinType::InnerJoin, instance)
        .column(instance::Column::ServerGroupId)
        .column(instance::Column::ObservedWasActive)
        .column(instance::Column::ObservedStatus)
        .filter(Condition::all().add_option(after.map(is_after)))
        .order_by_asc(claim::Column::InstanceId)
        .order_by_asc(claim::Column::HostId)
        .order_by_asc(claim::Column::Role)
        .limit(u64::from(limit))
        .into_model::<Grouped>()
        .all(&db.handle())
        .await
        .map_err(failed("claims::page_with_groups"))?;
    rows.into_iter().map(read_grouped).collect()
}

/// A claim and a column of its instance, as stored.
#[derive(Debug, FromQueryResult)]
struct Grouped {
    #[sea_orm(nested)]
    claim: claim::Model,
    server_group_id: Option<String>,
    observed_was_active: bool,
    observed_status: Option<String>,
}

fn read_grouped(grouped: Grouped) -> Result<GroupedClaim, StoreError> {
    let row = RowReader {
        table: "instances",
        id: &grouped.claim.instance_id,
    };
    let server_group_id = grouped
        .server_group_id
        .map(|id| row.parsed("server_group_id", id.parse()))
        .transpose()?;
    let status: Option<ConvergeStatus> = grouped
        .observed_status
        .map(|status| row.word("observed_status", &status))
        .transpose()?;
    Ok(GroupedClaim {
        claim: read(grouped.claim)?,
        server_group_id,
        is_building: !grouped.observed_was_active && status != Some(ConvergeStatus::Failed),
    })
}

/// The condition for what follows a claim. The first part alone is what the index is searched by.
fn is_after(key: ClaimKey) -> Condition {
    let (instance, host) = (key.instance_id.to_string(), key.host_id.to_string());
    let later_role = Condition::all()
        .add(claim::Column::HostId.eq(&host))
        .add(claim::Column::Role.gt(key.role.as_str()));
    let later_claim = Condition::any()
        .add(claim::Column::InstanceId.gt(&instance))
        .add(claim::Column::HostId.gt(&host))
        .add(later_role);
    Condition::all()
        .add(claim::Column::InstanceId.gte(&instance))
        .add(later_claim)
}

/// Deletes the claims of an instance.
///
/// # Errors
/// See [`StoreError`].
pub async fn delete_of_instance(db: &impl Executor, id: InstanceId) -> Result<(), StoreError> {
    delete_where_instance(&db.handle(), id).await
}

pub(crate) async fn delete_where_instance(
    connection: &impl ConnectionTrait,
    id: InstanceId,
) -> Result<(), StoreError> {
    claim::Entity::delete_many()
        .filter(claim::Column::InstanceId.eq(id.to_string()))
        .exec(connection)
        .await
        .map(drop)
        .map_err(failed("claims::delete_of_instance"))
}
