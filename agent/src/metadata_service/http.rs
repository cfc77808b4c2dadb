//! As much of HTTP as guests need to ask one question: a request line is read, headers are never believed, only looked
//! at for claims of who asks, and the connection is closed after the answer.

use std::{io, time::Duration};

use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt},
    time::timeout,
};

use crate::decide::metadata::IDENTITY_HEADERS;

/// How large a request may be, with all its headers.
const REQUEST_MAX: usize = 8192;
/// How long a guest may take to say what it wants, and to take the answer.
const TIME_MAX: Duration = Duration::from_secs(10);
/// How much is read, and for how long, of what a guest goes on saying after the answer: a connection that is closed with something
/// unread is reset, and the answer lost.
const REST_MAX: usize = 65_536;
const REST_TIME: Duration = Duration::from_secs(1);

/// What a guest asks.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Question {
    /// For what is at this path.
    Get(String),
    /// The same, without the content.
    Head(String),
    /// Something that this service does not do.
    OtherMethod,
    /// Nothing that could be understood.
    Nonsense,
    /// It is too long.
    TooLong,
}

/// Whether a request says who it is from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Claims {
    /// It does not.
    Nothing,
    /// It has one of the headers by which a proxy would say it.
    ToBeSomebody,
}

/// A whole request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Asked {
    pub(super) question: Question,
    pub(super) claims: Claims,
}

/// What is said to it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Status {
    Ok,
    BadRequest,
    NotFound,
    MethodNotAllowed,
    TooLong,
    Failed,
}

impl Status {
    const fn line(self) -> &'static str {
        match self {
            Self::Ok => "200 OK",
            Self::BadRequest => "400 Bad Request",
            Self::NotFound => "404 Not Found",
            Self::MethodNotAllowed => "405 Method Not Allowed",
            Self::TooLong => "431 Request Header Fields Too Large",
            Self::Failed => "500 Internal Server Error",
        }
    }
}

/// A whole answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Response {
    pub(super) status: Status,
    pub(super) content_type: &'static str,
    pub(super) content: String,
}

impl Response {
    /// One that says nothing but that it is none.
    pub(super) fn refusal(status: Status) -> Self {
        Self {
            status,
            content_type: "text/plain; charset=utf-8",
            content: format!("{}\n", status.line()),
        }
    }
}

/// Reads a question.
///
/// # Errors
/// The connection broke, or the guest took too long.
pub(super) async fn read(stream: &mut (impl AsyncRead + Unpin)) -> io::Result<Asked> {
    timeout(TIME_MAX, read_head(stream)).await?
}

async fn read_head(stream: &mut (impl AsyncRead + Unpin)) -> io::Result<Asked> {
    let mut head = Vec::with_capacity(1024);
    let asked = |head: &[u8], question| {
        Ok(Asked {
            question,
            claims: claims(head),
        })
    };
    loop {
        if ends(&head) {
            return asked(&head, parse(&head));
        }
        if head.len() >= REQUEST_MAX {
            return asked(&head, Question::TooLong);
        }
        if stream.read_buf(&mut head).await? == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
    }
}

/// Whether the empty line after the headers is there.
fn ends(head: &[u8]) -> bool {
    head.windows(4).any(|four| four == b"\r\n\r\n") || head.windows(2).any(|two| two == b"\n\n")
}

/// Whether one of the lines after the first, up to the empty one, is an identity header.
fn claims(head: &[u8]) -> Claims {
    let lines = head.split(|byte| *byte == b'\n').skip(1);
    let mut names = lines
        .take_while(|line| !line.trim_ascii().is_empty())
        .filter_map(|line| line.split(|byte| *byte == b':').next());
    let is_identity = |name: &[u8]| {
        let name = name.trim_ascii_end();
        IDENTITY_HEADERS
            .iter()
            .any(|header| header.as_bytes().eq_ignore_ascii_case(name))
    };
    if names.any(is_identity) {
        Claims::ToBeSomebody
    } else {
        Claims::Nothing
    }
}

fn parse(head: &[u8]) -> Question {
    let line = head.split(|byte| *byte == b'\n').next().unwrap_or_default();
    let Ok(line) = str::from_utf8(line) else {
        return Question::Nonsense;
    };
    let words: Vec<&str> = line.trim_end_matches('\r').split(' ').collect();
    let [method, target, version] = words.as_slice() else {
        return Question::Nonsense;
    };
    if !version.starts_with("HTTP/1.") {
        return Question::Nonsense;
    }
    // A proxy's clients write the whole address.
    let target = target
        .strip_prefix("http://")
        .map_or(*target, |rest| rest.find('/').map_or("/", |at| &rest[at..]));
    if !target.starts_with('/') {
        return Question::Nonsense;
    }
    let path = target
        .split(['?', '#'])
        .next()
        .unwrap_or_default()
        .to_owned();
    match *method {
        "GET" => Question::Get(path),
        "HEAD" => Question::Head(path),
        _ => Question::OtherMethod,
    }
}

/// Sends an answer, the content only if it was asked for, and lets the guest finish.
///
/// # Errors
/// The connection broke, or the guest took too long.
pub(super) async fn answer(
    stream: &mut (impl AsyncRead + AsyncWrite + Unpin),
    question: &Question,
    response: &Response,
) -> io::Result<()> {
    let mut text = format!(
        "HTTP/1.1 {}\r\nContent-Type: {}\r\nContent-Length: {}\r\nCache-Control: no-store\r\nConnection: close\r\n\r\n",
        response.status.line(),
        response.content_type,
        response.content.len()
    );
    if !matches!(question, Question::Head(_)) {
        text.push_str(&response.content);
    }
    timeout(TIME_MAX, async {
        stream.write_all(text.as_bytes()).await?;
        stream.shutdown().await
    })
    .await??;
    // The answer is sent: how the guest ends is its own business.
    let _ = timeout(REST_TIME, drain(stream)).await;
    Ok(())
}

async fn drain(stream: &mut (impl AsyncRead + Unpin)) -> io::Result<()> {
    let mut buffer = [0; 1024];
    let mut left = REST_MAX;
    loop {
        match stream.read(&mut buffer).await? {
            0 => return Ok(()),
            read => match left.checked_sub(read) {
                Some(rest) => left = rest,
                None => return Ok(()),
            },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_request_line_is_all_that_counts() {
        let get = |path: &str| Question::Get(path.to_owned());
        for (head, expected) in [
            (
                "GET /latest/meta-data/ HTTP/1.1\r\nHost: x\r\n\r\n",
                get("/latest/meta-data/"),
            ),
            ("GET / HTTP/1.0\n\n", get("/")),
            (
                "GET /a?b=c HTTP/1.1\r\nX-Forwarded-For: 10.0.0.1\r\n\r\n",
                get("/a"),
            ),
            (
                "GET http://169.254.169.254/openstack HTTP/1.1\r\n\r\n",
                get("/openstack"),
            ),
            ("GET http://169.254.169.254 HTTP/1.1\r\n\r\n", get("/")),
            ("HEAD /a HTTP/1.1\r\n\r\n", Question::Head("/a".to_owned())),
            (
                "PUT /latest/api/token HTTP/1.1\r\n\r\n",
                Question::OtherMethod,
            ),
            ("GET a HTTP/1.1\r\n\r\n", Question::Nonsense),
            ("GET /a\r\n\r\n", Question::Nonsense),
            ("GET /a HTTP/2\r\n\r\n", Question::Nonsense),
            ("\r\n\r\n", Question::Nonsense),
            ("GET /a b HTTP/1.1\r\n\r\n", Question::Nonsense),
        ] {
            assert_eq!(parse(head.as_bytes()), expected, "{head:?}");
        }
        assert_eq!(parse(b"GET /\xff HTTP/1.1\r\n\r\n"), Question::Nonsense);
    }

    #[test]
    fn a_header_that_says_who_asks_is_a_claim_and_no_other_is() {
        let check = |more: &str, expected| {
            let head = format!("GET / HTTP/1.1\r\nHost: x\r\n{more}\r\n\r\n");
            assert_eq!(claims(head.as_bytes()), expected, "{more}");
        };
        for header in IDENTITY_HEADERS {
            check(&format!("{header}: x"), Claims::ToBeSomebody);
            check(
                &format!("{}:x", header.to_lowercase()),
                Claims::ToBeSomebody,
            );
            check(
                &format!("{} : x", header.to_uppercase()),
                Claims::ToBeSomebody,
            );
            check(&format!("A: b\r\n{header}:"), Claims::ToBeSomebody);
            // In a value, as a part of a name, and after the end.
            check(&format!("A: {header}: x"), Claims::Nothing);
            check(&format!("{header}-A: x"), Claims::Nothing);
            check(&format!("A: b\r\n\r\n{header}: x"), Claims::Nothing);
        }
        check("X-Real-IP: 10.0.0.1", Claims::Nothing);
        assert_eq!(claims(b"X-Instance-ID: x\r\n\r\n"), Claims::Nothing);
        assert_eq!(
            claims(b"GET / HTTP/1.0\nX-Tenant-ID: x\n\n"),
            Claims::ToBeSomebody
        );
    }

    #[tokio::test]
    async fn a_request_without_end_is_not_read_to_its_end() {
        let endless = vec![b'a'; 3 * REQUEST_MAX];
        let asked = read(&mut endless.as_slice()).await.unwrap();
        assert_eq!(asked.question, Question::TooLong);
        let broken_off = read(&mut b"GET / HT".as_slice()).await.unwrap_err();
        assert_eq!(broken_off.kind(), io::ErrorKind::UnexpectedEof);
    }

    #[tokio::test(start_paused = true)]
    async fn a_guest_that_says_nothing_is_not_waited_for() {
        let (_guest, mut service) = tokio::io::duplex(64);
        let error = read(&mut service).await.unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::TimedOut);
    }
}
