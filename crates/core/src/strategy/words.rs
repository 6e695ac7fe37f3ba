//! Findings as sentences, in English and Spanish. Engines' own words stay as they are.

use std::fmt;

use serde::{Serialize, Serializer};

use super::report::StrategyVerdict;
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
    Restarts(u32),
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

/// Tenths of a percent are beyond what is known.
fn percent(part: f64) -> String {
    format!("{:.0} %", part * 100.0)
}

impl Finding {
    /// The sentence.
    pub fn say(&self, language: Language) -> String {
        match language {
            Language::English => self.english(),
            Language::Spanish => self.spanish(),
        }
    }

    fn english(&self) -> String {
        match self {
            Self::NoPlace { placed, wanted, reason } => {
                format!("{placed} of {wanted} have a place: {reason}")
            }
            Self::Risk { instance, node, message } => {
                format!("{instance} on {node} may not start, at the pessimistic end: {message}")
            }
            Self::Note { instance, note } => format!("{instance}: {note}"),
            Self::RunsButWouldNotStart { instance, message } => format!(
                "{instance} and its like run and stay untouched; started anew with this version they \
                 would end with: {message}"
            ),
            Self::Left { gpu, bytes, low } => {
                format!("the fullest GPU, {gpu}, has {bytes} left ({low} at the pessimistic end)")
            }
            Self::LeftTooLittle { bytes, wanted } => {
                format!("{bytes} left on the fullest GPU, and {wanted} shall stay free")
            }
            Self::SummedUp { written_gb, gpus, one, needed } => {
                let needed =
                    needed.map_or_else(String::new, |needed| format!("; it needs {needed} there"));
                format!(
                    "{written_gb:.2} GB is a sum over {gpus} GPUs, but a model has to fit on each GPU \
                     that it uses: the emptiest has {one}{needed}"
                )
            }
            Self::SumHolds { written_gb, gb } => {
                format!("{written_gb:.2} GB were reckoned with, and there are {gb:.2} GB")
            }
            Self::SumRestsOnRefused { deployment, verdict } => format!(
                "the sum counts on {deployment}, which doesn't start ({verdict}): there is nothing to add up"
            ),
            Self::CacheKept { model, tokens, today } => format!(
                "the smallest cache of {model} holds {tokens} tokens, {} of today's {today}",
                percent(*tokens as f64 / (*today).max(1) as f64)
            ),
            Self::Capacity { model, part } => {
                format!("{model} keeps {} of today's tokens a second", percent(*part))
            }
            Self::Restarts(0) => "nothing that runs is touched".to_owned(),
            Self::Restarts(1) => "one instance restarts".to_owned(),
            Self::Restarts(count) => format!("{count} instances restart"),
            Self::OtherWeights { model, form } => {
                format!("{model} runs as {form}: check its answers before you rely on them")
            }
            Self::OtherEngine { engine } => format!("{engine} has to be installed and watched too"),
            Self::Divided { model, parts } => {
                format!("{model} is run as {parts} deployments that requests are routed to")
            }
            Self::Shared { gpus } => {
                format!(
                    "engines share {gpus} GPUs and must start one after the other, in this order"
                )
            }
            Self::Unserved { model, requests_per_second } => {
                format!("{requests_per_second:.2} requests a second of {model} can't be served")
            }
            Self::AsGood { gpus: [first, second] } => format!(
                "it is as good in all that is compared; it takes {second} GPUs, the first {first}: choose \
                 it if you want the others free"
            ),
            Self::OnlyOne => "nothing else fits".to_owned(),
            Self::WinsWithout(finding) => {
                format!("it would win but for this: {}", finding.english())
            }
            Self::WinsBy { part, model } => {
                format!("it would win if it kept {} of {model}'s tokens a second", percent(*part))
            }
        }
    }

    fn spanish(&self) -> String {
        match self {
            Self::NoPlace { placed, wanted, reason } => {
                format!("{placed} de {wanted} tienen sitio: {reason}")
            }
            Self::Risk { instance, node, message } => {
                format!(
                    "{instance} en {node} puede no arrancar, en el extremo pesimista: {message}"
                )
            }
            Self::Note { instance, note } => format!("{instance}: {note}"),
            Self::RunsButWouldNotStart { instance, message } => format!(
                "{instance} y sus iguales funcionan y no se tocan; arrancados de nuevo con esta versión \
                 acabarían con: {message}"
            ),
            Self::Left { gpu, bytes, low } => {
                format!(
                    "en la GPU más llena, {gpu}, quedan {bytes} ({low} en el extremo pesimista)"
                )
            }
            Self::LeftTooLittle { bytes, wanted } => {
                format!("quedan {bytes} en la GPU más llena, y deben quedar libres {wanted}")
            }
            Self::SummedUp { written_gb, gpus, one, needed } => {
                let needed =
                    needed.map_or_else(String::new, |needed| format!("; allí necesita {needed}"));
                format!(
                    "{written_gb:.2} GB es la suma de {gpus} GPU, pero un modelo tiene que caber en cada \
                     GPU que usa: la más vacía tiene {one}{needed}"
                )
            }
            Self::SumHolds { written_gb, gb } => {
                format!("se contaba con {written_gb:.2} GB, y hay {gb:.2} GB")
            }
            Self::SumRestsOnRefused { deployment, verdict } => format!(
                "la suma cuenta con {deployment}, que no arranca ({verdict}): no hay nada que sumar"
            ),
            Self::CacheKept { model, tokens, today } => format!(
                "la caché menor de {model} guarda {tokens} tokens, el {} de los {today} de hoy",
                percent(*tokens as f64 / (*today).max(1) as f64)
            ),
            Self::Capacity { model, part } => {
                format!("{model} conserva el {} de los tokens por segundo de hoy", percent(*part))
            }
            Self::Restarts(0) => "no se toca nada de lo que funciona".to_owned(),
            Self::Restarts(1) => "se reinicia una instancia".to_owned(),
            Self::Restarts(count) => format!("se reinician {count} instancias"),
            Self::OtherWeights { model, form } => {
                format!(
                    "{model} funciona como {form}: compruebe sus respuestas antes de confiar en ellas"
                )
            }
            Self::OtherEngine { engine } => format!("hay que instalar y vigilar también {engine}"),
            Self::Divided { model, parts } => {
                format!(
                    "{model} se divide en {parts} despliegues entre los que se reparten las peticiones"
                )
            }
            Self::Shared { gpus } => format!(
                "varios motores comparten {gpus} GPU y deben arrancar uno tras otro, en este orden"
            ),
            Self::Unserved { model, requests_per_second } => {
                format!(
                    "no se pueden atender {requests_per_second:.2} peticiones por segundo de {model}"
                )
            }
            Self::AsGood { gpus: [first, second] } => format!(
                "es igual de buena en todo lo comparado; ocupa {second} GPU, la primera {first}: elíjala si \
                 quiere libres las demás"
            ),
            Self::OnlyOne => "no cabe nada más".to_owned(),
            Self::WinsWithout(finding) => {
                format!("ganaría si no fuera por esto: {}", finding.spanish())
            }
            Self::WinsBy { part, model } => {
                format!(
                    "ganaría si conservara el {} de los tokens por segundo de {model}",
                    percent(*part)
                )
            }
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
