//! Many rows in few statements, and few kinds of statements: a prepared statement is known again by its text, so the
//! number of rows in one is always a power of two.

use sea_orm::{
    ActiveModelTrait, ConnectionTrait, DbBackend, EntityTrait, IntoActiveModel, ModelTrait, Value,
    sea_query::{Expr, OnConflict},
};

use crate::error::{StoreError, failed};

/// How many ids one statement names at most. The databases bound the number of parameters: 32,766 (SQLite) and
/// 65,535.
pub(crate) const IDS_PER_STATEMENT: usize = 8192;
/// How many rows one statement writes, or names by several columns, at most. 256 of the widest table, `instances`
/// with 36 columns, are 9,216 parameters; and MariaDB treats lists of a thousand and more in another way.
pub(crate) const ROWS_PER_STATEMENT: usize = 256;

/// Cuts rows into pieces, each of a power of two, the largest first.
fn pieces<T>(mut rows: Vec<T>) -> Vec<Vec<T>> {
    let mut pieces = Vec::new();
    while !rows.is_empty() {
        let mut size = ROWS_PER_STATEMENT;
        while size > rows.len() {
            size /= 2;
        }
        let rest = rows.split_off(size);
        pieces.push(std::mem::replace(&mut rows, rest));
    }
    pieces
}

/// Fills up to a power of two by repeating the last; for lists in which a repetition means nothing.
fn padded<T: Clone>(mut list: Vec<T>) -> Vec<T> {
    if let Some(last) = list.last().cloned() {
        list.resize(list.len().next_power_of_two(), last);
    }
    list
}

/// Ids as lists for `IN`, one for each statement.
pub(crate) fn id_lists<T: ToString>(
    ids: impl IntoIterator<Item = T>,
) -> impl Iterator<Item = Vec<String>> {
    let ids: Vec<String> = ids.into_iter().map(|id| id.to_string()).collect();
    let lists: Vec<Vec<String>> = ids
        .chunks(IDS_PER_STATEMENT)
        .map(|ids| padded(ids.to_vec()))
        .collect();
    lists.into_iter()
}

/// The conditions that several columns are as in one of these rows, one for each statement.
pub(crate) fn row_lists<const N: usize>(
    backend: DbBackend,
    columns: [&'static str; N],
    rows: Vec<[String; N]>,
) -> impl Iterator<Item = Expr> {
    let lists: Vec<Expr> = rows
        .chunks(ROWS_PER_STATEMENT)
        .map(|rows| is_one_of(backend, columns, padded(rows.to_vec())))
        .collect();
    lists.into_iter()
}

/// Said so that each database looks the rows up by its index: SQLite and PostgreSQL know a list of rows as a table,
/// MariaDB only as a list.
fn is_one_of<const N: usize>(
    backend: DbBackend,
    columns: [&'static str; N],
    rows: Vec<[String; N]>,
) -> Expr {
    let mut marks = 1..;
    let mut row = || {
        let marks: Vec<String> = marks
            .by_ref()
            .take(N)
            .map(|number| match backend {
                DbBackend::Postgres => format!("${number}"),
                _ => "?".to_owned(),
            })
            .collect();
        format!("({})", marks.join(", "))
    };
    let rows_text: Vec<String> = rows.iter().map(|_| row()).collect();
    let values = match backend {
        DbBackend::MySql => "",
        _ => "VALUES ",
    };
    let text = format!(
        "({}) IN ({values}{})",
        columns.join(", "),
        rows_text.join(", ")
    );
    Expr::cust_with_values(text, rows.into_iter().flatten().map(Value::from))
}

/// Inserts rows, all or nothing if the connection is a transaction's. `conflict` is what happens to a row that is
/// there; none: it is an error.
pub(crate) async fn insert<M>(
    connection: &impl ConnectionTrait,
    what: &'static str,
    models: Vec<M>,
    conflict: Option<&OnConflict>,
) -> Result<(), StoreError>
where
    M: ModelTrait + IntoActiveModel<<M::Entity as EntityTrait>::ActiveModel>,
{
    for models in pieces(models) {
        let rows = models
            .into_iter()
            .map(|model| model.into_active_model().reset_all());
        let mut insert = <M::Entity as EntityTrait>::insert_many(rows);
        if let Some(conflict) = conflict {
            insert = insert.on_conflict(conflict.clone());
        }
        insert
            .exec_without_returning(connection)
            .await
            .map_err(failed(what))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pieces_are_powers_of_two_and_lose_nothing() {
        for length in (0..600).chain([4096, 5000]) {
            let pieces = pieces((0..length).collect());
            assert!(
                pieces
                    .iter()
                    .all(|piece| piece.len().is_power_of_two() && piece.len() <= ROWS_PER_STATEMENT)
            );
            assert!(pieces.len() <= length / ROWS_PER_STATEMENT + 8, "{length}");
            assert!(pieces.into_iter().flatten().eq(0..length));
        }
    }

    #[test]
    fn lists_are_filled_up_with_what_is_in_them_already() {
        assert!(padded::<u8>(vec![]).is_empty());
        assert_eq!(padded(vec![1, 2, 3]), [1, 2, 3, 3]);
        assert_eq!(padded(vec![1, 2, 3, 4]), [1, 2, 3, 4]);
        let lists: Vec<_> = id_lists(0..IDS_PER_STATEMENT + 3).collect();
        assert_eq!(
            lists.iter().map(Vec::len).collect::<Vec<_>>(),
            [IDS_PER_STATEMENT, 4]
        );
    }
}
