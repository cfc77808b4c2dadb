//! Instances: what their owners want and, in columns of their own, what their hosts last said.
//!
//! A row stays after the instance is deleted, so that a repeated request for the same id is recognised.

use std::collections::BTreeMap;

use berth_common::{
    document::{ConfigDrive, DesiredPower, Flavor, ImageRef, Incarnation, OnCrash, Reboot, Rescue},
    ids::{HostId, InstanceId, Nonce, ServerGroupId},
    message::{
        placement::SchedulerHints,
        report::{BootDisk, ConvergeStatus, Fault, PowerState, RunningSize},
        view::{Resources, RootVolume},
    },
    names::{ImageSha256, ImageUrl, InstanceName, ProjectName, PropertyKey, PropertyValue},
    units::{DiskGb, Generation},
};
use chrono::{DateTime, Utc};
use sea_orm::{
    ActiveModelTrait, ColumnTrait, Condition, ConnectionTrait, EntityTrait, IntoActiveModel,
    PaginatorTrait, QueryFilter, QueryOrder, QuerySelect, UpdateMany, sea_query::Expr,
};

use crate::{
    attachments, bulk, claims,
    codec::{self, Amounts, RowReader, fault_columns, int, millis, prose, word},
    entity::instance::{self, Column},
    error::{StoreError, failed},
    executor::{Executor, scope},
    floating_ips, ports,
};

const TABLE: &str = "instances";

/// A virtual machine.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct InstanceRow {
    /// Its id, chosen by the client.
    pub id: InstanceId,
    /// The owner.
    pub project: ProjectName,
    /// Its name, unique among the project's living instances.
    pub name: InstanceName,
    /// Its size.
    pub flavor: Flavor,
    /// What it boots from.
    pub boot_source: BootSource,
    /// How long its guest may take to power itself off.
    pub stop_timeout_seconds: u32,
    /// What the request that made it contained, to recognise its repetition.
    pub fingerprint: String,
    /// Whether it shall run.
    pub desired_power: DesiredPower,
    /// The last reboot that was asked for.
    pub desired_reboot: Option<Reboot>,
    /// Whether it shall be gone.
    pub desired_deleted: bool,
    /// Why the scheduler found no place for it.
    pub placement_fault: Option<Fault>,
    /// What its host last said.
    pub observed: InstanceObserved,
    /// When it was asked for.
    pub created_at: DateTime<Utc>,
    /// When anything of it last changed.
    pub updated_at: DateTime<Utc>,
    /// When it was gone.
    pub deleted_at: Option<DateTime<Utc>>,
    /// Where it may be placed, and where not.
    pub hints: SchedulerHints,
    /// The server group it is in.
    pub server_group_id: Option<ServerGroupId>,
    /// The how-manieth attempt to place it, from 1.
    pub attempt: u32,
    /// The hosts that could not build it, in the order of trying.
    pub failed_hosts: Vec<HostId>,
    /// What it finds on its config drive.
    pub config_drive: Option<ConfigDrive>,
    /// What the metadata service tells it, where it has no config drive.
    pub guest_data: Option<ConfigDrive>,
    /// What it boots from instead of its own disk.
    pub desired_rescue: Option<Rescue>,
    /// Which of its root disks is the one it shall have; `None`: the first.
    pub desired_incarnation: Option<Incarnation>,
    /// What is said of it: at first, what its config drive says.
    pub metadata: BTreeMap<PropertyKey, PropertyValue>,
    /// What becomes of it when its guest crashes.
    pub on_crash: OnCrash,
}

/// What an instance boots from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum BootSource {
    /// A disk of its own, made from this.
    Image(ImageRef),
    /// A volume. Its attachment, of position [`crate::attachments::ROOT`], is there from when the instance has a host
    /// until it is gone.
    Volume(RootVolume),
}

impl BootSource {
    /// What its own disk is made from.
    #[must_use]
    pub const fn image(&self) -> Option<&ImageRef> {
        match self {
            Self::Image(image) => Some(image),
            Self::Volume(_) => None,
        }
    }

    /// The volume it boots from.
    #[must_use]
    pub const fn volume(&self) -> Option<&RootVolume> {
        match self {
            Self::Image(_) => None,
            Self::Volume(volume) => Some(volume),
        }
    }
}

impl InstanceRow {
    /// What it takes of a host by itself, at this size. A volume that it boots from has a claim of its own.
    #[must_use]
    pub fn claimed(&self, flavor: Flavor) -> Resources {
        let resources = Resources::from(flavor);
        match self.boot_source {
            BootSource::Image(_) => resources,
            BootSource::Volume(_) => Resources {
                disk_gb: DiskGb::ZERO,
                ..resources
            },
        }
    }
}

/// What its owner calls an instance and says of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Description<'a> {
    /// Its name.
    pub name: &'a InstanceName,
    /// What is said of it.
    pub metadata: &'a BTreeMap<PropertyKey, PropertyValue>,
    /// What becomes of it when its guest crashes.
    pub on_crash: OnCrash,
}

/// How far the placement of an instance is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Placement<'a> {
    /// The how-manieth attempt, from 1.
    pub attempt: u32,
    /// The hosts that could not build it.
    pub failed_hosts: &'a [HostId],
    /// Why no place was found.
    pub fault: Option<&'a Fault>,
}

/// What a host last said of an instance.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct InstanceObserved {
    /// How far the host is with the document.
    pub status: Option<ConvergeStatus>,
    /// The generation that is about.
    pub generation: Generation,
    /// What the hypervisor says.
    pub power_state: PowerState,
    /// The last reboot that was carried out.
    pub reboot_nonce: Option<Nonce>,
    /// What its domain boots from; `None`: the first disk, or there is no domain.
    pub boot_disk: Option<BootDisk>,
    /// What its guest has; `None`: it is off, or its host does not tell.
    pub running: Option<RunningSize>,
    /// What the agent is busy with, for people.
    pub progress: Option<String>,
    /// What went wrong.
    pub fault: Option<Fault>,
    /// Whether it ever ran.
    pub was_active: bool,
    /// When the agent looked.
    pub at: Option<DateTime<Utc>>,
}

fn read(model: instance::Model) -> Result<InstanceRow, StoreError> {
    let row = RowReader {
        table: TABLE,
        id: &model.id,
    };
    let amounts = Amounts {
        vcpus: model.vcpus,
        memory_mb: model.memory_mb,
        disk_gb: model.disk_gb,
    };
    let Resources {
        vcpus,
        memory_mb,
        disk_gb,
    } = row.amounts("flavor", &amounts)?;
    let desired_reboot = match (model.desired_reboot_nonce, model.desired_reboot_kind) {
        (None, None) => None,
        (Some(nonce), Some(kind)) => Some(Reboot {
            nonce: row.parsed("desired_reboot_nonce", nonce.parse())?,
            kind: row.word("desired_reboot_kind", &kind)?,
        }),
        _ => {
            return Err(row.corrupt(
                "desired_reboot",
                "a nonce and a kind belong together, and one is missing",
            ));
        }
    };
    let observed = InstanceObserved {
        status: model
            .observed_status
            .map(|status| row.word("observed_status", &status))
            .transpose()?,
        generation: Generation(row.int("observed_generation", model.observed_generation)?),
        power_state: row.word("observed_power_state", &model.observed_power_state)?,
        reboot_nonce: model
            .observed_reboot_nonce
            .map(|nonce| row.parsed("observed_reboot_nonce", nonce.parse()))
            .transpose()?,
        boot_disk: row.opt_json("observed_boot_disk", model.observed_boot_disk.as_deref())?,
        running: row.opt_json("observed_running", model.observed_running.as_deref())?,
        progress: model.observed_progress,
        fault: row.fault(
            "observed_fault",
            model.observed_fault_code.as_deref(),
            model.observed_fault_message,
        )?,
        was_active: model.observed_was_active,
        at: row.opt_time("observed_at", model.observed_at)?,
    };
    let config_drive: Option<ConfigDrive> =
        row.opt_json("config_drive", model.config_drive.as_deref())?;
    let guest_data: Option<ConfigDrive> =
        row.opt_json("guest_data", model.guest_data.as_deref())?;
    let metadata: Option<BTreeMap<PropertyKey, PropertyValue>> =
        row.opt_json("metadata", model.metadata.as_deref())?;
    let said = || {
        let told = config_drive.as_ref().or(guest_data.as_ref());
        told.map(|drive| drive.metadata.clone())
    };
    Ok(InstanceRow {
        metadata: metadata.or_else(said).unwrap_or_default(),
        on_crash: row.opt_json("on_crash", model.on_crash.as_deref())?,
        id: row.parsed("id", model.id.parse())?,
        project: row.parsed("project", ProjectName::try_from(model.project))?,
        name: row.parsed("name", InstanceName::try_from(model.name))?,
        flavor: Flavor {
            vcpus,
            memory_mb,
            disk_gb,
        },
        boot_source: match row.opt_json("root_volume", model.root_volume.as_deref())? {
            Some(volume) => BootSource::Volume(volume),
            None => BootSource::Image(ImageRef {
                url: row.parsed("image_url", ImageUrl::try_from(model.image_url))?,
                sha256: row.parsed("image_sha256", ImageSha256::try_from(model.image_sha256))?,
                format: row.word("image_format", &model.image_format)?,
            }),
        },
        stop_timeout_seconds: row.int("stop_timeout_seconds", model.stop_timeout_seconds)?,
        fingerprint: model.fingerprint,
        desired_power: row.word("desired_power", &model.desired_power)?,
        desired_reboot,
        desired_deleted: model.desired_deleted,
        placement_fault: row.fault(
            "placement_fault",
            model.placement_fault_code.as_deref(),
            model.placement_fault_message,
        )?,
        observed,
        created_at: row.time("created_at", model.created_at)?,
        updated_at: row.time("updated_at", model.updated_at)?,
        deleted_at: row.opt_time("deleted_at", model.deleted_at)?,
        hints: row.opt_json("hints", model.hints.as_deref())?,
        server_group_id: model
            .server_group_id
            .map(|id| row.parsed("server_group_id", id.parse()))
            .transpose()?,
        attempt: row.int("attempt", model.attempt)?,
        failed_hosts: row.json("failed_hosts", &model.failed_hosts)?,
        config_drive,
        guest_data,
        desired_rescue: row.opt_json("desired_rescue", model.desired_rescue.as_deref())?,
        desired_incarnation: row
            .opt_json("desired_incarnation", model.desired_incarnation.as_deref())?,
    })
}

fn write(instance: &InstanceRow) -> Result<instance::Model, StoreError> {
    let amounts = codec::amounts("instances.flavor", instance.flavor.into())?;
    let (placement_fault_code, placement_fault_message) = fault_columns(
        "instances.placement_fault",
        instance.placement_fault.as_ref(),
    )?;
    let observed = write_observed(&instance.observed)?;
    let image = image_columns(&instance.boot_source)?;
    Ok(instance::Model {
        id: instance.id.to_string(),
        project: instance.project.to_string(),
        name: instance.name.to_string(),
        live_name: instance
            .deleted_at
            .is_none()
            .then(|| instance.name.to_string()),
        vcpus: amounts.vcpus,
        memory_mb: amounts.memory_mb,
        disk_gb: amounts.disk_gb,
        image_url: image.url,
        image_sha256: image.sha256,
        image_format: image.format,
        stop_timeout_seconds: i64::from(instance.stop_timeout_seconds),
        fingerprint: instance.fingerprint.clone(),
        desired_power: word("instances.desired_power", &instance.desired_power)?,
        desired_reboot_nonce: instance
            .desired_reboot
            .map(|reboot| reboot.nonce.to_string()),
        desired_reboot_kind: reboot_kind(instance.desired_reboot)?,
        desired_deleted: instance.desired_deleted,
        placement_fault_code,
        placement_fault_message,
        observed_status: observed.status,
        observed_generation: observed.generation,
        observed_power_state: observed.power_state,
        observed_reboot_nonce: observed.reboot_nonce,
        observed_progress: observed.progress,
        observed_fault_code: observed.fault_code,
        observed_fault_message: observed.fault_message,
        observed_was_active: instance.observed.was_active,
        observed_at: instance.observed.at.map(millis),
        created_at: millis(instance.created_at),
        updated_at: millis(instance.updated_at),
        deleted_at: instance.deleted_at.map(millis),
        hints: codec::opt_json("instances.hints", &instance.hints)?,
        server_group_id: instance.server_group_id.map(|id| id.to_string()),
        attempt: i64::from(instance.attempt),
        failed_hosts: codec::json("instances.failed_hosts", &instance.failed_hosts)?,
        config_drive: codec::opt_json("instances.config_drive", &instance.config_drive)?,
        guest_data: codec::opt_json("instances.guest_data", &instance.guest_data)?,
        desired_rescue: codec::opt_json("instances.desired_rescue", &instance.desired_rescue)?,
        desired_incarnation: codec::opt_json(
            "instances.desired_incarnation",
            &instance.desired_incarnation,
        )?,
        observed_boot_disk: observed.boot_disk,
        observed_running: observed.running,
        metadata: Some(codec::json("instances.metadata", &instance.metadata)?),
        on_crash: codec::opt_json("instances.on_crash", &instance.on_crash)?,
        root_volume: codec::opt_json("instances.root_volume", &instance.boot_source.volume())?,
    })
}

/// The columns of an image: empty for an instance that boots from a volume, since they were there first, and never null.
#[derive(Default)]
struct ImageColumns {
    url: String,
    sha256: String,
    format: String,
}

fn image_columns(source: &BootSource) -> Result<ImageColumns, StoreError> {
    let Some(image) = source.image() else {
        return Ok(ImageColumns::default());
    };
    Ok(ImageColumns {
        url: image.url.to_string(),
        sha256: image.sha256.to_string(),
        format: word("instances.image_format", &image.format)?,
    })
}

fn reboot_kind(reboot: Option<Reboot>) -> Result<Option<String>, StoreError> {
    reboot
        .map(|reboot| word("instances.desired_reboot_kind", &reboot.kind))
        .transpose()
}

/// The observation's columns that need converting.
struct ObservedColumns {
    status: Option<String>,
    generation: i64,
    power_state: String,
    reboot_nonce: Option<String>,
    boot_disk: Option<String>,
    running: Option<String>,
    progress: Option<String>,
    fault_code: Option<String>,
    fault_message: Option<String>,
}

fn write_observed(observed: &InstanceObserved) -> Result<ObservedColumns, StoreError> {
    let (fault_code, fault_message) =
        fault_columns("instances.observed_fault", observed.fault.as_ref())?;
    Ok(ObservedColumns {
        status: observed
            .status
            .map(|status| word("instances.observed_status", &status))
            .transpose()?,
        generation: int("instances.observed_generation", observed.generation.0)?,
        power_state: word("instances.observed_power_state", &observed.power_state)?,
        reboot_nonce: observed.reboot_nonce.map(|nonce| nonce.to_string()),
        boot_disk: codec::opt_json("instances.observed_boot_disk", &observed.boot_disk)?,
        running: codec::opt_json("instances.observed_running", &observed.running)?,
        progress: observed.progress.as_deref().map(prose),
        fault_code,
        fault_message,
    })
}

/// The instances that meet a condition, in order of creation.
pub(crate) async fn load(
    db: &impl Executor,
    which: Condition,
    limit: Option<u64>,
) -> Result<Vec<InstanceRow>, StoreError> {
    let models = instance::Entity::find()
        .filter(which)
        .order_by_asc(Column::CreatedAt)
        .order_by_asc(Column::Id)
        .limit(limit)
        .all(&db.handle())
        .await
        .map_err(failed("instances"))?;
    models.into_iter().map(read).collect()
}

/// Adds an instance.
///
/// # Errors
/// [`StoreError::Unique`] with `Id` or `InstanceName`.
pub async fn insert(db: &impl Executor, instance: &InstanceRow) -> Result<(), StoreError> {
    instance::Entity::insert(write(instance)?.into_active_model().reset_all())
        .exec_without_returning(&db.handle())
        .await
        .map(drop)
        .map_err(failed("instances::insert"))
}

/// Adds instances, all or nothing.
///
/// # Errors
/// [`StoreError::Unique`] with `Id` or `InstanceName`, without saying whose.
pub async fn insert_many(db: &impl Executor, instances: &[InstanceRow]) -> Result<(), StoreError> {
    let models = instances.iter().map(write).collect::<Result<_, _>>()?;
    let scope = scope(db).await?;
    bulk::insert(&scope.handle(), "instances::insert_many", models, None).await?;
    scope.finish().await
}

/// One instance, also a deleted one.
///
/// # Errors
/// See [`StoreError`].
pub async fn get(db: &impl Executor, id: InstanceId) -> Result<Option<InstanceRow>, StoreError> {
    let which = Condition::all().add(Column::Id.eq(id.to_string()));
    Ok(load(db, which, None).await?.pop())
}

/// Some instances, also deleted ones, in order of creation.
///
/// # Errors
/// See [`StoreError`].
pub async fn of_ids(
    db: &impl Executor,
    ids: &[InstanceId],
) -> Result<Vec<InstanceRow>, StoreError> {
    let mut instances = Vec::with_capacity(ids.len());
    for ids in bulk::id_lists(ids) {
        let which = Condition::all().add(Column::Id.is_in(ids));
        instances.append(&mut load(db, which, None).await?);
    }
    in_order(&mut instances);
    Ok(instances)
}

/// The living instances with these names, in order of creation.
///
/// # Errors
/// See [`StoreError`].
pub async fn living_by_names(
    db: &impl Executor,
    names: &[(ProjectName, InstanceName)],
) -> Result<Vec<InstanceRow>, StoreError> {
    let connection = db.handle();
    let rows = names
        .iter()
        .map(|(project, name)| [project.to_string(), name.to_string()])
        .collect();
    let backend = connection.get_database_backend();
    let mut instances = Vec::new();
    for which in bulk::row_lists(backend, TABLE, ["project", "live_name"], rows) {
        instances.append(&mut load(db, Condition::all().add(which), None).await?);
    }
    in_order(&mut instances);
    Ok(instances)
}

/// By creation, and each once: what several statements found may overlap.
fn in_order(instances: &mut Vec<InstanceRow>) {
    instances.sort_by_key(|row| (row.created_at, row.id));
    instances.dedup_by_key(|row| row.id);
}

/// The living instance with this name.
///
/// # Errors
/// See [`StoreError`].
pub async fn find_by_name(
    db: &impl Executor,
    project: &ProjectName,
    name: &InstanceName,
) -> Result<Option<InstanceRow>, StoreError> {
    let which = Condition::all()
        .add(Column::Project.eq(project.as_str()))
        .add(Column::LiveName.eq(name.as_str()));
    Ok(load(db, which, None).await?.pop())
}

/// At most `limit` living instances of a project, or of all, in order of creation, after the one given. That one
/// may have been deleted since, so that paging survives deletions.
///
/// # Errors
/// [`StoreError::NotFound`] if there is no instance `after`.
pub async fn list(
    db: &impl Executor,
    project: Option<&ProjectName>,
    after: Option<InstanceId>,
    limit: u32,
) -> Result<Vec<InstanceRow>, StoreError> {
    let mut which = Condition::all()
        .add(Column::DeletedAt.is_null())
        .add_option(project.map(|project| Column::Project.eq(project.as_str())));
    if let Some(after) = after {
        let created_at: Option<i64> = instance::Entity::find_by_id(after.to_string())
            .select_only()
            .column(Column::CreatedAt)
            .into_tuple()
            .one(&db.handle())
            .await
            .map_err(failed("instances::list"))?;
        let Some(created_at) = created_at else {
            return Err(StoreError::NotFound {
                table: TABLE,
                id: after.to_string(),
            });
        };
        which = which.add(
            Condition::any().add(Column::CreatedAt.gt(created_at)).add(
                Condition::all()
                    .add(Column::CreatedAt.eq(created_at))
                    .add(Column::Id.gt(after.to_string())),
            ),
        );
    }
    load(db, which, Some(u64::from(limit))).await
}

/// Starts an update of one instance.
fn update(id: InstanceId, now: DateTime<Utc>) -> UpdateMany<instance::Entity> {
    instance::Entity::update_many()
        .col_expr(Column::UpdatedAt, Expr::value(millis(now)))
        .filter(Column::Id.eq(id.to_string()))
}

async fn apply(
    db: &impl Executor,
    id: InstanceId,
    what: &'static str,
    update: UpdateMany<instance::Entity>,
) -> Result<(), StoreError> {
    let updated = update.exec(&db.handle()).await.map_err(failed(what))?;
    if updated.rows_affected == 0 {
        return Err(StoreError::NotFound {
            table: TABLE,
            id: id.to_string(),
        });
    }
    Ok(())
}

/// Sets whether it shall run.
///
/// # Errors
/// [`StoreError::NotFound`] if there is no such instance.
pub async fn set_desired_power(
    db: &impl Executor,
    id: InstanceId,
    power: DesiredPower,
    now: DateTime<Utc>,
) -> Result<(), StoreError> {
    let power = word("instances.desired_power", &power)?;
    let update = update(id, now).col_expr(Column::DesiredPower, Expr::value(power));
    apply(db, id, "instances::set_desired_power", update).await
}

/// Sets its size. Its claims are set apart, in the same transaction.
///
/// # Errors
/// [`StoreError::NotFound`] if there is no such instance.
pub async fn set_flavor(
    db: &impl Executor,
    id: InstanceId,
    flavor: Flavor,
    now: DateTime<Utc>,
) -> Result<(), StoreError> {
    let amounts = codec::amounts("instances.flavor", flavor.into())?;
    let update = update(id, now)
        .col_expr(Column::Vcpus, Expr::value(amounts.vcpus))
        .col_expr(Column::MemoryMb, Expr::value(amounts.memory_mb))
        .col_expr(Column::DiskGb, Expr::value(amounts.disk_gb));
    apply(db, id, "instances::set_flavor", update).await
}

/// Sets the last reboot that was asked for.
///
/// # Errors
/// [`StoreError::NotFound`] if there is no such instance.
pub async fn set_desired_reboot(
    db: &impl Executor,
    id: InstanceId,
    reboot: Option<Reboot>,
    now: DateTime<Utc>,
) -> Result<(), StoreError> {
    let update = update(id, now)
        .col_expr(
            Column::DesiredRebootNonce,
            Expr::value(reboot.map(|reboot| reboot.nonce.to_string())),
        )
        .col_expr(Column::DesiredRebootKind, Expr::value(reboot_kind(reboot)?));
    apply(db, id, "instances::set_desired_reboot", update).await
}

/// Sets what it is called and what is said of it.
///
/// # Errors
/// [`StoreError::NotFound`] if there is no such instance, [`StoreError::Unique`] with `InstanceName`.
pub async fn set_description(
    db: &impl Executor,
    id: InstanceId,
    description: &Description<'_>,
    now: DateTime<Utc>,
) -> Result<(), StoreError> {
    let metadata = codec::json("instances.metadata", description.metadata)?;
    let on_crash = codec::opt_json("instances.on_crash", &description.on_crash)?;
    let name = description.name.to_string();
    let update = update(id, now)
        .col_expr(Column::Name, Expr::value(name.clone()))
        .col_expr(Column::LiveName, Expr::value(Some(name)))
        .col_expr(Column::Metadata, Expr::value(Some(metadata)))
        .col_expr(Column::OnCrash, Expr::value(on_crash))
        .filter(Column::DeletedAt.is_null());
    apply(db, id, "instances::set_description", update).await
}

/// Sets what it boots from instead of its own disk.
///
/// # Errors
/// [`StoreError::NotFound`] if there is no such instance.
pub async fn set_desired_rescue(
    db: &impl Executor,
    id: InstanceId,
    rescue: Option<&Rescue>,
    now: DateTime<Utc>,
) -> Result<(), StoreError> {
    let rescue = codec::opt_json("instances.desired_rescue", &rescue)?;
    let update = update(id, now).col_expr(Column::DesiredRescue, Expr::value(rescue));
    apply(db, id, "instances::set_desired_rescue", update).await
}

/// Sets which root disk it shall have, and what that is made from.
///
/// # Errors
/// [`StoreError::NotFound`] if there is no such instance.
pub async fn set_root_disk(
    db: &impl Executor,
    id: InstanceId,
    incarnation: Incarnation,
    image: &ImageRef,
    now: DateTime<Utc>,
) -> Result<(), StoreError> {
    let incarnation = codec::opt_json("instances.desired_incarnation", &Some(incarnation))?;
    let format = word("instances.image_format", &image.format)?;
    let update = update(id, now)
        .col_expr(Column::DesiredIncarnation, Expr::value(incarnation))
        .col_expr(Column::ImageUrl, Expr::value(image.url.to_string()))
        .col_expr(Column::ImageSha256, Expr::value(image.sha256.to_string()))
        .col_expr(Column::ImageFormat, Expr::value(format));
    apply(db, id, "instances::set_root_disk", update).await
}

/// Sets that it shall be gone. It lives, and keeps its name, until [`mark_deleted`].
///
/// # Errors
/// [`StoreError::NotFound`] if there is no such instance.
pub async fn set_desired_deleted(
    db: &impl Executor,
    id: InstanceId,
    now: DateTime<Utc>,
) -> Result<(), StoreError> {
    let update = update(id, now).col_expr(Column::DesiredDeleted, Expr::value(true));
    apply(db, id, "instances::set_desired_deleted", update).await
}

/// Sets how far its placement is: the attempt, the hosts that failed, and why no place was found.
///
/// # Errors
/// [`StoreError::NotFound`] if there is no such instance.
pub async fn set_placement(
    db: &impl Executor,
    id: InstanceId,
    placement: &Placement<'_>,
    now: DateTime<Utc>,
) -> Result<(), StoreError> {
    let (code, message) = fault_columns("instances.placement_fault", placement.fault)?;
    let failed_hosts = codec::json("instances.failed_hosts", &placement.failed_hosts)?;
    let update = update(id, now)
        .col_expr(Column::Attempt, Expr::value(i64::from(placement.attempt)))
        .col_expr(Column::FailedHosts, Expr::value(failed_hosts))
        .col_expr(Column::PlacementFaultCode, Expr::value(code))
        .col_expr(Column::PlacementFaultMessage, Expr::value(message));
    apply(db, id, "instances::set_placement", update).await
}

/// Sets what its host last said. What is desired is not touched.
///
/// # Errors
/// [`StoreError::NotFound`] if there is no such instance.
pub async fn set_observed(
    db: &impl Executor,
    id: InstanceId,
    observed: &InstanceObserved,
    now: DateTime<Utc>,
) -> Result<(), StoreError> {
    let columns = write_observed(observed)?;
    let update = update(id, now)
        .col_expr(Column::ObservedStatus, Expr::value(columns.status))
        .col_expr(Column::ObservedGeneration, Expr::value(columns.generation))
        .col_expr(Column::ObservedPowerState, Expr::value(columns.power_state))
        .col_expr(
            Column::ObservedRebootNonce,
            Expr::value(columns.reboot_nonce),
        )
        .col_expr(Column::ObservedBootDisk, Expr::value(columns.boot_disk))
        .col_expr(Column::ObservedRunning, Expr::value(columns.running))
        .col_expr(Column::ObservedProgress, Expr::value(columns.progress))
        .col_expr(Column::ObservedFaultCode, Expr::value(columns.fault_code))
        .col_expr(
            Column::ObservedFaultMessage,
            Expr::value(columns.fault_message),
        )
        .col_expr(Column::ObservedWasActive, Expr::value(observed.was_active))
        .col_expr(Column::ObservedAt, Expr::value(observed.at.map(millis)));
    apply(db, id, "instances::set_observed", update).await
}

/// Marks an instance deleted, frees its name, and deletes its ports, addresses, claims and attachments, all or
/// nothing. Doing it again is harmless and keeps the first time.
///
/// # Errors
/// [`StoreError::NotFound`] if there is no such instance.
pub async fn mark_deleted(
    db: &impl Executor,
    id: InstanceId,
    now: DateTime<Utc>,
) -> Result<(), StoreError> {
    let scope = scope(db).await?;
    let updated = update(id, now)
        .col_expr(Column::DeletedAt, Expr::value(millis(now)))
        .col_expr(Column::DesiredDeleted, Expr::value(true))
        .col_expr(Column::LiveName, Expr::value(Option::<String>::None))
        .filter(Column::DeletedAt.is_null())
        .exec(&scope.handle())
        .await
        .map_err(failed("instances::mark_deleted"))?;
    if updated.rows_affected == 0 {
        let known = instance::Entity::find_by_id(id.to_string())
            .count(&scope.handle())
            .await
            .map_err(failed("instances::mark_deleted"))?;
        if known == 0 {
            return Err(StoreError::NotFound {
                table: TABLE,
                id: id.to_string(),
            });
        }
    }
    floating_ips::release_where_instance(&scope.handle(), id).await?;
    ports::leave_instance(&scope.handle(), id).await?;
    attachments::delete_where_instance(&scope.handle(), id).await?;
    claims::delete_where_instance(&scope.handle(), id).await?;
    scope.finish().await
}
