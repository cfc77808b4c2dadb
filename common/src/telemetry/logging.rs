//! Starts logging, once per process: to journald with fields, or to standard error as text or
//! JSON. What can be missing at run time (journald) falls back and says so; only a filter that
//! means nothing is an error, because a log that silently lacks lines is worse than none.

use std::io::IsTerminal;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use tracing_journald::{Priority, PriorityMappings};
use tracing_subscriber::filter::{EnvFilter, LevelFilter};
use tracing_subscriber::layer::{Layer, Layered, SubscriberExt};
use tracing_subscriber::util::SubscriberInitExt;
use tracing_subscriber::{Registry, fmt};

use crate::config::{Input, Reader, closest, parse};

/// The filter when none is configured. The AMQP library warns of every returned message with its
/// whole content; the bus reports these itself.
const DEFAULT_FILTER: &str = "info,lapin=error";

/// Where journald takes structured entries.
const JOURNALD_SOCKET: &str = "/run/systemd/journal/socket";

/// The words that stand for a level in a filter.
const LEVELS: [&str; 6] = ["off", "error", "warn", "info", "debug", "trace"];

/// How log lines are written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum LogFormat {
    /// Journald if standard error is connected to it, otherwise [`LogFormat::Pretty`].
    #[default]
    Auto,
    /// A line of text on standard error, coloured on a terminal only.
    Pretty,
    /// A line of JSON on standard error.
    Json,
    /// Journald, with every field as `BERTH_<FIELD>`.
    Journald,
}

/// What is logged, and how.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LogConfig {
    /// A level (`info`), or levels per module (`info,berth_agent::act=debug`).
    pub filter: String,
    /// How lines are written.
    pub format: LogFormat,
}

impl Default for LogConfig {
    fn default() -> Self {
        LogConfig {
            filter: DEFAULT_FILTER.to_owned(),
            format: LogFormat::Auto,
        }
    }
}

impl LogConfig {
    /// Reads `log.filter` and `log.format` from the configuration.
    pub fn read(c: &mut Reader) -> Self {
        static FORMATS: [(&str, LogFormat); 4] = [
            ("auto", LogFormat::Auto),
            ("pretty", LogFormat::Pretty),
            ("json", LogFormat::Json),
            ("journald", LogFormat::Journald),
        ];
        let default = Self::default();
        LogConfig {
            filter: c.optional("log.filter", filter_text, default.filter),
            format: c.optional("log.format", parse::one_of(&FORMATS), default.format),
        }
    }
}

/// What is wrong with the logging configuration.
#[derive(Debug, thiserror::Error)]
pub enum LogError {
    /// The filter means nothing.
    #[error(
        "the log filter {filter:?} is wrong: {reason}; a filter is a level (error, warn, info, \
         debug, trace), or levels per module such as \"info,berth_agent=debug\""
    )]
    Filter {
        /// The filter given.
        filter: String,
        /// What is wrong with it.
        reason: String,
    },
}

/// Starts logging. Call it once, before anything that logs. If the process logs already, that
/// stays as it is, and a line there says so.
pub fn init(config: &LogConfig) -> Result<(), LogError> {
    let filter = parse_filter(&config.filter)?;
    let surroundings = Surroundings::look();
    let (output, mut remark) = choose(config.format, &surroundings);
    let layer = match output {
        Output::Text => text_layer(&surroundings),
        Output::Json => fmt::layer()
            .json()
            .flatten_event(true)
            .with_writer(std::io::stderr)
            .boxed(),
        Output::Journald => match journald_layer() {
            Ok(layer) => layer,
            Err(error) => {
                remark = Some(format!("journald does not answer ({error})"));
                text_layer(&surroundings)
            }
        },
    };
    let started = filtered(layer, filter).try_init();
    if let Err(error) = started {
        remark = Some(format!(
            "logging was started before, and stays so ({error})"
        ));
    }
    if let Some(remark) = remark {
        tracing::warn!("log output is not as configured: {remark}");
    }
    Ok(())
}

/// Filters everything, and not with `Layer::with_filter`: a library that asks whether its line would be wanted, and then
/// writes none (sqlx, with each statement), makes such a filter drop the next line of its thread, whoever writes it.
fn filtered(
    layer: BoxedLayer,
    filter: EnvFilter,
) -> Layered<EnvFilter, Layered<BoxedLayer, Registry>> {
    tracing_subscriber::registry().with(layer).with(filter)
}

type BoxedLayer = Box<dyn Layer<Registry> + Send + Sync>;

fn text_layer(surroundings: &Surroundings) -> BoxedLayer {
    fmt::layer()
        .with_writer(std::io::stderr)
        .with_ansi(surroundings.colour)
        .boxed()
}

fn journald_layer() -> std::io::Result<BoxedLayer> {
    let priorities = PriorityMappings {
        info: Priority::Informational,
        debug: Priority::Debug,
        ..PriorityMappings::new()
    };
    let layer = tracing_journald::layer()?
        .with_field_prefix(Some("BERTH".to_owned()))
        .with_priority_mappings(priorities);
    Ok(layer.boxed())
}

/// What the choice of an output depends on.
#[derive(Debug, Clone, Default)]
struct Surroundings {
    /// Standard error is the stream that systemd connected to the journal.
    connected_to_journal: bool,
    journald_is_there: bool,
    colour: bool,
}

impl Surroundings {
    fn look() -> Self {
        let journal_stream = std::env::var("JOURNAL_STREAM").ok();
        // Through /proc, so that a socket can be looked at like a file.
        let stderr = std::fs::metadata("/proc/self/fd/2").ok();
        let stderr = stderr.map(|file| (file.dev(), file.ino()));
        Surroundings {
            connected_to_journal: same_stream(journal_stream.as_deref(), stderr),
            journald_is_there: Path::new(JOURNALD_SOCKET).exists(),
            colour: std::io::stderr().is_terminal() && std::env::var_os("NO_COLOR").is_none(),
        }
    }
}

/// Whether `JOURNAL_STREAM` (`device:inode`) names this very stream. It is inherited by children
/// whose output goes elsewhere, so being set is not enough.
fn same_stream(journal_stream: Option<&str>, stderr: Option<(u64, u64)>) -> bool {
    let named = journal_stream
        .and_then(|value| value.split_once(':'))
        .and_then(|(device, inode)| Some((device.parse().ok()?, inode.parse().ok()?)));
    named.is_some() && named == stderr
}

#[derive(Debug, PartialEq, Eq)]
enum Output {
    Text,
    Json,
    Journald,
}

/// The output to use, and a remark when it is not what was asked for.
fn choose(format: LogFormat, surroundings: &Surroundings) -> (Output, Option<String>) {
    let there = surroundings.journald_is_there;
    match format {
        LogFormat::Json => (Output::Json, None),
        LogFormat::Pretty => (Output::Text, None),
        LogFormat::Journald if there => (Output::Journald, None),
        LogFormat::Journald => {
            let remark = format!("there is no journald here ({JOURNALD_SOCKET} is absent)");
            (Output::Text, Some(remark))
        }
        LogFormat::Auto if surroundings.connected_to_journal && there => (Output::Journald, None),
        LogFormat::Auto => (Output::Text, None),
    }
}

/// The configuration parser of a filter.
fn filter_text(input: &Input) -> Result<String, String> {
    let right = "a log filter such as \"info\" or \"info,berth_agent=debug\"";
    let text = input.text().map_err(|_| right.to_owned())?;
    match check_filter(text) {
        Ok(_) => Ok(text.to_owned()),
        Err(reason) => Err(format!("{right} ({reason})")),
    }
}

fn parse_filter(text: &str) -> Result<EnvFilter, LogError> {
    check_filter(text).map_err(|reason| LogError::Filter {
        filter: text.to_owned(),
        reason,
    })
}

/// Stricter than the filter's own parser, which takes any lone word for a module to be logged
/// in full: `inof` would silence everything but a module of that name.
fn check_filter(text: &str) -> Result<EnvFilter, String> {
    if text.trim().is_empty() {
        return Err("it is empty; write \"off\" to log nothing".to_owned());
    }
    for directive in text.split(',').map(str::trim) {
        // Fields in brackets have a grammar of their own, left to the parser below.
        let level = match directive.rsplit_once('=') {
            _ if directive.contains(['[', ']', '{', '}']) => continue,
            Some((_, level)) => level.trim(),
            None if directive.contains("::") || directive.contains('_') => continue,
            None => directive,
        };
        // The empty word would pass as "error".
        if level.is_empty() || level.parse::<LevelFilter>().is_err() {
            let hint = closest(level, LEVELS).map(|near| format!("; did you mean {near:?}?"));
            return Err(format!("{level:?} is no level{}", hint.unwrap_or_default()));
        }
    }
    // The filter's own parser takes no blanks after a comma; people write them.
    let text: Vec<&str> = text.split(',').map(str::trim).collect();
    EnvFilter::builder()
        .with_regex(false)
        .parse(text.join(","))
        .map_err(|error| error.to_string())
}

#[cfg(test)]
mod tests {
    use std::sync::{Arc, Mutex};

    use super::*;

    /// What was written.
    #[derive(Clone, Default)]
    struct Lines(Arc<Mutex<Vec<u8>>>);

    impl std::io::Write for Lines {
        fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
            self.0.lock().unwrap().write(bytes)
        }

        fn flush(&mut self) -> std::io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn a_library_that_asks_whether_a_line_is_wanted_and_writes_none_loses_nobody_elses() {
        let lines = Lines::default();
        let writer = lines.clone();
        let layer = fmt::layer().with_writer(move || writer.clone()).boxed();
        let asked = tracing::subscriber::with_default(tracing_subscriber::registry(), || {
            tracing::debug_span!("query").metadata().unwrap()
        });
        let subscriber = filtered(layer, parse_filter("info,berth_agent=debug").unwrap());
        tracing::subscriber::with_default(subscriber, || {
            // As `log::log_enabled!` does, for sqlx.
            let wanted = tracing::dispatcher::get_default(|dispatch| dispatch.enabled(asked));
            assert!(!wanted);
            tracing::info!("this scheduler leads");
        });
        let written = lines.0.lock().unwrap().clone();
        let written = String::from_utf8(written).unwrap();
        assert!(written.contains("this scheduler leads"), "{written:?}");
    }

    #[test]
    fn filters_that_mean_something_are_taken() {
        for filter in [
            "info",
            "off",
            "INFO",
            "berth_agent=debug",
            "warn,berth_agent::act=trace, lapin=error",
            "berth_agent::act",
            "info,[request{id=7}]=debug",
        ] {
            parse_filter(filter).unwrap();
        }
    }

    #[test]
    fn filters_that_mean_nothing_are_explained() {
        let check = |filter: &str, reason: &str| {
            let error = parse_filter(filter).unwrap_err().to_string();
            assert!(error.contains(reason), "{error}");
            assert!(error.contains("info,berth_agent=debug"), "{error}");
        };
        check("", "it is empty");
        check("inof", "\"inof\" is no level; did you mean \"info\"?");
        check(
            "info,lapin=wran",
            "\"wran\" is no level; did you mean \"warn\"?",
        );
        check("verbose", "\"verbose\" is no level");
        check("info,", "\"\" is no level");
        check("[a", "invalid");
    }

    #[test]
    fn the_output_is_chosen_by_what_is_there() {
        let here = |connected_to_journal, journald_is_there| Surroundings {
            connected_to_journal,
            journald_is_there,
            colour: false,
        };
        let output = |format, surroundings: &Surroundings| choose(format, surroundings).0;
        assert_eq!(output(LogFormat::Auto, &here(true, true)), Output::Journald);
        assert_eq!(output(LogFormat::Auto, &here(false, true)), Output::Text);
        assert_eq!(output(LogFormat::Auto, &here(true, false)), Output::Text);
        assert_eq!(output(LogFormat::Pretty, &here(true, true)), Output::Text);
        assert_eq!(output(LogFormat::Json, &here(true, true)), Output::Json);
        assert_eq!(
            output(LogFormat::Journald, &here(false, true)),
            Output::Journald
        );
    }

    #[test]
    fn asking_for_an_absent_journald_falls_back_and_says_so() {
        let (output, remark) = choose(LogFormat::Journald, &Surroundings::default());
        assert_eq!(output, Output::Text);
        assert!(remark.unwrap().contains("no journald here"));
    }

    #[test]
    fn an_inherited_journal_stream_of_another_output_does_not_count() {
        let check = |variable, stderr, expected| {
            assert_eq!(
                same_stream(variable, stderr),
                expected,
                "{variable:?} {stderr:?}"
            );
        };
        check(Some("8:1234"), Some((8, 1234)), true);
        check(Some("8:1234"), Some((8, 99)), false);
        check(Some("8:1234"), None, false);
        check(Some("nonsense"), None, false);
        check(None, Some((8, 1234)), false);
        check(None, None, false);
    }

    #[test]
    fn the_configuration_is_read_and_its_mistakes_are_named() {
        let mut c = Reader::from_text(
            "t",
            "[log]\nfilter = \"debug\"\nformat = \"json\"\n",
            [],
            "BERTH",
        );
        let config = LogConfig::read(&mut c);
        c.finish(|| Some(())).unwrap();
        assert_eq!(
            config,
            LogConfig {
                filter: "debug".to_owned(),
                format: LogFormat::Json
            }
        );

        let text = "[log]\nfilter = \"debgu\"\nformat = \"xml\"\n";
        let mut c = Reader::from_text("t", text, [], "BERTH");
        LogConfig::read(&mut c);
        let errors = c.finish(|| Some(())).unwrap_err();
        let whats: Vec<&str> = errors.mistakes().iter().map(|m| m.what.as_str()).collect();
        assert_eq!(
            whats,
            [
                "must be a log filter such as \"info\" or \"info,berth_agent=debug\" (\"debgu\" \
                 is no level; did you mean \"debug\"?); found the string \"debgu\"",
                "must be one of \"auto\", \"pretty\", \"json\", \"journald\"; found the string \
                 \"xml\"",
            ]
        );
    }

    #[test]
    fn starting_twice_does_no_harm() {
        init(&LogConfig::default()).unwrap();
        init(&LogConfig::default()).unwrap();
    }
}
