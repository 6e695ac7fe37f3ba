//! What the gateway is told: which instances there are, and which requests go where. A value, and a file's content.

use std::collections::BTreeMap;
use std::net::SocketAddr;

use serde::{Deserialize, Serialize};

/// All that routing rests on. It is replaced as a whole.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Table {
    /// The instances.
    pub instances: Vec<Instance>,
    /// Other names of models.
    pub aliases: BTreeMap<String, String>,
    /// Requests that go to a model whatever their body names; the first that matches counts.
    pub rules: Vec<Rule>,
}

/// An instance that requests go to.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Instance {
    /// The model, by the name that clients ask for.
    pub model: String,
    /// Its id.
    pub id: String,
    /// Where its engine listens.
    pub address: SocketAddr,
    /// What it is doing.
    pub state: UpstreamState,
    /// What the model is called there, where that is another name.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// The deployment that it belongs to: requests are shared out over a model's deployments by weight, and within
    /// one by load.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub deployment: String,
    /// The deployment's weight: how many of a model's requests it gets, beside the others' weights.
    #[serde(default = "one")]
    pub weight: u32,
    /// Tokens that its cache holds: requests beyond that wait in the gateway. None is no limit.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cache_tokens: Option<u64>,
    /// Where its engine says whether it is well; it isn't asked where there is none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub health_path: Option<String>,
    /// Whether connections to its engine are kept. llama-server has a thread for each one, and few of them.
    #[serde(default = "yes")]
    pub keeps_alive: bool,
}

fn yes() -> bool {
    true
}

fn one() -> u32 {
    1
}

impl Instance {
    /// An instance of a model that is known by the same name everywhere.
    pub fn new(model: &str, id: &str, address: SocketAddr, state: UpstreamState) -> Self {
        Self {
            model: model.to_owned(),
            id: id.to_owned(),
            address,
            state,
            name: None,
            deployment: String::new(),
            weight: 1,
            cache_tokens: None,
            health_path: None,
            keeps_alive: true,
        }
    }
}

/// What an instance is doing, as far as routing cares.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum UpstreamState {
    /// It takes requests.
    Ready,
    /// It takes requests, and has only just been changed: it gets one in ten beside others of its deployment.
    OnTrial,
    /// It sleeps: requests wait for it, and whoever put it to sleep wakes it for them.
    Asleep,
    /// It will take requests soon.
    Starting,
    /// It takes no more.
    Draining,
    /// It failed.
    Failed,
}

/// Requests of which something else than the model's name says where they go. What is given must all hold.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Rule {
    /// The path starts with this, which is then left out of it: `/team-a` of `/team-a/v1/completions`.
    pub path_prefix: Option<String>,
    /// A header has this value.
    pub header: Option<(String, String)>,
    /// The body names this model.
    pub model: Option<String>,
    /// The model that they go to.
    pub to: String,
}
