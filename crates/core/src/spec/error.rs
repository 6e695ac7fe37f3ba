//! Errors in a spec: where, what, and what to write instead.

use std::fmt;
use std::ops::Range;

/// Everything that is wrong with one spec. [`fmt::Display`] prints a line for each problem.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SpecError {
    /// The problems in the order of the file; at least one.
    pub problems: Vec<SpecProblem>,
}

/// One thing that is wrong with a spec.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SpecProblem {
    /// The file as the user named it.
    pub file: String,
    /// Line, from 1.
    pub line: usize,
    /// Column in characters, from 1.
    pub column: usize,
    /// What is wrong.
    pub message: String,
    /// What to do about it.
    pub hint: Option<String>,
}

impl fmt::Display for SpecProblem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}:{}: {}", self.file, self.line, self.column, self.message)
    }
}

impl fmt::Display for SpecError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (i, problem) in self.problems.iter().enumerate() {
            let line_break = if i == 0 { "" } else { "\n" };
            write!(f, "{line_break}{problem}")?;
        }
        Ok(())
    }
}

impl std::error::Error for SpecError {}

/// Turns byte ranges of a text into lines and columns, and collects problems.
pub(super) struct Problems<'a> {
    file: &'a str,
    text: &'a str,
    found: Vec<(usize, SpecProblem)>,
}

impl<'a> Problems<'a> {
    pub(super) fn new(file: &'a str, text: &'a str) -> Self {
        Self { file, text, found: Vec::new() }
    }

    pub(super) fn add(&mut self, at: Range<usize>, message: impl Into<String>) {
        self.push(at, message.into(), None);
    }

    pub(super) fn add_with_hint(
        &mut self,
        at: Range<usize>,
        message: impl Into<String>,
        hint: impl Into<String>,
    ) {
        self.push(at, message.into(), Some(hint.into()));
    }

    /// What the TOML parser or a type in [`super::raw`] refused.
    pub(super) fn add_toml(&mut self, error: &toml::de::Error) {
        let message = error.message().trim_end().replace('\n', ": ");
        let hint = unknown_key(&message).map(|(key, known)| match nearest(key, known.clone()) {
            Some(near) => format!("did you mean `{near}`?"),
            None => format!("there are: {}", known.collect::<Vec<_>>().join(", ")),
        });
        let hint = hint.or_else(|| {
            message
                .contains("socket address")
                .then(|| "write address and port, as in \"127.0.0.1:8080\"".to_owned())
        });
        let message = message.replacen("unknown field", "unknown key", 1);
        let message = message.split(", expected one of").next().unwrap_or(&message).to_owned();
        let at = error.span().unwrap_or(self.text.len()..self.text.len());
        self.push(at, message, hint);
    }

    fn push(&mut self, at: Range<usize>, message: String, hint: Option<String>) {
        let (line, column) = line_and_column(self.text, at.start);
        let file = self.file.to_owned();
        self.found.push((at.start, SpecProblem { file, line, column, message, hint }));
    }

    pub(super) fn into_result(mut self) -> Result<(), SpecError> {
        if self.found.is_empty() {
            return Ok(());
        }
        self.found.sort_by_key(|(at, _)| *at);
        // What a strategy takes over from the spec is checked once more with it.
        self.found.dedup();
        Err(SpecError { problems: self.found.into_iter().map(|(_, problem)| problem).collect() })
    }
}

/// The unknown key and the keys that there are, read out of serde's message
/// ("unknown field `x`, expected one of `a`, `b`").
fn unknown_key(message: &str) -> Option<(&str, impl Iterator<Item = &str> + Clone)> {
    let rest =
        message.strip_prefix("unknown field `").or(message.strip_prefix("unknown variant `"));
    let (key, expected) = rest?.split_once('`')?;
    Some((key, expected.split('`').skip(1).step_by(2)))
}

/// The candidate most like `word`, if any is like it at all.
pub fn nearest<'a>(word: &str, candidates: impl Iterator<Item = &'a str>) -> Option<&'a str> {
    candidates
        .map(|candidate| (strsim::damerau_levenshtein(word, candidate), candidate))
        .min()
        .filter(|(distance, candidate)| *distance <= 1.max(word.len().max(candidate.len()) / 3))
        .map(|(_, candidate)| candidate)
}

fn line_and_column(text: &str, at: usize) -> (usize, usize) {
    let before = text.get(..at).unwrap_or(text);
    let line_start = before.rfind('\n').map_or(0, |newline| newline + 1);
    (before.matches('\n').count() + 1, before[line_start..].chars().count() + 1)
}
