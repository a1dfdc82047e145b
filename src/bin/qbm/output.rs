//! How facts are printed: the choice between people and programs, and sizes that people can read.

use std::ffi::OsStr;

use clap::ValueEnum;

/// For whom the output is.
#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Output {
    /// For people
    Human,
    /// For programs
    Json,
}

const UNITS: [&str; 7] = ["B", "KiB", "MiB", "GiB", "TiB", "PiB", "EiB"];

/// A size in three significant digits, as qemu-img shows it: `1.5 GiB`.
pub fn short_size(bytes: u64) -> String {
    #[allow(
        clippy::cast_precision_loss,
        reason = "three digits of it are shown, and a double holds fifteen"
    )]
    let mut value = bytes as f64;
    let mut unit = 0;
    // From 999.5 on, three digits would round to a fourth.
    while value >= 999.5 && unit + 1 < UNITS.len() {
        value /= 1024.0;
        unit += 1;
    }
    let decimals = match value {
        v if v < 9.995 => 2,
        v if v < 99.95 => 1,
        _ => 0,
    };
    let mut digits = format!("{value:.decimals$}");
    if digits.contains('.') {
        digits.truncate(digits.trim_end_matches('0').trim_end_matches('.').len());
    }
    format!("{digits} {}", UNITS[unit])
}

/// The same with the exact number behind it: `1.5 GiB (1610612736 bytes)`.
pub fn long_size(bytes: u64) -> String {
    format!("{} ({})", short_size(bytes), counted(bytes, "byte"))
}

/// A number and what it is of, in the plural where it is not one.
pub fn counted(count: u64, what: &str) -> String {
    let plural = if count == 1 { "" } else { "s" };
    format!("{count} {what}{plural}")
}

/// A name that comes from a file, as it may be shown to people: whatever it is, it writes nothing else to their terminal.
pub fn shown(name: &(impl AsRef<OsStr> + ?Sized)) -> String {
    qbm::printable(name.as_ref().to_string_lossy().into_owned())
}

/// As C's `%#x` prints it, and qemu-img with it: zero has no prefix.
pub fn hex(value: u64) -> String {
    if value == 0 {
        "0".to_owned()
    } else {
        format!("{value:#x}")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_read_as_qemu_img_prints_them() {
        let cases = [
            (0, "0 B"),
            (1, "1 B"),
            (512, "512 B"),
            (999, "999 B"),
            (1000, "0.98 KiB"),
            (1024, "1 KiB"),
            (1536, "1.5 KiB"),
            (5000, "4.88 KiB"),
            (1 << 20, "1 MiB"),
            (100 << 20, "100 MiB"),
            (1023 << 20, "1 GiB"),
            (20 << 30, "20 GiB"),
            (i64::MAX as u64, "8 EiB"),
        ];
        for (bytes, shown) in cases {
            assert_eq!(short_size(bytes), shown, "{bytes}");
        }
        assert_eq!(long_size(1024), "1 KiB (1024 bytes)");
        assert_eq!(long_size(1), "1 B (1 byte)");
    }
}
