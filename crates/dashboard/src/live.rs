//! What changes, as server-sent events: `seen` and `status`, both at once at first, then whenever there is another.

use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use axum::extract::State;
use axum::http::HeaderMap;
use axum::response::sse::{Event, KeepAlive, Sse};
use futures_util::Stream;
use futures_util::stream::unfold;

use crate::Shared;
use crate::source::Live;

/// A comment keeps what is between from closing a stream that says nothing.
const HEARTBEAT: Duration = Duration::from_secs(10);

pub(crate) async fn events(
    State(shared): State<Arc<Shared>>,
    headers: HeaderMap,
) -> Sse<impl Stream<Item = Result<Event, Infallible>>> {
    let mut live = shared.live.clone();
    live.seen.mark_changed();
    live.status.mark_changed();
    let events = unfold((live, shared, headers), |(mut live, shared, headers)| async move {
        let event = next(&mut live).await?;
        // It ends with the session that it was opened in.
        shared.sessions.is_in(&headers).then_some((Ok(event), (live, shared, headers)))
    });
    Sse::new(events).keep_alive(KeepAlive::new().interval(HEARTBEAT))
}

/// The next that there is; none once nobody makes any more.
async fn next(live: &mut Live) -> Option<Event> {
    loop {
        let (kind, text) = tokio::select! {
            changed = live.status.changed() => {
                changed.ok()?;
                ("status", Arc::clone(&live.status.borrow_and_update()))
            }
            changed = live.seen.changed() => {
                changed.ok()?;
                ("seen", Arc::clone(&live.seen.borrow_and_update()))
            }
        };
        // JSON on one line.
        if !text.is_empty() && !text.contains(['\r', '\n']) {
            return Some(Event::default().event(kind).data(text.as_ref()));
        }
    }
}
