//! Which scheduler is the one that writes: whoever took the lead last.
//!
//! The lead is a row with a number, the *epoch*. Whoever takes the lead counts it up; whoever wrote under a smaller
//! one is an ex-leader, and [`Store::begin_as`](crate::Store::begin_as) refuses it. Nothing is held: a leader that is
//! frozen, or that nobody can reach, hinders nobody. SQLite has the lock of `lock.rs` besides.

use std::fmt;

use chrono::{DateTime, Utc};
use sea_orm::{
    ColumnTrait, ConnectionTrait, EntityTrait, QueryFilter,
    sea_query::{Expr, ExprTrait},
};

use crate::{
    codec::{RowReader, int, millis, prose},
    entity::leadership::{self, Column},
    error::{StoreError, failed},
    executor::{Executor, scope},
};

const TABLE: &str = "leadership";
/// The id of the one row.
const ROW: i64 = 1;

/// The number of a lead: each one that is taken has a larger one than all before. 0: nobody ever led.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Default)]
pub struct Epoch(u64);

impl Epoch {
    /// The number.
    #[must_use]
    pub const fn get(self) -> u64 {
        self.0
    }
}

impl fmt::Display for Epoch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(&self.0, f)
    }
}

/// Who leads.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Leadership {
    /// The newest epoch.
    pub epoch: Epoch,
    /// Who took it, for people.
    pub holder: String,
    /// When.
    pub taken_at: DateTime<Utc>,
}

async fn read(connection: &impl ConnectionTrait) -> Result<Leadership, StoreError> {
    let model = leadership::Entity::find_by_id(ROW)
        .one(connection)
        .await
        .map_err(failed("leadership"))?
        .ok_or_else(missing)?;
    let row = RowReader {
        table: TABLE,
        id: "1",
    };
    Ok(Leadership {
        epoch: Epoch(row.int("epoch", model.epoch)?),
        holder: model.holder,
        taken_at: row.time("taken_at", model.taken_at)?,
    })
}

fn missing() -> StoreError {
    StoreError::NotFound {
        table: TABLE,
        id: ROW.to_string(),
    }
}

/// Takes the lead: from the moment this answers, no transaction of an earlier leader can be committed. Of two that
/// take it at once each gets an epoch of its own, and the larger one leads.
///
/// It waits for a transaction that an earlier leader is in the middle of; one that is frozen there is ended by the
/// database within seconds.
///
/// # Errors
/// [`StoreError::Unavailable`] if such a transaction does not end in time: ask again.
pub async fn take(
    db: &impl Executor,
    holder: &str,
    now: DateTime<Utc>,
) -> Result<Epoch, StoreError> {
    let scope = scope(db).await?;
    let updated = leadership::Entity::update_many()
        .col_expr(Column::Epoch, ExprTrait::add(Expr::col(Column::Epoch), 1))
        .col_expr(Column::Holder, Expr::value(prose(holder)))
        .col_expr(Column::TakenAt, Expr::value(millis(now)))
        .filter(Column::Id.eq(ROW))
        .exec(&scope.handle())
        .await
        .map_err(failed("leadership::take"))?;
    if updated.rows_affected == 0 {
        return Err(missing());
    }
    // The row is ours until the commit, so this is what we wrote.
    let epoch = read(&scope.handle()).await?.epoch;
    scope.finish().await?;
    Ok(epoch)
}

/// Who leads now; none: nobody ever did.
///
/// # Errors
/// See [`StoreError`].
pub async fn current(db: &impl Executor) -> Result<Option<Leadership>, StoreError> {
    let leadership = read(&db.handle()).await?;
    Ok((leadership.epoch > Epoch::default()).then_some(leadership))
}

/// Makes sure that a transaction is the leader's, and stays so until its end: nobody else can take the lead before.
///
/// It changes the row and does not only lock it: databases that replicate, as a Galera cluster does, tell one
/// another changes and not locks.
pub(crate) async fn fence(
    connection: &impl ConnectionTrait,
    epoch: Epoch,
) -> Result<(), StoreError> {
    let updated = leadership::Entity::update_many()
        .col_expr(Column::Writes, ExprTrait::add(Expr::col(Column::Writes), 1))
        .filter(Column::Id.eq(ROW))
        .filter(Column::Epoch.eq(int("leadership.epoch", epoch.0)?))
        .exec(connection)
        .await
        .map_err(failed("leadership::fence"))?;
    if updated.rows_affected == 0 {
        return Err(StoreError::Fenced {
            ours: epoch,
            newest: read(connection).await?.epoch,
        });
    }
    Ok(())
}
