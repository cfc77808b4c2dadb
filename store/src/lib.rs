//! The database of berth: schema, migrations and typed queries.
//!
//! The story: a [`Store`] is a pool of connections to SQLite, PostgreSQL or MariaDB. One set of migrations and
//! one code path serve all three; what differs between them stands in `connect.rs` (settings of a connection),
//! `lock.rs` (SQLite's lock of the one scheduler), `bulk.rs` (a list of rows) and `migration/dialect.rs` (two column
//! and table options). Each resource has one file with its row struct and its queries: [`hosts`], [`aggregates`],
//! [`networks`], [`subnets`], [`segments`], [`instances`], [`server_groups`], [`ports`], [`security_groups`], [`routers`], [`floating_ips`], [`held_addresses`], [`volumes`], [`snapshots`], [`attachments`], [`claims`], [`documents`],
//! [`decisions`], [`nonces`];
//! [`reach`] tells who is in a network on all hosts, [`host_rows`] reads all that hosts' documents are derived from, and [`leadership`] tells which of several
//! schedulers writes.
//!
//! Rows are plain structs of the shared ids, names and units. Every value is checked when it is written and
//! parsed when it is read: a stored value that does not parse is [`StoreError::Corrupt`] with its table and row,
//! never a default. Rules between rows (a name, an address, a claim exists once) are held by the database through
//! unique indexes, and a violation is [`StoreError::Unique`] with what is taken.
//!
//! Query functions take any [`Executor`]: the pool, or a transaction. Functions of several statements are atomic
//! either way: they join the given transaction or open one. The number of queries per call is constant, or constant
//! for each few hundred rows. After an error inside a transaction, drop it, or the [nested](Txn::nested) one:
//! PostgreSQL would refuse every further statement, and so the others are treated alike. After
//! [`StoreError::Unavailable`] the whole transaction is over, on all databases. Every exchange with the database has
//! a time limit; one that is given up is [`StoreError::Unavailable`] too, and its connection is not used again.
//!
//! Representation, the same everywhere: ids and addresses as text (every database shows, compares and orders them
//! alike; the native UUID types of the three do neither), times as whole milliseconds since 1970, amounts as
//! 64-bit integers, enums by their names on the wire, lists as JSON. Text compares by its bytes, so names are
//! case-sensitive.
//!
//! It decides nothing: no placement, no clock, no defaults of policy.

mod bulk;
mod codec;
mod connect;
mod constraint;
mod entity;
mod error;
mod executor;
mod lock;
mod migration;

pub mod aggregates;
pub mod attachments;
pub mod claims;
pub mod decisions;
pub mod documents;
pub mod floating_ips;
pub mod held_addresses;
pub mod host_rows;
pub mod hosts;
pub mod instances;
pub mod leadership;
pub mod networks;
pub mod nonces;
pub mod ports;
pub mod reach;
pub mod routers;
pub mod security_groups;
pub mod segments;
pub mod server_groups;
pub mod snapshots;
pub mod subnets;
pub mod volumes;

pub use codec::whole_millis;
pub use connect::{Store, StoreConfig};
pub use error::{Cause, StoreError, UniqueWhat};
pub use executor::{Executor, Pool, Tally, Txn};
pub use leadership::Epoch;
pub use lock::ExclusiveLock;
