//! Makes text from outside safe to show: whatever a guest, an image or another tool wrote, it must not drive the
//! operator's terminal. Pure: text in, text out.

use std::fmt::Write;

/// One line of text: every control character is made visible, line breaks too.
pub(crate) fn visible(text: &str) -> String {
    shown(text, |_| false)
}

/// Many lines of text: line breaks and tabs are kept, every other control character is made visible.
/// A carriage return before a line break is dropped, as serial consoles write both.
pub(crate) fn visible_lines(text: &str) -> String {
    shown(&text.replace("\r\n", "\n"), |character| {
        matches!(character, '\n' | '\t')
    })
}

/// JSON text with escapes for what a terminal could obey. It means the same: such characters stand within strings only.
pub(crate) fn escaped(json: &str) -> String {
    let mut escaped = String::with_capacity(json.len());
    for character in json.chars() {
        if character != '\n' && is_dangerous(character) {
            // Writing to a String cannot fail; all of these are in the basic plane.
            let _ = write!(escaped, "\\u{:04x}", u32::from(character));
        } else {
            escaped.push(character);
        }
    }
    escaped
}

/// Many lines of text that come in pieces, as [`visible_lines`] would show them in one piece.
#[derive(Debug, Default)]
pub(crate) struct Lines {
    /// The last piece ended with a carriage return, which a line break may follow.
    is_returning: bool,
}

impl Lines {
    /// The next piece, as it is shown. A carriage return at its end is shown with what follows it.
    pub(crate) fn add(&mut self, piece: &str) -> String {
        let text = if std::mem::take(&mut self.is_returning) {
            format!("\r{piece}")
        } else {
            piece.to_owned()
        };
        match text.strip_suffix('\r') {
            Some(rest) => {
                self.is_returning = true;
                visible_lines(rest)
            }
            None => visible_lines(&text),
        }
    }
}

fn shown(text: &str, keep: impl Fn(char) -> bool) -> String {
    let mut shown = String::with_capacity(text.len());
    for character in text.chars() {
        if keep(character) || !is_dangerous(character) {
            shown.push(character);
        } else if let Some(caret) = caret(character) {
            shown.push('^');
            shown.push(caret);
        } else {
            // Writing to a String cannot fail.
            let _ = write!(shown, "<U+{:04X}>", u32::from(character));
        }
    }
    shown
}

/// `^[` for escape and so on, as terminals echo control characters.
fn caret(character: char) -> Option<char> {
    match u8::try_from(character) {
        Ok(byte) if byte < 0x20 => Some(char::from(byte + 0x40)),
        Ok(0x7f) => Some('?'),
        _ => None,
    }
}

/// Control characters, and characters without width that change how their neighbours are shown (the order of
/// letters, line breaks that are none of ours).
fn is_dangerous(character: char) -> bool {
    character.is_control()
        || matches!(
            character,
            '\u{61c}' | '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2060}'..='\u{206f}' | '\u{feff}'
        )
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn control_characters_are_made_visible() {
        let check = |text, expected| assert_eq!(visible_lines(text), expected, "{text:?}");
        check("boot\r\n\tok\n", "boot\n\tok\n");
        check("\x1b[2J\x07", "^[[2J^G");
        check("a\rb", "a^Mb");
        check("\x7f\u{9b}31m", "^?<U+009B>31m");
        check("\u{202e}evil", "<U+202E>evil");
        check("größe 日本", "größe 日本");
        assert_eq!(visible("a\nb\tc"), "a^Jb^Ic");
    }

    proptest! {
        #[test]
        fn nothing_that_a_terminal_obeys_gets_through(text in any::<String>(), bytes in any::<Vec<u8>>()) {
            for text in [text, String::from_utf8_lossy(&bytes).into_owned()] {
                let lines = visible_lines(&text);
                prop_assert!(!lines.chars().any(|c| c.is_control() && c != '\n' && c != '\t'), "{lines:?}");
                prop_assert!(!lines.as_bytes().contains(&0x1b));
                let line = visible(&text);
                prop_assert!(!line.chars().any(char::is_control), "{line:?}");
            }
        }

        #[test]
        fn pieces_are_shown_as_the_whole(text in "[a\r\n\x1b\u{9b}é]{0,20}", cut in 0_usize..20) {
            let cut = text.floor_char_boundary(cut.min(text.len()));
            let mut lines = Lines::default();
            let shown = lines.add(&text[..cut]) + &lines.add(&text[cut..]) + &lines.add("!");
            prop_assert_eq!(shown, visible_lines(&format!("{text}!")));
        }

        #[test]
        fn escaped_json_means_the_same_and_drives_nothing(text in any::<String>()) {
            let json = serde_json::to_string_pretty(&[&text, "\u{9b}31m\u{7f}\u{202e}"]).unwrap();
            let escaped = escaped(&json);
            prop_assert!(!escaped.chars().any(|c| is_dangerous(c) && c != '\n'), "{escaped:?}");
            let back: Vec<String> = serde_json::from_str(&escaped).unwrap();
            prop_assert_eq!(&back[0], &text);
        }

        #[test]
        fn harmless_text_is_left_alone(text in "[ -~äöü€日本]*") {
            prop_assert_eq!(visible(&text), text);
        }
    }
}
