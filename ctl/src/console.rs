//! The end of an instance's console log, where this machine is its hypervisor.
//!
//! The log is a file that the guest writes into: it is read from its end, within a bound, and what is in it never
//! reaches the terminal as control characters.

use std::{
    fs::File,
    io::{self, Read, Seek, SeekFrom},
    path::{Path, PathBuf},
};

use berth_common::{ids::InstanceId, names::HostName};
use serde::Serialize;

use crate::terminal::visible_lines;

/// Bytes read from the end of a log at most (1 MiB).
const MAX_BYTES: u64 = 1024 * 1024;

/// Why the console cannot be shown here.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ConsoleError {
    /// The instance never got a hypervisor.
    #[error("instance {0} has no hypervisor, so it has no console")]
    NoHost(String),
    /// The log is on another machine.
    #[error(
        "the console log of the instance is on hypervisor {host}, in {}; leave --local away, or run the command there. \
         (There is no such file on this machine. An instance that has not been powered on has none yet.)",
        path.display()
    )]
    Elsewhere {
        /// The hypervisor.
        host: HostName,
        /// The log's path there.
        path: PathBuf,
    },
    /// The log is here but cannot be read.
    #[error("the console log {} cannot be read: {source}; it belongs to root", path.display())]
    Read {
        /// The log.
        path: PathBuf,
        /// What the system says.
        source: io::Error,
    },
}

/// The end of a console log, for programs.
#[derive(Debug, Serialize)]
pub(crate) struct Tail<'t> {
    /// The hypervisor.
    pub(crate) host: &'t HostName,
    /// The log there.
    pub(crate) path: &'t Path,
    /// Its last lines, harmless for a terminal.
    pub(crate) text: &'t str,
}

/// Where an agent keeps everything, unless its configuration says otherwise.
pub(crate) fn state_dir() -> PathBuf {
    PathBuf::from("/var/lib/berth")
}

/// Where an agent keeps the console log of an instance.
pub(crate) fn path(state_dir: &Path, id: InstanceId) -> PathBuf {
    state_dir
        .join("instances")
        .join(id.to_string())
        .join("console.log")
}

/// The last lines of a log, harmless for a terminal.
pub(crate) fn tail(path: &Path, host: &HostName, lines: usize) -> Result<String, ConsoleError> {
    let read = |path: &Path| -> io::Result<Vec<u8>> {
        let mut file = File::open(path)?;
        let length = file.metadata()?.len();
        file.seek(SeekFrom::Start(length.saturating_sub(MAX_BYTES)))?;
        let mut bytes = Vec::new();
        file.take(MAX_BYTES).read_to_end(&mut bytes)?;
        Ok(bytes)
    };
    match read(path) {
        Ok(bytes) => Ok(last_lines(&bytes, lines)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Err(ConsoleError::Elsewhere {
            host: host.clone(),
            path: path.to_owned(),
        }),
        Err(source) => Err(ConsoleError::Read {
            path: path.to_owned(),
            source,
        }),
    }
}

/// The last lines of what a guest wrote, ending with a line break if there is anything at all.
fn last_lines(bytes: &[u8], lines: usize) -> String {
    let shown = visible_lines(&String::from_utf8_lossy(bytes));
    let body = shown.strip_suffix('\n').unwrap_or(&shown);
    if body.is_empty() {
        return String::new();
    }
    let start = body
        .rmatch_indices('\n')
        .nth(lines.saturating_sub(1))
        .map_or(0, |(at, _)| at + 1);
    format!("{}\n", &body[start..])
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn only_the_last_lines_are_shown() {
        let check = |text: &str, lines, expected| {
            assert_eq!(last_lines(text.as_bytes(), lines), expected, "{text:?}")
        };
        check("", 5, "");
        check("\n", 5, "");
        check("a\r\nb\r\nc\r\n", 2, "b\nc\n");
        check("a\nb\nc", 2, "b\nc\n");
        check("a\nb\n", 9, "a\nb\n");
        check("login: \x1b[6n", 1, "login: ^[[6n\n");
        assert_eq!(last_lines(b"\xff\x9b2J", 1), "\u{fffd}\u{fffd}2J\n");
    }

    #[test]
    fn a_huge_log_is_read_from_its_end() {
        let folder = tempfile::tempdir().unwrap();
        let id = InstanceId::new();
        let host: HostName = "hv1".parse().unwrap();
        let log = path(folder.path(), id);
        std::fs::create_dir_all(log.parent().unwrap()).unwrap();
        let mut file = File::create(&log).unwrap();
        // A sparse gigabyte before the last words.
        file.seek(SeekFrom::Start(1 << 30)).unwrap();
        io::Write::write_all(&mut file, b"\nalmost\nlast\n").unwrap();
        assert_eq!(tail(&log, &host, 2).unwrap(), "almost\nlast\n");
    }

    #[test]
    fn a_log_elsewhere_is_named_with_its_host() {
        let id = InstanceId::new();
        let error = tail(
            &path(Path::new("/nonexistent"), id),
            &"hv1".parse().unwrap(),
            5,
        )
        .unwrap_err()
        .to_string();
        assert!(
            error.contains(&format!(
                "hypervisor hv1, in /nonexistent/instances/{id}/console.log"
            )),
            "{error}"
        );
    }

    proptest! {
        #[test]
        fn a_guest_cannot_drive_the_terminal(bytes in any::<Vec<u8>>(), lines in 1_usize..20) {
            let shown = last_lines(&bytes, lines);
            prop_assert!(!shown.chars().any(|c| c.is_control() && c != '\n' && c != '\t'), "{shown:?}");
            prop_assert!(shown.matches('\n').count() <= lines);
        }
    }
}
