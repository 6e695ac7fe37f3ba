//! Alarms and deaths, told to an address of the user's.
//!
//! It is named by `BERTH_WEBHOOK`: such addresses are secrets as a rule, so it stands in no file of berth's and in no
//! log.

use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::thread;
use std::time::Duration;

use berth_control::watch::Told;
use serde_json::{Value, json};

use crate::output::memory;

const VARIABLE: &str = "BERTH_WEBHOOK";
/// More that wait are let go: whoever doesn't answer must not fill memory.
const MOST_WAITING: usize = 64;
const LIMIT: Duration = Duration::from_secs(10);
const TRIES: u32 = 3;

/// The way to the address, if there is one.
pub(crate) struct Webhook(Option<SyncSender<Value>>);

impl Webhook {
    /// By the environment.
    pub(crate) fn by_environment() -> Self {
        let address = std::env::var(VARIABLE).ok().filter(|address| !address.is_empty());
        Self(address.and_then(|address| {
            let (tell, told) = sync_channel(MOST_WAITING);
            let work = move || send(&address, &told);
            thread::Builder::new().name("webhook".to_owned()).spawn(work).ok().map(|_| tell)
        }))
    }

    /// Tells it, sooner or later; `text` is what most services show of it.
    pub(crate) fn tell(&self, told: &Told) {
        let Some(tell) = &self.0 else { return };
        let message = match told {
            Told::Changes(changes) => json!({
                "text": memory::changes(changes), "raised": changes.raised, "over": changes.over,
            }),
            Told::Death(report) => {
                json!({ "text": memory::death(report).join("\n"), "death": report })
            }
            // What comes of it is told by whoever plans.
            Told::Wish(..) => return,
        };
        if tell.try_send(message).is_err() {
            tracing::warn!("the webhook doesn't keep up; a message is lost");
        }
    }
}

/// Sends one after the other, each three times at most.
fn send(address: &str, told: &Receiver<Value>) {
    let agent: ureq::Agent =
        ureq::Agent::config_builder().timeout_global(Some(LIMIT)).build().into();
    for message in told {
        let text = message.to_string();
        let is_sent = (0..TRIES).any(|tried| {
            thread::sleep(Duration::from_secs(u64::from(tried)));
            agent.post(address).header("content-type", "application/json").send(&text).is_ok()
        });
        if !is_sent {
            // Its error may name the address.
            tracing::warn!("the webhook could not be told");
        }
    }
}
