//! `berthctl snapshot …`.

use berth_common::{
    ids::SnapshotId,
    message::{
        request::{
            SnapshotCreate, SnapshotDelete, SnapshotList, SnapshotListReply, SnapshotShow,
            default_page,
        },
        view::SnapshotView,
    },
    refusal::RefusalCode,
};

use super::{Context, asking::Asking, repeat_with_id};
use crate::{
    cli::Snapshot,
    client::Caller,
    error::CtlError,
    print::snapshot,
    wait::{Awaited, snapshot::SnapshotGoal},
};

pub(super) async fn run<C: Caller>(
    context: &Context<C>,
    command: Snapshot,
) -> Result<(), CtlError> {
    let project = context.project();
    match command {
        Snapshot::Create {
            name,
            volume,
            id,
            wait,
        } => {
            let request = SnapshotCreate {
                id: id.unwrap_or_else(SnapshotId::new),
                name,
                project,
                volume,
            };
            let view = created(&mut Asking::new(context, wait), &request).await?;
            context.print(&view, snapshot::show)
        }
        Snapshot::List => list(context).await,
        Snapshot::Show { name } => {
            let show = SnapshotShow {
                snapshot: name,
                project,
            };
            let view = context.ask(&show).await?;
            context.print(&view, snapshot::show)
        }
        Snapshot::Delete { name, wait } => {
            let show = SnapshotShow {
                snapshot: name,
                project,
            };
            let view = deleted(&mut Asking::new(context, wait), &show).await?;
            context.print(&view, |view, _| snapshot::outcome(view))
        }
    }
}

async fn created<C: Caller>(
    asking: &mut Asking<'_, C>,
    request: &SnapshotCreate,
) -> Result<SnapshotView, CtlError> {
    let accepted = asking.send(request).await;
    let accepted = accepted.map_err(|error| error.advise(&repeat_with_id(&request.id)))?;
    asking.until(accepted, SnapshotGoal::Made).await
}

async fn list<C: Caller>(context: &Context<C>) -> Result<(), CtlError> {
    let page = |last: Option<&SnapshotView>| SnapshotList {
        project: context.project.clone(),
        after: last.map(|last| last.id),
        limit: default_page(),
    };
    let snapshots = context
        .pages(page, |reply: SnapshotListReply| {
            (reply.snapshots, reply.more)
        })
        .await?;
    let all = SnapshotListReply {
        snapshots,
        more: false,
    };
    context.print(&all, |all, width| snapshot::list(&all.snapshots, width))
}

/// Finds out which snapshot is meant, and from then on speaks of its id only: by the time a request is sent again, its
/// name may belong to another one.
async fn deleted<C: Caller>(
    asking: &mut Asking<'_, C>,
    show: &SnapshotShow,
) -> Result<SnapshotView, CtlError> {
    let found = asking.send(show).await.map_err(CtlError::before_asking)?;
    let request = SnapshotDelete {
        snapshot: found.id.to_string(),
        project: found.project.clone(),
    };
    match asking.send(&request).await {
        Ok(accepted) => asking.until(accepted, SnapshotGoal::Deleted).await,
        Err(CtlError::Refused(refusal)) if refusal.code == RefusalCode::NotFound => {
            Ok(found.gone())
        }
        Err(error) => Err(error.advise(&format!(
            "repeating the command with the id {} is harmless",
            found.id
        ))),
    }
}

#[cfg(test)]
mod tests;
