//! A footprint: bytes by named term.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::units::Bytes;

/// How a term's bytes were found.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum TermKind {
    /// Derived from what the engine computes, to the byte or to the rounding of its log.
    Exact,
    /// Fitted to measurements; the formula names them.
    Calibrated,
}

/// One part of a footprint.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Term {
    /// Its name, the same for every engine that has such a part.
    pub name: String,
    /// Its bytes.
    pub bytes: Bytes,
    /// Exact or calibrated.
    pub kind: TermKind,
    /// The formula with this instance's numbers in it.
    pub formula: String,
}

/// What one instance takes on one device, as a sum of named terms.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(transparent)]
pub struct Footprint {
    /// The terms, in the order in which the engine allocates them.
    pub terms: Vec<Term>,
}

impl Footprint {
    /// Adds a term that is derived from what the engine computes.
    pub fn exact(&mut self, name: &str, bytes: Bytes, formula: String) {
        self.push(name, bytes, TermKind::Exact, formula);
    }

    /// Adds a term that is fitted to measurements.
    pub fn calibrated(&mut self, name: &str, bytes: Bytes, formula: String) {
        self.push(name, bytes, TermKind::Calibrated, formula);
    }

    fn push(&mut self, name: &str, bytes: Bytes, kind: TermKind, formula: String) {
        self.terms.push(Term { name: name.to_owned(), bytes, kind, formula });
    }

    /// The bytes of one term; zero where there is none of that name.
    pub fn get(&self, name: &str) -> Bytes {
        self.terms.iter().filter(|term| term.name == name).map(|term| term.bytes).sum()
    }

    /// All terms together: the most that the instance ever holds.
    pub fn total(&self) -> Bytes {
        self.terms.iter().map(|term| term.bytes).sum()
    }
}
