//! A request to an instance of its model, and to another where that one can't answer.

use std::io;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Instant;

use bytes::Bytes;
use hyper::http::request::Parts;
use hyper::http::uri::PathAndQuery;
use hyper::{Response, Uri};

use crate::admit::{Asker, Full};
use crate::affinity::Beginnings;
use crate::balance::{self, Chosen, Lack, Wanted};
use crate::endpoint::Endpoint;
use crate::error::GatewayError;
use crate::flight::Flight;
use crate::handle::{Answer, AnswerBody, Shared, secret};
use crate::keys::Admission;
use crate::peek::{self, Peeked};
use crate::routes::{Model, Routes, Upstream};
use crate::table::{Rule, UpstreamState};
use crate::upstream::connection::Connection;
use crate::upstream::head::{self, AnswerHead};
use crate::upstream::pool::Pool;
use crate::upstream::relay::Relay;

/// Further instances that a request is sent to.
const MOST_TRIES: usize = 3;
/// Of all requests so many in a thousand may be sent once more, and so many thousandths at once.
const RETRIES_PER_MILLE: i64 = 200;
const MOST_RETRIES: i64 = 100 * 1000;

/// A request, read.
pub(crate) struct Asked<'a> {
    pub(crate) head: &'a Parts,
    pub(crate) body: Bytes,
    pub(crate) endpoint: Endpoint,
    pub(crate) rule: Option<Rule>,
    pub(crate) arrived: Instant,
    /// Whether the client's key goes to the engine: it does where the gateway itself asks for none.
    pub(crate) with_key: bool,
}

/// The rule that a request's head meets, but for its body. A prefix is taken out of its path.
pub(crate) fn rule(routes: &Routes, head: &mut Parts) -> Option<Rule> {
    let has_prefix = |rule: &Rule| match &rule.path_prefix {
        None => true,
        Some(prefix) => {
            head.uri.path().strip_prefix(prefix.as_str()).is_some_and(|rest| rest.starts_with('/'))
        }
    };
    let has_header = |rule: &Rule| match &rule.header {
        None => true,
        Some((name, value)) => {
            head.headers.get_all(name).iter().any(|is| is.as_bytes() == value.as_bytes())
        }
    };
    let rule = routes.rules.iter().find(|rule| has_prefix(rule) && has_header(rule))?.clone();
    if let Some(prefix) = &rule.path_prefix {
        let path = head.uri.path_and_query().map_or("/", |path| path.as_str());
        if let Ok(path) = path[prefix.len()..].parse::<PathAndQuery>() {
            head.uri = Uri::from(path);
        }
    }
    Some(rule)
}

/// Sends a request to an instance of the model that it names.
pub(crate) async fn forward(
    shared: &Arc<Shared>,
    pool: &Pool,
    asked: &Asked<'_>,
) -> Result<Answer, GatewayError> {
    let peeked = match asked.endpoint {
        Endpoint::Form => peek::form(&asked.body)?,
        _ => peek::peek(&asked.body)?,
    };
    let named = match &asked.rule {
        Some(rule) if rule.model.as_ref().is_none_or(|model| *model == *peeked.model) => &rule.to,
        _ => &*peeked.model,
    };
    let keys = shared.keys.load();
    let who = keys.as_ref().as_ref();
    let routes = shared.routes.load();
    let model = match routes.model(named) {
        Some(model) => Arc::clone(model),
        None => {
            // Whoever has no key isn't told what there is.
            who.map_or(Ok(()), |keys| keys.check(secret(&asked.head.headers)))?;
            return Err(GatewayError::UnknownModel {
                model: named.to_owned(),
                known: routes.names(),
            });
        }
    };
    drop(routes);
    let tokens = peeked.tokens();
    let admission =
        who.map(|keys| keys.admit(secret(&asked.head.headers), &model.name, tokens)).transpose();
    let admission =
        admission.inspect_err(|error| shared.metrics.count(&model.name, error.code()))?;
    let asker = asker(admission.as_ref());
    let prompt_tokens = peeked.prompt(&asked.body).len() as u64 / 4;
    let mut flight = Flight::new(
        Arc::clone(shared),
        Arc::clone(&model),
        admission,
        prompt_tokens,
        asked.arrived,
    );
    let beginnings = match model.groups.iter().map(|group| group.upstreams.len()).sum::<usize>() {
        0 | 1 => Beginnings::default(),
        _ => Beginnings::of(peeked.prompt(&asked.body)),
    };
    let wanted = Wanted { tokens, beginnings };
    let sent = send(shared, pool, asked, &peeked, &model, (&asker, &wanted), &mut flight).await;
    let (connection, head) = sent.inspect_err(|error| flight.refused(error.code()))?;
    flight.answered(head.status);
    let mut answer = Response::builder().status(head.status);
    let relay = Relay::new(connection, &head, pool.clone(), shared.settings.idle_limit, flight);
    if let Some(headers) = answer.headers_mut() {
        *headers = head.headers;
    }
    Ok(answer
        .body(AnswerBody::Engine(Box::new(relay)))
        .expect("a status and headers that were read are valid"))
}

fn asker(admission: Option<&Admission>) -> Asker {
    match admission {
        Some(admission) => {
            Asker { key: admission.key().to_owned(), priority: admission.priority() }
        }
        None => Asker::default(),
    }
}

/// An exchange as far as its answer's head. As long as nothing of an answer was seen the client knows nothing of it,
/// and the request may go to another instance.
async fn send(
    shared: &Shared,
    pool: &Pool,
    asked: &Asked<'_>,
    peeked: &Peeked<'_>,
    model: &Arc<Model>,
    (asker, wanted): (&Asker, &Wanted),
    flight: &mut Flight,
) -> Result<(Connection, AnswerHead), GatewayError> {
    shared
        .retries
        .fetch_update(Ordering::Relaxed, Ordering::Relaxed, |left| {
            Some((left + RETRIES_PER_MILLE).min(MOST_RETRIES))
        })
        .ok();
    let mut tried: Vec<Arc<Upstream>> = Vec::new();
    let unreachable = || GatewayError::Unreachable { model: model.name.clone() };
    let mut is_first = true;
    loop {
        let chosen = match room(shared, model, asker, wanted, &tried).await {
            Ok(chosen) => chosen,
            Err(GatewayError::NotReady { .. }) if !tried.is_empty() => return Err(unreachable()),
            Err(error) => return Err(error),
        };
        let Chosen { upstream, ticket } = chosen;
        flight.hold(&upstream.instance.id, ticket);
        if std::mem::take(&mut is_first) {
            model.life.metrics.overhead.observe(asked.arrived.elapsed().as_secs_f64());
        }
        let limit = shared.settings.first_byte_limit;
        let exchange = tokio::time::timeout(limit, exchange(pool, asked, peeked, &upstream));
        let error = match exchange.await {
            Ok(Ok(answer)) => return Ok(answer),
            Ok(Err(error)) => error,
            Err(_) => {
                upstream.put_out();
                return Err(GatewayError::Silent { model: model.name.clone() });
            }
        };
        tracing::warn!(instance = %upstream.instance.id, %error, "an instance could not answer");
        upstream.put_out();
        // An answer that is none was an answer: the request was worked on.
        let is_nonsense = error.kind() == io::ErrorKind::InvalidData;
        if is_nonsense || tried.len() >= MOST_TRIES || !may_retry(shared) {
            return Err(unreachable());
        }
        model.life.metrics.retries.inc();
        tried.push(upstream);
    }
}

/// Another try, out of what all requests together may have.
fn may_retry(shared: &Shared) -> bool {
    let take = |left: i64| (left >= 1000).then_some(left - 1000);
    shared.retries.fetch_update(Ordering::Relaxed, Ordering::Relaxed, take).is_ok()
}

/// An instance with room, at once or in turn.
async fn room(
    shared: &Shared,
    model: &Arc<Model>,
    asker: &Asker,
    wanted: &Wanted,
    tried: &[Arc<Upstream>],
) -> Result<Chosen, GatewayError> {
    let has_turn = model.life.queue.len() == 0 || !tried.is_empty();
    match balance::choose(model, wanted, tried) {
        Ok(chosen) if has_turn => return Ok(chosen),
        Ok(_) | Err(Lack::Room) => {}
        Err(Lack::Ready) => return Err(not_ready(model)),
    }
    let name = || model.name.clone();
    let woken = model.life.queue.enter(asker.clone(), *wanted);
    let woken = woken.map_err(|Full| GatewayError::TooMany { model: name() })?;
    // Room that came up just before it waited would be missed.
    shared.pump(model);
    let since = Instant::now();
    let chosen = tokio::time::timeout(shared.settings.queue_limit, woken).await;
    model.life.metrics.queue.observe(since.elapsed().as_secs_f64());
    chosen.ok().and_then(Result::ok).ok_or_else(|| GatewayError::NoRoom { model: name() })
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

/// Sends to one instance; over a connection that was kept, else over a new one.
async fn exchange(
    pool: &Pool,
    asked: &Asked<'_>,
    peeked: &Peeked<'_>,
    upstream: &Upstream,
) -> io::Result<(Connection, AnswerHead)> {
    let address = upstream.instance.address;
    let name = upstream.instance.name.as_deref().unwrap_or(&upstream.instance.model);
    let body = match *peeked.model == *name {
        true => asked.body.clone(),
        false => peeked.renamed(&asked.body, name),
    };
    let mut written = Vec::with_capacity(1024);
    head::write(&mut written, asked.head, address, body.len(), asked.with_key);
    if let Some(mut connection) = pool.take(address) {
        match connection.ask(&written, &body).await {
            Ok(head) => return Ok((connection, head)),
            Err(error) if error.kind() == io::ErrorKind::InvalidData => return Err(error),
            // The engine may have closed it just then, for having been idle: a new one says what is the matter.
            Err(_) => {}
        }
    }
    let mut connection = Connection::open(address).await?;
    let head = connection.ask(&written, &body).await?;
    Ok((connection, head))
}
