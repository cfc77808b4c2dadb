//! Attachments: which instance has which volume. A volume has one at most.
//!
//! ```text
//!  insert ─▶ attaching ── its host has it so ─▶ attached
//!                └──────── detach ─────────────────┴──────▶ detaching ── its host saw it gone ─▶ no row
//! ```

use berth_common::{
    document::{DiskBus, VolumeAccess},
    ids::{InstanceId, VolumeId},
};
use chrono::{DateTime, Utc};
use sea_orm::{
    ActiveModelTrait, ColumnTrait, Condition, ConnectionTrait, EntityTrait, IntoActiveModel,
    QueryFilter, QueryOrder, sea_query::Expr,
};

use crate::{
    bulk,
    codec::{RowReader, millis, word},
    entity::attachment::{self, Column},
    error::{StoreError, failed},
    executor::Executor,
};

const TABLE: &str = "attachments";

/// The position of the volume that an instance boots from.
pub const ROOT: u8 = 0;

/// How far an attachment is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum AttachmentState {
    /// Its host has yet to say that the instance has the volume.
    Attaching,
    /// The instance has it.
    Attached,
    /// It is wanted no more, and its host has yet to say that the instance is free of it.
    Detaching,
}

impl AttachmentState {
    /// The name in the database.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Attaching => "attaching",
            Self::Attached => "attached",
            Self::Detaching => "detaching",
        }
    }

    pub(crate) fn from_name(name: &str) -> Result<Self, String> {
        let mut states = [Self::Attaching, Self::Attached, Self::Detaching].into_iter();
        states
            .find(|state| state.as_str() == name)
            .ok_or_else(|| format!("{name:?} is not a state"))
    }
}

/// A volume of an instance.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct AttachmentRow {
    /// The volume.
    pub volume_id: VolumeId,
    /// The instance.
    pub instance_id: InstanceId,
    /// The guest's order of disks, unique in the instance: [`ROOT`], what it boots from, or 1 and more.
    pub position: u8,
    /// Whether the guest may write to it.
    pub access: VolumeAccess,
    /// Which bus the guest has it on.
    pub disk_bus: DiskBus,
    /// How far it is.
    pub state: AttachmentState,
    /// When it was asked for.
    pub created_at: DateTime<Utc>,
}

fn read(model: &attachment::Model) -> Result<AttachmentRow, StoreError> {
    let row = RowReader {
        table: TABLE,
        id: &model.volume_id,
    };
    Ok(AttachmentRow {
        volume_id: row.parsed("volume_id", model.volume_id.parse())?,
        instance_id: row.parsed("instance_id", model.instance_id.parse())?,
        position: row.int("position", model.position)?,
        access: row.word("access", &model.access)?,
        disk_bus: row.word("disk_bus", &model.disk_bus)?,
        state: row.parsed("state", AttachmentState::from_name(&model.state))?,
        created_at: row.time("created_at", model.created_at)?,
    })
}

/// The attachments that meet a condition, by instance and position.
pub(crate) async fn load(
    db: &impl Executor,
    which: Condition,
) -> Result<Vec<AttachmentRow>, StoreError> {
    let models = attachment::Entity::find()
        .filter(which)
        .order_by_asc(Column::InstanceId)
        .order_by_asc(Column::Position)
        .all(&db.handle())
        .await
        .map_err(failed("attachments"))?;
    models.iter().map(read).collect()
}

/// Adds an attachment.
///
/// # Errors
/// [`StoreError::Unique`] with `Id` if the volume has one, with `Other` if the position is taken;
/// [`StoreError::ForeignKey`] if volume or instance do not exist.
pub async fn insert(db: &impl Executor, attachment: &AttachmentRow) -> Result<(), StoreError> {
    let row = attachment::Model {
        volume_id: attachment.volume_id.to_string(),
        instance_id: attachment.instance_id.to_string(),
        position: i64::from(attachment.position),
        access: word("attachments.access", &attachment.access)?,
        disk_bus: word("attachments.disk_bus", &attachment.disk_bus)?,
        state: attachment.state.as_str().to_owned(),
        created_at: millis(attachment.created_at),
    };
    attachment::Entity::insert(row.into_active_model().reset_all())
        .exec_without_returning(&db.handle())
        .await
        .map(drop)
        .map_err(failed("attachments::insert"))
}

/// The attachment of a volume.
///
/// # Errors
/// See [`StoreError`].
pub async fn of_volume(
    db: &impl Executor,
    id: VolumeId,
) -> Result<Option<AttachmentRow>, StoreError> {
    Ok(of_volumes(db, &[id]).await?.pop())
}

/// The attachments of some volumes, by instance and position.
///
/// # Errors
/// See [`StoreError`].
pub async fn of_volumes(
    db: &impl Executor,
    ids: &[VolumeId],
) -> Result<Vec<AttachmentRow>, StoreError> {
    let mut attachments = Vec::new();
    for ids in bulk::id_lists(ids) {
        let which = Condition::all().add(Column::VolumeId.is_in(ids));
        attachments.append(&mut load(db, which).await?);
    }
    in_order(&mut attachments);
    Ok(attachments)
}

/// The attachments of some instances, by instance and position.
///
/// # Errors
/// See [`StoreError`].
pub async fn of_instances(
    db: &impl Executor,
    ids: &[InstanceId],
) -> Result<Vec<AttachmentRow>, StoreError> {
    let mut attachments = Vec::new();
    for ids in bulk::id_lists(ids) {
        let which = Condition::all().add(Column::InstanceId.is_in(ids));
        attachments.append(&mut load(db, which).await?);
    }
    in_order(&mut attachments);
    Ok(attachments)
}

/// By instance and position, and each once: what several statements found may overlap.
pub(crate) fn in_order(attachments: &mut Vec<AttachmentRow>) {
    attachments.sort_by_key(|row| (row.instance_id, row.position));
    attachments.dedup_by_key(|row| row.volume_id);
}

/// Sets how far the attachment of a volume is.
///
/// # Errors
/// [`StoreError::NotFound`] if the volume has none.
pub async fn set_state(
    db: &impl Executor,
    id: VolumeId,
    state: AttachmentState,
) -> Result<(), StoreError> {
    let updated = attachment::Entity::update_many()
        .col_expr(Column::State, Expr::value(state.as_str()))
        .filter(Column::VolumeId.eq(id.to_string()))
        .exec(&db.handle())
        .await
        .map_err(failed("attachments::set_state"))?;
    if updated.rows_affected == 0 {
        return Err(StoreError::NotFound {
            table: TABLE,
            id: id.to_string(),
        });
    }
    Ok(())
}

/// Deletes the attachment of a volume, if it has one.
///
/// # Errors
/// See [`StoreError`].
pub async fn delete(db: &impl Executor, id: VolumeId) -> Result<(), StoreError> {
    delete_where_volume(&db.handle(), id).await
}

pub(crate) async fn delete_where_volume(
    connection: &impl ConnectionTrait,
    id: VolumeId,
) -> Result<(), StoreError> {
    attachment::Entity::delete_many()
        .filter(Column::VolumeId.eq(id.to_string()))
        .exec(connection)
        .await
        .map(drop)
        .map_err(failed("attachments::delete"))
}

/// Deletes the attachments of an instance.
pub(crate) async fn delete_where_instance(
    connection: &impl ConnectionTrait,
    id: InstanceId,
) -> Result<(), StoreError> {
    attachment::Entity::delete_many()
        .filter(Column::InstanceId.eq(id.to_string()))
        .exec(connection)
        .await
        .map(drop)
        .map_err(failed("attachments::delete_where_instance"))
}
