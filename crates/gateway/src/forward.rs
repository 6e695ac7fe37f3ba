//! A request to an instance of its model, and to another where that one can't answer.

use std::io;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use hyper::Response;
use hyper::http::request::Parts;

use crate::endpoint::Endpoint;
use crate::error::GatewayError;
use crate::flight::{Flight, Underway};
use crate::handle::{Answer, AnswerBody, allowed, secret};
use crate::keys::Admission;
use crate::peek::{self, Peeked};
use crate::routing::admit::{Asker, Full, Turn};
use crate::routing::affinity::Beginnings;
use crate::routing::balance::{self, Chosen, Lack, Wanted};
use crate::routing::routes::{Model, Upstream};
use crate::routing::rules;
use crate::routing::table::{Rule, UpstreamState};
use crate::shared::Shared;
use crate::upstream::connection::Connection;
use crate::upstream::head::{self, AnswerHead, Passing};
use crate::upstream::pool::Pool;
use crate::upstream::relay::{BROKEN_EVENT, BROKEN_MESSAGE, Relay};

/// Further instances that a request is sent to.
const MOST_TRIES: usize = 3;

/// A request, read.
pub(crate) struct Asked<'a> {
    pub(crate) head: &'a Parts,
    pub(crate) body: Bytes,
    pub(crate) endpoint: Endpoint,
    /// The rules that its head meets.
    pub(crate) rules: Vec<Rule>,
    pub(crate) arrived: Instant,
    /// When its body was there.
    pub(crate) read: Instant,
}

/// Sends a request to an instance of the model that it names.
pub(crate) async fn forward(
    shared: &Arc<Shared>,
    pool: &Pool,
    asked: &Asked<'_>,
    underway: Underway,
) -> Result<Answer, GatewayError> {
    let peeked = match asked.endpoint {
        Endpoint::Form => peek::form(&asked.body, &asked.head.headers)?,
        _ => peek::peek(&asked.body)?,
    };
    let (model, admission) = admitted(shared, asked, &peeked)?;
    let asker = asker(admission.as_ref());
    let with_key = admission.is_none();
    let span = shared.settings.spans.begin(asked.head);
    let told = (asked.arrived, span);
    let mut flight =
        Flight::new(underway, Arc::clone(&model), admission, peeked.prompt_tokens(), told);
    let beginnings = match model.upstreams().count() {
        0 | 1 => Beginnings::default(),
        _ => Beginnings::of(peeked.prompt(&asked.body)),
    };
    let wanted = Wanted { tokens: peeked.tokens(), beginnings };
    let traceparent = flight.traceparent().map(str::to_owned);
    let sending =
        Sending { shared, pool, asked, peeked: &peeked, with_key, traceparent, name: &model.name };
    let sent = sending.send(&model, asker, wanted, &mut flight).await;
    let (connection, head) = sent.inspect_err(|error| flight.refused(error))?;
    flight.answered(head.status);
    let broken = match asked.head.uri.path() {
        "/v1/messages" => BROKEN_MESSAGE,
        _ => BROKEN_EVENT,
    };
    let relay =
        Relay::new(connection, &head, pool.clone(), shared.settings.idle_limit, (broken, flight));
    let mut answer = Response::new(AnswerBody::Engine(Box::new(relay)));
    *answer.status_mut() = head.status;
    *answer.headers_mut() = head.headers;
    Ok(answer)
}

/// The model that a request goes to, and what its key allows.
fn admitted(
    shared: &Shared,
    asked: &Asked<'_>,
    peeked: &Peeked<'_>,
) -> Result<(Arc<Model>, Option<Admission>), GatewayError> {
    let named = rules::target(&asked.rules, &peeked.model);
    let (routes, keys) = (shared.routes.load(), shared.keys.load());
    let model = routes.model(named).cloned();
    let Some(model) = model else {
        let known = routes.names_for(&allowed(shared, asked.head)?);
        return Err(GatewayError::UnknownModel { model: named.to_owned(), known });
    };
    let Some(keys) = &**keys else { return Ok((model, None)) };
    let admission = keys.admit(secret(&asked.head.headers), &model.name, peeked.tokens());
    let admission =
        admission.inspect_err(|error| shared.metrics.count(&model.name, error.code()))?;
    Ok((model, Some(admission)))
}

fn asker(admission: Option<&Admission>) -> Asker {
    match admission {
        Some(admission) => {
            Asker { key: admission.key().to_owned(), priority: admission.priority() }
        }
        None => Asker::default(),
    }
}

/// A request on its way to instances.
struct Sending<'a> {
    shared: &'a Shared,
    pool: &'a Pool,
    asked: &'a Asked<'a>,
    peeked: &'a Peeked<'a>,
    with_key: bool,
    /// What the engine is told instead of the client's.
    traceparent: Option<String>,
    /// The model's own name.
    name: &'a str,
}

impl Sending<'_> {
    /// An exchange as far as its answer's head. As long as nothing of an answer was seen the client knows nothing of
    /// it, and the request may go to another instance.
    async fn send(
        &self,
        model: &Model,
        asker: Asker,
        wanted: Wanted,
        flight: &mut Flight,
    ) -> Result<(Connection, AnswerHead), GatewayError> {
        let (limit, life) = (self.shared.settings.first_byte_limit, &model.life);
        life.budget.earn();
        let mut turn = Turn { asker, wanted, tried: Vec::new() };
        let mut waited = Duration::ZERO;
        loop {
            let since = Instant::now();
            let chosen = match self.room(&turn).await {
                Ok(chosen) => chosen,
                Err(_) if !turn.tried.is_empty() => return Err(self.unreachable()),
                Err(error) => return Err(error),
            };
            waited += since.elapsed();
            if turn.tried.is_empty() {
                let overhead = self.asked.read.elapsed().saturating_sub(waited);
                life.metrics.overhead.observe(overhead.as_secs_f64());
            } else if !life.budget.take() {
                return Err(self.unreachable());
            } else {
                life.metrics.retries.inc();
            }
            let Chosen { upstream, ticket } = chosen;
            flight.hold(&upstream.instance.id, ticket);
            let error = match tokio::time::timeout(limit, self.exchange(&upstream)).await {
                Ok(Ok(answer)) => return Ok(answer),
                Ok(Err(error)) => error,
                Err(_) => {
                    upstream.put_out();
                    return Err(GatewayError::Silent { model: self.name.to_owned() });
                }
            };
            tracing::warn!(instance = %upstream.instance.id, %error, "an instance could not answer");
            upstream.put_out();
            // Its room is nobody's while the request looks for another.
            flight.let_go();
            // An answer that is none was an answer: the request was worked on.
            if error.kind() == io::ErrorKind::InvalidData || turn.tried.len() >= MOST_TRIES {
                return Err(self.unreachable());
            }
            turn.tried.push(upstream.instance.id.clone());
        }
    }

    fn unreachable(&self) -> GatewayError {
        GatewayError::Unreachable { model: self.name.to_owned() }
    }

    /// An instance with room, at once or in turn, as the routes are now.
    async fn room(&self, turn: &Turn) -> Result<Chosen, GatewayError> {
        let name = || self.name.to_owned();
        let gone = || GatewayError::NotReady { model: name(), reason: "it is being stopped" };
        let (woken, queue_time) = {
            let routes = self.shared.routes.load();
            let model = routes.model(self.name).ok_or_else(gone)?;
            let queue = &model.life.queue;
            match balance::choose(model, &turn.wanted, &turn.tried) {
                Ok(chosen) if queue.len() == 0 || !turn.tried.is_empty() => return Ok(chosen),
                Ok(_) | Err(Lack::Room) => {}
                Err(Lack::Ready) => return Err(not_ready(model)),
            }
            let woken = queue
                .enter(turn.clone())
                .map_err(|Full| GatewayError::TooMany { model: name() })?;
            // Room that came up just before it waited would be missed.
            queue.pump(model);
            (woken, model.life.metrics.queue.clone())
        };
        let since = Instant::now();
        let chosen = tokio::time::timeout(self.shared.settings.queue_limit, woken).await;
        queue_time.observe(since.elapsed().as_secs_f64());
        match chosen {
            Ok(Ok(chosen)) => Ok(chosen),
            // Nobody is left who could have room.
            Ok(Err(_)) => Err(gone()),
            Err(_) => Err(GatewayError::NoRoom { model: name() }),
        }
    }

    /// Sends to one instance; over a connection that was kept, else over a new one.
    async fn exchange(&self, upstream: &Upstream) -> io::Result<(Connection, AnswerHead)> {
        let instance = &upstream.instance;
        let name = instance.name.as_deref().unwrap_or(&instance.model);
        let body = match *self.peeked.model == *name {
            true => self.asked.body.clone(),
            false => self.peeked.renamed(&self.asked.body, name),
        };
        let mut written = Vec::with_capacity(1024);
        let passing = Passing {
            with_key: self.with_key,
            keeps_alive: instance.keeps_alive,
            traceparent: self.traceparent.as_deref(),
        };
        head::write(&mut written, self.asked.head, instance.address, body.len(), passing);
        if let Some(mut connection) = self.pool.take(instance.address) {
            match connection.ask(&written, &body).await {
                Ok(head) => return Ok((connection, head)),
                Err(error) if error.kind() == io::ErrorKind::InvalidData => return Err(error),
                // The engine may have closed it just then, for having been idle: a new one says what is the matter.
                Err(_) => {}
            }
        }
        let mut connection = Connection::open(instance.address).await?;
        let head = connection.ask(&written, &body).await?;
        Ok((connection, head))
    }
}

fn not_ready(model: &Model) -> GatewayError {
    let any = |state| model.upstreams().any(|upstream| upstream.instance.state == state);
    let reason = match () {
        () if any(UpstreamState::Starting) => "it is starting",
        () if any(UpstreamState::Failed) => "its engine failed; `berth status` says why",
        () => "it is being stopped",
    };
    GatewayError::NotReady { model: model.name.clone(), reason }
}
