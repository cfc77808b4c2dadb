//! Configuration: a TOML file, overridden by the environment, read by a small typed reader
//! that reports **every** mistake in one run.
//!
//! This folder must not know any key of any service: each service names its own keys, with
//! the parser that says what is right. It must not read the environment by itself either: the
//! caller hands it in.
//!
//! # How a service reads its configuration
//!
//! ```
//! use berth_common::config::{ConfigErrors, Reader, Secret, parse};
//!
//! struct Config { url: Secret<String>, prefetch: u16 }
//!
//! fn read(mut c: Reader) -> Result<Config, ConfigErrors> {
//!     // Read every key first (a `?` here would hide the mistakes that follow) …
//!     let url = c.required("bus.url", parse::secret(parse::url(&["amqp", "amqps"])));
//!     let prefetch = c.optional("bus.prefetch", parse::integer(1..=1000), 64);
//!     // … then build. The closure runs only when there is no mistake at all.
//!     c.finish(|| Some(Config { url: url?, prefetch }))
//! }
//!
//! let text = "[bus]\nurl = \"amqp://berth:pw@localhost\"\n";
//! let c = Reader::from_text("berth.toml", text, [], "BERTH");
//! assert_eq!(read(c).unwrap().prefetch, 64);
//! ```
//!
//! A service opens its file with [`Reader::from_file_and_env`]:
//! `Reader::from_file_and_env(path, std::env::vars_os(), "BERTH")?`.
//!
//! # The environment
//!
//! `BERTH_<SECTION>__<KEY>=value` overrides a key of the file: `BERTH_BUS__URL` is `bus.url`,
//! `BERTH_STORAGE__POOLS__FAST__PATH` is `storage.pools.fast.path`. Letters are upper case, a
//! `-` in a key is written `_`. The value is taken as it is, without quotes: numbers and
//! `true`/`false` are understood where the key wants them, a list is `a,b,c` or a TOML list,
//! a table is `k=v,k2=v2` or a TOML inline table. An empty value is a value.
//!
//! A variable of a section that the service knows, naming a key that it does not know, is a
//! mistake. Variables of other sections belong to other services and are ignored, and so is
//! `BERTH_…` without a double underscore (command line defaults use that form). A key outside
//! any section can only be set in the file.

mod document;
mod environment;
mod errors;
mod file;
mod input;
pub mod parse;
mod reader;
mod secret;
mod suggest;
#[cfg(test)]
mod tests;

pub use errors::{ConfigErrors, Mistake, Place};
pub use input::Input;
pub use reader::Reader;
pub use secret::{Secret, redact_url};
pub use suggest::closest;
