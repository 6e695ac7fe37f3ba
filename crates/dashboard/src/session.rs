//! Passwords and cookies. What is kept of either is a digest.

use std::collections::HashMap;
use std::io::Read as _;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use axum::http::HeaderMap;
use axum::http::header::COOKIE;
use sha2::{Digest as _, Sha256};

const NAME: &str = "berth";
/// Somebody who is let in stays so.
const LENGTH: Duration = Duration::from_secs(12 * 60 * 60);
/// Sessions at once; the oldest goes first.
const MOST: usize = 256;
/// So many may be trying to get in; more are refused unheard.
const TRYING: usize = 16;
/// A wrong password takes so long, one after the other, and whoever waits behind it waits for that.
const WRONG: Duration = Duration::from_millis(500);

type Hash = [u8; 32];

/// Who is let in.
#[derive(Debug)]
pub(crate) struct Sessions {
    password: Option<Hash>,
    /// By the cookie's digest, since when.
    open: Mutex<HashMap<Hash, Instant>>,
    /// One password is tried at a time, and few wait for that.
    trying: tokio::sync::Mutex<()>,
    waiting: tokio::sync::Semaphore,
}

fn hash(text: &str) -> Hash {
    Sha256::digest(text.as_bytes()).into()
}

impl Sessions {
    pub(crate) fn new(password: Option<&str>) -> Self {
        let password = password.map(hash);
        let (trying, waiting) =
            (tokio::sync::Mutex::default(), tokio::sync::Semaphore::new(TRYING));
        Self { password, open: Mutex::default(), trying, waiting }
    }

    pub(crate) fn needs_password(&self) -> bool {
        self.password.is_some()
    }

    /// Whether a request is of somebody who was let in, or needn't be.
    pub(crate) fn is_in(&self, headers: &HeaderMap) -> bool {
        let Some(secret) = cookie(headers).filter(|_| self.needs_password()) else {
            return !self.needs_password();
        };
        let open = self.open.lock().unwrap_or_else(PoisonError::into_inner);
        open.get(&hash(secret)).is_some_and(|since| since.elapsed() < LENGTH)
    }

    /// Lets somebody in who knows the password; gives the cookie's header.
    pub(crate) async fn enter(&self, password: &str) -> Option<String> {
        let _few_wait = self.waiting.try_acquire().ok()?;
        let _one_at_a_time = self.trying.lock().await;
        // Compared as digests: how long it takes says nothing of either.
        if self.password != Some(hash(password)) {
            tokio::time::sleep(WRONG).await;
            return None;
        }
        let secret = chance()?;
        let mut open = self.open.lock().unwrap_or_else(PoisonError::into_inner);
        open.retain(|_, since| since.elapsed() < LENGTH);
        if open.len() >= MOST {
            let oldest = open.iter().min_by_key(|(_, since)| **since).map(|(hash, _)| *hash);
            oldest.map(|hash| open.remove(&hash));
        }
        open.insert(hash(&secret), Instant::now());
        Some(format!("{NAME}={secret}; HttpOnly; SameSite=Strict; Path=/"))
    }

    /// Ends a session; gives the header that takes the cookie away.
    pub(crate) fn leave(&self, headers: &HeaderMap) -> String {
        if let Some(secret) = cookie(headers) {
            self.open.lock().unwrap_or_else(PoisonError::into_inner).remove(&hash(secret));
        }
        format!("{NAME}=; HttpOnly; SameSite=Strict; Path=/; Max-Age=0")
    }
}

fn cookie(headers: &HeaderMap) -> Option<&str> {
    let all = headers.get_all(COOKIE).iter().filter_map(|value| value.to_str().ok());
    let mut pairs = all.flat_map(|all| all.split(';')).filter_map(|one| one.trim().split_once('='));
    pairs.find(|(name, _)| *name == NAME).map(|(_, secret)| secret)
}

/// A secret that nobody can guess; none where the system has no chance to give.
fn chance() -> Option<String> {
    let mut bytes = [0; 32];
    std::fs::File::open("/dev/urandom").ok()?.read_exact(&mut bytes).ok()?;
    Some(bytes.iter().map(|byte| format!("{byte:02x}")).collect())
}
