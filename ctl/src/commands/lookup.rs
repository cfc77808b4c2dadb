//! Which of the things that were listed is meant, and the deletion of that very one.

use std::{fmt::Display, str::FromStr};

use berth_common::{
    message::request::Method,
    names::ProjectName,
    refusal::{Refusal, RefusalCode},
};

use super::Context;
use crate::{client::Caller, error::CtlError};

/// A thing that is listed, and named by its id or its name.
pub(super) trait Listed {
    /// Its id.
    type Id: Display + FromStr + PartialEq;
    /// What it is, for people.
    const WHAT: &'static str;
    /// The word of the command line.
    const COMMAND: &'static str;

    fn id(&self) -> Self::Id;
    fn name(&self) -> &str;
}

/// A name or an id that somebody gave, and where names are looked up.
#[derive(Debug, Clone, Copy)]
pub(super) struct Named<'n> {
    pub(super) name: &'n str,
    /// Without one, names are unique everywhere.
    pub(super) project: Option<&'n ProjectName>,
}

impl Named<'_> {
    /// The one that has this id, or else this name.
    pub(super) fn find<L: Listed>(self, mut all: Vec<L>) -> Option<L> {
        let id: Option<L::Id> = self.name.parse().ok();
        let place = all
            .iter()
            .position(|thing| Some(thing.id()) == id)
            .or_else(|| all.iter().position(|thing| thing.name() == self.name))?;
        Some(all.swap_remove(place))
    }

    /// The refusal where there is none.
    pub(super) fn nobody<L: Listed>(self) -> CtlError {
        let (name, what) = (self.name, L::WHAT);
        let message = match self.project {
            Some(project) => {
                format!("project {project} has no {what} {name:?}, neither by id nor by name")
            }
            None => format!(
                "there is no {what} {name:?}, neither by id nor by name; `berthctl {} list` shows all",
                L::COMMAND
            ),
        };
        CtlError::Refused(Refusal::new(RefusalCode::NotFound, message))
    }

    /// Deletes the one that is meant by its id: once it is gone, its name may belong to another one.
    pub(super) async fn delete<C: Caller, M>(
        self,
        context: &Context<C>,
        all: Vec<M::Reply>,
        request: impl FnOnce(String) -> M,
    ) -> Result<M::Reply, CtlError>
    where
        M: Method + Sync,
        M::Reply: Listed,
    {
        let (id, found) = match (self.find(all), self.name.parse()) {
            (Some(found), _) => (found.id(), Some(found)),
            // One of another project, or one that is deleted: the scheduler knows.
            (None, Ok(id)) => (id, None),
            (None, Err(_)) => return Err(self.nobody::<M::Reply>()),
        };
        let id = id.to_string();
        let again = format!("{} delete {id}", M::Reply::COMMAND);
        delete(context, &request(id), found, &again).await
    }
}

/// Deletes by id what was `found`; `again` are the words that repeat it. Not to find it any more is what was wanted.
pub(super) async fn delete<C: Caller, M: Method + Sync>(
    context: &Context<C>,
    request: &M,
    found: Option<M::Reply>,
    again: &str,
) -> Result<M::Reply, CtlError> {
    match (context.ask(request).await, found) {
        (Err(CtlError::Refused(refusal)), Some(found)) if refusal.code == RefusalCode::NotFound => {
            Ok(found)
        }
        (answer, _) => answer.map_err(|error| {
            error.advise(&format!("repeating it as `berthctl {again}` is harmless"))
        }),
    }
}
