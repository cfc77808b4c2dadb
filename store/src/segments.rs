//! Segments: which flat network, which VLAN of a physical network, and which VNI belongs to which living network. A unique
//! index holds that none belongs to two.

use std::ops::RangeInclusive;

use berth_common::{document::NetworkType, ids::NetworkId, names::PhysicalNetworkName};
use sea_orm::{
    ActiveModelTrait, ColumnTrait, ConnectionTrait, EntityTrait, IntoActiveModel, QueryFilter,
    QueryOrder, QuerySelect,
};

use crate::{
    codec::{RowReader, word},
    entity::segment,
    error::{StoreError, failed},
    executor::Executor,
    networks::NetworkRow,
};

/// The segment that a network has, if its type has any.
fn of_network(network: &NetworkRow) -> Result<Option<segment::Model>, StoreError> {
    if !network.network_type.spans_hosts() {
        return Ok(None);
    }
    Ok(Some(segment::Model {
        network_id: network.id.to_string(),
        network_type: word("segments.network_type", &network.network_type)?,
        physical_network: stored(network.physical_network.as_ref()),
        segmentation_id: network.segmentation_id.map_or(0, i64::from),
    }))
}

fn stored(physical_network: Option<&PhysicalNetworkName>) -> String {
    physical_network.map_or_else(String::new, ToString::to_string)
}

/// A living network has its segment from now on.
pub(crate) async fn take(
    connection: &impl ConnectionTrait,
    network: &NetworkRow,
) -> Result<(), StoreError> {
    let Some(model) = of_network(network)?.filter(|_| network.deleted_at.is_none()) else {
        return Ok(());
    };
    segment::Entity::insert(model.into_active_model().reset_all())
        .exec_without_returning(connection)
        .await
        .map(drop)
        .map_err(failed("segments::take"))
}

/// A network has no segment any more.
pub(crate) async fn free(
    connection: &impl ConnectionTrait,
    network: NetworkId,
) -> Result<(), StoreError> {
    segment::Entity::delete_by_id(network.to_string())
        .exec(connection)
        .await
        .map(drop)
        .map_err(failed("segments::free"))
}

/// The ids that networks have of one type, on one physical network or without any, in order.
///
/// # Errors
/// See [`StoreError`].
pub async fn taken(
    db: &impl Executor,
    network_type: NetworkType,
    physical_network: Option<&PhysicalNetworkName>,
    ids: RangeInclusive<u32>,
) -> Result<Vec<u32>, StoreError> {
    let found: Vec<(String, i64)> = segment::Entity::find()
        .select_only()
        .columns([segment::Column::NetworkId, segment::Column::SegmentationId])
        .filter(segment::Column::NetworkType.eq(word("segments.network_type", &network_type)?))
        .filter(segment::Column::PhysicalNetwork.eq(stored(physical_network)))
        .filter(
            segment::Column::SegmentationId.between(i64::from(*ids.start()), i64::from(*ids.end())),
        )
        .order_by_asc(segment::Column::SegmentationId)
        .into_tuple()
        .all(&db.handle())
        .await
        .map_err(failed("segments::taken"))?;
    found
        .into_iter()
        .map(|(network, id)| {
            let row = RowReader {
                table: "segments",
                id: &network,
            };
            row.int("segmentation_id", id)
        })
        .collect()
}
