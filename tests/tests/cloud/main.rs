//! Integration tests: real processes, real libvirt, real guests. One binary, so that it is linked once.

mod boot;
mod broker_loss;
mod config_drive;
mod crashes;
mod databases;
mod failover;
mod first_light;
mod foreign;
mod garbage;
mod hostile_images;
mod house_rules;
mod lab;
mod libvirt_loss;
mod operator;
mod operator_placement;
mod placement;
mod python_client;
mod questions;
mod refusals;
mod relocation;
mod restart;
mod scale;
mod shipped_files;
mod snapshots;
mod standstill;
mod volumes;
