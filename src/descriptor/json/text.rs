//! Reading and editing canonical text in place.

use std::ops::Range;

/// The canonical text of a string.
pub fn quote(string: &str) -> String {
    serde_json::Value::from(string).to_string()
}

/// The string that `text` is, or `None` where it is no string.
pub fn string(text: &str) -> Option<String> {
    serde_json::from_str(text).ok()
}

/// Whether `text` is an object.
pub fn is_object(text: &str) -> bool {
    text.starts_with('{')
}

/// The members of an object, in order.
pub fn members(object: &str) -> Members<'_> {
    Members { object, at: 1 }
}

/// One member of an object.
#[derive(Clone)]
pub struct Member<'a> {
    /// The key as canonical text, with its quotes.
    pub key: &'a str,
    /// The value as canonical text.
    pub value: &'a str,
    /// Where key, colon and value are in the object.
    whole: Range<usize>,
}

impl Member<'_> {
    /// Where the value is in the object.
    pub fn value_range(&self) -> Range<usize> {
        self.whole.end - self.value.len()..self.whole.end
    }
}

/// See [`members`].
pub struct Members<'a> {
    object: &'a str,
    at: usize,
}

impl<'a> Iterator for Members<'a> {
    type Item = Member<'a>;

    fn next(&mut self) -> Option<Member<'a>> {
        let text = self.object.as_bytes();
        if text.get(self.at) != Some(&b'"') {
            return None;
        }
        let start = self.at;
        let colon = value_end(text, start);
        let end = value_end(text, colon + 1);
        self.at = end + 1;
        Some(Member {
            key: &self.object[start..colon],
            value: &self.object[colon + 1..end],
            whole: start..end,
        })
    }
}

/// The elements of a list, in order.
pub fn elements(list: &str) -> impl Iterator<Item = &str> {
    let mut at = 1;
    std::iter::from_fn(move || {
        if at >= list.len() - 1 {
            return None;
        }
        let end = value_end(list.as_bytes(), at);
        let element = &list[at..end];
        at = end + 1;
        Some(element)
    })
}

/// The member `key` of an object.
pub fn member<'a>(object: &'a str, key: &str) -> Option<Member<'a>> {
    let key = quote(key);
    members(object).find(|member| member.key == key)
}

/// Gives the member `key` the value that is the canonical text `value`; a new member comes last.
pub fn set(object: &mut String, key: &str, value: &str) {
    if let Some(range) = member(object, key).map(|member| member.value_range()) {
        object.replace_range(range, value);
    } else {
        let comma = if object.len() > 2 { "," } else { "" };
        let end = object.len() - 1;
        object.insert_str(end, &format!("{comma}{}:{value}", quote(key)));
    }
}

/// As [`set`], or [`remove`] where there is no value.
pub fn set_or_remove(object: &mut String, key: &str, value: Option<&str>) {
    match value {
        Some(value) => set(object, key, value),
        None => remove(object, key),
    }
}

/// Edits the value of the member `key`; where that is no object, a new one takes its place.
pub fn edit(object: &mut String, key: &str, edit: impl FnOnce(&mut String)) {
    let mut inner = match member(object, key) {
        Some(member) if is_object(member.value) => member.value.to_owned(),
        _ => "{}".to_owned(),
    };
    edit(&mut inner);
    set(object, key, &inner);
}

/// Takes the member `key` away, if it is there.
pub fn remove(object: &mut String, key: &str) {
    if let Some(Range { start, end }) = member(object, key).map(|member| member.whole) {
        let text = object.as_bytes();
        let range = match (text.get(start - 1), text.get(end)) {
            (_, Some(b',')) => start..end + 1,
            (Some(b','), _) => start - 1..end,
            _ => start..end,
        };
        object.replace_range(range, "");
    }
}

/// Canonical text spread over lines, two spaces a level, or `None` where that takes more than `limit` bytes.
pub fn pretty(text: &str, limit: usize) -> Option<String> {
    let mut out = String::with_capacity(text.len().min(limit));
    let mut rest = text;
    let mut depth = 0;
    while let Some(next) = rest.bytes().next() {
        let token = match next {
            b'{' | b'[' if matches!(rest.as_bytes().get(1), Some(b'}' | b']')) => 2,
            b'{' | b'[' | b'}' | b']' | b',' | b':' => 1,
            _ => value_end(rest.as_bytes(), 0),
        };
        let (token, behind) = rest.split_at(token);
        rest = behind;
        match token {
            "}" | "]" => depth -= 1,
            "{" | "[" => depth += 1,
            _ => {}
        }
        if matches!(token, "}" | "]") {
            new_line(&mut out, depth);
        }
        out.push_str(token);
        match token {
            "{" | "[" | "," => new_line(&mut out, depth),
            ":" => out.push(' '),
            _ => {}
        }
        if out.len() > limit {
            return None;
        }
    }
    Some(out)
}

fn new_line(out: &mut String, depth: usize) {
    out.push('\n');
    out.extend(std::iter::repeat_n("  ", depth));
}

/// Where the value that begins at `start` ends.
fn value_end(text: &[u8], start: usize) -> usize {
    let mut depth = 0_usize;
    let mut at = start;
    while let Some(&byte) = text.get(at) {
        match byte {
            b'"' => {
                at = string_end(text, at);
                if depth == 0 {
                    return at;
                }
                continue;
            }
            b'{' | b'[' => depth += 1,
            b'}' | b']' | b',' | b':' if depth == 0 => return at,
            b'}' | b']' => {
                depth -= 1;
                if depth == 0 {
                    return at + 1;
                }
            }
            _ => {}
        }
        at += 1;
    }
    at
}

/// Where the string whose opening quote is at `start` ends, behind its closing quote.
fn string_end(text: &[u8], start: usize) -> usize {
    let mut at = start + 1;
    while let Some(&byte) = text.get(at) {
        match byte {
            b'\\' => at += 2,
            b'"' => return at + 1,
            _ => at += 1,
        }
    }
    text.len()
}
