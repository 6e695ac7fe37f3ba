//! What memory is really doing: looks at devices and engines, their history, and what to be warned of.
//!
//! - [`look`]: what was seen at one time, by whom it is held (`owners`); what could not be seen is unknown, never zero
//! - [`history`]: a bounded past of what is free, and where it is going
//! - [`alarm`]: what is wrong or about to be, with its cause and what to do
//! - [`forensic`]: why an engine died of memory
//!
//! All of it is values: time is an argument, and nothing here looks by itself.

pub mod alarm;
pub mod forensic;
pub mod history;
pub mod look;
mod owners;

pub use alarm::{Alarm, AlarmKind, alarms};
pub use history::History;
pub use look::{DeviceLook, EngineLook, Holder, Look};

use std::collections::{BTreeMap, VecDeque};

use crate::plan::Plan;

/// What is known from one look to the next.
#[derive(Clone, Debug, Default)]
pub struct Watch {
    history: History,
    /// The looks of the last minute, the newest last.
    looks: VecDeque<Look>,
    alarms: Vec<Alarm>,
    /// When each was last seen to hold.
    held_at: BTreeMap<(AlarmKind, String), u64>,
}

/// What comes and goes with single requests is over once it was away for so long.
const HOLD_MS: u64 = 60_000;

/// Looks that are kept whole.
const MOST_LOOKS: usize = 90;

/// What a look has changed.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Changes {
    /// What is wrong and was not.
    pub raised: Vec<Alarm>,
    /// What was wrong and is not.
    pub over: Vec<Alarm>,
}

impl Watch {
    /// Takes a look in, and says what it changes.
    pub fn step(&mut self, plan: &Plan, look: Look) -> Changes {
        self.history.add(plan, &look);
        let mut now = alarms(plan, &look, &self.history, self.last(), &self.alarms);
        let key = |one: &Alarm| (one.kind, one.subject.clone());
        let is_in = |all: &[Alarm], one: &Alarm| all.iter().any(|other| key(other) == key(one));
        self.held_at.extend(now.iter().map(|one| (key(one), look.at_ms)));
        self.held_at.retain(|_, at_ms| *at_ms + HOLD_MS > look.at_ms);
        for one in &self.alarms {
            if !is_in(&now, one)
                && one.kind.is_of_requests()
                && self.held_at.contains_key(&key(one))
            {
                now.push(one.clone());
            }
        }
        let before = std::mem::replace(&mut self.alarms, now);
        if self.looks.len() == MOST_LOOKS {
            self.looks.pop_front();
        }
        self.looks.push_back(look);
        Changes {
            raised: self.alarms.iter().filter(|one| !is_in(&before, one)).cloned().collect(),
            over: before.into_iter().filter(|one| !is_in(&self.alarms, one)).collect(),
        }
    }

    /// What is wrong now.
    pub fn alarms(&self) -> &[Alarm] {
        &self.alarms
    }

    /// The last look.
    pub fn last(&self) -> Option<&Look> {
        self.looks.back()
    }

    /// The looks of the last minute, the newest last.
    pub fn looks(&self) -> Vec<&Look> {
        self.looks.iter().collect()
    }

    /// Whether the kernel has killed for want of memory in the minute before.
    pub fn kernel_has_killed(&self, at_ms: u64) -> bool {
        const AT_ONCE_MS: u64 = 3000;
        let before = |look: &&Look| {
            look.at_ms + forensic::BEFORE_MS >= at_ms && look.at_ms <= at_ms + AT_ONCE_MS
        };
        let counts: Vec<u64> =
            self.looks.iter().filter(before).filter_map(|look| look.oom_kills).collect();
        counts.first() < counts.last()
    }
}
