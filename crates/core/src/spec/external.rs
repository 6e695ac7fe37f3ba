//! Servers that somebody else runs: requests go to them, and they are watched; never started or stopped.

use serde::{Deserialize, Serialize};
use toml::Spanned;

use super::error::Problems;
use super::raw::RawExternal;

/// A server that somebody else runs.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct External {
    /// The model, by the name that clients ask for.
    pub model: String,
    /// The host's name or address.
    pub host: String,
    /// Its port.
    pub port: u16,
    /// What the model is called there.
    pub name: String,
}

impl External {
    /// What it is called in routes and logs.
    pub fn id(&self) -> String {
        format!("{}@{}:{}", self.model, self.host, self.port)
    }
}

pub(super) fn external(
    model: &str,
    raw: &Spanned<RawExternal>,
    problems: &mut Problems<'_>,
) -> Option<External> {
    let text = raw.get_ref().url.trim_end_matches('/');
    let Some((host, port)) = parse(text) else {
        let hint = "write url = \"http://10.0.0.7:11434\": host and port, and no path";
        problems.add_with_hint(raw.span(), format!("`{text}` is no address of a server"), hint);
        return None;
    };
    let name = raw.get_ref().name.clone().unwrap_or_else(|| model.to_owned());
    Some(External { model: model.to_owned(), host, port, name })
}

/// Host and port of `http://HOST:PORT`.
fn parse(url: &str) -> Option<(String, u16)> {
    let (host, port) = url.strip_prefix("http://")?.rsplit_once(':')?;
    let host = host.strip_prefix('[').and_then(|host| host.strip_suffix(']')).unwrap_or(host);
    let is_host = |c: char| c.is_ascii_alphanumeric() || "-._:".contains(c);
    (!host.is_empty() && host.chars().all(is_host)).then_some((host.to_owned(), port.parse().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_a_host_and_a_port() {
        for (url, expected) in [
            ("http://10.0.0.7:11434", Some(("10.0.0.7", 11434))),
            ("http://gpu-box:8000", Some(("gpu-box", 8000))),
            ("http://[::1]:8000", Some(("::1", 8000))),
            ("https://gpu-box:8000", None),
            ("http://gpu-box", None),
            ("http://user:secret@gpu-box:8000", None),
            ("http://gpu-box:8000/v1", None),
            ("http://:8000", None),
            ("gpu-box:8000", None),
        ] {
            let expected = expected.map(|(host, port)| (host.to_owned(), port));
            assert_eq!(parse(url), expected, "{url}");
        }
    }
}
