//! What hosts observed: written down ([`apply`], the newest of each resource by [`order`]); and what is shown of rows
//! ([`view`], pure; [`show`] gathers its rows) and of decisions ([`decision`], pure; [`explain`]).

pub mod apply;
pub mod decision;
pub mod explain;
pub mod order;
pub mod port_view;
pub mod show;
mod size_view;
pub mod snapshot_view;
pub mod view;
pub mod volume_view;
