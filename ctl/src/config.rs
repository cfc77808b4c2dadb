//! Which broker to talk to: what the command line or the environment says, else the configuration file.
//!
//! The file holds one key, `url` in `[bus]`; it carries a password, so its mistakes never show the value.

use std::path::{Path, PathBuf};

use berth_common::config::{ConfigErrors, Reader, Secret, parse};

use crate::error::CtlError;

/// Where the configuration is unless said otherwise.
pub(crate) const DEFAULT_FILE: &str = "/etc/berth/berthctl.toml";

/// The broker's address.
pub(crate) fn broker_url(
    given: Option<String>,
    file: Option<PathBuf>,
) -> Result<Secret<String>, CtlError> {
    match (given, file) {
        (Some(url), _) => Ok(Secret::new(url)),
        (None, Some(file)) => Ok(read(&file)?),
        (None, None) if !Path::new(DEFAULT_FILE).exists() => Err(CtlError::Usage(format!(
            "no message broker is named: give --url amqp://user:password@host:5672/vhost, set BERTH_BUS__URL, or write \
             it as `url` in section [bus] of {DEFAULT_FILE}"
        ))),
        (None, None) => Ok(read(Path::new(DEFAULT_FILE))?),
    }
}

fn read(file: &Path) -> Result<Secret<String>, ConfigErrors> {
    // The environment was looked at already: clap takes BERTH_BUS__URL for --url.
    url_of(Reader::from_file_and_env(file, [], "BERTH")?)
}

fn url_of(mut reader: Reader) -> Result<Secret<String>, ConfigErrors> {
    let url = reader.required("bus.url", parse::secret(parse::url(&["amqp", "amqps"])));
    reader.finish(|| url)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(text: &str) -> Result<Secret<String>, ConfigErrors> {
        url_of(Reader::from_text("berthctl.toml", text, [], "BERTH"))
    }

    #[test]
    fn the_file_names_the_broker() {
        let url = check("[bus]\nurl = \"amqp://berth:hunter2@mq/berth\"\n").unwrap();
        assert_eq!(url.redacted_url(), "amqp://berth:***@mq/berth");
    }

    #[test]
    fn mistakes_in_the_file_are_told_without_the_password() {
        let error = check("[bus]\nurl = \"http://berth:hunter2@mq\"\nulr = 1\n")
            .unwrap_err()
            .to_string();
        assert!(
            error.contains("berthctl.toml:2:7: bus.url: must be a URL of the form amqp://"),
            "{error}"
        );
        assert!(
            error.contains("berthctl.toml:3:1: bus.ulr: unknown key; did you mean bus.url?"),
            "{error}"
        );
        assert!(!error.contains("hunter2"), "{error}");
    }

    #[test]
    fn the_command_line_wins_over_the_file() {
        let url = broker_url(
            Some("amqp://mq".to_owned()),
            Some(PathBuf::from("/nonexistent")),
        )
        .unwrap();
        assert_eq!(url.expose(), "amqp://mq");
        let error = broker_url(None, Some(PathBuf::from("/nonexistent/x.toml"))).unwrap_err();
        assert_eq!(error.exit_code(), 2);
        assert!(
            error.to_string().contains("there is no such file"),
            "{error}"
        );
    }
}
