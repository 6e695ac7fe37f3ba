//! Findings as sentences, in English and Spanish. Engines' own words stay as they are.

mod english;
mod spanish;

use std::fmt;

use serde::{Serialize, Serializer};

use super::report::StrategyVerdict;
use crate::perf::Estimate;
use crate::units::Bytes;

/// A language that reports are written in.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Language {
    /// English.
    #[default]
    English,
    /// Spanish.
    Spanish,
}

/// One thing to say of a strategy. As JSON it is its English sentence.
#[derive(Clone, Debug, PartialEq)]
pub enum Finding {
    /// An instance has no place.
    NoPlace {
        /// Instances that have one, and that must.
        placed: u32,
        /// Those that must.
        wanted: u32,
        /// Where it was tried, and the engine's words.
        reason: String,
    },
    /// It may not start.
    Risk {
        /// The instance.
        instance: String,
        /// Where.
        node: String,
        /// The engine's words at the pessimistic end.
        message: String,
    },
    /// What a person should know of an instance that starts.
    Note {
        /// The instance.
        instance: String,
        /// What it is.
        note: String,
    },
    /// What runs today would not start so with this version of its engine.
    RunsButWouldNotStart {
        /// The instance.
        instance: String,
        /// The engine's words.
        message: String,
    },
    /// What is left on the fullest GPU.
    Left {
        /// The node and the GPU.
        gpu: String,
        /// What is left.
        bytes: Bytes,
        /// The same at the pessimistic end.
        low: Bytes,
    },
    /// Less is left than shall stay free.
    LeftTooLittle {
        /// What is left.
        bytes: Bytes,
        /// What shall be.
        wanted: Bytes,
    },
    /// A sum over all GPUs is no place for a model.
    SummedUp {
        /// What was reckoned with.
        written_gb: f64,
        /// On so many GPUs.
        gpus: usize,
        /// What the emptiest one has.
        one: Bytes,
        /// What the newcomer needs of one, where it starts at all.
        needed: Option<Bytes>,
    },
    /// A sum that is right, or errs on the safe side.
    SumHolds {
        /// What was reckoned with.
        written_gb: f64,
        /// What it is.
        gb: f64,
    },
    /// A sum that rests on an engine that doesn't start.
    SumRestsOnRefused {
        /// The deployment.
        deployment: String,
        /// What becomes of it.
        verdict: &'static str,
    },
    /// What an instance of a model keeps of its cache.
    CacheKept {
        /// The model.
        model: String,
        /// Its smallest cache, in tokens.
        tokens: u64,
        /// The same today.
        today: u64,
    },
    /// What a model keeps of today's capacity.
    Capacity {
        /// The model.
        model: String,
        /// As a part of today's.
        part: f64,
    },
    /// Instances that restart.
    Restarts {
        /// How many.
        count: u32,
        /// Seconds until the last is back; a guess.
        seconds: Estimate,
    },
    /// What a model has.
    Has {
        /// The model.
        model: String,
        /// Its instances.
        instances: u32,
        /// Tokens of all their caches.
        tokens: u64,
        /// Requests of the longest length at once.
        requests: f64,
        /// Tokens of answers a second.
        speed: Estimate,
    },
    /// It needs weights in another form, so that answers must be checked.
    OtherWeights {
        /// The model.
        model: String,
        /// The form.
        form: String,
    },
    /// It needs an engine that doesn't run today.
    OtherEngine {
        /// The engine.
        engine: String,
    },
    /// A deployment is divided, so that requests must be routed to both parts.
    Divided {
        /// The model.
        model: String,
        /// Its parts.
        parts: usize,
    },
    /// Several engines share a GPU: starts must come one after the other.
    Shared {
        /// GPUs that are shared.
        gpus: usize,
    },
    /// Requests that can't be served.
    Unserved {
        /// The model.
        model: String,
        /// How many a second.
        requests_per_second: f64,
    },
    /// It is as good in all that is compared.
    AsGood {
        /// GPUs that the first and the second take.
        gpus: [usize; 2],
    },
    /// It is the only one that fits.
    OnlyOne,
    /// The next best would win if nobody minded that.
    WinsWithout(Box<Finding>),
    /// The next best would win by keeping so much more.
    WinsBy {
        /// What it would have to keep, as a part of today's capacity.
        part: f64,
        /// Of this model.
        model: String,
    },
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.say(Language::English))
    }
}

impl Serialize for Finding {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&self.say(Language::English))
    }
}

/// A time with its band, in minutes where it is longer.
fn span(seconds: Estimate) -> String {
    match seconds.high < 180.0 {
        true => format!("{:.0} s ({:.0} .. {:.0})", seconds.mid, seconds.low, seconds.high),
        false => {
            let minutes = [seconds.mid, seconds.low, seconds.high].map(|time| time / 60.0);
            format!("{:.1} min ({:.1} .. {:.1})", minutes[0], minutes[1], minutes[2])
        }
    }
}

/// Tenths of a percent are beyond what is known.
fn percent(part: f64) -> String {
    format!("{:.0} %", part * 100.0)
}

impl Finding {
    /// The sentence.
    pub fn say(&self, language: Language) -> String {
        match language {
            Language::English => english::sentence(self),
            Language::Spanish => spanish::sentence(self),
        }
    }
}

/// A verdict as a word.
pub fn verdict(verdict: StrategyVerdict, language: Language) -> &'static str {
    match (verdict, language) {
        (StrategyVerdict::Fits, Language::English) => "fits",
        (StrategyVerdict::Fits, Language::Spanish) => "cabe",
        (StrategyVerdict::Tight, Language::English) => "tight",
        (StrategyVerdict::Tight, Language::Spanish) => "justo",
        (StrategyVerdict::Impossible, Language::English) => "impossible",
        (StrategyVerdict::Impossible, Language::Spanish) => "imposible",
    }
}

/// Headings in Spanish, by their English.
const HEADINGS: &[(&str, &str)] = &[
    ("GPU", "GPU"),
    ("after", "después"),
    ("all strategies", "todas las estrategias"),
    ("before", "antes"),
    ("has", "tiene"),
    ("instances", "instancias"),
    ("kept", "conserva"),
    ("left", "queda"),
    ("model", "modelo"),
    ("new tokens", "tokens nuevos"),
    ("nothing fits", "no cabe nada"),
    ("planned", "previsto"),
    ("recommended", "recomendada"),
    ("requests", "peticiones"),
    ("restarts", "reinicios"),
    ("runner-up", "segunda"),
    ("strategy", "estrategia"),
    ("tokens", "tokens"),
    ("verdict", "veredicto"),
];

/// Fixed sentences by key: English, Spanish.
const SENTENCES: &[(&str, &str, &str)] = &[
    ("any one", "any one of these would do:", "cualquiera de estos cambios bastaría:"),
    (
        "compare too",
        "`berth plan --compare` sets ways side by side that berth finds itself",
        "`berth plan --compare` compara las maneras que berth encuentra por sí mismo",
    ),
    ("cannot hold", "these can't hold together:", "esto no puede cumplirse a la vez:"),
    (
        "keep",
        "to keep it, put this into the spec:",
        "para conservarla, añada esto a la especificación:",
    ),
    (
        "no single change",
        "no single change makes room for all of it",
        "ningún cambio por sí solo hace sitio para todo",
    ),
    (
        "speeds",
        "tokens a second are from a roofline that no measurement was fitted to: within a half either way",
        "los tokens por segundo vienen de un modelo roofline sin calibrar: con un margen de la mitad",
    ),
    (
        "speeds fitted",
        "tokens a second are from a roofline that was fitted to a load test on these GPUs",
        "los tokens por segundo vienen de un modelo roofline ajustado a una prueba de carga en estas GPU",
    ),
    ("speed", "tokens/s", "tokens/s"),
    ("title", "Strategies compared", "Estrategias comparadas"),
    ("unserved", "unserved requests/s", "peticiones/s sin atender"),
];

/// What to say of speeds.
pub fn speeds(is_calibrated: bool, language: Language) -> &'static str {
    heading(if is_calibrated { "speeds fitted" } else { "speeds" }, language)
}

/// A heading or a fixed sentence.
pub fn heading(key: &'static str, language: Language) -> &'static str {
    if let Some((_, english, spanish)) = SENTENCES.iter().find(|(known, ..)| *known == key) {
        return if language == Language::Spanish { spanish } else { english };
    }
    match language {
        Language::English => key,
        Language::Spanish => {
            HEADINGS.iter().find(|(known, _)| *known == key).map_or(key, |(_, spanish)| spanish)
        }
    }
}
