//! `berthctl explain`, `place` and `capacity`: questions to placement, which change nothing.

use berth_common::{
    message::{
        placement::DecisionView,
        request::{PlacementCapacity, PlacementExplain, PlacementPlace},
    },
    names::ProjectName,
};

use super::{Context, read};
use crate::{
    cli::{CapacityArgs, ExplainArgs, PlaceArgs},
    client::Caller,
    error::CtlError,
    instance_file::parse_placement,
    print::placement,
};

/// A question whose file is read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Question {
    Explain(PlacementExplain),
    Place(PlacementPlace),
    Capacity(PlacementCapacity),
}

pub(super) fn explain(arguments: ExplainArgs, project: Option<ProjectName>) -> Question {
    Question::Explain(PlacementExplain {
        instance: arguments.instance,
        project: project.unwrap_or_default(),
    })
}

pub(super) fn place(
    arguments: PlaceArgs,
    project: Option<ProjectName>,
) -> Result<Question, CtlError> {
    read_request(&arguments, project).map(Question::Place)
}

pub(super) fn capacity(
    arguments: CapacityArgs,
    project: Option<ProjectName>,
) -> Result<Question, CtlError> {
    let one = read_request(&arguments.place, project)?;
    Ok(Question::Capacity(PlacementCapacity {
        project: one.project,
        flavor: one.flavor,
        hints: one.hints,
        networks: one.networks,
        most: arguments.most,
    }))
}

fn read_request(
    arguments: &PlaceArgs,
    project: Option<ProjectName>,
) -> Result<PlacementPlace, CtlError> {
    let text = read(&arguments.file)?;
    Ok(parse_placement(&arguments.file, &text, project)?)
}

pub(super) async fn run<C: Caller>(
    context: &Context<C>,
    question: Question,
) -> Result<(), CtlError> {
    match question {
        Question::Explain(request) => {
            let reply = context.ask(&request).await?;
            context.print(&reply, placement::explained)
        }
        Question::Place(request) => {
            let decision = context.ask(&request).await?;
            context.print(&decision, placement::decision)?;
            fits(&decision)
        }
        Question::Capacity(request) => {
            let view = context.ask(&request).await?;
            context.print(&view, placement::capacity)
        }
    }
}

/// Scripts tell from the exit code whether it fits.
fn fits(decision: &DecisionView) -> Result<(), CtlError> {
    match decision.chosen {
        Some(_) => Ok(()),
        None => Err(CtlError::FitsNowhere),
    }
}

#[cfg(test)]
mod tests;
