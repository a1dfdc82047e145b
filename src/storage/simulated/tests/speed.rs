//! What a crash state costs, as a figure to look at and not as a bound, which a busy machine would miss:
//! `cargo test --release --lib simulated::tests::speed -- --nocapture`.

use std::time::Instant;

use super::{F, open, sync, write};
use crate::storage::simulated::{Keep, SimDisk};

#[test]
fn every_crash_state_of_a_small_script_has_the_file() {
    let disk = SimDisk::new();
    disk.put(F, &vec![1; 1 << 20]);
    let disk = disk.kill(); // the same disk with an empty log
    let file = open(&disk, F);
    for step in 0..58u64 {
        match step % 10 {
            9 => sync(&*file),
            _ => write(&*file, step * 977 * 16 % (1 << 20), &[2; 4096]),
        }
    }
    let before = Instant::now();
    let mut states = 0u32;
    for seed in 0..50 {
        for point in disk.crash_points() {
            assert_eq!(point.power_cut_keeping(Keep::Random(seed)).names().len(), 1);
            states += 1;
        }
    }
    let per_second = f64::from(states) / before.elapsed().as_secs_f64();
    println!("{states} crash states, {per_second:.0} a second");
}
