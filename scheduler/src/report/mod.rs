//! What hosts observed: written down ([`apply`], the newest of each resource by [`order`]), and shown ([`view`], pure; [`show`] gathers its rows).

pub mod apply;
pub mod order;
pub mod show;
pub mod view;
