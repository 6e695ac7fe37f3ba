//! What changes, for those who look: made only while there are any, so that nobody is shown what is old.

use std::sync::Arc;
use std::time::Duration;

use berth_cluster::local::StateDir;
use berth_control::Journal;
use berth_control::ray::Processes;
use berth_core::plan::Plan;
use berth_core::watch::{Alarm, Look};
use berth_dashboard::Live;
use tokio::sync::watch;

use crate::cmd::status;
use crate::failure::Failure;
use crate::output::memory::Seen;

/// Between two looks at what runs.
const STATUS: Duration = Duration::from_secs(1);
/// Lines of the ledger that are sent again and again; beyond these the page asks for it by device.
const MOST_LINES: usize = 4000;

/// Where what changes is put.
#[derive(Clone, Debug)]
pub(crate) struct Feed {
    seen: watch::Sender<Arc<str>>,
    status: watch::Sender<Arc<str>>,
}

impl Feed {
    pub(crate) fn new() -> (Self, Live) {
        let (seen, seen_by) = watch::channel(Arc::from(""));
        let (status, status_by) = watch::channel(Arc::from(""));
        (Self { seen, status }, Live { seen: seen_by, status: status_by })
    }

    /// Shows a look.
    pub(crate) fn show(&self, plan: &Plan, look: &Look, alarms: &[Alarm]) {
        put(&self.seen, || serde_json::to_string(&Seen::new(Some(plan), look, alarms)).ok());
    }

    /// Reads the status while somebody looks, and shows it where it has changed.
    pub(crate) async fn follow_status(self, dir: StateDir) {
        let mut processes = Processes::default();
        loop {
            tokio::time::sleep(STATUS).await;
            if !is_looked_at(&self.status) {
                put(&self.status, || None);
                continue;
            }
            let (dir, mut known) = (dir.clone(), std::mem::take(&mut processes));
            let reading = tokio::task::spawn_blocking(move || (read(&dir, &mut known), known));
            let text = match reading.await {
                Ok((text, known)) => {
                    processes = known;
                    text
                }
                Err(error) => Err(Failure::new(error)),
            };
            match text {
                Ok(text) => put(&self.status, || Some(text)),
                Err(failure) => tracing::debug!(
                    why = failure.told().next().map(|(text, _)| text),
                    "the status can't be read"
                ),
            }
        }
    }
}

fn read(dir: &StateDir, known: &mut Processes) -> Result<String, Failure> {
    let mut status = status::read_again(dir, &Journal::open(&dir.journal())?, known)?;
    if status.ledger.len() > MOST_LINES {
        status.ledger.clear();
    }
    serde_json::to_string(&status).map_err(Failure::new)
}

/// The server keeps a receiver of its own.
fn is_looked_at(sender: &watch::Sender<Arc<str>>) -> bool {
    sender.receiver_count() > 1
}

/// Puts what is made, if it is news to anybody; nothing where nobody looks.
fn put(sender: &watch::Sender<Arc<str>>, make: impl FnOnce() -> Option<String>) {
    let text = if is_looked_at(sender) { make().unwrap_or_default() } else { String::new() };
    sender.send_if_modified(|last| {
        let is_news = **last != *text;
        if is_news {
            *last = Arc::from(text);
        }
        is_news
    });
}
