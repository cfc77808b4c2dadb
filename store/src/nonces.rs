//! Nonces: one-shot wishes of instances that were taken in, so that a repeated request is recognised.

use berth_common::ids::{InstanceId, Nonce};
use chrono::{DateTime, Utc};
use sea_orm::{
    ActiveModelTrait, ColumnTrait, EntityTrait, IntoActiveModel, QueryFilter, QuerySelect,
    sea_query::OnConflict,
};
use uuid::Uuid;

use crate::{
    codec::millis,
    entity::nonce::{self, Column},
    error::{StoreError, failed},
    executor::Executor,
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

/// Forgets the nonces remembered before a time, so that the table does not grow for ever. Answers how many.
///
/// # Errors
/// See [`StoreError`].
pub async fn forget_before(db: &impl Executor, time: DateTime<Utc>) -> Result<u64, StoreError> {
    let deleted = nonce::Entity::delete_many()
        .filter(Column::CreatedAt.lt(millis(time)))
        .exec(&db.handle())
        .await
        .map_err(failed("nonces::forget_before"))?;
    Ok(deleted.rows_affected)
}
