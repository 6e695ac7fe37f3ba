//! Sends what is due, when it is due.
//!
//! The future of a run is polled before any task of a runtime with one thread, so that requests are
//! sent on time however many answers wait to be read; a request is sent while it is polled there, on a
//! connection opened ahead, and becomes a task after that. How long tasks wait is measured with each
//! request ([`crate::record::Marks::reading_delay`]), as what comes is seen so much later.

use std::collections::VecDeque;
use std::io;
use std::sync::Arc;
use std::task::Poll;
use std::time::Duration;

use tokio::task::JoinSet;
use tokio::time::{Instant, Interval, MissedTickBehavior};

use crate::asks::{self, Ask};
use crate::exchange::{Clock, exchange};
use crate::metronome::Metronome;
use crate::phase::Phase;
use crate::record::Record;
use crate::target::Target;
use crate::wire::Wire;

/// Connections are looked after so often, and progress is told.
const BEAT: Duration = Duration::from_millis(50);
/// What is due within this gets a connection.
const AHEAD: Duration = Duration::from_millis(200);
/// Between making a phase's requests and sending the first.
const RUN_UP: Duration = Duration::from_millis(5);
/// Times further off than this may not be told from each other, or not be there at all.
const LONGEST: Duration = Duration::from_secs(30 * 24 * 3600);
/// So many tasks run between two looks at what is due.
const TASKS_BETWEEN: u32 = 8;

/// How far a run is.
#[derive(Clone, Debug, PartialEq)]
pub struct Progress {
    /// The phase at hand.
    pub phase: Arc<str>,
    /// Its requests.
    pub planned: usize,
    /// Of them sent.
    pub sent: usize,
    /// Of them ended.
    pub finished: usize,
    /// Of them ended otherwise than with an answer.
    pub failed: usize,
    /// Since the phase's start.
    pub elapsed: Duration,
}

impl Progress {
    /// Sent and not ended.
    pub fn in_flight(&self) -> usize {
        self.sent.saturating_sub(self.finished)
    }
}

/// Runs phases one after the other, and gives what was measured of every request. A dropped run sends
/// nothing more.
///
/// Progress is told between two requests, and must take no time.
///
/// To be waited for by a runtime of one thread that does nothing else: see [`run_blocking`].
pub async fn run(
    target: &Target,
    phases: Vec<Phase>,
    progress: impl Fn(&Progress),
) -> io::Result<Vec<Record>> {
    let wire = Wire::new(target.clone());
    let start = Instant::now();
    let mut records = Vec::new();
    for mut phase in phases {
        phase.limit = phase.limit.min(LONGEST);
        phase.grace = phase.grace.min(LONGEST);
        let asks = asks::of(&phase);
        records.extend(Sending::start(&wire, start, &phase, asks).await?.all(&progress).await);
    }
    Ok(records)
}

/// The same on a runtime of its own in this thread, which it blocks.
pub fn run_blocking(
    target: &Target,
    phases: Vec<Phase>,
    progress: impl Fn(&Progress),
) -> io::Result<Vec<Record>> {
    tokio::runtime::Builder::new_current_thread()
        .enable_io()
        .enable_time()
        .event_interval(TASKS_BETWEEN)
        .build()?
        .block_on(run(target, phases, progress))
}

/// A phase under way.
struct Sending {
    wire: Arc<Wire>,
    clock: Clock,
    _metronome: Metronome,
    asks: VecDeque<Ask>,
    in_flight: JoinSet<Record>,
    records: Vec<Record>,
    progress: Progress,
}

impl Sending {
    async fn start(
        wire: &Arc<Wire>,
        run: Instant,
        phase: &Phase,
        asks: VecDeque<Ask>,
    ) -> io::Result<Self> {
        wire.clone().open(wire.missing(due_within(&asks, AHEAD))).await;
        let start = Instant::now() + RUN_UP;
        let times = asks.iter().map(|ask| (start + ask.due).into_std()).collect();
        let deadline = start + phase.limit + phase.grace;
        Ok(Self {
            wire: wire.clone(),
            clock: Clock { run, phase: start, deadline },
            _metronome: Metronome::start(&wire.sign, times)?,
            in_flight: JoinSet::new(),
            records: Vec::with_capacity(asks.len()),
            progress: Progress {
                phase: phase.name.as_str().into(),
                planned: asks.len(),
                sent: 0,
                finished: 0,
                failed: 0,
                elapsed: Duration::ZERO,
            },
            asks,
        })
    }

    async fn all(mut self, tell: impl Fn(&Progress)) -> Vec<Record> {
        let mut beat = beat();
        loop {
            self.send_due().await;
            if self.asks.is_empty() && self.in_flight.is_empty() {
                break;
            }
            tokio::select! {
                biased;
                () = self.wire.sign.wait(), if !self.asks.is_empty() => {}
                Some(ended) = self.in_flight.join_next() => self.records.extend(ended),
                _ = beat.tick() => {
                    self.open_ahead();
                    tell(self.progress());
                }
            }
        }
        tell(self.progress());
        self.records
    }

    async fn send_due(&mut self) {
        while let Some(ask) = self.next_due() {
            self.progress.sent += 1;
            self.send(ask).await;
        }
        let run_up = self.clock.phase.saturating_duration_since(self.clock.run);
        self.wire.sign.set_next(self.asks.front().map(|ask| run_up + ask.due));
    }

    fn next_due(&mut self) -> Option<Ask> {
        let now = Instant::now();
        let is_due = self.clock.phase + self.asks.front()?.due <= now;
        if is_due { self.asks.pop_front() } else { None }
    }

    /// Polls a request until it has to wait, which is when it has been sent, and makes a task of it.
    async fn send(&mut self, ask: Ask) {
        let ready = std::future::poll_fn(|context| Poll::Ready(self.wire.take(context))).await;
        let mut request = Box::pin(exchange(self.wire.clone(), self.clock, ask, ready));
        let first = std::future::poll_fn(|context| Poll::Ready(request.as_mut().poll(context)));
        // A task may do so much only before it must let others; here nobody else may come first.
        match tokio::task::unconstrained(first).await {
            Poll::Ready(record) => self.records.push(record),
            Poll::Pending => {
                let queued = Instant::now();
                self.in_flight.spawn(async move {
                    let reading_delay = queued.elapsed();
                    let mut record = request.await;
                    record.marks.reading_delay = reading_delay;
                    record
                });
            }
        }
    }

    fn open_ahead(&self) {
        let until = self.clock.phase.elapsed() + AHEAD;
        let missing = self.wire.missing(due_within(&self.asks, until));
        if missing > 0 {
            tokio::spawn(self.wire.clone().open(missing));
        }
    }

    fn progress(&mut self) -> &Progress {
        self.progress.elapsed = self.clock.phase.elapsed();
        self.progress.finished = self.records.len();
        self.progress.failed = self.records.iter().filter(|record| !record.is_ok()).count();
        &self.progress
    }
}

fn due_within(asks: &VecDeque<Ask>, until: Duration) -> usize {
    asks.partition_point(|ask| ask.due <= until)
}

fn beat() -> Interval {
    let mut beat = tokio::time::interval(BEAT);
    beat.set_missed_tick_behavior(MissedTickBehavior::Delay);
    beat
}
