//! Values that must not reach a log: a wrapper that prints as `***`, and URLs printed with
//! their password masked. It hides from output only; it does not wipe memory.

use std::fmt;

/// A value that prints as `***`, whichever way it is printed.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret<T>(T);

impl<T> Secret<T> {
    /// Wraps a value.
    pub fn new(value: T) -> Self {
        Secret(value)
    }

    /// The value itself. Every call is a place where it can leak: pass it straight to what
    /// needs it.
    pub fn expose(&self) -> &T {
        &self.0
    }

    /// Unwraps the value.
    pub fn into_inner(self) -> T {
        self.0
    }
}

impl Secret<String> {
    /// The URL in it, with its password masked, for logs and errors.
    pub fn redacted_url(&self) -> String {
        redact_url(&self.0)
    }
}

impl<T> From<T> for Secret<T> {
    fn from(value: T) -> Self {
        Secret(value)
    }
}

impl<T> fmt::Debug for Secret<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("***")
    }
}

impl<T> fmt::Display for Secret<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("***")
    }
}

/// A URL with its password as `***`, and so any query parameter that is named like a secret.
///
/// It takes broken URLs too, since those are the ones that get printed, and then hides rather
/// too much than too little: everything from the first `:` of the credentials to the **last**
/// `@` goes, because an unescaped password may hold `@` and `/`.
///
/// ```
/// use berth_common::config::redact_url;
/// assert_eq!(redact_url("amqp://berth:s3cret@mq:5672/v"), "amqp://berth:***@mq:5672/v");
/// ```
pub fn redact_url(url: &str) -> String {
    let start = url.find("://").map_or(0, |at| at + 3);
    let (scheme, rest) = url.split_at(start);
    let masked = match rest.rsplit_once('@') {
        Some((credentials, host)) => match credentials.split_once(':') {
            Some((user, _)) => format!("{user}:***@{host}"),
            None => rest.to_owned(),
        },
        None => rest.to_owned(),
    };
    format!("{scheme}{}", redact_query(&masked))
}

fn redact_query(url: &str) -> String {
    let Some((before, query)) = url.split_once('?') else {
        return url.to_owned();
    };
    let parameters: Vec<String> = query
        .split('&')
        .map(|parameter| match parameter.split_once('=') {
            Some((name, _)) if names_a_secret(name) => format!("{name}=***"),
            _ => parameter.to_owned(),
        })
        .collect();
    format!("{before}?{}", parameters.join("&"))
}

/// Whether a key is named like something that must not be printed.
pub(super) fn names_a_secret(name: &str) -> bool {
    let name = name.to_ascii_lowercase();
    ["password", "passwd", "secret", "token"]
        .iter()
        .any(|word| name.contains(word))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_secret_never_prints() {
        let secret = Secret::new("hunter2".to_owned());
        assert_eq!(
            format!("{secret} {secret:?} {:?}", Some(&secret)),
            "*** *** Some(***)"
        );
        assert_eq!(secret.expose(), "hunter2");
    }

    #[test]
    fn passwords_in_urls_are_masked() {
        let check = |url, expected| assert_eq!(redact_url(url), expected, "{url}");
        check("amqp://localhost:5672/%2f", "amqp://localhost:5672/%2f");
        check("amqp://guest@localhost", "amqp://guest@localhost");
        check("amqp://u:p@h:5672/v", "amqp://u:***@h:5672/v");
        check("amqp://u:p:q@h", "amqp://u:***@h");
        check("amqp://u:p@ss/w@h/v", "amqp://u:***@h/v");
        check("amqp://:p@h", "amqp://:***@h");
        check(
            "postgres://h/db?user=u&password=p&x=1",
            "postgres://h/db?user=u&password=***&x=1",
        );
        check("u:p@h", "u:***@h");
        check(
            "sqlite:///var/lib/berth/berth.db",
            "sqlite:///var/lib/berth/berth.db",
        );
        check("", "");
    }
}
