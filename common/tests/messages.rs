//! `docs/messages.md` and the golden fingerprints of all messages, generated from the types.
//!
//! `make docs` writes both anew. A fingerprint of a known version is never overwritten: whoever changes what a
//! peer can notice of a message gives it a new version first (`Method::VERSION` and its neighbours).

#![expect(clippy::unwrap_used, reason = "a panic is a failed test")]

use std::{collections::BTreeMap, fmt::Write as _, path::PathBuf};

use berth_common::{
    bus::{
        message::{
            HEADER_QUEUE, HEADER_REASON, HEADER_TAG, HEADER_TRACEPARENT, HEADER_VERSION,
            MAX_MESSAGE_BYTES,
        },
        topology::{DELIVERY_LIMIT, EXCHANGE},
    },
    message::catalogue::{self, MessageType, Route},
    refusal::RefusalCode,
};
use serde_json::{Map, Value};

const INTRO: &str = include_str!("messages/intro.md");

fn path(relative: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join(relative)
}

fn writing() -> bool {
    std::env::var_os("BERTH_WRITE_DOCS").is_some()
}

#[test]
fn a_message_does_not_change_without_a_new_version() {
    let file = path("tests/messages/fingerprints.txt");
    let golden = std::fs::read_to_string(&file).unwrap_or_default();
    let mut known: BTreeMap<(String, String), String> = golden
        .lines()
        .filter_map(|line| {
            let mut words = line.split_whitespace().map(str::to_owned);
            Some(((words.next()?, words.next()?), words.next()?))
        })
        .collect();
    let mut missing = Vec::new();
    for message in catalogue::all() {
        let key = (message.name.clone(), message.version.to_string());
        match known.get(&key) {
            Some(fingerprint) => assert_eq!(
                fingerprint,
                &message.fingerprint(),
                "{} version {} changed: give it a new version, then run `make docs`",
                message.name,
                message.version
            ),
            None => {
                missing.push(key.clone());
                known.insert(key, message.fingerprint());
            }
        }
    }
    if writing() {
        let text: String = known
            .iter()
            .map(|((name, version), fingerprint)| format!("{name} {version} {fingerprint}\n"))
            .collect();
        std::fs::write(&file, text).unwrap();
    } else {
        assert!(
            missing.is_empty(),
            "no fingerprint of {missing:?}: run `make docs`"
        );
    }
}

#[test]
fn the_documentation_is_what_the_types_say() {
    let file = path("../docs/messages.md");
    let text = render();
    if writing() {
        std::fs::write(&file, text).unwrap();
    } else {
        let found = std::fs::read_to_string(&file).unwrap_or_default();
        assert!(
            found == text,
            "docs/messages.md is out of date: run `make docs`"
        );
    }
}

fn render() -> String {
    let mut out = INTRO
        .replace("{exchange}", EXCHANGE)
        .replace("{version_header}", HEADER_VERSION)
        .replace("{trace_header}", HEADER_TRACEPARENT)
        .replace("{tag_header}", HEADER_TAG)
        .replace("{reason_header}", HEADER_REASON)
        .replace("{queue_header}", HEADER_QUEUE)
        .replace("{delivery_limit}", &DELIVERY_LIMIT.to_string())
        .replace("{max_bytes}", &MAX_MESSAGE_BYTES.to_string())
        .replace("{codes}", &codes());
    let mut shapes = BTreeMap::new();
    for (title, route) in [
        ("Requests", Route::Request),
        ("Documents", Route::Document),
        ("Questions", Route::Question),
        ("Reports", Route::Report),
        ("Heartbeats", Route::Heartbeat),
    ] {
        writeln!(out, "\n## {title}\n").unwrap();
        for message in catalogue::all()
            .iter()
            .filter(|message| message.route == route)
        {
            render_message(&mut out, &mut shapes, message);
        }
    }
    out.push_str("\n## Shapes\n\nWhat the tables above refer to, by name.\n");
    for (name, schema) in &shapes {
        writeln!(out, "\n### {name}\n").unwrap();
        render_shape(&mut out, schema);
    }
    out
}

fn codes() -> String {
    [
        RefusalCode::Malformed,
        RefusalCode::UnknownMethod,
        RefusalCode::UnsupportedVersion,
        RefusalCode::TooLarge,
        RefusalCode::Invalid,
        RefusalCode::NotFound,
        RefusalCode::Conflict,
        RefusalCode::NoValidHost,
        RefusalCode::Unavailable,
        RefusalCode::Internal,
    ]
    .map(|code| format!("`{}`", code.as_str()))
    .join(", ")
}

fn render_message(out: &mut String, shapes: &mut BTreeMap<String, Value>, message: &MessageType) {
    writeln!(out, "### `{}` version {}\n", message.name, message.version).unwrap();
    let body = collect(shapes, message.body.as_value());
    render_shape(out, &body);
    if let Some(reply) = &message.reply {
        let reply = collect(shapes, reply.as_value());
        let ok = reply
            .get("oneOf")
            .and_then(Value::as_array)
            .and_then(|variants| {
                variants
                    .iter()
                    .find_map(|variant| variant.pointer("/properties/ok"))
            })
            .map_or_else(|| "?".to_owned(), type_of);
        writeln!(
            out,
            "Reply: `{{\"ok\": …}}` with {ok}, or `{{\"error\": …}}` with [Refusal](#refusal).\n"
        )
        .unwrap();
    }
}

/// Moves a schema's definitions into the common list, and answers the schema itself.
fn collect(shapes: &mut BTreeMap<String, Value>, schema: &Value) -> Value {
    let mut schema = schema.clone();
    if let Some(Value::Object(definitions)) = schema
        .as_object_mut()
        .and_then(|object| object.remove("$defs"))
    {
        shapes.extend(definitions);
    }
    schema
}

fn render_shape(out: &mut String, schema: &Value) {
    if let Some(text) = schema.get("description").and_then(Value::as_str) {
        writeln!(out, "{}\n", one_line(text)).unwrap();
    }
    if let Some(properties) = schema.get("properties").and_then(Value::as_object) {
        render_fields(out, properties, schema);
    }
    let variants = schema
        .get("oneOf")
        .or_else(|| schema.get("anyOf"))
        .and_then(Value::as_array);
    for variant in variants.into_iter().flatten() {
        let text = variant
            .get("description")
            .and_then(Value::as_str)
            .unwrap_or_default();
        match (
            variant.get("const"),
            variant.get("properties").and_then(Value::as_object),
        ) {
            (Some(word), _) => writeln!(out, "- `{word}`: {}", one_line(text)).unwrap(),
            (None, Some(properties)) => {
                let tag = properties
                    .values()
                    .find_map(|property| property.get("const"));
                let title = tag.map_or_else(|| type_of(variant), |tag| format!("`{tag}`"));
                writeln!(out, "One of its forms, {title}: {}\n", one_line(text)).unwrap();
                render_fields(out, properties, variant);
            }
            (None, None) => writeln!(out, "- {}: {}", type_of(variant), one_line(text)).unwrap(),
        }
    }
    if let Some(words) = schema.get("enum").and_then(Value::as_array) {
        writeln!(
            out,
            "One of {}.",
            words
                .iter()
                .map(|word| format!("`{word}`"))
                .collect::<Vec<_>>()
                .join(", ")
        )
        .unwrap();
    }
    out.push('\n');
}

fn render_fields(out: &mut String, properties: &Map<String, Value>, schema: &Value) {
    if properties.is_empty() {
        out.push_str("No fields: the body is `{}`.\n");
        return;
    }
    let required: Vec<&str> = schema
        .get("required")
        .and_then(Value::as_array)
        .into_iter()
        .flatten()
        .filter_map(Value::as_str)
        .collect();
    out.push_str("| field | type | must be there | what |\n|---|---|---|---|\n");
    for (name, property) in properties {
        let text = property
            .get("description")
            .and_then(Value::as_str)
            .unwrap_or_default();
        let must = if required.contains(&name.as_str()) {
            "yes"
        } else {
            "no"
        };
        let default = property
            .get("default")
            .filter(|default| !default.is_null())
            .map(|default| format!(" Default: `{default}`."))
            .unwrap_or_default();
        writeln!(
            out,
            "| `{name}` | {} | {must} | {}{default} |",
            type_of(property),
            one_line(text)
        )
        .unwrap();
    }
    out.push('\n');
}

fn type_of(schema: &Value) -> String {
    if let Some(reference) = schema.get("$ref").and_then(Value::as_str) {
        let name = reference.rsplit('/').next().unwrap_or(reference);
        return format!("[{name}](#{})", name.to_lowercase());
    }
    if let Some(word) = schema.get("const") {
        return format!("`{word}`");
    }
    if let Some(variants) = schema
        .get("anyOf")
        .or_else(|| schema.get("oneOf"))
        .and_then(Value::as_array)
    {
        return variants
            .iter()
            .map(type_of)
            .collect::<Vec<_>>()
            .join(" or ");
    }
    if let Some(words) = schema.get("enum").and_then(Value::as_array) {
        return words
            .iter()
            .map(|word| format!("`{word}`"))
            .collect::<Vec<_>>()
            .join(" or ");
    }
    let name = match schema.get("type") {
        Some(Value::String(name)) => name.clone(),
        Some(Value::Array(names)) => names
            .iter()
            .filter_map(Value::as_str)
            .collect::<Vec<_>>()
            .join(" or "),
        _ => "any".to_owned(),
    };
    let detail = schema
        .get("format")
        .or_else(|| schema.get("pattern"))
        .and_then(Value::as_str);
    let range = match (schema.get("minimum"), schema.get("maximum")) {
        (Some(min), Some(max)) => format!(", {min} to {max}"),
        (Some(min), None) => format!(", from {min}"),
        _ => String::new(),
    };
    match (name.as_str(), schema.get("items"), detail) {
        ("array", Some(items), _) => format!("list of {}", type_of(items)),
        (_, _, Some(detail)) => format!("{name} (`{}`){range}", detail.replace('|', "\\|")),
        _ => format!("{name}{range}"),
    }
}

fn one_line(text: &str) -> String {
    text.split_whitespace()
        .collect::<Vec<_>>()
        .join(" ")
        .replace('|', "\\|")
}
