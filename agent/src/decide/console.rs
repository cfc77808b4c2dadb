//! Which part of what a guest wrote to its console is shown: whole characters, within bounds. Pure.
//!
//! The bytes are a hostile guest's. They stay what they are, apart from what is no UTF-8; the bounds count what JSON makes
//! of them, where a control character takes six bytes.

/// A part of a console.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Part {
    /// The text.
    pub text: String,
    /// Whether something before it is missing that was asked for.
    pub cut: bool,
    /// Whether something after it was left out.
    pub more: bool,
    /// How many of the bytes became text, from the first on.
    pub taken: u64,
    /// How many bytes at the end are the beginning of a character whose rest is not there yet.
    pub withheld: u64,
}

/// The last lines. `most`: how many bytes they may take as JSON; `missing`: whether there is more before these bytes.
#[must_use]
pub fn last(bytes: &[u8], lines: usize, most: usize, missing: bool) -> Part {
    let withheld = unfinished(bytes);
    let whole = bytes.get(..bytes.len() - withheld).unwrap_or_default();
    let text = String::from_utf8_lossy(whole);
    let body = text.strip_suffix('\n').unwrap_or(&text);
    let start_of_lines = body
        .rmatch_indices('\n')
        .nth(lines.saturating_sub(1))
        .map_or(0, |(at, _)| at + 1);
    let mut left = most;
    let start_of_room = text
        .char_indices()
        .rev()
        .map_while(|(at, character)| {
            left = left.checked_sub(json_bytes(character))?;
            Some(at)
        })
        .last()
        .unwrap_or(text.len());
    let start = start_of_lines.max(start_of_room);
    let is_short = start_of_room > start_of_lines;
    // Where all that is here was asked for, what comes before it may have been too.
    let is_all = start_of_lines == 0;
    Part {
        cut: is_short || (missing && is_all),
        text: text.get(start..).unwrap_or_default().to_owned(),
        more: false,
        taken: size(whole),
        withheld: size(bytes) - size(whole),
    }
}

/// The first of these bytes that fit. `at_end`: whether nothing will ever come after them.
#[must_use]
pub fn first(bytes: &[u8], most: usize, at_end: bool) -> Part {
    let withheld = if at_end { 0 } else { unfinished(bytes) };
    let whole = bytes.get(..bytes.len() - withheld).unwrap_or_default();
    let (mut text, mut taken, mut left) = (String::new(), 0_usize, most);
    let mut add = |character: char, bytes: usize| {
        left = left.checked_sub(json_bytes(character))?;
        text.push(character);
        taken += bytes;
        Some(())
    };
    let fits = whole.utf8_chunks().all(|chunk| {
        let valid = chunk
            .valid()
            .chars()
            .all(|character| add(character, character.len_utf8()).is_some());
        let invalid = chunk.invalid().len();
        valid && (invalid == 0 || add(char::REPLACEMENT_CHARACTER, invalid).is_some())
    });
    Part {
        text,
        cut: false,
        more: !fits,
        taken: u64::try_from(taken).unwrap_or(u64::MAX),
        withheld: u64::try_from(withheld).unwrap_or(u64::MAX),
    }
}

/// How many bytes at the end are the beginning of a character.
fn unfinished(bytes: &[u8]) -> usize {
    (1..=3)
        .filter_map(|length| {
            let tail = bytes.get(bytes.len().checked_sub(length)?..)?;
            let error = std::str::from_utf8(tail).err()?;
            (error.valid_up_to() == 0 && error.error_len().is_none()).then_some(length)
        })
        .max()
        .unwrap_or(0)
}

/// The bytes that JSON takes for a character.
fn json_bytes(character: char) -> usize {
    match character {
        '"' | '\\' | '\n' | '\r' | '\t' | '\u{8}' | '\u{c}' => 2,
        '\0'..='\u{1f}' => 6,
        other => other.len_utf8(),
    }
}

fn size(bytes: &[u8]) -> u64 {
    u64::try_from(bytes.len()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn the_last_lines_are_counted_from_the_end() {
        let check = |bytes: &[u8], lines, missing, text: &str, cut| {
            let part = last(bytes, lines, 1000, missing);
            assert_eq!((part.text.as_str(), part.cut), (text, cut), "{bytes:?}");
        };
        check(b"", 5, false, "", false);
        check(b"a\nb\nc\n", 2, true, "b\nc\n", false);
        check(b"a\nb\nc", 2, false, "b\nc", false);
        check(b"a\nb\n", 2, false, "a\nb\n", false);
        check(b"a\nb\n", 2, true, "a\nb\n", true);
        let hostile = b"a\r\n\x1b[2Jb\xff\n";
        check(hostile, 1, false, "\u{1b}[2Jb\u{fffd}\n", false);
        check(b"caf\xc3", 1, false, "caf", false);
    }

    #[test]
    fn what_does_not_fit_is_cut_at_its_beginning_or_left_for_later() {
        let part = last(b"abc\x1b\x1b", 9, 13, false);
        assert_eq!((part.text.as_str(), part.cut), ("c\u{1b}\u{1b}", true));
        let part = first(b"ab\x1bc\xff", 8, false);
        assert_eq!(
            (part.text.as_str(), part.more, part.taken),
            ("ab\u{1b}", true, 3)
        );
        let part = first(b"a\xff", 9, false);
        assert_eq!(
            (part.text.as_str(), part.more, part.taken),
            ("a\u{fffd}", false, 2)
        );
        // At the very end a half character is none.
        let part = first(b"a\xc3", 9, true);
        assert_eq!((part.text.as_str(), part.withheld), ("a\u{fffd}", 0));
    }

    fn hostile() -> impl Strategy<Value = Vec<u8>> {
        let piece = prop_oneof![
            any::<u8>().prop_map(|byte| vec![byte]),
            any::<char>().prop_map(|it| it.to_string().into_bytes()),
            Just(b"\n".to_vec()),
            Just(b"\x1b[31m".to_vec()),
        ];
        prop::collection::vec(piece, 0..80).prop_map(|pieces| pieces.concat())
    }

    proptest! {
        #[test]
        fn no_part_is_larger_than_allowed_as_json(bytes in hostile(), lines in 1_usize..9, most in 0_usize..100) {
            for part in [last(&bytes, lines, most, false), first(&bytes, most, false)] {
                let json = serde_json::to_string(&part.text).unwrap();
                prop_assert!(json.len() <= most + 2, "{json}");
            }
            let part = last(&bytes, lines, usize::MAX, false);
            let whole = part.text.strip_suffix('\n').unwrap_or(&part.text);
            prop_assert!(whole.matches('\n').count() < lines);
        }

        /// Whoever goes on where a part ended sees everything once, however it came in and whatever the bounds are.
        #[test]
        fn parts_one_after_the_other_are_the_whole(bytes in hostile(), come in 1_usize..40, most in 6_usize..60) {
            let (mut seen, mut at, mut there) = (String::new(), 0, 0);
            while there < bytes.len() {
                there = (there + come).min(bytes.len());
                loop {
                    let part = first(&bytes[at..there], most, there == bytes.len());
                    seen.push_str(&part.text);
                    at += usize::try_from(part.taken).unwrap();
                    if !part.more {
                        break;
                    }
                    prop_assert!(part.taken > 0, "no progress at {at}");
                }
            }
            prop_assert_eq!(seen, String::from_utf8_lossy(&bytes));
        }
    }
}
