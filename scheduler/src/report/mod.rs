//! What hosts observed: written down ([`apply`]), and shown ([`view`], pure; [`show`] gathers its rows).

pub mod apply;
pub mod show;
pub mod view;
