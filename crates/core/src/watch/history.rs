//! The last minutes of what is left, and where it is going.

use std::collections::{BTreeMap, VecDeque};

use super::look::{DeviceLook, Holder, Look, MOST_NAMED};
use crate::inventory::DeviceId;
use crate::plan::Plan;
use crate::units::Bytes;

/// Looks that are kept of a device.
const MOST: usize = 300;
/// A trend is read from so much of the past.
const WINDOW_MS: u64 = 120_000;
/// Fewer looks, or a shorter time, say nothing of a trend.
const LEAST_LOOKS: usize = 5;
const LEAST_MS: u64 = 10_000;
/// Of the scatter so much has to be explained by a trend.
const LEAST_FIT: f64 = 0.8;

/// What is remembered of devices. Bounded in looks, and by devices that are no longer seen.
#[derive(Clone, Debug, Default)]
pub struct History(BTreeMap<(String, DeviceId), VecDeque<Past>>);

#[derive(Clone, Debug)]
struct Past {
    at_ms: u64,
    left: Option<Bytes>,
    foreign: Option<Bytes>,
    strangers: Vec<Holder>,
}

/// How a process's memory has grown.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Growth {
    /// The process, with what it holds now.
    pub holder: Holder,
    /// What it has taken since.
    pub by: Bytes,
}

impl History {
    /// Remembers a look at what a plan is for; devices that it doesn't have are forgotten.
    pub fn add(&mut self, plan: &Plan, look: &Look) {
        let key = |one: &DeviceLook| (one.node.clone(), one.device.clone());
        self.0.retain(|kept, _| look.devices.iter().any(|one| key(one) == *kept));
        for one in &look.devices {
            let past = self.0.entry(key(one)).or_default();
            if past.len() == MOST {
                past.pop_front();
            }
            let holders = one.holders.iter().flatten();
            let strangers = holders.filter(|holder| holder.instance.is_none()).cloned().collect();
            let left = one.left(plan.bytes_on(&one.node, &one.device));
            past.push_back(Past { at_ms: look.at_ms, left, foreign: one.foreign(), strangers });
        }
    }

    fn of(&self, device: &DeviceLook) -> impl DoubleEndedIterator<Item = &Past> {
        self.0.get(&(device.node.clone(), device.device.clone())).into_iter().flatten()
    }

    /// How long until nothing of a device is left beside what is planned, if it goes on as in the last two minutes;
    /// none where it isn't going down, or where there is too little to tell.
    pub fn ms_to_zero(&self, device: &DeviceLook, now_ms: u64) -> Option<u64> {
        let recent = self.of(device).filter(|past| past.at_ms + WINDOW_MS >= now_ms);
        let points: Vec<(f64, f64)> = recent
            .filter_map(|past| Some((past.at_ms as f64 - now_ms as f64, past.left?.0 as f64)))
            .collect();
        let (first, last) = (points.first()?, points.last()?);
        if points.len() < LEAST_LOOKS || last.0 - first.0 < LEAST_MS as f64 {
            return None;
        }
        let (slope, now, fit) = line(&points)?;
        // A step that is over is no trend: the last third of the time has to fall, too.
        let late: Vec<_> = points.iter().copied().filter(|(at, _)| *at >= first.0 / 3.0).collect();
        let (later, ..) = line(&late)?;
        let is_falling = slope < 0.0 && later < slope / 2.0 && fit >= LEAST_FIT;
        is_falling.then(|| (now.max(0.0) / -slope) as u64)
    }

    /// What others hold of a device more than at their least in the last two minutes, and who took the most of it.
    pub fn foreign_growth(
        &self,
        device: &DeviceLook,
        now_ms: u64,
    ) -> Option<(Bytes, Option<Growth>)> {
        let recent = || self.of(device).filter(|past| past.at_ms + WINDOW_MS >= now_ms);
        let least =
            recent().filter(|past| past.foreign.is_some()).min_by_key(|past| past.foreign)?;
        let now = device.foreign()?;
        // Small ones are not all named: one that was not there may have been as large as the smallest.
        let smallest = least.strangers.iter().map(|one| one.bytes).min().unwrap_or_default();
        let before = |pid: u32| {
            let known = least.strangers.iter().find(|one| one.pid == pid);
            known.map_or(
                if least.strangers.len() < MOST_NAMED { Bytes::ZERO } else { smallest },
                |one| one.bytes,
            )
        };
        let strangers = device.holders.iter().flatten().filter(|one| one.instance.is_none());
        let growth =
            strangers.map(|one| Growth { holder: one.clone(), by: one.bytes - before(one.pid) });
        Some((
            now - least.foreign?,
            growth.max_by_key(|one| one.by).filter(|one| one.by > Bytes::ZERO),
        ))
    }
}

/// Least squares: the slope, the value at zero, and how much of the scatter the line explains.
fn line(points: &[(f64, f64)]) -> Option<(f64, f64, f64)> {
    let count = points.len() as f64;
    let mean = |of: fn(&(f64, f64)) -> f64| points.iter().map(of).sum::<f64>() / count;
    let (mean_x, mean_y) = (mean(|point| point.0), mean(|point| point.1));
    let sum = |of: &dyn Fn(f64, f64) -> f64| {
        points.iter().map(|(x, y)| of(x - mean_x, y - mean_y)).sum::<f64>()
    };
    let (xx, xy, yy) = (sum(&|x, _| x * x), sum(&|x, y| x * y), sum(&|_, y| y * y));
    let fit = xy * xy / (xx * yy);
    let slope = xy / xx;
    fit.is_finite().then_some((slope, mean_y - slope * mean_x, fit))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::spec::GatewaySpec;

    fn look(at_s: u64, used_mib: u64) -> Look {
        let device = DeviceLook {
            node: "n".to_owned(),
            device: DeviceId("gpu:0".to_owned()),
            name: "A10".to_owned(),
            total: Bytes::mib(1000),
            used: Some(Bytes::mib(used_mib)),
            holders: Some(Vec::new()),
        };
        Look { at_ms: at_s * 1000, devices: vec![device], ..Look::default() }
    }

    /// Looks (seconds, MiB used), and how many seconds are left after the last.
    #[test]
    fn a_trend_is_told_only_where_there_is_one() {
        let plan = Plan::nothing(GatewaySpec::default(), None);
        let every = |step: i64| move |at: u64| (at, (500 + step * at as i64).max(0) as u64);
        for (what, looks, left) in [
            ("too few", (0..4).map(every(10)).collect::<Vec<_>>(), None),
            ("steady", (0..60).map(every(0)).collect(), None),
            ("more is free", (0..60).map(every(-5)).collect(), None),
            ("ten a second", (0..31).map(every(10)).collect(), Some(20)),
            ("a step", (0..60).map(|at| (at, if at < 30 { 100 } else { 900 })).collect(), None),
            ("up and down", (0..60).map(|at| (at, 500 + (at % 2) * 300)).collect(), None),
            ("long ago", vec![(0, 100), (1, 200), (2, 300), (3, 400), (4, 500), (300, 500)], None),
        ] {
            let mut history = History::default();
            looks.iter().for_each(|(at, used)| history.add(&plan, &look(*at, *used)));
            let (at, used) = looks.last().copied().unwrap_or_default();
            let last = look(at, used);
            let found = history.ms_to_zero(&last.devices[0], last.at_ms);
            assert_eq!(found.map(|ms| ms.div_ceil(1000)), left, "{what}");
        }
    }

    #[test]
    fn the_past_is_bounded() {
        let (mut history, plan) = (History::default(), Plan::nothing(GatewaySpec::default(), None));
        (0..10_000).for_each(|at| history.add(&plan, &look(at, 1)));
        assert_eq!(history.0.values().map(VecDeque::len).collect::<Vec<_>>(), [MOST]);
        history.add(&plan, &Look::default());
        assert!(history.0.is_empty());
    }
}
