//! Changes to ports that are there.

use std::collections::BTreeSet;

use berth_common::{
    ids::{InstanceId, PortId, SecurityGroupId},
    names::PortName,
};
use sea_orm::{
    ColumnTrait, ConnectionTrait, EntityTrait, QueryFilter, UpdateMany, sea_query::Expr,
};

use super::{AttachmentState, PortAttachment, PortWishes, TABLE, write_groups};
use crate::{
    bulk,
    codec::opt_json,
    entity::{
        port::{self, Column},
        port_security_group,
    },
    error::{StoreError, failed},
    executor::{Executor, scope},
    floating_ips,
};

/// Carries a change of one port out.
async fn apply(
    connection: &impl ConnectionTrait,
    id: PortId,
    what: &'static str,
    update: UpdateMany<port::Entity>,
) -> Result<(), StoreError> {
    let updated = update
        .filter(Column::Id.eq(id.to_string()))
        .exec(connection)
        .await
        .map_err(failed(what))?;
    if updated.rows_affected == 0 {
        return Err(StoreError::NotFound {
            table: TABLE,
            id: id.to_string(),
        });
    }
    Ok(())
}

/// Names a port, or takes its name from it.
///
/// # Errors
/// [`StoreError::NotFound`] if there is no such port; [`StoreError::Unique`] with `PortName`.
pub async fn set_name(
    db: &impl Executor,
    id: PortId,
    name: Option<&PortName>,
) -> Result<(), StoreError> {
    let name = name.map(ToString::to_string);
    let update = port::Entity::update_many().col_expr(Column::Name, Expr::value(name));
    apply(&db.handle(), id, "ports::set_name", update).await
}

/// Sets what is wanted of a port.
///
/// # Errors
/// [`StoreError::NotFound`] if there is no such port; [`StoreError::ForeignKey`] if a group does not exist.
pub async fn set_wishes(
    db: &impl Executor,
    id: PortId,
    wishes: &PortWishes,
) -> Result<(), StoreError> {
    const WHAT: &str = "ports::set_wishes";
    let pairs = opt_json("ports.allowed_address_pairs", &wishes.allowed_address_pairs)?;
    let update = port::Entity::update_many()
        .col_expr(Column::AdminStateUp, Expr::value(wishes.admin_state_up))
        .col_expr(
            Column::PortSecurityEnabled,
            Expr::value(wishes.port_security_enabled),
        )
        .col_expr(Column::AllowedAddressPairs, Expr::value(pairs))
        .col_expr(
            Column::Qos,
            Expr::value(opt_json("ports.qos", &wishes.qos)?),
        )
        .col_expr(
            Column::Mirrors,
            Expr::value(opt_json("ports.mirrors", &wishes.mirrors)?),
        );
    let scope = scope(db).await?;
    apply(&scope.handle(), id, WHAT, update).await?;
    set_groups(&scope.handle(), id, &wishes.security_groups).await?;
    scope.finish().await
}

async fn set_groups(
    connection: &impl ConnectionTrait,
    id: PortId,
    groups: &BTreeSet<SecurityGroupId>,
) -> Result<(), StoreError> {
    const WHAT: &str = "ports::set_wishes";
    port_security_group::Entity::delete_many()
        .filter(port_security_group::Column::PortId.eq(id.to_string()))
        .exec(connection)
        .await
        .map_err(failed(WHAT))?;
    bulk::insert(connection, WHAT, write_groups(id, groups).collect(), None).await
}

/// Gives a port to an instance.
///
/// # Errors
/// [`StoreError::NotFound`] if there is no such port that is of no instance; [`StoreError::Unique`] if the position is
/// taken.
pub async fn attach(
    db: &impl Executor,
    id: PortId,
    attachment: PortAttachment,
) -> Result<(), StoreError> {
    let update = port::Entity::update_many()
        .col_expr(
            Column::InstanceId,
            Expr::value(Some(attachment.instance_id.to_string())),
        )
        .col_expr(
            Column::Position,
            Expr::value(Some(i64::from(attachment.position))),
        )
        .col_expr(Column::State, Expr::value(Some(attachment.state.as_str())))
        .filter(Column::InstanceId.is_null());
    apply(&db.handle(), id, "ports::attach", update).await
}

/// Sets how far the attachments of some ports are; those that are of no instance stay so.
///
/// # Errors
/// See [`StoreError`].
pub async fn set_state(
    db: &impl Executor,
    ids: &[PortId],
    state: AttachmentState,
) -> Result<(), StoreError> {
    for ids in bulk::id_lists(ids) {
        port::Entity::update_many()
            .col_expr(Column::State, Expr::value(Some(state.as_str())))
            .filter(Column::Id.is_in(ids))
            .filter(Column::InstanceId.is_not_null())
            .exec(&db.handle())
            .await
            .map_err(failed("ports::set_state"))?;
    }
    Ok(())
}

/// The columns of a port that is of no instance.
fn freed() -> UpdateMany<port::Entity> {
    port::Entity::update_many()
        .col_expr(Column::InstanceId, Expr::value(Option::<String>::None))
        .col_expr(Column::Position, Expr::value(Option::<i64>::None))
        .col_expr(Column::State, Expr::value(Option::<String>::None))
}

/// Takes a port from its instance, if it is of one.
///
/// # Errors
/// [`StoreError::NotFound`] if there is no such port.
pub async fn free(db: &impl Executor, id: PortId) -> Result<(), StoreError> {
    apply(&db.handle(), id, "ports::free", freed()).await
}

/// Deletes a port, if it is there. Its addresses and its places in groups go with it (`ON DELETE CASCADE`), and its floating IPs
/// are nobody's.
///
/// # Errors
/// See [`StoreError`].
pub async fn delete(db: &impl Executor, id: PortId) -> Result<(), StoreError> {
    let scope = scope(db).await?;
    floating_ips::release_of_port(&scope.handle(), id).await?;
    port::Entity::delete_by_id(id.to_string())
        .exec(&scope.handle())
        .await
        .map_err(failed("ports::delete"))?;
    scope.finish().await
}

/// An instance is gone: the ports that go with it are deleted, the others are free.
pub(crate) async fn leave_instance(
    connection: &impl ConnectionTrait,
    id: InstanceId,
) -> Result<(), StoreError> {
    const WHAT: &str = "ports::leave_instance";
    port::Entity::delete_many()
        .filter(Column::InstanceId.eq(id.to_string()))
        .filter(Column::DeleteWithInstance.eq(true))
        .exec(connection)
        .await
        .map_err(failed(WHAT))?;
    freed()
        .filter(Column::InstanceId.eq(id.to_string()))
        .exec(connection)
        .await
        .map(drop)
        .map_err(failed(WHAT))
}
