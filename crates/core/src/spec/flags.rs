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
    /// `true` gives the bare flag; `false` leaves it out.
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

/// The command-line words of `flags`. One-letter and llama.cpp's short names (`c`, `np`, `ub`) take
/// one dash, all others two; `dashes` decides.
pub fn to_args(flags: &Flags, dashes: impl Fn(&str) -> &'static str) -> Vec<String> {
    let mut args = Vec::new();
    for (name, value) in flags {
        push(&mut args, &format!("{}{name}", dashes(name)), value);
    }
    args
}

fn push(args: &mut Vec<String>, flag: &str, value: &FlagValue) {
    let word = match value {
        FlagValue::Bool(true) => return args.push(flag.to_owned()),
        FlagValue::Bool(false) => return,
        FlagValue::List(values) => return values.iter().for_each(|value| push(args, flag, value)),
        FlagValue::Int(n) => n.to_string(),
        FlagValue::Float(n) => n.to_string(),
        FlagValue::Text(text) => text.clone(),
    };
    args.extend([flag.to_owned(), word]);
}
