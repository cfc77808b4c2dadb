//! Decisions: how placements were decided, for whoever asks later.
//!
//! They are kept for some time and some number; nothing depends on one being there.

use berth_common::{
    ids::{DecisionId, InstanceId},
    message::placement::DecisionView,
};
use chrono::{DateTime, Utc};
use sea_orm::{ColumnTrait, Condition, EntityTrait, QueryFilter, QueryOrder, QuerySelect};

use crate::{
    bulk,
    codec::{self, RowReader, millis},
    entity::decision::{self, Column},
    error::{StoreError, failed},
    executor::{Executor, scope},
};

/// One decision.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DecisionRow {
    /// Its id.
    pub id: DecisionId,
    /// The instance it is about.
    pub instance_id: InstanceId,
    /// The decision; its time is the one that decisions are sorted and forgotten by.
    pub decision: DecisionView,
}

fn read(model: decision::Model) -> Result<DecisionRow, StoreError> {
    let row = RowReader {
        table: "decisions",
        id: &model.id,
    };
    Ok(DecisionRow {
        id: row.parsed("id", model.id.parse())?,
        instance_id: row.parsed("instance_id", model.instance_id.parse())?,
        decision: row.json("decision", &model.decision)?,
    })
}

fn write(row: &DecisionRow) -> Result<decision::Model, StoreError> {
    Ok(decision::Model {
        id: row.id.to_string(),
        instance_id: row.instance_id.to_string(),
        decided_at: millis(row.decision.decided_at),
        decision: codec::json("decisions.decision", &row.decision)?,
    })
}

/// Adds decisions, all or nothing.
///
/// # Errors
/// [`StoreError::Unique`] with `Id`.
pub async fn insert_many(db: &impl Executor, decisions: &[DecisionRow]) -> Result<(), StoreError> {
    let models = decisions.iter().map(write).collect::<Result<_, _>>()?;
    let scope = scope(db).await?;
    bulk::insert(&scope.handle(), "decisions::insert_many", models, None).await?;
    scope.finish().await
}

/// At most `limit` decisions about an instance, the newest first.
///
/// # Errors
/// See [`StoreError`].
pub async fn of_instance(
    db: &impl Executor,
    id: InstanceId,
    limit: u32,
) -> Result<Vec<DecisionRow>, StoreError> {
    let models = decision::Entity::find()
        .filter(Column::InstanceId.eq(id.to_string()))
        .order_by_desc(Column::DecidedAt)
        .order_by_desc(Column::Id)
        .limit(u64::from(limit))
        .all(&db.handle())
        .await
        .map_err(failed("decisions::of_instance"))?;
    models.into_iter().map(read).collect()
}

/// Deletes all decisions about an instance but the newest `keep`. Answers how many.
///
/// # Errors
/// See [`StoreError`].
pub async fn trim(db: &impl Executor, id: InstanceId, keep: u32) -> Result<u64, StoreError> {
    let scope = scope(db).await?;
    // In two statements: MariaDB deletes from no table that the same statement reads with a limit.
    let newest_to_go: Option<(i64, String)> = decision::Entity::find()
        .select_only()
        .column(Column::DecidedAt)
        .column(Column::Id)
        .filter(Column::InstanceId.eq(id.to_string()))
        .order_by_desc(Column::DecidedAt)
        .order_by_desc(Column::Id)
        .offset(u64::from(keep))
        .limit(1)
        .into_tuple()
        .one(&scope.handle())
        .await
        .map_err(failed("decisions::trim"))?;
    let Some((decided_at, newest)) = newest_to_go else {
        return Ok(0);
    };
    let not_newer = Condition::any().add(Column::DecidedAt.lt(decided_at)).add(
        Condition::all()
            .add(Column::DecidedAt.eq(decided_at))
            .add(Column::Id.lte(newest)),
    );
    let deleted = decision::Entity::delete_many()
        .filter(Column::InstanceId.eq(id.to_string()))
        .filter(not_newer)
        .exec(&scope.handle())
        .await
        .map_err(failed("decisions::trim"))?;
    scope.finish().await?;
    Ok(deleted.rows_affected)
}

/// Deletes decisions from before a time, at most so many: everything at once could take longer than a statement may.
/// Answers how many.
///
/// # Errors
/// See [`StoreError`].
pub async fn delete_before(
    db: &impl Executor,
    time: DateTime<Utc>,
    limit: u32,
) -> Result<u64, StoreError> {
    let ids: Vec<String> = decision::Entity::find()
        .select_only()
        .column(Column::Id)
        .filter(Column::DecidedAt.lt(millis(time)))
        .order_by_asc(Column::DecidedAt)
        .limit(u64::from(limit))
        .into_tuple()
        .all(&db.handle())
        .await
        .map_err(failed("decisions::delete_before"))?;
    if ids.is_empty() {
        return Ok(0);
    }
    let deleted = decision::Entity::delete_many()
        .filter(Column::Id.is_in(ids))
        .exec(&db.handle())
        .await
        .map_err(failed("decisions::delete_before"))?;
    Ok(deleted.rows_affected)
}
