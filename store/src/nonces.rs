//! Nonces: one-shot wishes of instances that were taken in, so that a repeated request is recognised.

use berth_common::ids::{InstanceId, Nonce};
use chrono::{DateTime, Utc};
use sea_orm::{
    ActiveModelTrait, ColumnTrait, EntityTrait, IntoActiveModel, QueryFilter, QueryOrder,
    QuerySelect, sea_query::OnConflict,
};
use uuid::Uuid;

use crate::{
    bulk,
    codec::millis,
    entity::nonce::{self, Column},
    error::{StoreError, failed},
    executor::{Executor, scope},
};

/// Remembers a nonce of an instance. False: this instance had it already, whatever for.
///
/// The databases count the rows of an insert that meets an old row in different ways. So each call writes a token
/// of its own, and the row that stands says whose it is. Of two calls at the same moment exactly one gets true.
///
/// # Errors
/// See [`StoreError`].
pub async fn remember(
    db: &impl Executor,
    instance: InstanceId,
    nonce: Nonce,
    method: &str,
    now: DateTime<Utc>,
) -> Result<bool, StoreError> {
    let connection = db.handle();
    let token = Uuid::new_v4().to_string();
    let row = nonce::Model {
        instance_id: instance.to_string(),
        nonce: nonce.to_string(),
        method: method.to_owned(),
        token: token.clone(),
        created_at: millis(now),
    };
    let keep = OnConflict::columns([Column::InstanceId, Column::Nonce])
        .do_nothing_on([Column::InstanceId, Column::Nonce])
        .to_owned();
    nonce::Entity::insert(row.into_active_model().reset_all())
        .on_conflict(keep)
        .exec_without_returning(&connection)
        .await
        .map_err(failed("nonces::remember"))?;
    let stored: Option<String> =
        nonce::Entity::find_by_id((instance.to_string(), nonce.to_string()))
            .select_only()
            .column(Column::Token)
            .into_tuple()
            .one(&connection)
            .await
            .map_err(failed("nonces::remember"))?;
    Ok(stored == Some(token))
}

/// Forgets nonces remembered before a time, the oldest first, at most so many, so that the table does not grow for
/// ever. Answers how many.
///
/// # Errors
/// See [`StoreError`].
pub async fn forget_before(
    db: &impl Executor,
    time: DateTime<Utc>,
    limit: u32,
) -> Result<u64, StoreError> {
    const WHAT: &str = "nonces::forget_before";
    let scope = scope(db).await?;
    let connection = scope.handle();
    let keys: Vec<(String, String)> = nonce::Entity::find()
        .select_only()
        .columns([Column::InstanceId, Column::Nonce])
        .filter(Column::CreatedAt.lt(millis(time)))
        .order_by_asc(Column::CreatedAt)
        .limit(u64::from(limit))
        .into_tuple()
        .all(&connection)
        .await
        .map_err(failed(WHAT))?;
    let rows = keys.into_iter().map(<[String; 2]>::from).collect();
    let key = ["instance_id", "nonce"];
    let count =
        bulk::delete_rows::<nonce::Entity, _>(&connection, "nonces", key, rows, WHAT).await?;
    scope.finish().await?;
    Ok(count)
}
