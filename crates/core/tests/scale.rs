//! Days of demand in a moment: the law of scaling under a virtual clock, with looks that come late, are lost, or tell
//! too much or too little.

use berth_core::scale::flow::{Asked, Flow};
use berth_core::scale::{Count, Scale, Scaled};

/// Days that are lived through; the seed of one that goes wrong is told.
const DAYS: u64 = 10_000;
const LOOK_S: u64 = 15;
const HOUR_S: u64 = 3600;
/// Demand stays as it is for this long.
const PHASE_S: u64 = 6 * HOUR_S;
const PHASES: u64 = 4;

/// Numbers without an end, the same for the same seed (SplitMix64: Steele, Lea and Flood 2014).
struct Chance(u64);

impl Chance {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    fn below(&mut self, end: u64) -> u64 {
        self.next() % end
    }

    /// Between two numbers.
    fn within(&mut self, low: f64, high: f64) -> f64 {
        low + (high - low) * (self.next() >> 11) as f64 / (1_u64 << 53) as f64
    }
}

/// One day: demand that changes three times, and a scaler that sees it badly.
fn live(seed: u64) -> Result<(), String> {
    let mut chance = Chance(seed);
    let min = 1 + chance.below(3) as u32;
    let max = min + chance.below(12) as u32;
    let scale = Scale {
        target_ongoing_requests: chance.within(1.0, 20.0),
        up_delay_s: chance.within(0.0, 120.0),
        down_delay_s: chance.within(60.0, 1200.0),
    };
    let scaled = Scaled { min, max, scale };
    // What an instance really takes may be half or twice what the rule believes.
    let wrong = chance.within(0.5, 2.0);
    let late_s = chance.below(61);
    let most = f64::from(max + 2) * scale.target_ongoing_requests;
    let demands: Vec<f64> = (0..PHASES).map(|_| chance.within(0.0, most)).collect();
    let needed = |demand: f64| {
        let called = ((demand * wrong).floor() / scale.target_ongoing_requests).ceil() as u32;
        called.clamp(min, max)
    };
    let settled_s = late_s + scale.up_delay_s.max(scale.down_delay_s) as u64 + 60 * LOOK_S;
    let mut count = Count::new(min, &scaled);
    let (mut last, mut reversals, mut was_up) = (count.wanted, 0, None);
    for now_s in (0..PHASES * PHASE_S).step_by(LOOK_S as usize) {
        let seen_at = now_s.saturating_sub(late_s);
        let (phase, in_phase) = ((now_s / PHASE_S) as usize, now_s % PHASE_S);
        let demand = demands[(seen_at / PHASE_S) as usize];
        // Of ten looks three are lost.
        if chance.below(10) >= 3 {
            count = count.next((demand * wrong).floor(), &scaled, now_s * 1000);
        }
        let wanted = count.wanted;
        let fail = |what: &str| {
            Err(format!("seed {seed} at {now_s} s: {what}: {count:?}, {scaled:?}, {demands:?}"))
        };
        if !(min..=max).contains(&wanted) {
            return fail("beyond its bounds");
        }
        let before = if phase > 0 { needed(demands[phase - 1]) } else { min };
        let here = needed(demands[phase]);
        if wanted > here.max(before) + 1 || wanted + 1 < here.min(before) {
            return fail("more than one beyond what is needed");
        }
        if in_phase > settled_s && wanted != here {
            return fail("not settled");
        }
        if wanted != last {
            let is_up = wanted > last;
            reversals += u64::from(was_up.is_some_and(|was_up| was_up != is_up));
            (last, was_up) = (wanted, Some(is_up));
        }
    }
    let turns =
        demands.windows(3).filter(|three| (three[1] > three[0]) != (three[2] > three[1])).count()
            as u64;
    match reversals <= turns + 1 {
        true => Ok(()),
        false => {
            Err(format!("seed {seed}: {reversals} reversals where demand had {turns}: {demands:?}"))
        }
    }
}

#[test]
fn ten_thousand_days() {
    let wrong: Vec<String> = (0..DAYS).filter_map(|seed| live(seed).err()).take(3).collect();
    assert_eq!(wrong, Vec::<String>::new());
}

/// What changes from look to look, however wildly, moves it by one at most.
#[test]
fn noise_around_a_boundary_moves_it_by_one_at_most() {
    let scale = Scale { target_ongoing_requests: 5.0, up_delay_s: 30.0, down_delay_s: 600.0 };
    let scaled = Scaled { min: 1, max: 8, scale };
    for seed in 0..1000 {
        let (mut chance, mut count) = (Chance(seed), Count { wanted: 3, pressure: None });
        for now_s in (0..24 * HOUR_S).step_by(LOOK_S as usize) {
            // Some ask for two, most for three, some for four or more.
            count = count.next((9 + chance.below(9)) as f64, &scaled, now_s * 1000);
        }
        assert!((3..=4).contains(&count.wanted), "seed {seed}: {count:?}");
    }
}

/// Requests that arrive by chance, instances that take three minutes to start and serve so many at once.
struct Queue {
    ready: u32,
    starting: Vec<u64>,
    in_flight: f64,
    waiting: f64,
    ended: f64,
}

/// Four hours with one step of demand, up or down, seen late and with losses: what waits while instances start calls for
/// one more at most, and is gone in the end.
fn step(seed: u64) -> Result<(), String> {
    const BOOT_S: u64 = 180;
    let mut chance = Chance(seed);
    let target = chance.within(2.0, 20.0);
    let scale = Scale { target_ongoing_requests: target, up_delay_s: 30.0, down_delay_s: 600.0 };
    let scaled = Scaled { min: 1, max: 20, scale };
    let (late, seconds) = (chance.below(13) as usize, chance.within(15.0, 60.0));
    let demands = [(); 2].map(|()| target * chance.within(0.3, 8.0));
    let needed = demands.map(|demand| (demand / target).ceil() as u32);
    let mut queue =
        Queue { ready: needed[0], starting: Vec::new(), in_flight: 0.0, waiting: 0.0, ended: 0.0 };
    let (mut count, mut flow) = (Count::new(needed[0], &scaled), Flow::default());
    let mut seen: Vec<Asked> = Vec::new();
    let mut most = 0;
    for now_s in (0..4 * HOUR_S).step_by(5) {
        let is_later = now_s >= 2 * HOUR_S;
        let arrivals = demands[usize::from(is_later)] / seconds * 5.0;
        let before = queue.starting.len();
        queue.starting.retain(|ready_s| *ready_s > now_s);
        queue.ready += (before - queue.starting.len()) as u32;
        // As many are served as there is room for, each for as long.
        queue.waiting += arrivals;
        let ends = queue.in_flight * 5.0 / seconds;
        queue.in_flight -= ends;
        queue.ended += ends;
        let room = (f64::from(queue.ready) * target - queue.in_flight).clamp(0.0, queue.waiting);
        (queue.in_flight, queue.waiting) = (queue.in_flight + room, queue.waiting - room);
        let waiting = if queue.waiting < 1.0 { 0 } else { queue.waiting as u64 };
        seen.push(Asked {
            in_flight: queue.in_flight.round() as u64,
            waiting,
            ended: queue.ended as u64,
        });
        if chance.below(10) < 3 {
            continue;
        }
        let asked = seen[seen.len().saturating_sub(1 + late)];
        let ongoing = flow.ongoing(asked, target, now_s * 1000);
        count = count.next(ongoing, &scaled, now_s * 1000);
        while queue.ready + (queue.starting.len() as u32) < count.wanted {
            queue.starting.push(now_s + BOOT_S);
        }
        if count.wanted < queue.ready {
            queue.ready = count.wanted;
        }
        if is_later {
            most = most.max(count.wanted);
        }
    }
    // Counts are of whole requests: one more or less says nothing.
    let bound = demands.map(|demand| ((demand + 1.0) / target).ceil() as u32);
    if most > bound[0].max(bound[1]) + 1 {
        return Err(format!("{most} for {needed:?} of {demands:?}, {target} each"));
    }
    let least = ((demands[1] * 0.95 - 1.0) / target).ceil() as u32;
    let is_met = (least.max(1)..=bound[1] + 1).contains(&count.wanted);
    if !is_met || queue.waiting > 2.0 * target {
        return Err(format!("in the end {count:?}, {needed:?}, {} wait", queue.waiting));
    }
    Ok(())
}

#[test]
fn a_queue_is_not_taken_for_demand() {
    let wrong: Vec<_> =
        (0..DAYS).filter_map(|seed| step(seed).err().map(|what| (seed, what))).take(3).collect();
    assert_eq!(wrong, Vec::new());
}
