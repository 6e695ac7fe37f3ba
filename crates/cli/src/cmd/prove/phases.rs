//! What is asked when: first in the way that hurts memory most, then as it goes on for long.

use std::time::Duration;

use berth_load::arrivals::Arrivals;
use berth_load::dataset::Request;
use berth_load::phase::{ModelPhase, Phase, Shape};
use berth_load::prompts::{self, Prompt};
use berth_load::target::Target;
use berth_load::tokenizer::Tokenizer;

use super::models::Asked;

/// So much more is asked for than there is room for: it waits in the gateway, which queues no more than so many.
const OVERFILL: f64 = 0.25;
const MOST_WAITING: u64 = 1000;
/// Requests of a model at once, each of which is a connection.
const MOST_AT_ONCE: u64 = 20_000;
/// Tokens that a chat's template may put around a prompt.
const TEMPLATE: u64 = 64;
/// Tokens that a picture may become.
const PICTURE: u64 = 1024;
/// Different prompts of each kind: what they begin with differs each time anyhow.
const PROMPTS: usize = 8;
/// Seeds of the steady load's texts are so far from those before.
const STEADY: u64 = 1 << 32;
/// A phase of which the last request was sent goes on for so long.
const GRACE: Duration = Duration::from_secs(300);
const LIMIT: Duration = Duration::from_secs(300);

/// As many as there is room for, and some that wait.
fn beyond(room: u64, share: f64) -> u64 {
    let waiting = ((room as f64 * share).ceil() as u64).clamp(1, MOST_WAITING);
    room.saturating_add(waiting).clamp(2, MOST_AT_ONCE)
}

/// Texts for a model.
pub(super) struct Texts {
    pub(super) asked: Asked,
    longest: Vec<Prompt>,
    short: Vec<Prompt>,
    mixed: Vec<Prompt>,
    /// The same lengths in other words, for the steady load.
    steady: Vec<Prompt>,
    longest_answer: u32,
    /// Tokens of an answer in the steady mix.
    pub(super) answer: u32,
}

/// Makes the texts of a model, counted by its own tokenizer where an engine has it.
pub(super) async fn texts(asked: Asked, seed: u64) -> anyhow::Result<Texts> {
    let tokenizer = match &asked.tokenizer {
        Some((url, name)) => Some(Tokenizer::new(Target::parse(url, None)?, name.clone())),
        None => None,
    };
    // One that answers nothing is none: then lengths are estimated, and the report says so.
    let tokenizer = match tokenizer {
        Some(tokenizer) => tokenizer.count("hello").await.is_ok().then_some(tokenizer),
        None => None,
    };
    let of = async |how_many, tokens: u64, seed| {
        let tokens = u32::try_from(tokens.max(1)).unwrap_or(u32::MAX);
        prompts::make(tokenizer.as_ref(), how_many, tokens, seed).await
    };
    let longest_answer = (asked.longest / 4).clamp(1, 64);
    let picture = if asked.takes_images { PICTURE } else { 0 };
    let around = longest_answer + TEMPLATE + picture;
    let room = asked.longest.saturating_sub(around).max(asked.longest / 4);
    // Estimated ones must not be refused for being too long.
    let room = if tokenizer.is_some() { room } else { room * 3 / 4 };
    let longest = of(PROMPTS.min(4), room, seed).await?;
    let short = of(PROMPTS, 64.min(room), seed + 1).await?;
    let (mut mixed, mut steady) = (Vec::new(), Vec::new());
    // From short to half of the longest, each twice as long as the one before.
    let mut tokens = 32;
    while tokens <= room / 2 || mixed.is_empty() {
        mixed.extend(of(2, tokens.min(room), seed + tokens).await?);
        steady.extend(of(2, tokens.min(room), seed + STEADY + tokens).await?);
        tokens *= 2;
    }
    let answer = (asked.longest / 4).clamp(1, 128) as u32;
    let longest_answer = longest_answer as u32;
    Ok(Texts { asked, longest, short, mixed, steady, longest_answer, answer })
}

/// All models at once: caches overfilled with the longest requests, then batches as full as they get, then a burst of
/// all lengths.
pub(super) fn overload(texts: &[Texts], seed: u64) -> Vec<Phase> {
    let longest = |one: &Texts| {
        let Asked { cache_tokens, longest, .. } = one.asked;
        let fill = beyond(cache_tokens.div_ceil(longest.max(1)), OVERFILL);
        (fill, one.longest.clone(), one.longest_answer, one.asked.takes_images)
    };
    let batch =
        |one: &Texts| (beyond(one.asked.parallel, OVERFILL), one.short.clone(), one.answer, false);
    let burst = |one: &Texts| {
        let twice = beyond(one.asked.parallel, 1.0);
        (twice, one.mixed.clone(), one.answer, one.asked.takes_images)
    };
    type Made = (u64, Vec<Prompt>, u32, bool);
    // The same texts begin otherwise in each phase: nothing of them is in a cache of prefixes.
    let phase = |seed: u64, name: &str, of: &dyn Fn(&Texts) -> Made| {
        let load = |one: &Texts| {
            let (count, prompts, answer_tokens, images) = of(one);
            let count = u32::try_from(count).unwrap_or(u32::MAX);
            let images = u32::from(images);
            let shape = Shape::Made { prompts, answer_tokens, images, ignore_eos: true };
            ModelPhase {
                model: one.asked.model.clone(),
                arrivals: Arrivals::Burst { count },
                seed,
                shape,
            }
        };
        Phase {
            name: name.to_owned(),
            loads: texts.iter().map(load).collect(),
            limit: LIMIT,
            grace: GRACE,
            is_overload: true,
        }
    };
    vec![
        phase(seed + 1, "longest", &longest),
        phase(seed + 2, "batch", &batch),
        phase(seed + 3, "burst", &burst),
    ]
}

/// What goes on for long: a mix of lengths, or what a file has, at a rate or at the times of a trace.
pub(super) struct Steady<'a> {
    pub(super) duration: Duration,
    pub(super) trace: Option<&'a [f64]>,
    pub(super) dataset: Option<&'a [Request]>,
    pub(super) seed: u64,
}

impl Steady<'_> {
    /// The phase, at each model's rate in requests a second.
    pub(super) fn phase(&self, texts: &[Texts], rate: impl Fn(&Texts) -> f64) -> Phase {
        let load = |(at, one): (usize, &Texts)| ModelPhase {
            model: one.asked.model.clone(),
            arrivals: match self.trace {
                Some(times) => Arrivals::Trace(times.to_vec()),
                None => Arrivals::Poisson { per_second: rate(one) },
            },
            seed: self.seed + at as u64,
            shape: match self.dataset {
                Some(requests) => Shape::Dataset { requests: requests.to_vec(), ignore_eos: false },
                None => Shape::Made {
                    prompts: one.steady.clone(),
                    answer_tokens: one.answer,
                    images: u32::from(one.asked.takes_images),
                    ignore_eos: true,
                },
            },
        };
        Phase {
            name: "steady".to_owned(),
            loads: texts.iter().enumerate().map(load).collect(),
            limit: self.duration,
            grace: GRACE,
            is_overload: false,
        }
    }
}
