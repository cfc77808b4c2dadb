//! The only module that writes to standard output and standard error.
//!
//! A reader that went away (`berthctl instance list | head -1`) is no error: there is just nobody left to tell.

use std::io::{self, Write};

/// Writes a result.
pub(crate) fn result(text: &str) -> io::Result<()> {
    written(io::stdout().lock(), text)
}

/// Whether anybody still reads what is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Listener {
    There,
    Gone,
}

/// Writes a piece of a result that has no end.
pub(crate) fn stream(text: &str) -> io::Result<Listener> {
    let mut to = io::stdout().lock();
    match to.write_all(text.as_bytes()).and_then(|()| to.flush()) {
        Ok(()) => Ok(Listener::There),
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(Listener::Gone),
        Err(error) => Err(error),
    }
}

/// Writes an error or a progress line. Where even that fails, there is nobody to tell.
pub(crate) fn remark(text: &str) {
    let _ = written(io::stderr().lock(), text);
}

fn written(mut to: impl Write, text: &str) -> io::Result<()> {
    match to.write_all(text.as_bytes()).and_then(|()| to.flush()) {
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(()),
        outcome => outcome,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Gone(io::ErrorKind);

    impl Write for Gone {
        fn write(&mut self, _: &[u8]) -> io::Result<usize> {
            Err(self.0.into())
        }
        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn a_closed_pipe_is_no_error_and_a_full_disk_is() {
        assert!(written(Gone(io::ErrorKind::BrokenPipe), "x").is_ok());
        assert!(written(Gone(io::ErrorKind::StorageFull), "x").is_err());
    }
}
