//! Hours of looks in a moment, some of them lost: nothing is told while nothing happens, and what happens is told once,
//! at the first look that can show it.

use berth_core::watch::{AlarmKind, Watch};

use crate::chance::{self, Chance};
use crate::looks::{look, plan};

/// Hours that are lived through.
const HOURS: u64 = 300;
const SECONDS: u64 = 3600;

/// An hour with an instance that loads and then holds what is planned, less or more by a little, a stranger of long
/// standing, and one that comes in the middle; three looks of ten are lost.
fn live(seed: u64) -> Result<(), String> {
    let (mut chance, plan, mut watch) = (Chance(seed), plan(), Watch::default());
    let loads_s = 1 + chance.below(600);
    let (old, new) = (chance.below(2000), 1000 + chance.below(2000));
    let comes_s = SECONDS / 2 + chance.below(600);
    let goes_s = comes_s + 300;
    let mut raised: Vec<(AlarmKind, u64)> = Vec::new();
    for at in 0..SECONDS {
        if chance.below(10) < 3 {
            continue;
        }
        let own = 11_950 * (at + 1).min(loads_s) / loads_s + chance.below(50);
        let mut strangers = vec![(7, old + chance.below(20))];
        if (comes_s..goes_s).contains(&at) {
            strangers.push((8, new));
        }
        let changes = watch.step(&plan, look(at, own, &strangers));
        raised.extend(changes.raised.iter().map(|one| (one.kind, at)));
    }
    let told: Vec<_> = raised.iter().map(|(kind, _)| *kind).collect();
    if told != [AlarmKind::ForeignGrew] {
        return Err(format!("{raised:?}"));
    }
    let late_s = raised[0].1 - comes_s;
    // So many looks in a row are lost in one of a thousand million hours.
    if late_s > 20 { Err(format!("told {late_s} s late")) } else { Ok(()) }
}

#[test]
fn nothing_is_told_but_what_happens() {
    chance::live(HOURS, live);
}
