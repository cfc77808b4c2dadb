//! Where an image's bytes come from: a regular file of this host, or a web server. Blocking, with timeouts.
//!
//! A URL is a stranger's: only these schemes, no devices or pipes, nothing of berth's own, nothing that some user of
//! this host may not read, no web server of the host's own or next to it unless the operator allows it, bounded redirects,
//! and messages that show no password or token of it.

use std::{
    fs::{File, OpenOptions},
    io::{self, Read},
    os::{
        fd::AsRawFd,
        unix::{
            ffi::OsStringExt,
            fs::{FileTypeExt, MetadataExt, OpenOptionsExt},
        },
    },
    path::{Path, PathBuf},
};

use berth_common::names::ImageUrl;
use nix::fcntl::OFlag;
use ureq::{
    Agent,
    tls::{PemItem, RootCerts, TlsConfig},
    unversioned::transport::DefaultConnector,
};

use super::{
    PoolOptions, StorageOptions,
    reach::{self, Guard},
};
use crate::decide::{image_server::Forbidden, instance::Paths};

/// The longest name of a version that is kept, in bytes.
const MAX_VERSION: usize = 1024;
/// The permission of everybody to read a file.
const READ_BY_ALL: u32 = 0o004;

/// The bytes of an image.
pub(super) struct Source {
    pub(super) reader: Box<dyn Read>,
    /// Which byte of the image is the first one.
    pub(super) starts_at: u64,
    /// How many bytes the whole image should have, if that is known.
    pub(super) length: Option<u64>,
    /// The server's name of this version, if reading can be continued later.
    pub(super) version: Option<String>,
    /// "downloading" or "copying".
    pub(super) verb: &'static str,
}

/// Where to go on in an image of which some bytes are there.
#[derive(Debug, Clone, Copy)]
pub(super) struct GoOn<'a> {
    /// How many are there.
    pub(super) at: u64,
    /// The version they are of.
    pub(super) version: &'a str,
}

/// Why an image's bytes could not be had.
#[derive(Debug, thiserror::Error)]
pub(super) enum SourceFault {
    /// The file cannot be opened.
    #[error("cannot open the file")]
    Open(#[source] io::Error),
    /// It is not a file with content.
    #[error("it is {0}, and an image must be a regular file")]
    NotAFile(&'static str),
    /// It belongs to berth.
    #[error("it is below {}, where berth keeps its own files", .0.display())]
    Own(PathBuf),
    /// Not everybody may read it, so who asks for it may have no right to.
    #[error(
        "not everybody on this host may read it, and an image must be readable by all (chmod o+r)"
    )]
    Private,
    /// The server says no.
    #[error("the server answered {status}{}", status_hint(*status))]
    Status { status: u16 },
    /// The server sends to a place that is not a web server's.
    #[error("the server redirects to {to:?}, and only http:// and https:// are followed")]
    Redirect { to: String },
    /// The server sends round and round.
    #[error("the server redirects more than {0} times")]
    TooManyRedirects(u32),
    /// The server is where no image comes from.
    #[error(transparent)]
    Forbidden(#[from] Forbidden),
    /// Which addresses this host has could not be found out.
    #[error("the addresses of this host cannot be listed")]
    OwnAddresses(#[source] io::Error),
    /// The server cannot be reached, or the exchange broke off.
    #[error("{}", explain(.0))]
    Http(#[source] ureq::Error),
    /// The bytes stopped coming.
    #[error("reading stopped after {done} bytes{}", of_total(*.total))]
    Read {
        done: u64,
        total: Option<u64>,
        #[source]
        source: io::Error,
    },
    /// There are fewer bytes than were announced.
    #[error("it ended after {done} of {total} bytes")]
    Short { done: u64, total: u64 },
}

impl SourceFault {
    /// Whether the same request may succeed later.
    pub(super) fn retryable(&self) -> bool {
        match self {
            Self::Open(source) => !matches!(
                source.kind(),
                io::ErrorKind::NotFound
                    | io::ErrorKind::PermissionDenied
                    | io::ErrorKind::NotADirectory
            ),
            Self::NotAFile(_)
            | Self::Own(_)
            | Self::Private
            | Self::Forbidden(_)
            | Self::Redirect { .. }
            | Self::TooManyRedirects(_) => false,
            // Too many requests, too early, request timeout: the server itself says "later".
            Self::Status { status } => matches!(status, 408 | 425 | 429 | 500..),
            Self::Http(error) => !matches!(error, ureq::Error::BadUri(_) | ureq::Error::Http(_)),
            Self::OwnAddresses(_) | Self::Read { .. } | Self::Short { .. } => true,
        }
    }
}

fn status_hint(status: u16) -> &'static str {
    match status {
        401 | 403 => " (not allowed: the URL must be readable without a login)",
        404 | 410 => " (not found)",
        500.. => " (the server has a problem)",
        _ => "",
    }
}

const NO_TLS: &str = "no trusted TLS connection";

fn explain(error: &ureq::Error) -> &'static str {
    match error {
        ureq::Error::HostNotFound => "the host name does not resolve",
        ureq::Error::ConnectionFailed => "the host does not accept connections",
        ureq::Error::Timeout(_) => "the server takes too long",
        ureq::Error::Tls(_) | ureq::Error::Rustls(_) | ureq::Error::Pem(_) => NO_TLS,
        ureq::Error::BadUri(_) | ureq::Error::Http(_) => "the URL is not a valid http(s) URL",
        // rustls wraps what it finds wrong with a certificate or a message as invalid data.
        ureq::Error::Io(source) if source.kind() == io::ErrorKind::InvalidData => NO_TLS,
        ureq::Error::Io(_) => "the connection failed",
        _ => "the exchange with the server failed",
    }
}

fn of_total(total: Option<u64>) -> String {
    total.map_or_else(String::new, |total| format!(" of {total}"))
}

/// A URL without what is secret in it: no user and password, no query.
pub(super) fn for_people(url: &ImageUrl) -> String {
    let text = url.as_str();
    let Some((scheme, rest)) = text.split_once("://") else {
        return text.to_owned();
    };
    if scheme == "file" {
        return text.to_owned();
    }
    let (authority, path) = rest.split_at(rest.find(['/', '?', '#']).unwrap_or(rest.len()));
    let host = authority.rsplit('@').next().unwrap_or(authority);
    match path.split_once(['?', '#']) {
        Some((path, _)) => format!("{scheme}://{host}{path}?…"),
        None => format!("{scheme}://{host}{path}"),
    }
}

/// Opens a URL, further on if that is asked for and possible, else at the beginning.
pub(super) fn open(
    url: &ImageUrl,
    go_on: Option<GoOn<'_>>,
    paths: &Paths,
    options: &StorageOptions,
) -> Result<Source, SourceFault> {
    match url.as_str().strip_prefix("file://") {
        Some(path) => open_file(&decoded(path), paths, options),
        None => open_http(url, go_on, options),
    }
}

/// The path of a `file://` URL: `%20` and the like stand for the byte they name.
fn decoded(text: &str) -> PathBuf {
    let bytes = text.as_bytes();
    let mut path = Vec::with_capacity(bytes.len());
    let mut at = 0;
    while let Some(byte) = bytes.get(at) {
        let escaped = (*byte == b'%')
            .then(|| text.get(at + 1..at + 3))
            .flatten()
            .filter(|digits| digits.bytes().all(|digit| digit.is_ascii_hexdigit()))
            .and_then(|digits| u8::from_str_radix(digits, 16).ok());
        path.push(escaped.unwrap_or(*byte));
        at += if escaped.is_some() { 3 } else { 1 };
    }
    PathBuf::from(std::ffi::OsString::from_vec(path))
}

fn open_file(path: &Path, paths: &Paths, options: &StorageOptions) -> Result<Source, SourceFault> {
    // Only looked at: a pipe would wait for its writer, and some devices act when they are opened (a watchdog
    // restarts the host).
    let looked_at = OpenOptions::new()
        .read(true)
        .custom_flags(OFlag::O_PATH.bits())
        .open(path)
        .map_err(SourceFault::Open)?;
    let metadata = looked_at.metadata().map_err(SourceFault::Open)?;
    let kind = metadata.file_type();
    if !kind.is_file() {
        return Err(SourceFault::NotAFile(match () {
            () if kind.is_dir() => "a directory",
            () if kind.is_block_device() || kind.is_char_device() => "a device",
            () if kind.is_fifo() => "a pipe",
            () => "a socket",
        }));
    }
    // Links may lead anywhere, so what counts is the file they lead to.
    let itself = format!("/proc/self/fd/{}", looked_at.as_raw_fd());
    let real = std::fs::read_link(&itself).map_err(SourceFault::Open)?;
    let own = options
        .not_below
        .iter()
        .chain([&paths.instances, &paths.images, &paths.volumes])
        .chain(options.pools.values().filter_map(|pool| match pool {
            PoolOptions::Dir(dir) => Some(&dir.path),
            PoolOptions::Lvm(_) => None,
        }));
    for directory in own {
        if directory
            .canonicalize()
            .is_ok_and(|directory| real.starts_with(directory))
        {
            return Err(SourceFault::Own(directory.clone()));
        }
    }
    // berth reads as root, for people who are not.
    if metadata.mode() & READ_BY_ALL == 0 {
        return Err(SourceFault::Private);
    }
    if metadata.len() == 0 {
        // Also what /proc and /sys are made of: reading one may have effects, or never end.
        return Err(SourceFault::NotAFile("empty"));
    }
    let file = File::open(&itself).map_err(SourceFault::Open)?;
    Ok(Source {
        reader: Box::new(Exactly {
            file,
            left: metadata.len(),
        }),
        starts_at: 0,
        length: Some(metadata.len()),
        version: None,
        verb: "copying",
    })
}

/// A file as long as it was when it was opened: one that grows is not read for ever.
struct Exactly {
    file: File,
    left: u64,
}

impl Read for Exactly {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let count = (&mut self.file).take(self.left).read(buffer)?;
        self.left = self
            .left
            .saturating_sub(u64::try_from(count).unwrap_or(u64::MAX));
        Ok(count)
    }
}

/// Follows redirects itself: where they may lead is a decision of berth's, not of a library.
fn open_http(
    url: &ImageUrl,
    mut go_on: Option<GoOn<'_>>,
    options: &StorageOptions,
) -> Result<Source, SourceFault> {
    let agent = agent(options);
    let mut url = url.clone();
    for _ in 0..=options.max_redirects {
        let mut request = agent.get(url.as_str());
        if let Some(GoOn { at, version }) = go_on {
            // A server that has another version by now, or knows nothing of ranges, sends all of it.
            request = request
                .header("range", format!("bytes={at}-"))
                .header("if-range", version);
        }
        reach::check_literal(url.as_str(), agent.config(), &options.image_url_allow)
            .map_err(SourceFault::OwnAddresses)??;
        let response = request.call().map_err(not_reached)?;
        let status = response.status().as_u16();
        let header = |name| {
            let value = response.headers().get(name);
            value
                .and_then(|value| value.to_str().ok())
                .map(str::to_owned)
        };
        match (status, header("location")) {
            (206, _) => {
                let range = header("content-range").and_then(|text| content_range(&text));
                let (Some(wanted), Some((starts_at, length))) = (go_on, range) else {
                    return Err(SourceFault::Status { status });
                };
                if wanted.at != starts_at {
                    return Err(SourceFault::Status { status });
                }
                return Ok(Source {
                    starts_at,
                    length,
                    version: Some(wanted.version.to_owned()),
                    reader: Box::new(response.into_body().into_reader()),
                    verb: "downloading",
                });
            }
            // There is nothing at that place: what is here is of something else.
            (416, _) if go_on.is_some() => go_on = None,
            (200, _) => {
                let version = match header("accept-ranges").as_deref() {
                    Some("none") => None,
                    _ => version(header("etag"), header("last-modified")),
                };
                let body = response.into_body();
                let length = body.content_length();
                return Ok(Source {
                    starts_at: 0,
                    length,
                    version,
                    reader: Box::new(body.into_reader()),
                    verb: "downloading",
                });
            }
            (301 | 302 | 303 | 307 | 308, Some(location)) => url = redirected(&url, &location)?,
            _ => return Err(SourceFault::Status { status }),
        }
    }
    Err(SourceFault::TooManyRedirects(options.max_redirects))
}

/// What the library says of a server that it did not reach, and what is said here.
fn not_reached(error: ureq::Error) -> SourceFault {
    match error {
        ureq::Error::Other(inner) => match inner.downcast::<Forbidden>() {
            Ok(forbidden) => SourceFault::Forbidden(*forbidden),
            Err(inner) => SourceFault::Http(ureq::Error::Other(inner)),
        },
        error => SourceFault::Http(error),
    }
}

/// What `If-Range` may name (RFC 9110, 13.1.5): a strong ETag, or else when the file was changed.
fn version(etag: Option<String>, last_modified: Option<String>) -> Option<String> {
    etag.filter(|etag| etag.starts_with('"'))
        .or(last_modified)
        .filter(|version| version.len() <= MAX_VERSION)
}

/// `bytes 100-999/1000`: the first byte, and the length of the whole if it is told.
fn content_range(text: &str) -> Option<(u64, Option<u64>)> {
    let (range, total) = text.trim().strip_prefix("bytes ")?.split_once('/')?;
    let (first, last) = range.split_once('-')?;
    let (first, last): (u64, u64) = (first.parse().ok()?, last.parse().ok()?);
    let total = match total {
        "*" => None,
        total => Some(total.parse::<u64>().ok()?),
    };
    let sane = first <= last && total.is_none_or(|total| last.checked_add(1) == Some(total));
    sane.then_some((first, total))
}

/// Where a `Location` leads, seen from a URL.
fn redirected(from: &ImageUrl, location: &str) -> Result<ImageUrl, SourceFault> {
    let refuse = || SourceFault::Redirect {
        to: location.chars().take(200).collect(),
    };
    let (scheme, rest) = from.as_str().split_once("://").ok_or_else(refuse)?;
    let location_start = location.split(['/', '?', '#']).next().unwrap_or_default();
    let (authority, path) = rest.split_at(rest.find(['/', '?', '#']).unwrap_or(rest.len()));
    let path = path.split(['?', '#']).next().unwrap_or_default();
    let text = if location_start.contains(':') {
        location.to_owned()
    } else if location.starts_with("//") {
        format!("{scheme}:{location}")
    } else if location.starts_with('/') {
        format!("{scheme}://{authority}{location}")
    } else if location_start.is_empty() {
        format!("{scheme}://{authority}{path}{location}")
    } else {
        let folder = path.rsplit_once('/').map_or("", |(folder, _)| folder);
        format!("{scheme}://{authority}{folder}/{location}")
    };
    let is_web = ["http://", "https://"]
        .iter()
        .any(|scheme| text.starts_with(scheme));
    text.parse().ok().filter(|_| is_web).ok_or_else(refuse)
}

/// A client for one download: connections are not kept, so nothing is shared between tenants' servers.
fn agent(options: &StorageOptions) -> Agent {
    let config = Agent::config_builder()
        .http_status_as_error(false)
        .max_redirects(0)
        .max_redirects_will_error(false)
        .max_idle_connections(0)
        .accept_encoding("identity")
        .user_agent(concat!("berth-agent/", env!("CARGO_PKG_VERSION")))
        .timeout_resolve(Some(options.connect_timeout))
        .timeout_connect(Some(options.connect_timeout))
        .timeout_per_read(Some(options.read_timeout))
        .timeout_recv_response(Some(options.read_timeout))
        .timeout_global(Some(options.download_deadline))
        .tls_config(
            TlsConfig::builder()
                .root_certs(authorities(&options.ca_bundle))
                .build(),
        );
    let guard = Guard::new(&options.image_url_allow);
    Agent::with_parts(config.build(), DefaultConnector::default(), guard)
}

/// The host's certificate authorities, so that an operator's own are trusted as everywhere else on the host.
fn authorities(bundle: &Path) -> RootCerts {
    let Ok(pem) = std::fs::read(bundle) else {
        return RootCerts::WebPki;
    };
    let certificates: Vec<_> = ureq::tls::parse_pem(&pem)
        .filter_map(|item| match item {
            Ok(PemItem::Certificate(certificate)) => Some(certificate),
            _ => None,
        })
        .collect();
    if certificates.is_empty() {
        RootCerts::WebPki
    } else {
        RootCerts::new_with_certs(&certificates)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_show_no_secrets_of_a_url() {
        let shown = |url: &str| for_people(&url.parse().unwrap());
        assert_eq!(
            shown("https://u:p@h.example:8443/a/b"),
            "https://h.example:8443/a/b"
        );
        assert_eq!(
            shown("https://h.example/a?token=x#y"),
            "https://h.example/a?…"
        );
        assert_eq!(shown("https://h.example?token=x"), "https://h.example?…");
        assert_eq!(shown("http://h.example/a@b"), "http://h.example/a@b");
        assert_eq!(shown("file:///a/b?c"), "file:///a/b?c");
    }

    #[test]
    fn redirects_lead_to_web_servers_only() {
        let from = "http://h.example/a/b?c=d".parse().unwrap();
        for (location, expected) in [
            ("https://o.example/x", Some("https://o.example/x")),
            ("//o.example/x", Some("http://o.example/x")),
            ("/x", Some("http://h.example/x")),
            ("x", Some("http://h.example/a/x")),
            ("x/y?http://z", Some("http://h.example/a/x/y?http://z")),
            ("?x", Some("http://h.example/a/b?x")),
            ("file:///etc/passwd", None),
            ("FILE:///etc/passwd", None),
            ("ftp://o.example/x", None),
            ("data:,x", None),
            ("/a b", None),
        ] {
            let to = redirected(&from, location).ok();
            assert_eq!(to.as_ref().map(ImageUrl::as_str), expected, "{location}");
        }
    }

    #[test]
    fn only_a_range_to_the_end_of_the_image_continues_it() {
        for (text, expected) in [
            ("bytes 100-999/1000", Some((100, Some(1000)))),
            ("bytes 100-999/*", Some((100, None))),
            ("bytes 100-998/1000", None),
            ("bytes 100-99/100", None),
            ("bytes */1000", None),
            ("bytes 0-18446744073709551615/1", None),
            ("pages 1-2/3", None),
            ("", None),
        ] {
            assert_eq!(content_range(text), expected, "{text}");
        }
    }

    #[test]
    fn a_version_is_a_strong_etag_or_a_date() {
        let is = |etag: Option<&str>, date: Option<&str>| {
            version(etag.map(str::to_owned), date.map(str::to_owned))
        };
        assert_eq!(is(Some("\"a\""), Some("d")).as_deref(), Some("\"a\""));
        assert_eq!(is(Some("W/\"a\""), Some("d")).as_deref(), Some("d"));
        assert_eq!(is(Some("W/\"a\""), None), None);
        assert_eq!(is(None, Some(&"x".repeat(2000))), None);
    }

    #[test]
    fn escapes_in_file_urls_stand_for_bytes() {
        for (text, path) in [
            ("/a%20b", "/a b"),
            ("/a%2", "/a%2"),
            ("/%zz%+1", "/%zz%+1"),
            ("/%c3%a9", "/é"),
        ] {
            assert_eq!(decoded(text), Path::new(path), "{text}");
        }
    }
}
