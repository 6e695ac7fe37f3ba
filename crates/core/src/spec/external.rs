//! Servers that somebody else runs: requests go to them, and they are watched; never started or stopped.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use toml::Spanned;

use super::error::Problems;

/// Servers as they are written: a list, or one.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(
    untagged,
    expecting = "expected \"http://HOST:PORT\", { url = \"http://HOST:PORT\", name = \"...\" }, or a list of them"
)]
// Several stand first: serde reads a table from a list, too.
pub enum RawExternals {
    /// Several.
    Several(Vec<RawExternal>),
    /// One.
    One(RawExternal),
}

/// A server.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(
    untagged,
    expecting = "expected \"http://HOST:PORT\" or { url = \"http://HOST:PORT\", name = \"...\" }"
)]
pub enum RawExternal {
    /// `http://HOST:PORT`.
    Url(String),
    /// One that knows the model by another name.
    Named(RawNamed),
}

/// A server that knows the model by another name.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct RawNamed {
    /// Where: `http://HOST:PORT`.
    pub url: String,
    /// What the model is called there. Default: as here.
    pub name: Option<String>,
}

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

/// The servers of a model.
pub(super) fn externals(
    model: &str,
    raw: &Spanned<RawExternals>,
    problems: &mut Problems<'_>,
) -> Vec<External> {
    let all = match raw.get_ref() {
        RawExternals::Several(all) => all.as_slice(),
        RawExternals::One(one) => std::slice::from_ref(one),
    };
    let mut found: Vec<External> = Vec::new();
    for one in all {
        let (url, name) = match one {
            RawExternal::Url(url) => (url, None),
            RawExternal::Named(RawNamed { url, name }) => (url, name.as_deref()),
        };
        let text = url.trim_end_matches('/');
        let Some((host, port)) = parse(text) else {
            let hint = "write \"http://10.0.0.7:11434\": host and port, and no path";
            problems.add_with_hint(raw.span(), format!("`{text}` is no address of a server"), hint);
            continue;
        };
        let (model, name) = (model.to_owned(), name.unwrap_or(model).to_owned());
        let external = External { model, host, port, name };
        match found.iter().any(|other| other.id() == external.id()) {
            true => problems.add_with_hint(
                raw.span(),
                format!("`{text}` stands there twice"),
                "leave one of them out",
            ),
            false => found.push(external),
        }
    }
    found
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
