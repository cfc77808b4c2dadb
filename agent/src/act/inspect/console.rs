//! Reads a part of a console log. virtlogd writes it, and puts it aside under another name when it is large; what is
//! in it is the guest's. It blocks on the disk.
//!
//! ```text
//!   console.log.0   what was put aside last          read before console.log, if that holds too little
//!   console.log     what is written now
//! ```

use std::{
    fs::File,
    io::{self, Read, Seek, SeekFrom},
    os::unix::fs::{MetadataExt, OpenOptionsExt},
    path::{Path, PathBuf},
};

use berth_common::message::question::{ConsolePlace, MAX_CONSOLE_BYTES};
use nix::libc;

use super::{ConsoleFrom, ConsolePart};
use crate::decide::console::{self, Part};

/// A log that is open.
struct Log {
    file: File,
    inode: u64,
    length: u64,
}

impl Log {
    /// Opens a log; `None`: there is none.
    fn open(path: &Path) -> io::Result<Option<Self>> {
        let opened = File::options()
            .read(true)
            // Whatever lies there instead of a file must not hold this up, nor lead elsewhere.
            .custom_flags(libc::O_NOFOLLOW | libc::O_NONBLOCK)
            .open(path);
        let file = match opened {
            Ok(file) => file,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(error),
        };
        let metadata = file.metadata()?;
        if !metadata.is_file() {
            return Err(io::Error::other("it is no regular file"));
        }
        Ok(Some(Self {
            inode: metadata.ino(),
            length: metadata.len(),
            file,
        }))
    }

    /// At most so many bytes from a place on, and no more than were there when it was opened.
    fn read(&mut self, from: u64, most: u64) -> io::Result<Vec<u8>> {
        self.file.seek(SeekFrom::Start(from))?;
        let mut bytes = Vec::new();
        let most = most.min(self.length.saturating_sub(from));
        (&mut self.file).take(most).read_to_end(&mut bytes)?;
        Ok(bytes)
    }
}

/// What was put aside last.
fn aside(path: &Path) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(".0");
    PathBuf::from(name)
}

/// The most that is read at once.
fn window() -> u64 {
    u64::try_from(MAX_CONSOLE_BYTES).unwrap_or(u64::MAX)
}

/// Reads a part of a log.
pub(super) fn read(path: &Path, from: ConsoleFrom) -> io::Result<ConsolePart> {
    let Some(log) = Log::open(path)? else {
        return Ok(ConsolePart::default());
    };
    match from {
        ConsoleFrom::Last(lines) => last(log, &aside(path), lines),
        ConsoleFrom::After(place) => after(log, &aside(path), place),
    }
}

fn last(mut log: Log, aside: &Path, lines: u32) -> io::Result<ConsolePart> {
    let start = log.length.saturating_sub(window());
    let mut bytes = log.read(start, window())?;
    let end = start + count(&bytes);
    let mut missing = start > 0;
    let room = window().saturating_sub(count(&bytes));
    if !missing
        && room > 0
        && let Some(mut old) = Log::open(aside)?
    {
        let start = old.length.saturating_sub(room);
        let mut before = old.read(start, room)?;
        before.append(&mut bytes);
        bytes = before;
        missing = start > 0;
    }
    let lines = usize::try_from(lines).unwrap_or(usize::MAX);
    let part = console::last(&bytes, lines, MAX_CONSOLE_BYTES, missing);
    let next = ConsolePlace {
        file: log.inode,
        // What is no whole character yet comes with the rest of it.
        offset: end.saturating_sub(part.withheld),
    };
    Ok(ConsolePart {
        part,
        next: Some(next),
    })
}

fn after(mut log: Log, aside: &Path, place: ConsolePlace) -> io::Result<ConsolePart> {
    if place.file == log.inode && place.offset <= log.length {
        return go_on(&mut log, place.offset, false);
    }
    if let Some(mut old) = Log::open(aside)?
        && old.inode == place.file
        && place.offset <= old.length
    {
        let rest = old.read(place.offset, window())?;
        if rest.is_empty() {
            return go_on(&mut log, 0, false);
        }
        let mut part = console::first(&rest, MAX_CONSOLE_BYTES, true);
        let offset = place.offset + part.taken;
        // What is written now comes next, however little is left here.
        part.more = true;
        return Ok(ConsolePart {
            part,
            next: Some(ConsolePlace {
                file: old.inode,
                offset,
            }),
        });
    }
    // It was put aside too long ago, or cut off: what is there is shown, and that something is missing.
    go_on(&mut log, 0, true)
}

/// What is in the log from a place on.
fn go_on(log: &mut Log, offset: u64, missing: bool) -> io::Result<ConsolePart> {
    let bytes = log.read(offset, window())?;
    let mut part: Part = console::first(&bytes, MAX_CONSOLE_BYTES, false);
    part.cut = missing;
    let offset = offset + part.taken;
    part.more = part.more || (part.taken > 0 && offset + part.withheld < log.length);
    Ok(ConsolePart {
        part,
        next: Some(ConsolePlace {
            file: log.inode,
            offset,
        }),
    })
}

fn count(bytes: &[u8]) -> u64 {
    u64::try_from(bytes.len()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    fn follow(path: &Path, place: ConsolePlace) -> (String, bool, bool, ConsolePlace) {
        let got = read(path, ConsoleFrom::After(place)).unwrap();
        (
            got.part.text,
            got.part.cut,
            got.part.more,
            got.next.unwrap(),
        )
    }

    fn append(path: &Path, text: &[u8]) {
        use std::io::Write;
        let file = File::options().append(true).create(true).open(path);
        file.unwrap().write_all(text).unwrap();
    }

    #[test]
    fn nothing_is_shown_twice_and_nothing_is_left_out_over_a_log_that_is_put_aside() {
        let folder = tempfile::tempdir().unwrap();
        let log = folder.path().join("console.log");
        assert_eq!(
            read(&log, ConsoleFrom::Last(5)).unwrap(),
            ConsolePart::default()
        );
        append(&log, b"one\ntwo\n");
        let got = read(&log, ConsoleFrom::Last(1)).unwrap();
        assert_eq!((got.part.text.as_str(), got.part.cut), ("two\n", false));
        let place = got.next.unwrap();
        let (text, .., place) = follow(&log, place);
        assert_eq!(text, "");

        // Half a character waits for its other half.
        append(&log, b"gr\xc3");
        let (text, _, more, place) = follow(&log, place);
        assert_eq!((text.as_str(), more), ("gr", false));
        append(&log, b"\xbcn\n");
        let (text, .., place) = follow(&log, place);
        assert_eq!(text, "ün\n");

        append(&log, b"last of the old\n");
        fs::rename(&log, aside(&log)).unwrap();
        append(&log, b"first of the new\n");
        let (text, cut, more, place) = follow(&log, place);
        assert_eq!(
            (text.as_str(), cut, more),
            ("last of the old\n", false, true)
        );
        let (text, cut, _, place) = follow(&log, place);
        assert_eq!((text.as_str(), cut), ("first of the new\n", false));
        let (text, .., place) = follow(&log, place);
        assert_eq!(text, "");
        // The end of both, where the new one has too little.
        let got = read(&log, ConsoleFrom::Last(2)).unwrap();
        assert_eq!(got.part.text, "last of the old\nfirst of the new\n");

        // Put aside twice: something is missing, and that is told.
        fs::rename(&log, aside(&log)).unwrap();
        append(&log, b"newer\n");
        fs::rename(&log, aside(&log)).unwrap();
        append(&log, b"newest\n");
        let (text, cut, ..) = follow(&log, place);
        assert_eq!((text.as_str(), cut), ("newest\n", true));
    }

    #[test]
    fn a_huge_log_is_read_from_its_end_and_a_link_or_pipe_is_none() {
        let folder = tempfile::tempdir().unwrap();
        let log = folder.path().join("console.log");
        let file = File::create(&log).unwrap();
        file.set_len(1 << 30).unwrap();
        append(&log, b"\nalmost\nlast\n");
        let got = read(&log, ConsoleFrom::Last(2)).unwrap();
        assert_eq!(got.part.text, "almost\nlast\n");
        // Zeros are six bytes each as JSON: an answer takes a part of them at a time.
        let from = ConsolePlace {
            file: got.next.unwrap().file,
            offset: 0,
        };
        let (text, _, more, next) = follow(&log, from);
        assert!(
            more && text.len() <= MAX_CONSOLE_BYTES / 6,
            "{}",
            text.len()
        );
        assert_eq!(usize::try_from(next.offset).unwrap(), text.len());

        let link = folder.path().join("link");
        std::os::unix::fs::symlink(&log, &link).unwrap();
        read(&link, ConsoleFrom::Last(1)).unwrap_err();
        let pipe = folder.path().join("pipe");
        nix::unistd::mkfifo(&pipe, nix::sys::stat::Mode::S_IRWXU).unwrap();
        let error = read(&pipe, ConsoleFrom::Last(1)).unwrap_err();
        assert!(error.to_string().contains("no regular file"), "{error}");
    }
}
