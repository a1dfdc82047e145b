//! A value and where it stands in the document, so that a refusal can say both.

use std::fmt;

use super::json::{text, words};
use crate::error::{Error, ErrorCode, Result};

/// A value of the document.
#[derive(Clone, Copy)]
pub struct Node<'a> {
    text: &'a str,
    outer: Option<&'a Node<'a>>,
    step: Step<'a>,
}

/// How a value is found in the one around it.
#[derive(Clone, Copy)]
enum Step<'a> {
    Document,
    Key(&'a str),
    /// A key that is a user's word, as canonical text.
    Name(&'a str),
    Index(usize),
}

impl<'a> Node<'a> {
    /// The document itself.
    pub fn document(text: &'a str) -> Self {
        Self {
            text,
            outer: None,
            step: Step::Document,
        }
    }

    /// The canonical text.
    pub fn text(&self) -> &'a str {
        self.text
    }

    /// This, if it is an object.
    pub fn object(self) -> Result<Self> {
        if text::is_object(self.text) {
            Ok(self)
        } else {
            Err(self.invalid("is not an object"))
        }
    }

    /// The member `key` of this object, if it is there.
    pub fn find(&'a self, key: &'a str) -> Option<Node<'a>> {
        let member = text::member(self.text, key)?;
        Some(self.inner(member.value, Step::Key(key)))
    }

    /// The member `key` of this object, which must be there.
    pub fn need(&'a self, key: &'a str) -> Result<Node<'a>> {
        self.find(key).ok_or_else(|| self.missing(key))
    }

    /// The members of this object whose keys are names that users chose.
    pub fn named(&'a self) -> impl Iterator<Item = (&'a str, Node<'a>)> {
        text::members(self.text).map(|member| (member.key, self.inner(member.value, Step::Name(member.key))))
    }

    /// The elements of this list.
    pub fn elements(&'a self) -> Result<impl Iterator<Item = Node<'a>>> {
        if !self.text.starts_with('[') {
            return Err(self.invalid("is not a list"));
        }
        let elements = text::elements(self.text).enumerate();
        Ok(elements.map(|(index, element)| self.inner(element, Step::Index(index))))
    }

    /// The string that this is.
    pub fn string(&self) -> Result<String> {
        text::string(self.text).ok_or_else(|| self.invalid("is not a string"))
    }

    /// The integer that this is.
    pub fn integer(&self) -> Result<u64> {
        self.text
            .parse()
            .map_err(|_| self.invalid("is not an unsigned 64-bit integer"))
    }

    /// The truth value that this is.
    pub fn boolean(&self) -> Result<bool> {
        self.text
            .parse()
            .map_err(|_| self.invalid("is neither true nor false"))
    }

    /// A refusal of this value: `path: value reason`.
    pub fn invalid(&self, reason: impl fmt::Display) -> Error {
        self.refuse(ErrorCode::DescriptorInvalid, reason)
    }

    /// As [`Node::invalid`], of another kind.
    pub fn refuse(&self, code: ErrorCode, reason: impl fmt::Display) -> Error {
        Error::new(code, format!("{self}: {} {reason}", words::shown(self.text)))
    }

    /// A refusal for what is not in this object.
    pub fn missing(&self, key: &str) -> Error {
        self.about(format_args!("\"{key}\" is missing"))
    }

    /// A refusal that does not quote the value: `path: reason`.
    pub fn about(&self, reason: impl fmt::Display) -> Error {
        Error::new(ErrorCode::DescriptorInvalid, format!("{self}: {reason}"))
    }

    fn inner(&'a self, text: &'a str, step: Step<'a>) -> Node<'a> {
        Node {
            text,
            outer: Some(self),
            step,
        }
    }
}

/// The path: `QBM.bitmaps["nightly"].file`.
impl fmt::Display for Node<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(outer @ Node { outer: Some(_), .. }) = self.outer {
            write!(f, "{outer}")?;
            if let Step::Key(_) = self.step {
                f.write_str(".")?;
            }
        }
        match self.step {
            Step::Document => f.write_str("the document"),
            Step::Key(key) => f.write_str(key),
            Step::Name(key) => write!(f, "[{}]", words::shown(key)),
            Step::Index(index) => write!(f, "[{index}]"),
        }
    }
}
