//! Sizes on the command line, read as qemu-img reads them.

use qbm::{Granularity, MAX_LENGTH};

/// How many digits behind the point count: enough that what is left out is less than a byte, even of exabytes.
const FRACTION_DIGITS: usize = 20;

/// Bytes: `4096`, `0x1000`, `64k`, `1.5G`. Suffixes are powers of 1024, in either case; `b` is bytes.
pub fn parse_size(text: &str) -> Result<u64, String> {
    let bytes = match text.strip_prefix("0x").or_else(|| text.strip_prefix("0X")) {
        Some(digits) if digits.bytes().all(|digit| digit.is_ascii_hexdigit()) => {
            if digits.is_empty() {
                return Err(no_size());
            }
            u128::from_str_radix(digits, 16).map_err(|_| too_large())?
        }
        Some(_) => return Err("a hexadecimal size has no suffix and no fraction".to_owned()),
        None => decimal(text)?,
    };
    match u64::try_from(bytes) {
        Ok(bytes) if bytes <= MAX_LENGTH => Ok(bytes),
        _ => Err(too_large()),
    }
}

/// So many bytes in a second, in the same spelling.
pub fn parse_rate(text: &str) -> Result<u64, String> {
    match parse_size(text)? {
        0 => Err("at no bytes in a second nothing would ever be done; leave it out for no limit".to_owned()),
        rate => Ok(rate),
    }
}

/// A granularity, in [`parse_size`]'s spelling.
pub fn parse_granularity(text: &str) -> Result<Granularity, String> {
    let bytes = parse_size(text)?;
    Granularity::new(bytes).ok_or_else(|| {
        format!(
            "{bytes} is not a power of two from {} to {}",
            Granularity::MIN.bytes(),
            Granularity::MAX.bytes()
        )
    })
}

fn decimal(text: &str) -> Result<u128, String> {
    let (number, shift) = match text.char_indices().next_back() {
        Some((at, last)) if !last.is_ascii_digit() && last != '.' => (&text[..at], shift_of(last)?),
        _ => (text, 0),
    };
    let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
    let digits = |part: &str| part.bytes().all(|digit| digit.is_ascii_digit());
    if whole.len() + fraction.len() == 0 || !digits(whole) || !digits(fraction) {
        return Err(no_size());
    }
    let whole: u128 = match whole {
        "" => 0,
        _ => whole.parse().map_err(|_| too_large())?,
    };
    if shift == 0 && fraction.bytes().any(|digit| digit != b'0') {
        return Err("there is no fraction of a byte".to_owned());
    }
    let whole = whole.checked_mul(1 << shift).ok_or_else(too_large)?;
    whole.checked_add(scaled(fraction, shift)).ok_or_else(too_large)
}

/// `0.fraction` times 2^`shift`, to the nearest byte.
fn scaled(fraction: &str, shift: u32) -> u128 {
    let mut value: u128 = 0;
    let mut unit: u128 = 1;
    for digit in fraction.bytes().take(FRACTION_DIGITS) {
        value = value * 10 + u128::from(digit - b'0');
        unit *= 10;
    }
    ((value << shift) + unit / 2) / unit
}

fn shift_of(suffix: char) -> Result<u32, String> {
    match suffix.to_ascii_uppercase() {
        'B' => Ok(0),
        'K' => Ok(10),
        'M' => Ok(20),
        'G' => Ok(30),
        'T' => Ok(40),
        'P' => Ok(50),
        'E' => Ok(60),
        _ => Err(format!(
            "{suffix:?} is no suffix of a size; known are b, k, M, G, T, P and E"
        )),
    }
}

fn no_size() -> String {
    "a size is a number of bytes, or has a suffix k, M, G, T, P or E".to_owned()
}

fn too_large() -> String {
    format!("more than {MAX_LENGTH} bytes, the largest disk")
}

/// What a disk's length is to become.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NewLength {
    /// This.
    Exactly(u64),
    /// This much more.
    More(u64),
    /// This much less.
    Less(u64),
}

impl NewLength {
    /// Applied to a disk of `length` bytes; fails below zero and beyond the largest disk.
    pub fn of(self, length: u64) -> Result<u64, String> {
        match self {
            Self::Exactly(bytes) => Ok(bytes),
            Self::More(bytes) => length
                .checked_add(bytes)
                .filter(|sum| *sum <= MAX_LENGTH)
                .ok_or_else(|| format!("{bytes} bytes more than {length} would be {}", too_large())),
            Self::Less(bytes) => length
                .checked_sub(bytes)
                .ok_or_else(|| format!("it is {length} bytes long, and cannot be {bytes} bytes shorter")),
        }
    }
}

/// A size, or how much to add (`+5G`) or to take away (`-5G`).
pub fn parse_new_length(text: &str) -> Result<NewLength, String> {
    if let Some(more) = text.strip_prefix('+') {
        parse_size(more).map(NewLength::More)
    } else if let Some(less) = text.strip_prefix('-') {
        parse_size(less).map(NewLength::Less)
    } else {
        parse_size(text).map(NewLength::Exactly)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Each answer is what qemu-img 10.0.2 made of the same text.
    #[test]
    fn sizes_mean_what_they_mean_to_qemu_img() {
        let cases = [
            ("0", 0),
            ("100b", 100),
            ("1B", 1),
            ("1.0b", 1),
            ("01k", 1024),
            ("1g", 1 << 30),
            ("1.5G", 1_610_612_736),
            (".5G", 536_870_912),
            ("1.G", 1 << 30),
            ("0.3G", 322_122_547),
            ("1.3k", 1331),
            ("1.7k", 1741),
            ("1.9999k", 2048),
            ("0.0001k", 0),
            ("1.00048828125k", 1025),
            ("1.999999999999999999k", 2048),
            ("7E", 7 << 60),
            ("1.5E", 1_729_382_256_910_270_464),
            ("0x1000", 4096),
            ("0X1f", 31),
            ("9223372036854775807", MAX_LENGTH),
        ];
        for (text, bytes) in cases {
            assert_eq!(parse_size(text), Ok(bytes), "{text}");
        }
    }

    #[test]
    fn what_is_no_size_is_refused() {
        for text in [
            "",
            ".",
            ".K",
            "k",
            "1q",
            "1KB",
            "1k1",
            "1kk",
            "1 k",
            " 1k",
            "1..5k",
            "1.2.3",
            "inf",
            "nan",
            "1e3",
            "-1",
            "+1k",
            "0.1",
            "1.3",
            "1.5b",
            "0x",
            "0x10k",
            "0x1.8",
            "8E",
            "16777216T",
            "9223372036854775808",
            "1€",
            "€",
            "99999999999999999999999999999999999999999999",
            "0xffffffffffffffffffffffffffffffffffff",
            "340282366920938463463374607431768211455E",
        ] {
            assert!(parse_size(text).is_err(), "{text}");
        }
    }

    #[test]
    fn a_relative_length_stays_within_what_a_disk_can_be() {
        assert_eq!(parse_new_length("+1k").and_then(|l| l.of(1)), Ok(1025));
        assert_eq!(parse_new_length("-1k").and_then(|l| l.of(1024)), Ok(0));
        assert_eq!(parse_new_length("5").and_then(|l| l.of(1024)), Ok(5));
        assert!(parse_new_length("-1k").and_then(|l| l.of(1023)).is_err());
        assert!(parse_new_length("+1").and_then(|l| l.of(MAX_LENGTH)).is_err());
        assert!(parse_new_length("+-1").is_err());
        assert!(parse_new_length("--1").is_err());
    }
}
