//! The one address in front of all models: where it is, who may use it, and which requests go where.

use std::collections::BTreeMap;
use std::net::{Ipv4Addr, SocketAddr, SocketAddrV4};

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use toml::Spanned;

use super::error::{Problems, nearest};
use crate::units::Bytes;

const DEFAULT_LISTEN: SocketAddr = SocketAddr::V4(SocketAddrV4::new(Ipv4Addr::LOCALHOST, 8080));
const DEFAULT_MAX_BODY: Bytes = Bytes::mib(32);

/// The one address in front of all models, as it is written.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct RawGateway {
    /// Address and port. Default: 127.0.0.1:8080. Beyond loopback it wants `keys`, or `allow_remote`.
    #[schemars(with = "Option<String>")]
    pub listen: Option<Spanned<SocketAddr>>,
    /// Listen beyond loopback without keys: anybody who reaches it can use the models.
    #[serde(default)]
    pub allow_remote: bool,
    /// Largest request body. Default: 32 MiB.
    #[schemars(with = "Option<String>")]
    pub max_body: Option<Bytes>,
    /// A file of API keys (relative ones start at the spec's folder); `berth key NAME` makes one. It is read
    /// again when it changes.
    pub keys: Option<String>,
    /// A certificate and its key, for https.
    pub tls: Option<TlsFiles>,
    /// A line in the log for each request, without what it asks.
    #[serde(default)]
    pub access_log: bool,
    /// Other names of models, as in `{ "gpt-4" = "medgemma-27b" }`.
    #[serde(default)]
    #[schemars(with = "BTreeMap<String, String>")]
    pub aliases: BTreeMap<Spanned<String>, Spanned<String>>,
    /// Requests that go to a model whatever their body names; the first that matches counts.
    #[serde(default)]
    #[schemars(with = "Vec<RouteRule>")]
    pub rules: Vec<Spanned<RouteRule>>,
}

/// A certificate and its key, in PEM.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct TlsFiles {
    /// The certificate, and those that vouch for it.
    pub certificate: String,
    /// Its key.
    pub key: String,
}

/// Requests of which something else than the model's name says where they go. What is given must all hold.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct RouteRule {
    /// The path starts with this, which is then left out of it: `/team-a` of `/team-a/v1/completions`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub path_prefix: Option<String>,
    /// A header has a value.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub header: Option<HeaderIs>,
    /// The body names this model.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub model: Option<String>,
    /// The model that they go to.
    pub to: String,
}

/// A header and its value.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct HeaderIs {
    /// Its name.
    pub name: String,
    /// Its value.
    pub value: String,
}

/// The one address in front of all models.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct GatewaySpec {
    /// Address and port.
    pub listen: SocketAddr,
    /// Largest request body.
    pub max_body: Bytes,
    /// A file of API keys.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub keys: Option<String>,
    /// A certificate and its key.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tls: Option<TlsFiles>,
    /// A line in the log for each request.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub access_log: bool,
    /// Other names of models.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub aliases: BTreeMap<String, String>,
    /// Requests that go to a model whatever their body names.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub rules: Vec<RouteRule>,
}

impl Default for GatewaySpec {
    fn default() -> Self {
        Self {
            listen: DEFAULT_LISTEN,
            max_body: DEFAULT_MAX_BODY,
            keys: None,
            tls: None,
            access_log: false,
            aliases: BTreeMap::new(),
            rules: Vec::new(),
        }
    }
}

/// Checks what is written. `models` are the names of all models.
pub(super) fn gateway(
    raw: RawGateway,
    models: &[&str],
    problems: &mut Problems<'_>,
) -> GatewaySpec {
    let listen = raw.listen.map_or(DEFAULT_LISTEN, |listen| {
        if !listen.get_ref().ip().is_loopback() && !raw.allow_remote && raw.keys.is_none() {
            problems.add_with_hint(
                listen.span(),
                format!("{} is reachable from other machines", listen.get_ref()),
                "listen on 127.0.0.1; or name a file of keys, keys = \"keys.toml\" (`berth key` makes them); or set \
                 allow_remote = true in [gateway] if anybody who reaches it may use the models",
            );
        }
        listen.into_inner()
    });
    let mut aliases = BTreeMap::new();
    for (alias, model) in raw.aliases {
        if models.contains(&alias.get_ref().as_str()) {
            let hint = "leave it out, or choose another name";
            let message = format!("`{}` is a model's own name", alias.get_ref());
            problems.add_with_hint(alias.span(), message, hint);
        }
        check_model(&model, model.get_ref(), models, problems);
        aliases.insert(alias.into_inner(), model.into_inner());
    }
    for rule in &raw.rules {
        check_rule(rule, models, problems);
    }
    GatewaySpec {
        listen,
        max_body: raw.max_body.unwrap_or(DEFAULT_MAX_BODY),
        keys: raw.keys,
        tls: raw.tls,
        access_log: raw.access_log,
        aliases,
        rules: raw.rules.into_iter().map(Spanned::into_inner).collect(),
    }
}

fn check_rule(rule: &Spanned<RouteRule>, models: &[&str], problems: &mut Problems<'_>) {
    let RouteRule { path_prefix, header, model, to } = rule.get_ref();
    check_model(rule, to, models, problems);
    if path_prefix.is_none() && header.is_none() && model.is_none() {
        let hint = "add path_prefix, header or model: without one every request would match";
        problems.add_with_hint(rule.span(), "this rule says of no request that it is meant", hint);
    }
    let is_path =
        |prefix: &String| prefix.starts_with('/') && prefix.len() > 1 && !prefix.ends_with('/');
    if path_prefix.as_ref().is_some_and(|prefix| !is_path(prefix)) {
        let hint = "write it with a slash before it and none after it, as in \"/team-a\"";
        problems.add_with_hint(rule.span(), "path_prefix is not the beginning of a path", hint);
    }
}

/// A model that there must be.
fn check_model<T>(at: &Spanned<T>, name: &str, models: &[&str], problems: &mut Problems<'_>) {
    if models.contains(&name) {
        return;
    }
    let hint = match nearest(name, models.iter().copied()) {
        Some(near) => format!("did you mean `{near}`?"),
        None => format!("there are {}", models.join(", ")),
    };
    problems.add_with_hint(at.span(), format!("there is no model `{name}`"), hint);
}
