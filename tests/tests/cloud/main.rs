//! Integration tests: real processes, real libvirt, real guests. One binary, so that it is linked once.

mod broker_loss;
mod crashes;
mod databases;
mod first_light;
mod foreign;
mod garbage;
mod hostile_images;
mod house_rules;
mod lab;
mod libvirt_loss;
mod operator;
mod placement;
mod python_client;
mod refusals;
mod restart;
mod shipped_files;
