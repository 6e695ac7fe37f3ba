//! From a load test to the constants: least squares on the error's logarithm, so that fast and slow
//! points count alike.

use serde::{Deserialize, Serialize};

use super::{Constants, Workload};
use crate::spec::Demand;

/// One point of a load test.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Point {
    /// Requests at once.
    pub batch: f64,
    /// Tokens of each prompt.
    pub prompt_tokens: u32,
    /// Tokens of each answer.
    pub answer_tokens: u32,
    /// Milliseconds a token of one request, on average.
    pub token_ms: f64,
}

/// Fewer points than unknowns fit anything.
pub const LEAST: usize = 5;
/// No fit is believed to be better than this, whatever it says of its own points.
const LEAST_BAND: f64 = 0.1;
/// From the mean square of an error to what nine of ten are within.
const NINE_OF_TEN: f64 = 1.65;

/// Why there is no fit.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum FitError {
    /// Too few points.
    #[error("{0} points are too few for four constants; {LEAST} are the least")]
    TooFew(usize),
    /// A point that can't be.
    #[error("point {0} is no measurement: all its figures must be above zero")]
    NoPoint(usize),
    /// The formula doesn't describe the points.
    #[error("the points are not those of such an engine: the best fit is {0} % off")]
    TooFar(u32),
}

/// The constants with which the formula is nearest to the points.
///
/// # Errors
/// Where there are too few points, or nothing is near.
pub fn fit(workload: &Workload<'_>, points: &[Point]) -> Result<Constants, FitError> {
    if points.len() < LEAST {
        return Err(FitError::TooFew(points.len()));
    }
    let is_bad = |point: &Point| {
        let sound = |number: f64| number.is_finite() && number > 0.0;
        !sound(point.batch)
            || !sound(point.token_ms)
            || point.prompt_tokens == 0
            || point.answer_tokens == 0
    };
    if let Some(at) = points.iter().position(is_bad) {
        return Err(FitError::NoPoint(at + 1));
    }
    let mut best = Constants::UNCALIBRATED;
    let mut least = error(workload, points, &best);
    // From large factors to small ones; each constant in turn, up and down, while that helps.
    let mut factor: f64 = 1.6;
    while factor > 1.002 {
        let mut has_helped = false;
        for index in 0..4 {
            for by in [factor, 1.0 / factor] {
                let tried = scaled(&best, index, by);
                let found = error(workload, points, &tried);
                if found < least {
                    (best, least, has_helped) = (tried, found, true);
                }
            }
        }
        if !has_helped {
            factor = factor.sqrt();
        }
    }
    let band = NINE_OF_TEN * least.sqrt();
    if band > Constants::UNCALIBRATED.band {
        return Err(FitError::TooFar((band * 100.0) as u32));
    }
    Ok(Constants { band: band.max(LEAST_BAND), ..best })
}

/// The mean square of the error's logarithm.
fn error(workload: &Workload<'_>, points: &[Point], constants: &Constants) -> f64 {
    let squares = points.iter().map(|point| {
        let demand = Demand {
            requests_per_second: 0.0,
            prompt_tokens: point.prompt_tokens,
            answer_tokens: point.answer_tokens,
            token_ms: None,
        };
        let expected = workload.token(point.batch, &demand, constants) * 1e3;
        (expected / point.token_ms).ln().powi(2)
    });
    squares.sum::<f64>() / points.len() as f64
}

/// One constant times a factor, within what can be.
fn scaled(constants: &Constants, index: usize, by: f64) -> Constants {
    let mut scaled = *constants;
    match index {
        0 => scaled.bandwidth = (scaled.bandwidth * by).clamp(0.05, 1.0),
        1 => scaled.arithmetic = (scaled.arithmetic * by).clamp(0.02, 1.0),
        2 => scaled.step = (scaled.step * by).clamp(1e-5, 1.0),
        _ => scaled.all_reduce = (scaled.all_reduce * by).clamp(1e-7, 0.01),
    }
    scaled
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test that can't go on fails")]

    use super::super::tests::gemma_27b;
    use super::*;
    fn workload() -> Workload<'static> {
        gemma_27b(4.0, 1.0)
    }

    fn points(constants: &Constants, noise: f64) -> Vec<Point> {
        let sizes = [(1, 200), (8, 200), (32, 200), (1, 2000), (8, 2000), (32, 1000)];
        let point = |(index, (batch, prompt_tokens)): (usize, &(u32, u32))| {
            let (batch, answer_tokens) = (f64::from(*batch), 250);
            let demand = Demand {
                requests_per_second: 0.0,
                prompt_tokens: *prompt_tokens,
                answer_tokens,
                token_ms: None,
            };
            let off = if index % 2 == 0 { 1.0 + noise } else { 1.0 - noise };
            let token_ms = workload().token(batch, &demand, constants) * 1e3 * off;
            Point { batch, prompt_tokens: *prompt_tokens, answer_tokens, token_ms }
        };
        sizes.iter().enumerate().map(point).collect()
    }

    /// The formula with other constants is met within a percent, and noise shows in the band.
    #[test]
    fn constants_are_found_again() {
        let truth = Constants { bandwidth: 0.65, arithmetic: 0.3, ..Constants::UNCALIBRATED };
        let found = fit(&workload(), &points(&truth, 0.0)).unwrap();
        assert!(error(&workload(), &points(&truth, 0.0), &found).sqrt() < 0.01, "{found:?}");
        assert!((found.band - LEAST_BAND).abs() < 1e-9);
        let noisy = fit(&workload(), &points(&truth, 0.15)).unwrap();
        assert!(noisy.band > 0.15 && noisy.band < 0.4, "{noisy:?}");
    }

    #[test]
    fn bad_points_are_refused() {
        let good = points(&Constants::UNCALIBRATED, 0.0);
        let mut bad = good.clone();
        bad[2].token_ms = f64::NAN;
        let mut far = good.clone();
        for (index, point) in far.iter_mut().enumerate() {
            point.token_ms *= if index % 2 == 0 { 20.0 } else { 0.05 };
        }
        for (points, expected) in
            [(&good[..2], FitError::TooFew(2)), (&bad[..], FitError::NoPoint(3))]
        {
            assert_eq!(fit(&workload(), points), Err(expected));
        }
        assert!(matches!(fit(&workload(), &far), Err(FitError::TooFar(_))));
    }
}
