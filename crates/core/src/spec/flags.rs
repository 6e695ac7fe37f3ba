//! The engines' own flags, passed through under their own names.

use std::collections::BTreeMap;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// A flag's value as TOML writes it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(
    untagged,
    expecting = "expected a flag's value: a text, a number, true or false, or a list"
)]
pub enum FlagValue {
    /// `true` gives the bare flag; `false` its opposite (`--no-...`) where it has one.
    Bool(bool),
    /// A whole number.
    Int(i64),
    /// Any other number.
    Float(f64),
    /// A text.
    Text(String),
    /// The flag once for each value.
    List(Vec<FlagValue>),
}

/// Flags by name, without their leading dashes, in the order of their names.
pub type Flags = BTreeMap<String, FlagValue>;

/// The command-line words of one flag. `spelling` has its dashes; `negative` is what turns it off,
/// where there is such a word.
pub fn words(spelling: &str, negative: Option<&str>, value: &FlagValue) -> Vec<String> {
    let word = match value {
        FlagValue::Bool(true) => return vec![spelling.to_owned()],
        FlagValue::Bool(false) => return negative.into_iter().map(str::to_owned).collect(),
        FlagValue::List(values) => {
            return values.iter().flat_map(|value| words(spelling, negative, value)).collect();
        }
        FlagValue::Int(n) => n.to_string(),
        FlagValue::Float(n) => n.to_string(),
        FlagValue::Text(text) => text.clone(),
    };
    vec![spelling.to_owned(), word]
}
