//! When requests are sent.

use std::time::Duration;

use serde::{Deserialize, Serialize};

/// No phase has more requests than this: a rate may be a typing error.
const MOST: usize = 1_000_000;

/// When the requests of one model in one phase are sent.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Arrivals {
    /// Independent of each other, so many a second on average: what many users make together.
    Poisson {
        /// The average rate.
        per_second: f64,
    },
    /// All at once.
    Burst {
        /// How many.
        count: u32,
    },
    /// At given seconds since the start.
    Trace(Vec<f64>),
}

impl Arrivals {
    /// When, since the start and in order; none is later than the bound.
    pub fn times(&self, within: Duration, seed: u64) -> Vec<Duration> {
        match self {
            Self::Poisson { per_second } => poisson(*per_second, within, seed),
            Self::Burst { count } => vec![Duration::ZERO; MOST.min(*count as usize)],
            Self::Trace(seconds) => traced(seconds, within),
        }
    }
}

fn poisson(per_second: f64, within: Duration, seed: u64) -> Vec<Duration> {
    if per_second.is_nan() || per_second <= 0.0 {
        return Vec::new();
    }
    let mut random = fastrand::Rng::with_seed(seed);
    let mut at_s = 0.0;
    let next = || {
        at_s += -(1.0 - random.f64()).ln() / per_second;
        (at_s <= within.as_secs_f64()).then(|| Duration::try_from_secs_f64(at_s).ok()).flatten()
    };
    std::iter::from_fn(next).take(MOST).collect()
}

fn traced(seconds: &[f64], within: Duration) -> Vec<Duration> {
    let mut times: Vec<Duration> = seconds
        .iter()
        .filter_map(|second| Duration::try_from_secs_f64(*second).ok())
        .filter(|time| *time <= within)
        .take(MOST)
        .collect();
    times.sort_unstable();
    times
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn poisson_has_the_rate_and_the_variance_of_poisson() {
        for (per_second, seed) in [(10.0, 1), (200.0, 2), (0.5, 3)] {
            let within = Duration::from_secs_f64(20_000.0 / per_second);
            let times = Arrivals::Poisson { per_second }.times(within, seed);
            let gaps: Vec<f64> =
                times.windows(2).map(|pair| (pair[1] - pair[0]).as_secs_f64()).collect();
            let mean = gaps.iter().sum::<f64>() / gaps.len() as f64;
            let variance =
                gaps.iter().map(|gap| (gap - mean).powi(2)).sum::<f64>() / gaps.len() as f64;
            // Of exponential gaps both are known: 1/rate, and its square.
            assert!((mean * per_second - 1.0).abs() < 0.03, "mean {mean}");
            assert!((variance * per_second * per_second - 1.0).abs() < 0.1, "variance {variance}");
            assert!(times.is_sorted() && times.iter().all(|time| *time <= within));
        }
    }

    #[test]
    fn arrivals() {
        let ms = |list: &[u64]| list.iter().map(|ms| Duration::from_millis(*ms)).collect();
        let rows: [(Arrivals, Vec<Duration>); 7] = [
            (Arrivals::Burst { count: 3 }, ms(&[0, 0, 0])),
            (Arrivals::Burst { count: 0 }, ms(&[])),
            (Arrivals::Trace(vec![0.5, 0.0, 1.0, 1.5]), ms(&[0, 500, 1000])),
            (Arrivals::Trace(vec![f64::NAN, -1.0, f64::INFINITY, 0.25]), ms(&[250])),
            (Arrivals::Poisson { per_second: 0.0 }, ms(&[])),
            (Arrivals::Poisson { per_second: -1.0 }, ms(&[])),
            (Arrivals::Poisson { per_second: f64::NAN }, ms(&[])),
        ];
        for (arrivals, want) in rows {
            assert_eq!(arrivals.times(Duration::from_secs(1), 7), want, "{arrivals:?}");
        }
        let endless = Arrivals::Poisson { per_second: f64::INFINITY };
        assert_eq!(endless.times(Duration::from_secs(1), 7).len(), MOST);
    }
}
