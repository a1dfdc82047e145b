//! JSON in error messages: short, and with nothing in it that a terminal would obey.

/// The most characters of a value or key that a message quotes.
const MAX_SHOWN: usize = 64;

/// Canonical text as a message quotes it: the first 64 characters, control characters escaped.
pub fn shown(text: &str) -> String {
    let mut out = String::new();
    for (index, character) in text.chars().enumerate() {
        if index == MAX_SHOWN {
            out.push('…');
            if text.starts_with('"') {
                out.push('"');
            }
            break;
        }
        match character {
            // Canonical text has escaped these where it must.
            '"' | '\'' | '\\' => out.push(character),
            _ => out.extend(character.escape_debug()),
        }
    }
    out
}

/// One step of a path: `.key`, or `["the key"]` where it is not a plain word. `key` is canonical, with its quotes.
pub fn step(key: &str) -> String {
    let bare = key.trim_matches('"');
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'-' || byte == b'_';
    if !bare.is_empty() && bare.len() <= MAX_SHOWN && bare.bytes().all(plain) {
        format!(".{bare}")
    } else {
        format!("[{}]", shown(key))
    }
}
