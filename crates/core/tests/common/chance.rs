//! Numbers without an end, the same for the same seed (SplitMix64: Steele, Lea and Flood 2014).

#![allow(dead_code, reason = "not every test needs all of it")]

pub(crate) struct Chance(pub(crate) u64);

impl Chance {
    pub(crate) fn below(&mut self, end: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (mixed ^ (mixed >> 31)) % end
    }

    /// Between two numbers.
    pub(crate) fn within(&mut self, low: f64, high: f64) -> f64 {
        low + (high - low) * self.below(1 << 53) as f64 / (1_u64 << 53) as f64
    }

    /// Whether something happens that does so in so many of a hundred cases.
    pub(crate) fn is(&mut self, percent: u64) -> bool {
        self.below(100) < percent
    }
}

/// Lives through seeds; the first that goes wrong is told.
pub(crate) fn live(seeds: u64, life: impl Fn(u64) -> Result<(), String>) {
    let wrong = (0..seeds).find_map(|seed| life(seed).err().map(|error| (seed, error)));
    assert_eq!(wrong, None, "seed and what went wrong");
}
