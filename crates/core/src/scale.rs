//! How many instances of a deployment run: by what is asked of them, within what the plan has room for.
//!
//! Like Ray Serve's autoscaler (2.60): the number that brings each instance's ongoing requests to a target;
//! another one must be called for as long as a delay before anything is done. Of what was called for meanwhile the
//! least change is made (as Kubernetes' stabilization windows have it, KEP-853), so that a moment's figure decides
//! nothing. Starts under way count as instances, and what waits for them is not taken for demand ([`flow`]), so that a
//! slow start is not answered with another one.

pub mod flow;

use serde::{Deserialize, Serialize};

use schemars::JsonSchema;

/// When to run more instances, and when fewer.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Scale {
    /// Requests at once that an instance should have.
    pub target_ongoing_requests: f64,
    /// More must be called for this long, in seconds. Default: 30.
    #[serde(default = "up_delay")]
    pub up_delay_s: f64,
    /// Fewer must be called for this long, in seconds. Default: 600.
    #[serde(default = "down_delay")]
    pub down_delay_s: f64,
}

fn up_delay() -> f64 {
    30.0
}

fn down_delay() -> f64 {
    600.0
}

impl Scale {
    /// What is wrong with it, in words.
    pub fn problem(&self) -> Option<&'static str> {
        let is_delay = |seconds: f64| (0.0..=86_400.0).contains(&seconds);
        match () {
            () if !(0.01..=1e6).contains(&self.target_ongoing_requests) => {
                Some("target_ongoing_requests is a number from 0.01 to 1000000")
            }
            () if !is_delay(self.up_delay_s) || !is_delay(self.down_delay_s) => {
                Some("delays are seconds, up to a day")
            }
            () => None,
        }
    }
}

/// A deployment's bounds and its rule.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Scaled {
    /// At least so many.
    pub min: u32,
    /// At most so many: those that the plan has.
    pub max: u32,
    /// The rule.
    pub scale: Scale,
}

/// Where a deployment is with its number.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Count {
    /// Instances that shall run.
    pub wanted: u32,
    /// The call for another number; none while this one is right.
    pub pressure: Option<Pressure>,
}

/// A call for more instances, or for fewer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Pressure {
    /// Whether it is for more.
    pub is_up: bool,
    /// Since when.
    pub since_ms: u64,
    /// Of the numbers that were called for, the one that is nearest to what runs.
    pub nearest: u32,
}

impl Count {
    /// The first number: what runs, within the bounds.
    pub fn new(running: u32, scaled: &Scaled) -> Self {
        Self { wanted: running.clamp(scaled.min, scaled.max.max(scaled.min)), pressure: None }
    }

    /// The number after a look at the requests that instances should have room for, all together.
    #[must_use]
    pub fn next(self, ongoing: f64, scaled: &Scaled, now_ms: u64) -> Self {
        let Scaled { min, max, scale } = scaled;
        let called = (ongoing / scale.target_ongoing_requests).ceil();
        let called = (called.min(f64::from(u32::MAX)) as u32).clamp(*min, (*max).max(*min));
        if called == self.wanted {
            return Self { pressure: None, ..self };
        }
        let is_up = called > self.wanted;
        let pressure = match self.pressure.filter(|pressure| pressure.is_up == is_up) {
            Some(Pressure { since_ms, nearest, .. }) => {
                let nearest = if is_up { called.min(nearest) } else { called.max(nearest) };
                Pressure { is_up, since_ms, nearest }
            }
            None => Pressure { is_up, since_ms: now_ms, nearest: called },
        };
        let delay_s = if is_up { scale.up_delay_s } else { scale.down_delay_s };
        if now_ms.saturating_sub(pressure.since_ms) as f64 >= delay_s * 1e3 {
            // The bounds may have come nearer meanwhile.
            let wanted = pressure.nearest.clamp(*min, (*max).max(*min));
            return Self { wanted, pressure: None };
        }
        Self { pressure: Some(pressure), ..self }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SCALED: Scaled = Scaled {
        min: 1,
        max: 4,
        scale: Scale { target_ongoing_requests: 5.0, up_delay_s: 10.0, down_delay_s: 60.0 },
    };

    /// Each look: seconds, ongoing requests, instances that shall run then.
    fn check(looks: &[(u64, u64, u32)]) {
        let mut count = Count::new(1, &SCALED);
        for (seconds, ongoing, wanted) in looks {
            count = count.next(*ongoing as f64, &SCALED, seconds * 1000);
            assert_eq!(count.wanted, *wanted, "after {seconds} s: {count:?}");
        }
    }

    #[test]
    fn it_follows_what_is_asked_after_a_delay() {
        check(&[(0, 5, 1), (1, 11, 1), (9, 11, 1), (11, 11, 3), (12, 11, 3)]);
        check(&[(0, 1000, 1), (10, 1000, 4)]);
        // A lull in between starts the delay anew.
        check(&[(0, 11, 1), (9, 5, 1), (10, 11, 1), (19, 11, 1), (20, 11, 3)]);
        check(&[(0, 20, 1), (10, 20, 4), (11, 0, 4), (70, 0, 4), (71, 0, 1)]);
        // The least of what was called for counts: neither what came first nor a moment at the end.
        check(&[(0, 20, 1), (10, 11, 3)]);
        check(&[(0, 11, 1), (10, 1000, 3)]);
        check(&[
            (0, 20, 1),
            (10, 20, 4),
            (11, 11, 4),
            (50, 6, 4),
            (71, 0, 3),
            (72, 0, 3),
            (131, 0, 3),
            (132, 0, 1),
        ]);
    }

    #[test]
    fn bounds_hold_whatever_runs() {
        assert_eq!(Count::new(9, &SCALED).wanted, 4);
        assert_eq!(Count::new(0, &SCALED).wanted, 1);
        let none = Scaled { min: 2, max: 0, ..SCALED };
        assert_eq!(Count::new(0, &none).next(100.0, &none, 0).wanted, 2);
    }
}
