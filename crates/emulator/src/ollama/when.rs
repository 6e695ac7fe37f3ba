//! Durations and times as Ollama writes them.

use std::time::Duration;

use serde_json::Value;

/// How long a model stays in memory after its last request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum KeepAlive {
    /// Until it is told to go.
    Forever,
    /// So long.
    For(Duration),
}

impl KeepAlive {
    /// A number of seconds, or a duration as Go writes it (`10m`, `1h30m`); below zero is for ever.
    pub(super) fn read(value: &Value) -> Option<Self> {
        let seconds = match value {
            Value::Number(number) => number.as_f64()?,
            Value::String(text) => seconds(text)?,
            _ => return None,
        };
        Some(match seconds < 0.0 {
            true => Self::Forever,
            false => Self::For(Duration::try_from_secs_f64(seconds).ok()?),
        })
    }
}

fn seconds(text: &str) -> Option<f64> {
    if let Ok(plain) = text.parse() {
        return Some(plain);
    }
    let (sign, mut rest) = match text.strip_prefix('-') {
        Some(rest) => (-1.0, rest),
        None => (1.0, text),
    };
    let mut all = 0.0;
    while !rest.is_empty() {
        let end = rest.find(|c: char| !c.is_ascii_digit() && c != '.')?;
        let (number, after) = rest.split_at(end);
        let unit = after.find(|c: char| c.is_ascii_digit()).unwrap_or(after.len());
        let (unit, after) = after.split_at(unit);
        let of = match unit {
            "ms" => 1e-3,
            "s" => 1.0,
            "m" => 60.0,
            "h" => 3600.0,
            _ => return None,
        };
        all += number.parse::<f64>().ok()? * of;
        rest = after;
    }
    Some(sign * all)
}

/// A time so far from now, in UTC; Ollama's own "for ever" lies some three hundred years ahead.
pub(super) fn rfc3339(from_now: Option<Duration>) -> String {
    let Some(from_now) = from_now else { return "2318-01-01T00:00:00Z".to_owned() };
    let then = jiff::Timestamp::now().checked_add(from_now);
    then.unwrap_or(jiff::Timestamp::MAX).to_string()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn keep_alive_as_ollama_reads_it() {
        let lasting = |seconds| Some(KeepAlive::For(Duration::from_secs(seconds)));
        let rows = [
            (json!(-1), Some(KeepAlive::Forever)),
            (json!("-1"), Some(KeepAlive::Forever)),
            (json!("-1m"), Some(KeepAlive::Forever)),
            (json!(0), lasting(0)),
            (json!("10m"), lasting(600)),
            (json!("1h30m"), lasting(5400)),
            (json!("3 days"), None),
            (json!(true), None),
        ];
        for (value, expected) in rows {
            assert_eq!(KeepAlive::read(&value), expected, "{value}");
        }
    }
}
