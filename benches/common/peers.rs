//! Programs that the library is measured beside, each as a whole: not call by call, but work by work.

use std::path::Path;
use std::process::Command;

use crate::common::Random;

/// So many rounds of each in turn.
pub const ROUNDS: usize = 9;

/// What a program prints; nothing where it is not there, or fails.
pub fn said(program: &str, args: &[&str]) -> Option<String> {
    let done = Command::new(program).args(args).output().ok()?;
    done.status
        .success()
        .then(|| String::from_utf8_lossy(&done.stdout).into_owned())
}

/// What `qemu-img bench` does, one request at a time.
#[derive(Clone, Copy)]
pub struct QemuBench<'a> {
    pub image: &'a Path,
    pub format: &'a str,
    pub write: bool,
    /// A flush behind each write.
    pub flush: bool,
    pub size: usize,
    pub step: u64,
    pub count: u32,
}

impl QemuBench<'_> {
    /// Microseconds a request, as it says itself: without opening and closing the image.
    pub fn run(self) -> f64 {
        let image = self.image.to_str().expect("a name");
        let (size, step, count) = (
            self.size.to_string(),
            self.step.to_string(),
            self.count.to_string(),
        );
        let mut args = vec![
            "bench",
            "-d",
            "1",
            "-t",
            "writeback",
            "-f",
            self.format,
            "-s",
            &size,
            "-S",
            &step,
            "-c",
            &count,
        ];
        args.extend(self.write.then_some("-w"));
        args.extend(self.flush.then_some("--flush-interval=1"));
        args.push(image);
        let said = said("qemu-img", &args).expect("qemu-img bench");
        let seconds = said
            .split("completed in ")
            .nth(1)
            .and_then(|it| it.split(' ').next());
        let seconds: Option<f64> = seconds.and_then(|it| it.parse().ok());
        seconds.expect("what it took") * 1e6 / f64::from(self.count)
    }
}

/// Runs all of them in turn, by their numbers, and returns the medians. Each begins with a round that does not count.
pub fn in_turn<const N: usize>(mut run: impl FnMut(usize) -> f64) -> [f64; N] {
    for number in 0..N {
        run(number);
    }
    let mut random = Random::new(1, 1, u64::MAX);
    let mut took = [const { Vec::new() }; N];
    for _ in 0..ROUNDS {
        let mut order: [usize; N] = std::array::from_fn(|it| it);
        order.sort_by_cached_key(|_| random.next());
        for number in order {
            took[number].push(run(number));
        }
    }
    took.map(|mut it: Vec<f64>| {
        it.sort_by(f64::total_cmp);
        it[it.len() / 2]
    })
}

/// A row's figures.
pub fn figures(medians: &[f64]) -> String {
    let medians: Vec<_> = medians.iter().map(|it| format!("{it:>9.2}")).collect();
    medians.join(" ")
}
