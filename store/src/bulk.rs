//! Many rows in few statements, and few kinds of statements: a prepared statement is known again by its text, so the
//! number of rows in one is always a power of two.

use sea_orm::{
    ActiveModelTrait, ConnectionTrait, DbBackend, EntityTrait, IntoActiveModel, ModelTrait,
    QueryFilter, Statement, Value,
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

/// The conditions that several columns of a table are as in one of these rows, one for each statement.
pub(crate) fn row_lists<const N: usize>(
    backend: DbBackend,
    table: &'static str,
    columns: [&'static str; N],
    rows: Vec<[String; N]>,
) -> impl Iterator<Item = Expr> {
    let lists: Vec<Expr> = rows
        .chunks(ROWS_PER_STATEMENT)
        .map(|rows| is_one_of(backend, table, columns, padded(rows.to_vec())))
        .collect();
    lists.into_iter()
}

/// Deletes the rows of a table in which several columns are as in one of these; answers how many. `what`: the call, for
/// its errors.
pub(crate) async fn delete_rows<E: EntityTrait, const N: usize>(
    connection: &impl ConnectionTrait,
    table: &'static str,
    columns: [&'static str; N],
    rows: Vec<[String; N]>,
    what: &'static str,
) -> Result<u64, StoreError> {
    let mut count = 0;
    for which in row_lists(connection.get_database_backend(), table, columns, rows) {
        let deleted = E::delete_many()
            .filter(which)
            .exec(connection)
            .await
            .map_err(failed(what))?;
        count += deleted.rows_affected;
    }
    Ok(count)
}

/// Said so that each database looks the rows up by its index: PostgreSQL if they are a table of values, SQLite if it is
/// told to begin with the values, MariaDB, when it is to change what it finds, only if each row is spelled out.
fn is_one_of<const N: usize>(
    backend: DbBackend,
    table: &str,
    columns: [&'static str; N],
    rows: Vec<[String; N]>,
) -> Expr {
    let text = match backend {
        DbBackend::MySql => {
            let equal = columns.map(|column| format!("{column} = ?")).join(" AND ");
            vec![format!("({equal})"); rows.len()].join(" OR ")
        }
        DbBackend::Postgres => format!(
            "({}) IN ({})",
            columns.join(", "),
            value_rows(backend, rows.len(), N)
        ),
        _ => {
            let equal: Vec<String> = (1..)
                .zip(columns)
                .map(|(number, column)| format!("t.{column} = w.column{number}"))
                .collect();
            format!(
                "rowid IN (SELECT t.rowid FROM ({}) AS w CROSS JOIN {table} AS t WHERE {})",
                value_rows(backend, rows.len(), N),
                equal.join(" AND ")
            )
        }
    };
    Expr::cust_with_values(text, rows.into_iter().flatten().map(Value::from))
}

/// `VALUES (?, ?), (?, ?)` in the words of a database. MariaDB must be told that they are texts: it gives its table of
/// values columns before it has seen the values, and would make them too short.
fn value_rows(backend: DbBackend, rows: usize, columns: usize) -> String {
    let mut marks = (1..).map(|number| match backend {
        DbBackend::Postgres => format!("${number}"),
        DbBackend::MySql => "CAST(? AS CHAR(64))".to_owned(),
        _ => "?".to_owned(),
    });
    let rows: Vec<String> = (0..rows)
        .map(|_| {
            let row: Vec<String> = marks.by_ref().take(columns).collect();
            format!("({})", row.join(", "))
        })
        .collect();
    format!("VALUES {}", rows.join(", "))
}

/// Queries that begin with rows of their own, `w`, one for each statement; the rest of the text is the same on all
/// databases if it joins with `CROSS JOIN` in the order of reading. What is found for the last row may come twice.
pub(crate) fn queries_from<const N: usize>(
    backend: DbBackend,
    columns: [&'static str; N],
    rows: Vec<[String; N]>,
    rest: &str,
) -> impl Iterator<Item = Statement> {
    let statements: Vec<Statement> = rows
        .chunks(ROWS_PER_STATEMENT)
        .map(|rows| {
            let rows = padded(rows.to_vec());
            let text = format!(
                "WITH w({}) AS ({}) {rest}",
                columns.join(", "),
                value_rows(backend, rows.len(), N)
            );
            let values = rows.into_iter().flatten().map(Value::from);
            Statement::from_sql_and_values(backend, text, values)
        })
        .collect();
    statements.into_iter()
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
