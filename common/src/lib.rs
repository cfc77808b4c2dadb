//! What every part of berth shares: ids, units, names, resource documents, messages, the bus, configuration
//! and telemetry. It knows nothing of the parts themselves.

pub mod bus;
pub mod config;
pub mod document;
pub mod ids;
pub mod message;
pub mod names;
pub mod refusal;
pub mod telemetry;
pub mod units;
