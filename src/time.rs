//! Points in time as text: UTC, without a calendar library, as nothing else here needs one. Calls nothing.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

const DAY: u64 = 86_400;

/// A moment in UTC, to the second.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Moment {
    year: u64,
    month: u64,
    day: u64,
    second: u64,
}

impl Moment {
    pub(crate) fn now() -> Self {
        // A clock before 1970 is no reason to make no backup: the order of backups does not come from it.
        let since = SystemTime::now().duration_since(UNIX_EPOCH);
        Self::at(since.unwrap_or(Duration::ZERO).as_secs())
    }

    /// So many seconds after the beginning of 1970.
    pub(crate) fn at(seconds: u64) -> Self {
        // Years are counted from March here, so that the leap day is the last of one.
        let days = seconds / DAY + 719_468;
        let (era, of_era) = (days / 146_097, days % 146_097);
        let year = (of_era - of_era / 1460 + of_era / 36_524 - of_era / 146_096) / 365;
        let of_year = of_era - (365 * year + year / 4 - year / 100);
        let from_march = (5 * of_year + 2) / 153;
        let month = if from_march < 10 {
            from_march + 3
        } else {
            from_march - 9
        };
        Self {
            year: year + era * 400 + u64::from(month <= 2),
            month,
            day: of_year - (153 * from_march + 2) / 5 + 1,
            second: seconds % DAY,
        }
    }

    /// What [`rfc3339`](Self::rfc3339) has written.
    pub(crate) fn parse(text: &str) -> Option<Self> {
        let number = |range: std::ops::Range<usize>, most: u64| {
            let digits = text
                .get(range)
                .filter(|it| it.bytes().all(|it| it.is_ascii_digit()))?;
            digits.parse().ok().filter(|number| *number <= most)
        };
        let moment = Self {
            year: number(0..4, 9999)?,
            month: number(5..7, 12)?,
            day: number(8..10, 31)?,
            second: number(11..13, 23)? * 3600 + number(14..16, 59)? * 60 + number(17..19, 59)?,
        };
        (moment.year >= 1970 && moment.month > 0 && moment.day > 0 && moment.rfc3339() == text)
            .then_some(moment)
    }

    /// Since 1970.
    pub(crate) fn seconds(self) -> u64 {
        self.days() * DAY + self.second
    }

    /// The day, counted from the first of 1970.
    pub(crate) fn days(self) -> u64 {
        // As in `at`.
        let year = self.year - u64::from(self.month <= 2);
        let from_march = (self.month + 9) % 12;
        let of_year = (153 * from_march + 2) / 5 + self.day - 1;
        let (era, of_era) = (year / 400, year % 400);
        era * 146_097 + of_era * 365 + of_era / 4 - of_era / 100 + of_year - 719_468
    }

    /// The week, which begins with Monday.
    pub(crate) fn weeks(self) -> u64 {
        // 1970 began with a Thursday.
        (self.days() + 3) / 7
    }

    /// The month.
    pub(crate) fn months(self) -> u64 {
        self.year * 12 + self.month
    }

    /// `20261123T141339Z`: as a part of a file name, in which a colon would mean something else.
    pub(crate) fn compact(self) -> String {
        let (hour, minute, second) = self.clock();
        format!(
            "{:04}{:02}{:02}T{hour:02}{minute:02}{second:02}Z",
            self.year, self.month, self.day
        )
    }

    /// `2026-11-23T14:13:39Z`, as RFC 3339 has it.
    pub(crate) fn rfc3339(self) -> String {
        let (hour, minute, second) = self.clock();
        format!(
            "{:04}-{:02}-{:02}T{hour:02}:{minute:02}:{second:02}Z",
            self.year, self.month, self.day
        )
    }

    fn clock(self) -> (u64, u64, u64) {
        (self.second / 3600, self.second / 60 % 60, self.second % 60)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn moments_are_what_date_says() {
        let cases = [
            (0, "1970-01-01T00:00:00Z"),
            (951_782_399, "2000-02-28T23:59:59Z"),
            (951_782_400, "2000-02-29T00:00:00Z"),
            (951_868_800, "2000-03-01T00:00:00Z"),
            (1_767_225_599, "2025-12-31T23:59:59Z"),
            (4_107_542_400, "2100-03-01T00:00:00Z"),
        ];
        for (seconds, text) in cases {
            assert_eq!(Moment::at(seconds).rfc3339(), text);
            assert_eq!(Moment::parse(text).unwrap().seconds(), seconds);
        }
        for text in [
            "",
            "now",
            "2026-11-23 14:13:39Z",
            "2026-13-01T00:00:00Z",
            "2026-11-23T24:00:00Z",
            "1969-12-31T23:59:59Z",
        ] {
            assert_eq!(Moment::parse(text), None, "{text}");
        }
        assert_eq!(Moment::at(951_782_399).compact(), "20000228T235959Z");
    }
}
