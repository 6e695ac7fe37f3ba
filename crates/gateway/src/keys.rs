//! API keys: who may use which models, and how much.
//!
//! A file has their SHA-256 digests only. Keys are random and long, so that a plain digest gives nothing away.

use std::collections::{BTreeMap, HashMap};
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;

use serde::Deserialize;
use sha2::{Digest as _, Sha256};

use crate::GatewayError;

/// A key as the file has it.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct KeySpec {
    /// Its name, in logs and metrics.
    pub name: String,
    /// The SHA-256 digest of the key, in hexadecimal digits.
    pub sha256: String,
    /// The models that it may use; all where there are none.
    #[serde(default)]
    pub models: Vec<String>,
    /// Requests in a minute.
    #[serde(default)]
    pub requests_per_minute: Option<u32>,
    /// Tokens in a minute, of prompts and answers together.
    #[serde(default)]
    pub tokens_per_minute: Option<u64>,
    /// Requests at once.
    #[serde(default)]
    pub concurrency: Option<u32>,
    /// Where requests wait for room, those of a higher priority go first.
    #[serde(default)]
    pub priority: i32,
}

/// The file.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
struct KeyFile {
    /// The keys.
    #[serde(default)]
    keys: Vec<KeySpec>,
}

/// The keys that are known, with what they have used.
#[derive(Debug, Default)]
pub struct Keys {
    by_digest: HashMap<[u8; 32], Arc<Key>>,
}

#[derive(Debug)]
struct Key {
    spec: KeySpec,
    used: Arc<Mutex<Used>>,
}

/// What a key has left. Limits are buckets that fill up evenly over a minute.
#[derive(Debug)]
struct Used {
    requests: f64,
    tokens: f64,
    at_once: u32,
    filled: Instant,
}

/// Why a file of keys is none.
#[derive(Debug, thiserror::Error)]
pub enum KeysError {
    /// It can't be read.
    #[error("the file of keys {file} can't be read: {reason}")]
    Unreadable {
        /// The file.
        file: String,
        /// Why.
        reason: String,
    },
    /// A key's digest is none.
    #[error(
        "{file}: the key `{name}` has no SHA-256 digest of 64 hexadecimal digits; `berth key` makes one"
    )]
    NoDigest {
        /// The file.
        file: String,
        /// The key.
        name: String,
    },
    /// Two have the same name.
    #[error("{file}: two keys are called `{name}`")]
    Twice {
        /// The file.
        file: String,
        /// The name.
        name: String,
    },
}

impl Keys {
    /// Reads a file. What keys have used goes on from `before`.
    ///
    /// # Errors
    /// Where the file can't be read, or isn't one of keys.
    pub fn read(path: &Path, before: &Self) -> Result<Self, KeysError> {
        let file = path.display().to_string();
        let unreadable = |reason: String| KeysError::Unreadable { file: file.clone(), reason };
        let text = std::fs::read_to_string(path).map_err(|error| unreadable(error.to_string()))?;
        let parsed: KeyFile =
            toml::from_str(&text).map_err(|error| unreadable(error.to_string()))?;
        let used: BTreeMap<&str, &Arc<Mutex<Used>>> =
            before.by_digest.values().map(|key| (key.spec.name.as_str(), &key.used)).collect();
        let mut by_digest = HashMap::new();
        let mut names = std::collections::BTreeSet::new();
        for spec in parsed.keys {
            let name = spec.name.clone();
            if !names.insert(name.clone()) {
                return Err(KeysError::Twice { file, name });
            }
            let digest = digest_of(&spec.sha256);
            let digest = digest.ok_or_else(|| KeysError::NoDigest { file: file.clone(), name })?;
            let used = match used.get(spec.name.as_str()) {
                Some(used) => Arc::clone(used),
                None => Arc::new(Mutex::new(Used::full(&spec))),
            };
            by_digest.insert(digest, Arc::new(Key { spec, used }));
        }
        Ok(Self { by_digest })
    }

    /// Lets a request of a key in.
    ///
    /// # Errors
    /// Where the key isn't known, may not use the model, or has reached a limit.
    pub(crate) fn admit(
        &self,
        secret: Option<&str>,
        model: &str,
        tokens: u64,
    ) -> Result<Admission, GatewayError> {
        let key = self.find(secret)?;
        let (spec, name) = (&key.spec, || key.spec.name.clone());
        if !may_use(&spec.models, model) {
            return Err(GatewayError::NotAllowed { key: name(), model: model.to_owned() });
        }
        let mut used = key.used.lock().unwrap_or_else(PoisonError::into_inner);
        used.fill(spec);
        let limited = |what, seconds: f64| {
            let seconds = seconds.ceil().clamp(1.0, 60.0) as u32;
            Err(GatewayError::Limited { key: name(), what, seconds })
        };
        if spec.concurrency.is_some_and(|most| used.at_once >= most) {
            return limited("requests at once", 1.0);
        }
        if let Some(most) = spec.requests_per_minute.filter(|_| used.requests < 1.0) {
            return limited(
                "requests a minute",
                (1.0 - used.requests) * 60.0 / f64::from(most.max(1)),
            );
        }
        if let Some(most) = spec.tokens_per_minute.filter(|_| used.tokens <= 0.0) {
            return limited("tokens a minute", (1.0 - used.tokens) * 60.0 / most.max(1) as f64);
        }
        used.at_once += 1;
        used.requests -= 1.0;
        used.tokens -= tokens as f64;
        used.bound(spec);
        drop(used);
        Ok(Admission { key, charged: tokens })
    }

    /// The models that the key of a secret may use.
    ///
    /// # Errors
    /// Where there is no such key.
    pub(crate) fn allowed(&self, secret: Option<&str>) -> Result<Allowed, GatewayError> {
        self.find(secret).map(|key| Allowed(key.spec.models.clone()))
    }

    fn find(&self, secret: Option<&str>) -> Result<Arc<Key>, GatewayError> {
        let secret = secret.ok_or(GatewayError::NoKey)?;
        let digest: [u8; 32] = Sha256::digest(secret.as_bytes()).into();
        self.by_digest.get(&digest).cloned().ok_or(GatewayError::NoKey)
    }
}

/// The models that somebody may use; all where none are named.
#[derive(Clone, Debug, Default)]
pub(crate) struct Allowed(Vec<String>);

impl Allowed {
    pub(crate) fn has(&self, model: &str) -> bool {
        may_use(&self.0, model)
    }
}

fn may_use(models: &[String], model: &str) -> bool {
    models.is_empty() || models.iter().any(|one| one == model)
}

impl Used {
    fn full(spec: &KeySpec) -> Self {
        let requests = spec.requests_per_minute.map_or(f64::INFINITY, f64::from);
        let tokens = spec.tokens_per_minute.map_or(f64::INFINITY, |tokens| tokens as f64);
        Self { requests, tokens, at_once: 0, filled: Instant::now() }
    }

    /// Adds what has come since it was last filled. What isn't limited is never used up.
    fn fill(&mut self, spec: &KeySpec) {
        let minutes = self.filled.elapsed().as_secs_f64() / 60.0;
        self.filled = Instant::now();
        let filled = |left: f64, most: Option<f64>| {
            most.map_or(f64::INFINITY, |most| (left + most * minutes).min(most))
        };
        self.requests = filled(self.requests, spec.requests_per_minute.map(f64::from));
        self.tokens = filled(self.tokens, spec.tokens_per_minute.map(|tokens| tokens as f64));
    }

    /// No debt is larger than a minute's worth.
    fn bound(&mut self, spec: &KeySpec) {
        if let Some(most) = spec.tokens_per_minute {
            self.tokens = self.tokens.max(-(most as f64));
        }
    }
}

/// A request that a key was let in with, until it is dropped.
#[derive(Debug)]
pub(crate) struct Admission {
    key: Arc<Key>,
    charged: u64,
}

impl Admission {
    pub(crate) fn key(&self) -> &str {
        &self.key.spec.name
    }

    pub(crate) fn priority(&self) -> i32 {
        self.key.spec.priority
    }

    /// Charges what was really used, and no longer what was expected.
    pub(crate) fn settle(&mut self, tokens: u64) {
        let mut used = self.key.used.lock().unwrap_or_else(PoisonError::into_inner);
        used.tokens += self.charged as f64 - tokens as f64;
        used.bound(&self.key.spec);
        self.charged = tokens;
    }
}

impl Drop for Admission {
    fn drop(&mut self) {
        let mut used = self.key.used.lock().unwrap_or_else(PoisonError::into_inner);
        used.at_once = used.at_once.saturating_sub(1);
    }
}

/// The entry of a key in the file. `name` is of letters, digits and `-_.`.
pub fn entry(name: &str, secret: &str) -> String {
    let digest: [u8; 32] = Sha256::digest(secret.as_bytes()).into();
    let digits: String = digest.iter().map(|byte| format!("{byte:02x}")).collect();
    format!("[[keys]]\nname = \"{name}\"\nsha256 = \"{digits}\"\n")
}

fn digest_of(text: &str) -> Option<[u8; 32]> {
    let mut digest = [0; 32];
    if text.len() != 64 || !text.is_ascii() {
        return None;
    }
    for (byte, at) in digest.iter_mut().zip((0..64).step_by(2)) {
        *byte = u8::from_str_radix(&text[at..at + 2], 16).ok()?;
    }
    Some(digest)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// How many of ten requests at once are let in, with these lines in the key's entry.
    fn let_in(keys: &Keys) -> usize {
        let admit = || keys.admit(Some("secret"), "m", 100);
        (0..10).filter_map(|_| admit().ok()).collect::<Vec<_>>().len()
    }

    /// The file with these lines in the key's entry.
    fn read(limits: &str, before: &Keys) -> Keys {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("keys.toml");
        std::fs::write(&file, format!("{}{limits}", entry("a", "secret"))).unwrap();
        Keys::read(&file, before).unwrap()
    }

    #[test]
    fn limits_hold_from_when_they_are_set() {
        let rows = [
            ("", 10),
            ("concurrency = 3", 3),
            ("requests_per_minute = 4", 4),
            ("tokens_per_minute = 250", 3),
        ];
        let unlimited = read("", &Keys::default());
        for _ in 0..100 {
            assert_eq!(let_in(&unlimited), 10);
        }
        for (limits, expected) in rows {
            assert_eq!(let_in(&read(limits, &Keys::default())), expected, "{limits}, new");
            assert_eq!(let_in(&read(limits, &unlimited)), expected, "{limits}, after none");
        }
    }
}
