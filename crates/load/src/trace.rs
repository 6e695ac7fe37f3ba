//! Times of arrival from a file: one number of seconds a line, or JSON lines with a `timestamp`.

use std::path::{Path, PathBuf};

use serde_json::Value;

/// What a line should be.
const EXPECTED: &str =
    "a number of seconds, or {\"timestamp\": SECONDS or \"2026-01-31T12:00:00Z\"}";

/// Why there are no times.
#[derive(Debug, thiserror::Error)]
pub enum TraceError {
    /// The file can't be read.
    #[error("{path} can't be read")]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// A line isn't a time.
    #[error("{path}:{line}: expected {EXPECTED}, found \"{found}\"")]
    Line {
        /// The file.
        path: PathBuf,
        /// Which line, from 1.
        line: usize,
        /// What is there, cut short.
        found: String,
    },
    /// It has no line with a time.
    #[error("{path} has no times: expected {EXPECTED} on each line")]
    Empty {
        /// The file.
        path: PathBuf,
    },
}

/// Reads a file: seconds since its first time, in order.
pub fn read(path: &Path) -> Result<Vec<f64>, TraceError> {
    let text = std::fs::read_to_string(path)
        .map_err(|source| TraceError::Read { path: path.to_owned(), source })?;
    parse(&text, path)
}

/// Reads a file's text; its path is for messages.
pub fn parse(text: &str, path: &Path) -> Result<Vec<f64>, TraceError> {
    let lines = text.lines().enumerate().filter(|(_, line)| !line.trim().is_empty());
    let read = |(index, line): (usize, &str)| {
        seconds(line.trim()).ok_or_else(|| TraceError::Line {
            path: path.to_owned(),
            line: index + 1,
            found: line.chars().take(60).collect(),
        })
    };
    let mut times = lines.map(read).collect::<Result<Vec<f64>, _>>()?;
    times.sort_unstable_by(f64::total_cmp);
    let first = *times.first().ok_or_else(|| TraceError::Empty { path: path.to_owned() })?;
    Ok(times.into_iter().map(|time| time - first).collect())
}

fn seconds(line: &str) -> Option<f64> {
    let seconds = match serde_json::from_str(line).ok()? {
        Value::Number(number) => number.as_f64(),
        Value::Object(object) => match object.get("timestamp")? {
            Value::Number(number) => number.as_f64(),
            Value::String(text) => {
                let time: jiff::Timestamp = text.parse().ok()?;
                Some(time.as_nanosecond() as f64 / 1e9)
            }
            _ => None,
        },
        _ => None,
    };
    seconds.filter(|seconds| seconds.is_finite())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn traces() {
        let rows: [(&str, Result<&[f64], &str>); 9] = [
            ("0\n0.5\n2\n", Ok(&[0.0, 0.5, 2.0])),
            ("12\n\n10\n", Ok(&[0.0, 2.0])),
            ("{\"timestamp\": 5}\n{\"timestamp\": 7.5, \"x\": 1}\n", Ok(&[0.0, 2.5])),
            (
                "{\"timestamp\":\"2026-01-31T12:00:00Z\"}\n\
                 {\"timestamp\":\"2026-01-31T13:00:01+01:00\"}\n",
                Ok(&[0.0, 1.0]),
            ),
            ("1\nsoon\n", Err("t.txt:2: expected a number of seconds")),
            ("{\"time\":1}\n", Err("t.txt:1: expected")),
            ("{\"timestamp\":\"yesterday\"}\n", Err("t.txt:1: expected")),
            ("\n\n", Err("t.txt has no times")),
            ("[1]\n", Err("found \"[1]\"")),
        ];
        for (text, want) in rows {
            match (parse(text, Path::new("t.txt")), want) {
                (Ok(times), Ok(want)) => assert_eq!(times, want, "{text}"),
                (Err(error), Err(want)) => {
                    assert!(error.to_string().contains(want), "{text}: {error}");
                }
                (got, want) => panic!("{text}: {got:?}, not {want:?}"),
            }
        }
    }
}
