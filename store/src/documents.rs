//! Documents: what each host was last told to be, and how far it is with that.
//!
//! ```text
//!  upsert (new generation) ─▶ unconfirmed, due ── mark_published ─▶ unconfirmed, due later ─┐
//!         ▲                        ▲    ▲                                 │ (its time comes)│
//!         │                        │    └─────────────────────────────────┘                 │
//!         │     make_all_due (the agent started anew)                                       │
//!         └──────────────── confirmed ◀── mark_observed_many (this generation or later, settled) ┘
//! ```
//! A document *lags* while it is unconfirmed. Observation never changes what is desired.

use std::collections::{BTreeMap, HashMap, HashSet};

use berth_common::{
    document::{DocumentKey, Kind, NetworkType},
    ids::{HostId, NetworkId},
    message::report::ConvergeStatus,
    units::Generation,
};
use chrono::{DateTime, Utc};
use sea_orm::{
    ColumnTrait, Condition, ConnectionTrait, DbBackend, EntityTrait, Order, PaginatorTrait,
    QueryFilter, QueryOrder, QuerySelect, QueryTrait, UpdateMany,
    sea_query::{Expr, ExprTrait, OnConflict},
};

use crate::{
    bulk,
    codec::{RowReader, int, millis, word},
    entity::{
        document::{self, Column},
        network,
    },
    error::{StoreError, failed},
    executor::{Executor, scope},
};

/// One document of one host.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DocumentRow {
    /// The host.
    pub host_id: HostId,
    /// The resource.
    pub key: DocumentKey,
    /// The version of what is desired.
    pub generation: Generation,
    /// The document's `spec` as JSON; none: a tombstone.
    pub spec_json: Option<String>,
    /// The version the host last spoke of.
    pub observed_generation: Generation,
    /// How far the host was with that version.
    pub observed_status: Option<ConvergeStatus>,
    /// When this generation was made.
    pub changed_at: DateTime<Utc>,
    /// When it was last published.
    pub published_at: Option<DateTime<Utc>>,
    /// How often publishing this generation was tried.
    pub attempts: u32,
    /// Not before this time it is published again; none: at once.
    pub next_publish_at: Option<DateTime<Utc>>,
}

const TABLE: &str = "documents";
/// What a document is known by.
const KEY: [&str; 3] = ["host_id", "kind", "resource_id"];

/// Whether a host that says this of its newest document is done with it.
const fn is_settled(status: ConvergeStatus) -> bool {
    match status {
        ConvergeStatus::Converging => false,
        ConvergeStatus::Converged | ConvergeStatus::Failed | ConvergeStatus::Gone => true,
    }
}

impl DocumentRow {
    /// Whether the host shall not have the resource, and said so of the newest generation: what it said of one before, it said of what
    /// it may have built again since.
    #[must_use]
    pub fn is_gone(&self) -> bool {
        let is_of_now = self.observed_generation == self.generation;
        self.spec_json.is_none() && is_of_now && self.observed_status == Some(ConvergeStatus::Gone)
    }

    /// Whether the host has yet to settle this generation.
    fn is_unconfirmed(&self) -> bool {
        self.observed_generation < self.generation || !self.observed_status.is_some_and(is_settled)
    }
}

fn read(model: document::Model) -> Result<DocumentRow, StoreError> {
    let id = format!("{}/{}/{}", model.host_id, model.kind, model.resource_id);
    let row = RowReader {
        table: "documents",
        id: &id,
    };
    let kind = Kind::from_name(&model.kind)
        .ok_or_else(|| row.corrupt("kind", "it is not a kind of document"))?;
    Ok(DocumentRow {
        host_id: row.parsed("host_id", model.host_id.parse())?,
        key: DocumentKey {
            kind,
            id: row.parsed("resource_id", model.resource_id.parse())?,
        },
        generation: Generation(row.int("generation", model.generation)?),
        spec_json: model.spec_json,
        observed_generation: Generation(row.int("observed_generation", model.observed_generation)?),
        observed_status: model
            .observed_status
            .map(|status| row.word("observed_status", &status))
            .transpose()?,
        changed_at: row.time("changed_at", model.changed_at)?,
        published_at: row.opt_time("published_at", model.published_at)?,
        attempts: row.int("attempts", model.attempts)?,
        next_publish_at: row.opt_time("next_publish_at", model.next_publish_at)?,
    })
}

/// The condition for one document.
fn is(host: HostId, key: DocumentKey) -> Condition {
    Condition::all()
        .add(Column::HostId.eq(host.to_string()))
        .add(Column::Kind.eq(key.kind.as_str()))
        .add(Column::ResourceId.eq(key.id.to_string()))
}

/// All documents of a host, by kind and id.
///
/// # Errors
/// See [`StoreError`].
pub async fn of_host(db: &impl Executor, host: HostId) -> Result<Vec<DocumentRow>, StoreError> {
    let models = document::Entity::find()
        .filter(Column::HostId.eq(host.to_string()))
        .order_by_asc(Column::Kind)
        .order_by_asc(Column::ResourceId)
        .all(&db.handle())
        .await
        .map_err(failed("documents::of_host"))?;
    models.into_iter().map(read).collect()
}

/// One document.
///
/// # Errors
/// See [`StoreError`].
pub async fn get(
    db: &impl Executor,
    host: HostId,
    key: DocumentKey,
) -> Result<Option<DocumentRow>, StoreError> {
    let model = document::Entity::find()
        .filter(is(host, key))
        .one(&db.handle())
        .await
        .map_err(failed("documents::get"))?;
    model.map(read).transpose()
}

/// The documents of some resources, on whichever hosts. One query for each 8192 resources.
///
/// # Errors
/// See [`StoreError`].
pub async fn of_keys(
    db: &impl Executor,
    keys: &[DocumentKey],
) -> Result<Vec<DocumentRow>, StoreError> {
    let mut documents = Vec::new();
    for ids in bulk::id_lists(keys.iter().map(|key| key.id)) {
        let models = document::Entity::find()
            .filter(Column::ResourceId.is_in(ids))
            .all(&db.handle())
            .await
            .map_err(failed("documents::of_keys"))?;
        for model in models {
            documents.push(read(model)?);
        }
    }
    let wanted: HashSet<&DocumentKey> = keys.iter().collect();
    documents.retain(|document| wanted.contains(&document.key));
    Ok(documents)
}

/// The networks of a type on the hosts that have them: that were told of one, and did not say since that it is gone
/// ([`DocumentRow::is_gone`]).
///
/// # Errors
/// See [`StoreError`].
pub async fn places_of_networks(
    db: &impl Executor,
    network_type: NetworkType,
) -> Result<Vec<(HostId, NetworkId)>, StoreError> {
    let of_type = network::Entity::find()
        .select_only()
        .column(network::Column::Id)
        .filter(network::Column::NetworkType.eq(network_type.as_str()))
        .into_query();
    let gone = word("documents.observed_status", &ConvergeStatus::Gone)?;
    let is_there = Condition::any()
        .add(Column::SpecJson.is_not_null())
        .add(Column::ObservedStatus.is_null())
        .add(Column::ObservedStatus.ne(gone))
        .add(Expr::col(Column::ObservedGeneration).ne(Expr::col(Column::Generation)));
    let found: Vec<(String, String)> = document::Entity::find()
        .select_only()
        .columns([Column::HostId, Column::ResourceId])
        .filter(Column::Kind.eq(Kind::Network.as_str()))
        .filter(Column::ResourceId.in_subquery(of_type))
        .filter(is_there)
        .into_tuple()
        .all(&db.handle())
        .await
        .map_err(failed("documents::places_of_networks"))?;
    let parse = |(host, id): &(String, String)| {
        let row = RowReader { table: TABLE, id };
        let host = row.parsed("host_id", host.parse())?;
        Ok((host, row.parsed("resource_id", id.parse())?))
    };
    found.iter().map(parse).collect()
}

/// Some documents, by host, kind and id. One query for each 256.
///
/// # Errors
/// See [`StoreError`].
pub async fn of_host_resources(
    db: &impl Executor,
    resources: &[(HostId, DocumentKey)],
) -> Result<Vec<DocumentRow>, StoreError> {
    let connection = db.handle();
    let mut documents = Vec::with_capacity(resources.len());
    for which in are(connection.get_database_backend(), resources) {
        let models = document::Entity::find()
            .filter(which)
            .all(&connection)
            .await
            .map_err(failed("documents::of_host_resources"))?;
        for model in models {
            documents.push(read(model)?);
        }
    }
    documents.sort_by_key(|row| (row.host_id, row.key));
    documents.dedup_by_key(|row| (row.host_id, row.key));
    Ok(documents)
}

/// The conditions for some documents, one for each statement.
fn are(
    backend: DbBackend,
    resources: &[(HostId, DocumentKey)],
) -> impl Iterator<Item = Expr> + use<> {
    let rows = resources
        .iter()
        .map(|(host, key)| {
            [
                host.to_string(),
                key.kind.as_str().to_owned(),
                key.id.to_string(),
            ]
        })
        .collect();
    bulk::row_lists(backend, TABLE, KEY, rows)
}

fn write(document: &DocumentRow) -> Result<document::Model, StoreError> {
    Ok(document::Model {
        host_id: document.host_id.to_string(),
        kind: document.key.kind.as_str().to_owned(),
        resource_id: document.key.id.to_string(),
        generation: int("documents.generation", document.generation.0)?,
        spec_json: document.spec_json.clone(),
        observed_generation: int(
            "documents.observed_generation",
            document.observed_generation.0,
        )?,
        observed_status: document
            .observed_status
            .map(|status| word("documents.observed_status", &status))
            .transpose()?,
        unconfirmed: document.is_unconfirmed(),
        changed_at: millis(document.changed_at),
        published_at: document.published_at.map(millis),
        attempts: i64::from(document.attempts),
        next_publish_at: document.next_publish_at.map(millis),
    })
}

/// Adds a document, or replaces the one of the same host and resource.
///
/// What is published right after the commit is written with the time, the attempt and the pause of that; when it
/// cannot be published, [`make_due`] takes it back.
///
/// # Errors
/// [`StoreError::ForeignKey`] if there is no such host.
pub async fn upsert(db: &impl Executor, document: &DocumentRow) -> Result<(), StoreError> {
    upsert_many(db, std::slice::from_ref(document)).await
}

/// Adds documents, or replaces those of the same hosts and resources, all or nothing. Of two for the same host and
/// resource the later one counts.
///
/// # Errors
/// As [`upsert`].
pub async fn upsert_many(db: &impl Executor, documents: &[DocumentRow]) -> Result<(), StoreError> {
    let mut last = HashMap::new();
    for document in documents {
        last.insert((document.host_id, document.key), document);
    }
    // In one order, whoever writes.
    let mut last: Vec<_> = last.into_iter().collect();
    last.sort_by_key(|(id, _)| *id);
    let models = last
        .into_iter()
        .map(|(_, document)| write(document))
        .collect::<Result<_, _>>()?;
    let replace = OnConflict::columns([Column::HostId, Column::Kind, Column::ResourceId])
        .update_columns([
            Column::Generation,
            Column::SpecJson,
            Column::ObservedGeneration,
            Column::ObservedStatus,
            Column::Unconfirmed,
            Column::ChangedAt,
            Column::PublishedAt,
            Column::Attempts,
            Column::NextPublishAt,
        ])
        .to_owned();
    let scope = scope(db).await?;
    bulk::insert(
        &scope.handle(),
        "documents::upsert_many",
        models,
        Some(&replace),
    )
    .await?;
    scope.finish().await
}

/// At most `limit` documents that lag and whose time to be published has come, the longest due first.
///
/// # Errors
/// See [`StoreError`].
pub async fn lagging(
    db: &impl Executor,
    now: DateTime<Utc>,
    limit: u32,
) -> Result<Vec<DocumentRow>, StoreError> {
    let due = Condition::any()
        .add(Column::NextPublishAt.is_null())
        .add(Column::NextPublishAt.lte(millis(now)));
    let models = document::Entity::find()
        .filter(Column::Unconfirmed.eq(true))
        .filter(due)
        // Nulls first, said in a way that all databases understand alike.
        .order_by(Column::NextPublishAt.is_not_null(), Order::Asc)
        .order_by_asc(Column::NextPublishAt)
        .order_by_asc(Column::HostId)
        .order_by_asc(Column::Kind)
        .order_by_asc(Column::ResourceId)
        .limit(u64::from(limit))
        .all(&db.handle())
        .await
        .map_err(failed("documents::lagging"))?;
    models.into_iter().map(read).collect()
}

/// Notes that a generation was published, and when to do it again. False: there is a newer generation, or no
/// such document; nothing was changed.
///
/// # Errors
/// See [`StoreError`].
pub async fn mark_published(
    db: &impl Executor,
    host: HostId,
    key: DocumentKey,
    generation: Generation,
    now: DateTime<Utc>,
    next: DateTime<Utc>,
) -> Result<bool, StoreError> {
    let updated = attempted(host, key, generation, next)?
        .col_expr(Column::PublishedAt, Expr::value(millis(now)))
        .exec(&db.handle())
        .await
        .map_err(failed("documents::mark_published"))?;
    Ok(updated.rows_affected > 0)
}

/// Notes that publishing a generation failed, and when to try again. False: there is a newer generation, or no
/// such document; nothing was changed.
///
/// # Errors
/// See [`StoreError`].
pub async fn mark_failed_publish(
    db: &impl Executor,
    host: HostId,
    key: DocumentKey,
    generation: Generation,
    next: DateTime<Utc>,
) -> Result<bool, StoreError> {
    let updated = attempted(host, key, generation, next)?
        .exec(&db.handle())
        .await
        .map_err(failed("documents::mark_failed_publish"))?;
    Ok(updated.rows_affected > 0)
}

/// Counts an attempt to publish a generation and sets the time of the next one.
fn attempted(
    host: HostId,
    key: DocumentKey,
    generation: Generation,
    next: DateTime<Utc>,
) -> Result<UpdateMany<document::Entity>, StoreError> {
    Ok(document::Entity::update_many()
        .col_expr(Column::NextPublishAt, Expr::value(millis(next)))
        .col_expr(
            Column::Attempts,
            ExprTrait::add(Expr::col(Column::Attempts), 1_i64),
        )
        .filter(is(host, key))
        .filter(Column::Generation.eq(int("documents.generation", generation.0)?)))
}

/// Sets how far hosts are, of documents of which they said nothing newer before.
fn observed(
    generation: Generation,
    status: ConvergeStatus,
) -> Result<UpdateMany<document::Entity>, StoreError> {
    let generation = int("documents.observed_generation", generation.0)?;
    let unconfirmed = if is_settled(status) {
        Column::Generation.gt(generation)
    } else {
        Expr::value(true)
    };
    Ok(document::Entity::update_many()
        .col_expr(Column::ObservedGeneration, Expr::value(generation))
        .col_expr(
            Column::ObservedStatus,
            Expr::value(word("documents.observed_status", &status)?),
        )
        .col_expr(Column::Unconfirmed, unconfirmed)
        .filter(Column::ObservedGeneration.lte(generation))
        // Hosts repeat themselves every minute, and no row is written for that.
        .filter(
            Condition::any()
                .add(Column::ObservedGeneration.lt(generation))
                .add(Column::ObservedStatus.is_null())
                .add(Column::ObservedStatus.ne(word("documents.observed_status", &status)?))
                .add(Column::Unconfirmed.eq(true)),
        ))
}

/// What a host said of a document.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Observation {
    /// The host.
    pub host_id: HostId,
    /// The resource.
    pub key: DocumentKey,
    /// The version it speaks of.
    pub generation: Generation,
    /// How far it is with that version.
    pub status: ConvergeStatus,
}

/// Notes how far hosts are, all or nothing, as if one after the other. What is about an older generation than the
/// host spoke of before changes nothing, and neither does what is about no document. A statement for each generation
/// and status among them, and for each 256 of these.
///
/// # Errors
/// See [`StoreError`].
pub async fn mark_observed_many(
    db: &impl Executor,
    observations: &[Observation],
) -> Result<(), StoreError> {
    // Of one document the last of the newest generation is what stays: an older one after it changes nothing.
    let mut newest: HashMap<_, Observation> = HashMap::new();
    for observation in observations {
        let id = (observation.host_id, observation.key);
        let known = newest.entry(id).or_insert(*observation);
        if observation.generation >= known.generation {
            *known = *observation;
        }
    }
    let mut alike: BTreeMap<_, Vec<_>> = BTreeMap::new();
    for (id, observation) in newest {
        let status = word("documents.observed_status", &observation.status)?;
        let same = alike.entry((observation.generation, status));
        same.or_insert_with(Vec::new).push((id, observation.status));
    }
    let scope = scope(db).await?;
    let connection = scope.handle();
    for ((generation, _), mut documents) in alike {
        documents.sort_by_key(|(id, _)| *id);
        let Some((_, status)) = documents.first().copied() else {
            continue;
        };
        let ids: Vec<_> = documents.into_iter().map(|(id, _)| id).collect();
        for which in are(connection.get_database_backend(), &ids) {
            observed(generation, status)?
                .filter(which)
                .exec(&connection)
                .await
                .map_err(failed("documents::mark_observed_many"))?;
        }
    }
    scope.finish().await
}

/// Makes documents due at once, as if they had never been published: publishing them failed. Answers how many
/// there are.
///
/// # Errors
/// See [`StoreError`].
pub async fn make_due(
    db: &impl Executor,
    resources: &[(HostId, DocumentKey)],
) -> Result<u64, StoreError> {
    let mut ids = resources.to_vec();
    ids.sort_unstable();
    ids.dedup();
    let scope = scope(db).await?;
    let connection = scope.handle();
    let mut count = 0;
    for which in are(connection.get_database_backend(), &ids) {
        let updated = document::Entity::update_many()
            .col_expr(Column::Attempts, Expr::value(0_i64))
            .col_expr(Column::PublishedAt, Expr::value(Option::<i64>::None))
            .col_expr(Column::NextPublishAt, Expr::value(Option::<i64>::None))
            .filter(which)
            .exec(&connection)
            .await
            .map_err(failed("documents::make_due"))?;
        count += updated.rows_affected;
    }
    scope.finish().await?;
    Ok(count)
}

/// Makes all documents of a host lag and due at once, also those it had settled: its agent started anew and may
/// have lost them. What was observed stays until the agent says otherwise. Answers how many.
///
/// # Errors
/// See [`StoreError`].
pub async fn make_all_due(db: &impl Executor, host: HostId) -> Result<u64, StoreError> {
    let updated = document::Entity::update_many()
        .col_expr(Column::Unconfirmed, Expr::value(true))
        .col_expr(Column::Attempts, Expr::value(0_i64))
        .col_expr(Column::NextPublishAt, Expr::value(Option::<i64>::None))
        .filter(Column::HostId.eq(host.to_string()))
        .exec(&db.handle())
        .await
        .map_err(failed("documents::make_all_due"))?;
    Ok(updated.rows_affected)
}

/// Makes the documents of a host that lag due at once: it was silent for long, and what was under way to it may be
/// lost; what it settled it still has. Answers how many.
///
/// # Errors
/// See [`StoreError`].
pub async fn make_lagging_of_host_due(db: &impl Executor, host: HostId) -> Result<u64, StoreError> {
    let updated = document::Entity::update_many()
        .col_expr(Column::Attempts, Expr::value(0_i64))
        .col_expr(Column::NextPublishAt, Expr::value(Option::<i64>::None))
        .filter(Column::HostId.eq(host.to_string()))
        .filter(Column::Unconfirmed.eq(true))
        .exec(&db.handle())
        .await
        .map_err(failed("documents::make_lagging_of_host_due"))?;
    Ok(updated.rows_affected)
}

/// Makes all documents that lag due at once, whatever their pauses: what was under way to their hosts may be lost.
/// Answers how many.
///
/// # Errors
/// See [`StoreError`].
pub async fn make_lagging_due(db: &impl Executor) -> Result<u64, StoreError> {
    let updated = document::Entity::update_many()
        .col_expr(Column::Attempts, Expr::value(0_i64))
        .col_expr(Column::NextPublishAt, Expr::value(Option::<i64>::None))
        .filter(Column::Unconfirmed.eq(true))
        .exec(&db.handle())
        .await
        .map_err(failed("documents::make_lagging_due"))?;
    Ok(updated.rows_affected)
}

/// Deletes tombstones that were carried out and are older than a time, at most so many: the host said of the newest
/// generation that the resource is gone. The oldest go first. Answers how many.
///
/// # Errors
/// See [`StoreError`].
pub async fn delete_settled_tombstones(
    db: &impl Executor,
    before: DateTime<Utc>,
    limit: u32,
) -> Result<u64, StoreError> {
    const WHAT: &str = "documents::delete_settled_tombstones";
    let gone = word("documents.observed_status", &ConvergeStatus::Gone)?;
    let scope = scope(db).await?;
    let connection = scope.handle();
    let keys: Vec<(String, String, String)> = document::Entity::find()
        .select_only()
        .columns([Column::HostId, Column::Kind, Column::ResourceId])
        .filter(Column::SpecJson.is_null())
        .filter(Column::Unconfirmed.eq(false))
        .filter(Column::ObservedStatus.eq(gone))
        .filter(Column::ChangedAt.lt(millis(before)))
        .order_by_asc(Column::ChangedAt)
        .limit(u64::from(limit))
        .into_tuple()
        .all(&connection)
        .await
        .map_err(failed(WHAT))?;
    let rows = keys.into_iter().map(<[String; 3]>::from).collect();
    let count =
        bulk::delete_rows::<document::Entity, _>(&connection, TABLE, KEY, rows, WHAT).await?;
    scope.finish().await?;
    Ok(count)
}

/// Deletes the documents of a host, for the deletion of the host.
pub(crate) async fn delete_of_host(
    connection: &impl ConnectionTrait,
    host: HostId,
) -> Result<(), StoreError> {
    document::Entity::delete_many()
        .filter(Column::HostId.eq(host.to_string()))
        .exec(connection)
        .await
        .map(drop)
        .map_err(failed("documents::delete_of_host"))
}

/// How many documents lag, due or not.
///
/// # Errors
/// See [`StoreError`].
pub async fn lag_count(db: &impl Executor) -> Result<u64, StoreError> {
    document::Entity::find()
        .filter(Column::Unconfirmed.eq(true))
        .count(&db.handle())
        .await
        .map_err(failed("documents::lag_count"))
}
