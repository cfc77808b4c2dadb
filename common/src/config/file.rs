//! The one place of the configuration loader that touches the file system.

use std::io;
use std::path::Path;

use super::errors::{ConfigErrors, Mistake, Place};

/// The file's text, or what is wrong with the file, in words that say what to do.
pub(super) fn read(path: &Path) -> Result<String, ConfigErrors> {
    let bytes = std::fs::read(path).map_err(|error| whole_file(path, explain(&error)))?;
    String::from_utf8(bytes).map_err(|error| {
        let at = error.utf8_error().valid_up_to();
        let line = error.as_bytes()[..at].split(|byte| *byte == b'\n').count();
        whole_file(
            path,
            format!("is not UTF-8 text: line {line} holds a byte that cannot be"),
        )
    })
}

fn explain(error: &io::Error) -> String {
    match error.kind() {
        io::ErrorKind::NotFound => "there is no such file; create it, or name another".to_owned(),
        io::ErrorKind::PermissionDenied => {
            "may not be read by this user; check its owner and mode, and its folders'".to_owned()
        }
        io::ErrorKind::IsADirectory => "is a folder; name the file in it".to_owned(),
        _ => format!("cannot be read: {error}"),
    }
}

fn whole_file(path: &Path, what: String) -> ConfigErrors {
    ConfigErrors::single(Mistake {
        place: Place::File(path.to_owned()),
        key: None,
        what,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_absent_file_and_a_folder_are_told_apart() {
        let error = read(Path::new("/nonexistent/berth.toml"))
            .unwrap_err()
            .to_string();
        assert_eq!(
            error,
            "1 mistake in the configuration:\n  1. /nonexistent/berth.toml: there is no such \
             file; create it, or name another"
        );
        let error = read(Path::new("/")).unwrap_err().to_string();
        assert!(
            error.ends_with("/: is a folder; name the file in it"),
            "{error}"
        );
    }

    #[test]
    fn a_file_that_is_not_utf8_is_refused_with_its_line() {
        let path = std::env::temp_dir().join(format!("berth-config-{}.toml", std::process::id()));
        std::fs::write(&path, b"[bus]\nurl = \"\xff\"\n").unwrap();
        let error = read(&path).unwrap_err().to_string();
        std::fs::remove_file(&path).unwrap();
        assert!(error.contains("is not UTF-8 text: line 2"), "{error}");
    }
}
