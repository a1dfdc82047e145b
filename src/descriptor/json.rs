//! JSON as canonical text: no white space, one way to write each string and number, the order of keys as found.
//!
//! Text is the whole data structure: a list of sixteen million zeros costs the bytes it is written with, and not a
//! node each. [`canonical`] makes it from a document, [`text`] reads and edits it, [`words`] quotes it in errors.
//! Calls nothing but `serde_json`. Invariant: what [`text`] is handed came from [`canonical`] or from [`text::quote`]
//! and friends, so it need not be checked again.

mod canonical;
pub(super) mod text;
pub(super) mod words;

pub(super) use canonical::canonical;
