//! Numbers that look random and are the same in every run: splitmix64.

const STEP: u64 = 0x9e37_79b9_7f4a_7c15;

/// A number drawn from a seed and a position.
pub(super) const fn mixed(seed: u64, position: u64) -> u64 {
    let mut z = seed.wrapping_add(position.wrapping_add(1).wrapping_mul(STEP));
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}
