//! Claims: what instances take of hosts. Usage is the sum of these rows, never a counter.

use berth_common::{
    ids::{HostId, InstanceId},
    message::view::Resources,
    names::ProjectName,
};
use sea_orm::{
    ActiveModelTrait, ColumnTrait, Condition, ConnectionTrait, EntityTrait, IntoActiveModel,
    QueryFilter, QueryOrder,
};

use crate::{
    codec::{self, Amounts, RowReader},
    entity::claim,
    error::{StoreError, failed},
    executor::Executor,
    ports::IDS_PER_STATEMENT,
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

/// Adds a claim.
///
/// # Errors
/// [`StoreError::Unique`] with `Id` if it is there; [`StoreError::ForeignKey`] if instance or host do not exist.
pub async fn insert(db: &impl Executor, claim: &ClaimRow) -> Result<(), StoreError> {
    let amounts = codec::amounts("claims.resources", claim.resources)?;
    let row = claim::Model {
        instance_id: claim.instance_id.to_string(),
        host_id: claim.host_id.to_string(),
        role: claim.role.as_str().to_owned(),
        vcpus: amounts.vcpus,
        memory_mb: amounts.memory_mb,
        disk_gb: amounts.disk_gb,
        project: claim.project.to_string(),
    };
    claim::Entity::insert(row.into_active_model().reset_all())
        .exec_without_returning(&db.handle())
        .await
        .map(drop)
        .map_err(failed("claims::insert"))
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
    for ids in ids.chunks(IDS_PER_STATEMENT) {
        let ids = ids.iter().map(ToString::to_string);
        let which = Condition::all().add(claim::Column::InstanceId.is_in(ids));
        claims.append(&mut load(db, which).await?);
    }
    Ok(claims)
}

/// The claims on a host.
///
/// # Errors
/// See [`StoreError`].
pub async fn of_host(db: &impl Executor, id: HostId) -> Result<Vec<ClaimRow>, StoreError> {
    load(
        db,
        Condition::all().add(claim::Column::HostId.eq(id.to_string())),
    )
    .await
}

/// All claims, by host.
///
/// # Errors
/// See [`StoreError`].
pub async fn all(db: &impl Executor) -> Result<Vec<ClaimRow>, StoreError> {
    load(db, Condition::all()).await
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
