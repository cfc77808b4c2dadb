//! The few kinds of columns and keys that tables are made of, from the second migration on; the first one has its
//! own. Landed migrations use them, so what stands here never changes.

use sea_orm_migration::{
    sea_orm::DbBackend,
    sea_query::{
        ColumnDef, ForeignKey, ForeignKeyCreateStatement, Index, IndexCreateStatement, Table,
        TableCreateStatement,
    },
};

use super::dialect::long_text;
use crate::constraint::UniqueIndex;

/// A UUID as text.
pub(super) const ID: u32 = 36;
/// Names that people give.
pub(super) const NAME: u32 = 63;
/// The words of enums, and methods.
pub(super) const WORD: u32 = 64;

pub(super) fn new_table(name: &'static str) -> TableCreateStatement {
    Table::create().table(name).if_not_exists().take()
}

pub(super) fn key(columns: &[&'static str]) -> IndexCreateStatement {
    let mut key = Index::create();
    for column in columns {
        key.col(*column);
    }
    key
}

pub(super) fn unique(index: &UniqueIndex) -> IndexCreateStatement {
    key(index.columns).unique().name(index.name).take()
}

pub(super) fn reference(
    name: &'static str,
    from: (&'static str, &'static str),
    to: &'static str,
) -> ForeignKeyCreateStatement {
    ForeignKey::create()
        .name(name)
        .from(from.0, from.1)
        .to(to, "id")
        .take()
}

pub(super) fn text(name: &'static str, length: u32) -> ColumnDef {
    ColumnDef::new(name).string_len(length).not_null().take()
}

pub(super) fn opt_text(name: &'static str, length: u32) -> ColumnDef {
    ColumnDef::new(name).string_len(length).null().take()
}

pub(super) fn int(name: &'static str) -> ColumnDef {
    ColumnDef::new(name).big_integer().not_null().take()
}

pub(super) fn opt_int(name: &'static str) -> ColumnDef {
    ColumnDef::new(name).big_integer().null().take()
}

pub(super) fn flag(name: &'static str) -> ColumnDef {
    ColumnDef::new(name).boolean().not_null().take()
}

pub(super) fn prose(backend: DbBackend, name: &'static str) -> ColumnDef {
    long_text(backend, name).not_null().take()
}

pub(super) fn opt_prose(backend: DbBackend, name: &'static str) -> ColumnDef {
    long_text(backend, name).null().take()
}
