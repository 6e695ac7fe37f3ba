//! Names for values: a short hash of a value's canonical JSON.

use std::fmt;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};

/// The first 64 bits of the SHA-256 of a value's JSON, in hex. Two values with one digest are one
/// value: plans and instances are compared by it.
#[derive(
    Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, JsonSchema,
)]
#[serde(transparent)]
pub struct Digest(String);

impl Digest {
    /// The digest of a value. Structs serialise in field order and maps here are sorted, so the
    /// same value gives the same digest on every machine.
    pub fn of(value: &impl Serialize) -> Self {
        let json = serde_json::to_vec(value).expect("plan values have string keys and no I/O");
        let hash = Sha256::digest(&json);
        Self(hash[..8].iter().map(|byte| format!("{byte:02x}")).collect())
    }

    /// A digest that was printed before. Any text will do: one that no value has matches none.
    pub fn from_hex(text: &str) -> Self {
        Self(text.to_owned())
    }

    /// The hex text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&self.0)
    }
}
