//! Which parts of a buffer are zeros.

use std::ops::Range;

/// The unit in which zeros are recognised: what file systems keep holes in.
pub(crate) const BLOCK: u64 = 4096;
/// The same, of memory.
pub(crate) const BLOCK_BYTES: usize = 4096;

/// Whether every byte is zero.
pub(crate) fn is_zero(bytes: &[u8]) -> bool {
    // In strides, so that the first byte that is not ends it, and the loop within is one of vectors.
    const STRIDE: usize = 256;
    let (strides, rest) = bytes.as_chunks::<STRIDE>();
    strides
        .iter()
        .all(|stride| stride.iter().fold(0, |all, byte| all | byte) == 0)
        && rest.iter().all(|byte| *byte == 0)
}

/// The runs of `bytes` that are not zeros, in units of `unit` bytes. What lies between them, and before and behind, is
/// `least` zeros or more; fewer count as data, unless there is nothing else.
pub(crate) fn runs_of_data(
    bytes: &[u8],
    unit: usize,
    least: usize,
) -> impl Iterator<Item = Range<usize>> + '_ {
    let mut next = run_from(bytes, 0, unit);
    if let Some(first) = next.as_mut().filter(|first| first.start < least) {
        first.start = 0;
    }
    std::iter::from_fn(move || {
        let mut run = next.take()?;
        while let Some(following) = run_from(bytes, run.end, unit) {
            if following.start - run.end >= least {
                next = Some(following);
                break;
            }
            run.end = following.end;
        }
        if next.is_none() && bytes.len() - run.end < least {
            run.end = bytes.len();
        }
        Some(run)
    })
}

/// The first run of units from `at` on that are not all zeros.
fn run_from(bytes: &[u8], mut at: usize, unit: usize) -> Option<Range<usize>> {
    let zero = |at: usize| is_zero(&bytes[at..bytes.len().min(at + unit)]);
    while at < bytes.len() && zero(at) {
        at += unit;
    }
    let start = at;
    while at < bytes.len() && !zero(at) {
        at += unit;
    }
    (start < bytes.len()).then(|| start..at.min(bytes.len()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn runs(bytes: &[u8], unit: usize, least: usize) -> Vec<(usize, usize)> {
        let runs = runs_of_data(bytes, unit, least);
        runs.map(|run| (run.start, run.end)).collect()
    }

    #[test]
    fn one_byte_anywhere_is_no_zeros() {
        for len in [0, 1, 255, 256, 257, 4096, 4100] {
            let mut bytes = vec![0; len];
            assert!(is_zero(&bytes));
            for at in 0..len {
                bytes[at] = 1;
                assert!(!is_zero(&bytes), "byte {at} of {len}");
                bytes[at] = 0;
            }
        }
    }

    #[test]
    fn runs_leave_zero_units_out() {
        let mut bytes = vec![0; 5 * 4096 + 100];
        assert_eq!(runs(&bytes, 4096, 4096), []);
        bytes[4096] = 1;
        bytes[2 * 4096 + 5] = 1;
        bytes[5 * 4096 + 99] = 1;
        assert_eq!(
            runs(&bytes, 4096, 4096),
            [(4096, 3 * 4096), (5 * 4096, 5 * 4096 + 100)]
        );
    }

    #[test]
    fn zeros_that_are_too_few_are_data() {
        let mut bytes = vec![0; 8 * 512];
        bytes[512] = 1;
        bytes[3 * 512] = 1;
        bytes[7 * 512] = 1;
        assert_eq!(runs(&bytes, 512, 512), [(512, 1024), (1536, 2048), (3584, 4096)]);
        assert_eq!(runs(&bytes, 512, 1024), [(0, 2048), (3584, 4096)]);
        assert_eq!(runs(&bytes, 512, 2048), [(0, 4096)]);
        bytes[7 * 512] = 0;
        assert_eq!(runs(&bytes, 512, 1024), [(0, 2048)]);
        assert_eq!(runs(&bytes, 512, 4096), [(0, 4096)]);
        bytes.fill(0);
        assert_eq!(runs(&bytes, 512, 1 << 20), []);
    }
}
