//! Which backups stay: rules over their times, added up.
//!
//! Invariant: the newest backup stays, whatever the rules are.

use std::collections::HashSet;
use std::time::Duration;

use super::point::BackupPoint;
use crate::error::{Error, ErrorCode, Result};
use crate::time::Moment;

/// Which backups a prune keeps: those that any of its rules names. Days, weeks (from Monday) and months are those of UTC.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Keep {
    last: usize,
    daily: usize,
    weekly: usize,
    monthly: usize,
    within: Option<Duration>,
}

impl Keep {
    /// No rule yet, which a prune refuses.
    pub fn new() -> Self {
        Self::default()
    }

    /// The newest `count`.
    #[must_use]
    pub fn last(mut self, count: usize) -> Self {
        self.last = count;
        self
    }

    /// Of each of the last `count` days that have a backup, the newest.
    #[must_use]
    pub fn daily(mut self, count: usize) -> Self {
        self.daily = count;
        self
    }

    /// Of each of the last `count` weeks that have a backup, the newest.
    #[must_use]
    pub fn weekly(mut self, count: usize) -> Self {
        self.weekly = count;
        self
    }

    /// Of each of the last `count` months that have a backup, the newest.
    #[must_use]
    pub fn monthly(mut self, count: usize) -> Self {
        self.monthly = count;
        self
    }

    /// All that were begun no longer than this before the newest one was. The clock of today does not count: a folder
    /// that gets no more backups loses none.
    #[must_use]
    pub fn within(mut self, time: Duration) -> Self {
        self.within = Some(time);
        self
    }

    /// The names of those of `points`, from the oldest on, that stay.
    pub(super) fn choose(&self, points: &[BackupPoint]) -> Result<HashSet<String>> {
        if *self == Self::default() {
            return Err(Error::new(
                ErrorCode::InvalidArgument,
                "no rule says which backups to keep, and at least one backup must be kept",
            ));
        }
        let mut left = [self.daily, self.weekly, self.monthly];
        let mut last_seen = [None; 3];
        let mut newest = None;
        let mut stay = HashSet::new();
        for (index, point) in points.iter().rev().enumerate() {
            let moment = Moment::parse(&point.time).ok_or_else(|| {
                Error::new(
                    ErrorCode::DescriptorInvalid,
                    format!("the backup {} has {:?} for its time", point.name, point.time),
                )
            })?;
            let newest = *newest.get_or_insert(moment.seconds());
            let age = Duration::from_secs(newest.saturating_sub(moment.seconds()));
            let mut stays =
                index == 0 || index < self.last || self.within.is_some_and(|within| age <= within);
            for (rule, period) in [moment.days(), moment.weeks(), moment.months()]
                .into_iter()
                .enumerate()
            {
                if left[rule] > 0 && last_seen[rule] != Some(period) {
                    left[rule] -= 1;
                    last_seen[rule] = Some(period);
                    stays = true;
                }
            }
            if stays {
                stay.insert(point.name.clone());
            }
        }
        Ok(stay)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::units::Granularity;

    /// Backups at these times, from the oldest on; their names are the times.
    fn points(times: &[&str]) -> Vec<BackupPoint> {
        let point = |(sequence, time): (usize, &&str)| BackupPoint {
            name: (*time).to_owned(),
            sequence: sequence as u64,
            time: (*time).to_owned(),
            parent: None,
            parent_starts: None,
            source: String::new(),
            length: 0,
            bitmap: String::new(),
            granularity: Granularity::DEFAULT,
            based_on: None,
            starts: String::new(),
            stored: 0,
            reason: String::new(),
            data_checksum: String::new(),
            bitmap_checksum: None,
            data_file: String::new(),
            bitmap_file: None,
        };
        times.iter().enumerate().map(point).collect()
    }

    fn chosen(keep: &Keep, times: &[&str]) -> Vec<String> {
        let stay = keep.choose(&points(times)).unwrap();
        let stays = |time: &&&str| stay.contains(**time);
        times
            .iter()
            .filter(stays)
            .map(|time| (*time).to_owned())
            .collect()
    }

    /// 2026-11-23 is a Monday.
    const TIMES: [&str; 9] = [
        "2026-09-30T23:59:59Z",
        "2026-10-01T00:00:00Z",
        "2026-11-15T12:00:00Z",
        "2026-11-16T12:00:00Z",
        "2026-11-22T08:00:00Z",
        "2026-11-22T23:59:59Z",
        "2026-11-23T00:00:00Z",
        "2026-11-23T10:00:00Z",
        "2026-11-23T11:00:00Z",
    ];

    fn at(indices: &[usize]) -> Vec<String> {
        indices.iter().map(|index| TIMES[*index].to_owned()).collect()
    }

    #[test]
    fn each_rule_keeps_what_it_says() {
        let cases = [
            (Keep::new().last(1), vec![8]),
            (Keep::new().last(3), vec![6, 7, 8]),
            (Keep::new().last(100), (0..9).collect()),
            // One a day, the newest of it; days without a backup do not count.
            (Keep::new().daily(1), vec![8]),
            (Keep::new().daily(3), vec![3, 5, 8]),
            (Keep::new().daily(4), vec![2, 3, 5, 8]),
            // Weeks end with Sunday, the 22nd and the 15th.
            (Keep::new().weekly(2), vec![5, 8]),
            (Keep::new().weekly(3), vec![2, 5, 8]),
            // The last of September and the first of October lie in one week.
            (Keep::new().weekly(100), vec![1, 2, 5, 8]),
            (Keep::new().monthly(2), vec![1, 8]),
            (Keep::new().monthly(100), vec![0, 1, 8]),
            (Keep::new().within(Duration::from_secs(0)), vec![8]),
            (Keep::new().within(Duration::from_secs(3600)), vec![7, 8]),
            (Keep::new().within(Duration::from_secs(3599)), vec![8]),
            (Keep::new().within(Duration::from_secs(11 * 3600)), vec![6, 7, 8]),
            // Any of them.
            (Keep::new().last(2).monthly(3).daily(2), vec![0, 1, 5, 7, 8]),
        ];
        for (keep, stay) in cases {
            assert_eq!(chosen(&keep, &TIMES), at(&stay), "{keep:?}");
        }
    }

    #[test]
    fn the_newest_is_the_last_that_was_made_whatever_its_clock_said() {
        let times = ["2026-11-23T10:00:00Z", "2020-01-01T00:00:00Z"];
        assert_eq!(chosen(&Keep::new().last(1), &times), [times[1]]);
        assert_eq!(chosen(&Keep::new().daily(1), &times), [times[1]]);
        // What is said to come later is not older.
        assert_eq!(chosen(&Keep::new().within(Duration::ZERO), &times), times);
    }

    #[test]
    fn no_rule_and_no_time_are_refused() {
        assert!(Keep::new().choose(&points(&TIMES)).is_err());
        assert!(Keep::new().last(0).choose(&points(&TIMES)).is_err());
        let error = Keep::new().last(1).choose(&points(&["yesterday"])).unwrap_err();
        assert!(error.message().contains("\"yesterday\""), "{error}");
        assert!(Keep::new().last(1).choose(&[]).unwrap().is_empty());
    }
}
