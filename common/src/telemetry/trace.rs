//! The W3C trace context (`traceparent`), which ties together the log lines of one request on
//! all its ways. It only carries ids; it exports no spans.
//!
//! Form (<https://www.w3.org/TR/trace-context/>): `00-<32 hex>-<16 hex>-<2 hex>`, lower case:
//! version, trace id, parent span id, flags.

use std::fmt;

use uuid::Uuid;

/// The flag that says the caller records this trace; the only one that is passed on.
const SAMPLED: u8 = 0x01;

/// One step of one trace.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct TraceContext {
    trace_id: u128,
    span_id: u64,
    flags: u8,
}

impl TraceContext {
    /// Starts a trace.
    pub fn new_root() -> Self {
        TraceContext {
            trace_id: Uuid::new_v4().as_u128(),
            span_id: new_span_id(),
            flags: SAMPLED,
        }
    }

    /// The next step of the same trace.
    pub fn child(&self) -> Self {
        TraceContext {
            span_id: new_span_id(),
            ..*self
        }
    }

    /// A child of the context in a header, or a new trace when there is none that can be read.
    pub fn continue_from(header: Option<&str>) -> Self {
        header
            .and_then(Self::parse)
            .map_or_else(Self::new_root, |parent| parent.child())
    }

    /// Reads a `traceparent` header. What cannot be read is `None`, never an error: a sender's
    /// broken tracing must not break its request.
    pub fn parse(header: &str) -> Option<Self> {
        let mut parts = header.trim_matches([' ', '\t']).split('-');
        let version = hex(parts.next()?, 2)?;
        let trace_id = hex(parts.next()?, 32)?;
        let span_id = u64::try_from(hex(parts.next()?, 16)?).ok()?;
        let flags = u8::try_from(hex(parts.next()?, 2)?).ok()?;
        // Later versions may append parts; the version 255 is not allowed.
        let whole = version != 0 || parts.next().is_none();
        (version != 0xff && whole && trace_id != 0 && span_id != 0).then_some(TraceContext {
            trace_id,
            span_id,
            flags: flags & SAMPLED,
        })
    }

    /// The trace id, 32 hexadecimal digits: what to search the logs for.
    pub fn trace_id(&self) -> String {
        format!("{:032x}", self.trace_id)
    }

    /// The id of this step, 16 hexadecimal digits.
    pub fn span_id(&self) -> String {
        format!("{:016x}", self.span_id)
    }
}

impl fmt::Display for TraceContext {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "00-{:032x}-{:016x}-{:02x}",
            self.trace_id, self.span_id, self.flags
        )
    }
}

/// The lower half of a random UUID: 62 random bits, and never zero because of the others.
fn new_span_id() -> u64 {
    Uuid::new_v4().as_u64_pair().1
}

/// Exactly so many lower case hexadecimal digits.
fn hex(text: &str, digits: usize) -> Option<u128> {
    let plain = text
        .bytes()
        .all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'));
    (text.len() == digits && plain).then(|| u128::from_str_radix(text, 16).ok())?
}

#[cfg(test)]
mod tests {
    use super::*;

    const TRACE: &str = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";

    #[test]
    fn what_is_written_is_read_back() {
        assert_eq!(TraceContext::parse(TRACE).unwrap().to_string(), TRACE);
        let root = TraceContext::new_root();
        assert_eq!(TraceContext::parse(&root.to_string()), Some(root));
        assert_eq!(root.to_string().len(), 55);
    }

    #[test]
    fn a_child_keeps_the_trace_and_has_a_span_of_its_own() {
        let root = TraceContext::parse(TRACE).unwrap();
        let child = root.child();
        assert_eq!(child.trace_id(), "4bf92f3577b34da6a3ce929d0e0e4736");
        assert_eq!(root.span_id(), "00f067aa0ba902b7");
        assert_ne!(child.span_id(), root.span_id());
        assert_eq!(
            TraceContext::continue_from(Some(TRACE)).trace_id(),
            root.trace_id()
        );
        assert_ne!(
            TraceContext::continue_from(Some("x")).trace_id(),
            root.trace_id()
        );
    }

    #[test]
    fn only_the_sampled_flag_is_passed_on() {
        let all = TRACE.replace("-01", "-ff");
        assert_eq!(TraceContext::parse(&all).unwrap().to_string(), TRACE);
    }

    #[test]
    fn later_versions_may_append_parts() {
        let later = format!("cc{}-what-ever", &TRACE[2..]);
        assert_eq!(TraceContext::parse(&later).unwrap().to_string(), TRACE);
    }

    #[test]
    fn what_cannot_be_read_is_none() {
        for bad in [
            "",
            "00",
            "ff-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01",
            "00-00000000000000000000000000000000-00f067aa0ba902b7-01",
            "00-4bf92f3577b34da6a3ce929d0e0e4736-0000000000000000-01",
            "00-4BF92F3577B34DA6A3CE929D0E0E4736-00f067aa0ba902b7-01",
            "00-4bf92f3577b34da6a3ce929d0e0e473-00f067aa0ba902b7-01",
            "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-1",
            "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01-more",
            "00-+bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01",
            "00-4bf92f3577b34da6a3ce929d0e0e473é-00f067aa0ba902b7-01",
        ] {
            assert_eq!(TraceContext::parse(bad), None, "{bad}");
        }
    }
}
