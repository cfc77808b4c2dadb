//! A tree of XML elements, written by quick-xml: every text and attribute is escaped there, in one place, and
//! what cannot be escaped is refused here. Knows nothing of domains.

use quick_xml::{
    Writer,
    events::{BytesEnd, BytesStart, BytesText, Event},
};

use super::DomainXmlError;

/// An element with text or with children. Names are constants of this program, never input.
#[derive(Debug, Clone)]
pub(super) struct Element {
    name: String,
    attributes: Vec<(String, String)>,
    text: Option<String>,
    children: Vec<Element>,
}

impl Element {
    pub(super) fn new(name: impl Into<String>) -> Self {
        Self {
            name: name.into(),
            attributes: Vec::new(),
            text: None,
            children: Vec::new(),
        }
    }

    pub(super) fn attribute(mut self, name: impl Into<String>, value: impl Into<String>) -> Self {
        self.attributes.push((name.into(), value.into()));
        self
    }

    pub(super) fn optional_attribute(self, name: &str, value: Option<&str>) -> Self {
        match value {
            Some(value) => self.attribute(name, value),
            None => self,
        }
    }

    pub(super) fn text(mut self, text: impl Into<String>) -> Self {
        self.text = Some(text.into());
        self
    }

    pub(super) fn child(mut self, child: Element) -> Self {
        self.children.push(child);
        self
    }

    pub(super) fn children(mut self, children: impl IntoIterator<Item = Element>) -> Self {
        self.children.extend(children);
        self
    }

    /// The element as XML, indented.
    pub(super) fn write(&self) -> Result<String, DomainXmlError> {
        self.check()?;
        let mut writer = Writer::new_with_indent(Vec::new(), b' ', 2);
        self.write_into(&mut writer);
        let mut xml = String::from_utf8_lossy(&writer.into_inner()).into_owned();
        xml.push('\n');
        Ok(xml)
    }

    fn check(&self) -> Result<(), DomainXmlError> {
        for text in self
            .attributes
            .iter()
            .map(|(_, value)| value)
            .chain(&self.text)
        {
            if let Some(character) = text.chars().find(|c| !is_legal(*c) || c.is_control()) {
                return Err(DomainXmlError::IllegalCharacter {
                    character,
                    text: text.clone(),
                });
            }
        }
        self.children.iter().try_for_each(Element::check)
    }

    #[expect(clippy::expect_used, reason = "writing to memory cannot fail")]
    fn write_into(&self, writer: &mut Writer<Vec<u8>>) {
        let mut start = BytesStart::new(self.name.as_str());
        for (name, value) in &self.attributes {
            start.push_attribute((name.as_str(), value.as_str()));
        }
        let mut put = |event| writer.write_event(event).expect("memory takes every write");
        if self.text.is_none() && self.children.is_empty() {
            put(Event::Empty(start));
            return;
        }
        put(Event::Start(start));
        if let Some(text) = &self.text {
            put(Event::Text(BytesText::new(text)));
        }
        for child in &self.children {
            child.write_into(writer);
        }
        writer
            .write_event(Event::End(BytesEnd::new(self.name.as_str())))
            .expect("memory takes every write");
    }
}

/// Whether XML 1.0 has a way to hold the character (`Char` in its grammar).
pub(super) fn is_legal(c: char) -> bool {
    matches!(c, '\t' | '\n' | '\r' | ' '..='\u{D7FF}' | '\u{E000}'..='\u{FFFD}' | '\u{10000}'..)
}
