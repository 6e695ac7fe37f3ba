//! What memory is really doing: looks at devices and engines, their history, and what to be warned of.
//!
//! - [`look`]: what was seen at one time, by whom it is held; what could not be seen is unknown, never zero
//! - [`history`]: a bounded past of what is free, and where it is going
//! - [`alarm`]: what is wrong or about to be, with its cause and what to do
//!
//! All of it is values: time is an argument, and nothing here looks by itself.

pub mod alarm;
pub mod history;
pub mod look;

pub use alarm::{Alarm, AlarmKind, alarms};
pub use history::History;
pub use look::{DeviceLook, EngineLook, Holder, Look};

use crate::plan::Plan;

/// What is known from one look to the next.
#[derive(Clone, Debug, Default)]
pub struct Watch {
    history: History,
    last: Option<Look>,
    alarms: Vec<Alarm>,
}

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
        self.history.add(&look);
        let now = alarms(plan, &look, &self.history, self.last.as_ref(), &self.alarms);
        let before = std::mem::replace(&mut self.alarms, now);
        self.last = Some(look);
        let is_in = |all: &[Alarm], one: &Alarm| {
            all.iter().any(|other| other.kind == one.kind && other.subject == one.subject)
        };
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
        self.last.as_ref()
    }
}
