//! Server groups: instances that shall be together, or apart.
//!
//! Who is in a group is a column of the instances.

use std::collections::BTreeMap;

use berth_common::{
    ids::{InstanceId, ServerGroupId},
    message::placement::ServerGroupPolicy,
    names::{ProjectName, ServerGroupName},
};
use chrono::{DateTime, Utc};
use sea_orm::{
    ActiveModelTrait, ColumnTrait, Condition, EntityTrait, IntoActiveModel, QueryFilter,
    QueryOrder, QuerySelect, sea_query::Expr,
};

use crate::{
    bulk,
    codec::{RowReader, millis, word},
    entity::{
        instance,
        server_group::{self, Column},
    },
    error::{StoreError, failed},
    executor::{Executor, scope},
};

const TABLE: &str = "server_groups";

/// A server group.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ServerGroupRow {
    /// Its id, chosen by the client.
    pub id: ServerGroupId,
    /// The owner.
    pub project: ProjectName,
    /// Its name, unique in the project.
    pub name: ServerGroupName,
    /// How its instances stand to one another.
    pub policy: ServerGroupPolicy,
    /// Of anti-affinity: how many of its instances one host may have.
    pub max_server_per_host: Option<u32>,
    /// What the request that made it contained, to recognise its repetition.
    pub fingerprint: String,
    /// When it was asked for.
    pub created_at: DateTime<Utc>,
}

fn read(model: server_group::Model) -> Result<ServerGroupRow, StoreError> {
    let row = RowReader {
        table: TABLE,
        id: &model.id,
    };
    Ok(ServerGroupRow {
        id: row.parsed("id", model.id.parse())?,
        project: row.parsed("project", ProjectName::try_from(model.project))?,
        name: row.parsed("name", ServerGroupName::try_from(model.name))?,
        policy: row.word("policy", &model.policy)?,
        max_server_per_host: model
            .max_server_per_host
            .map(|most| row.int("max_server_per_host", most))
            .transpose()?,
        fingerprint: model.fingerprint,
        created_at: row.time("created_at", model.created_at)?,
    })
}

/// The groups that meet a condition, in order of creation.
async fn load(db: &impl Executor, which: Condition) -> Result<Vec<ServerGroupRow>, StoreError> {
    let models = server_group::Entity::find()
        .filter(which)
        .order_by_asc(Column::CreatedAt)
        .order_by_asc(Column::Id)
        .all(&db.handle())
        .await
        .map_err(failed("server_groups"))?;
    models.into_iter().map(read).collect()
}

/// Adds a group.
///
/// # Errors
/// [`StoreError::Unique`] with `Id` or `ServerGroupName`.
pub async fn insert(db: &impl Executor, group: &ServerGroupRow) -> Result<(), StoreError> {
    let row = server_group::Model {
        id: group.id.to_string(),
        project: group.project.to_string(),
        name: group.name.to_string(),
        policy: word("server_groups.policy", &group.policy)?,
        max_server_per_host: group.max_server_per_host.map(i64::from),
        fingerprint: group.fingerprint.clone(),
        created_at: millis(group.created_at),
    };
    server_group::Entity::insert(row.into_active_model().reset_all())
        .exec_without_returning(&db.handle())
        .await
        .map(drop)
        .map_err(failed("server_groups::insert"))
}

/// One group.
///
/// # Errors
/// See [`StoreError`].
pub async fn get(
    db: &impl Executor,
    id: ServerGroupId,
) -> Result<Option<ServerGroupRow>, StoreError> {
    let which = Condition::all().add(Column::Id.eq(id.to_string()));
    Ok(load(db, which).await?.pop())
}

/// The group with this name.
///
/// # Errors
/// See [`StoreError`].
pub async fn find_by_name(
    db: &impl Executor,
    project: &ProjectName,
    name: &ServerGroupName,
) -> Result<Option<ServerGroupRow>, StoreError> {
    let which = Condition::all()
        .add(Column::Project.eq(project.as_str()))
        .add(Column::Name.eq(name.as_str()));
    Ok(load(db, which).await?.pop())
}

/// The groups of a project, or all, in order of creation.
///
/// # Errors
/// See [`StoreError`].
pub async fn list(
    db: &impl Executor,
    project: Option<&ProjectName>,
) -> Result<Vec<ServerGroupRow>, StoreError> {
    let which =
        Condition::all().add_option(project.map(|project| Column::Project.eq(project.as_str())));
    load(db, which).await
}

/// The living instances in each of some groups, in order of creation; groups without any are not listed. One query
/// for each 8192 groups.
///
/// # Errors
/// See [`StoreError`].
pub async fn members(
    db: &impl Executor,
    ids: &[ServerGroupId],
) -> Result<BTreeMap<ServerGroupId, Vec<InstanceId>>, StoreError> {
    let mut members: BTreeMap<ServerGroupId, Vec<InstanceId>> = BTreeMap::new();
    for ids in bulk::id_lists(ids) {
        let found: Vec<(String, String)> = instance::Entity::find()
            .select_only()
            .column(instance::Column::Id)
            .column(instance::Column::ServerGroupId)
            .filter(instance::Column::ServerGroupId.is_in(ids))
            .filter(instance::Column::DeletedAt.is_null())
            .order_by_asc(instance::Column::CreatedAt)
            .order_by_asc(instance::Column::Id)
            .into_tuple()
            .all(&db.handle())
            .await
            .map_err(failed("server_groups::members"))?;
        for (instance, group) in found {
            let row = RowReader {
                table: "instances",
                id: &instance,
            };
            let group = row.parsed("server_group_id", group.parse())?;
            let instance = row.parsed("id", instance.parse())?;
            let of_group = members.entry(group).or_default();
            of_group.push(instance);
        }
    }
    Ok(members)
}

/// Deletes a group; its instances stay, and are in none.
///
/// # Errors
/// [`StoreError::NotFound`] if there is no such group.
pub async fn delete(db: &impl Executor, id: ServerGroupId) -> Result<(), StoreError> {
    let scope = scope(db).await?;
    let deleted = server_group::Entity::delete_by_id(id.to_string())
        .exec(&scope.handle())
        .await
        .map_err(failed("server_groups::delete"))?;
    if deleted.rows_affected == 0 {
        return Err(StoreError::NotFound {
            table: TABLE,
            id: id.to_string(),
        });
    }
    instance::Entity::update_many()
        .col_expr(
            instance::Column::ServerGroupId,
            Expr::value(Option::<String>::None),
        )
        .filter(instance::Column::ServerGroupId.eq(id.to_string()))
        .exec(&scope.handle())
        .await
        .map_err(failed("server_groups::delete"))?;
    scope.finish().await
}
