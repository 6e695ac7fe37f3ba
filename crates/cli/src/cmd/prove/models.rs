//! What each model can be asked: how long, how many at once, and by whose tokenizer, as its engines say.

use std::collections::BTreeMap;
use std::time::Duration;

use berth_core::plan::{Plan, PlannedDevice, PlannedInstance};
use berth_core::spec::EngineKind;
use berth_core::units::Bytes;
use berth_engines::source::{Hub, transformer};
use serde_json::Value;

/// An engine has so long to say what it is.
const PATIENCE: Duration = Duration::from_secs(10);
/// vLLM's `max_num_seqs` where the plan sets none, on small cards and on large ones (`vllm/engine/arg_utils.py`).
const SEQUENCES: [u64; 2] = [256, 1024];
const LARGE_CARD: Bytes = Bytes::gib(70);
/// Ollama's context where nothing says another.
const OLLAMA_CONTEXT: u64 = 4096;

/// A model as its load is made.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Asked {
    /// The name that clients ask for.
    pub(super) model: String,
    /// An engine of it that counts tokens, and the model's name there; none where it can't.
    pub(super) tokenizer: Option<(String, String)>,
    /// Tokens of the longest request, answer included.
    pub(super) longest: u64,
    /// Tokens that its caches hold together.
    pub(super) cache_tokens: u64,
    /// Requests that its instances work on at once.
    pub(super) parallel: u64,
    /// Whether it sees.
    pub(super) takes_images: bool,
}

/// The models of a plan; an error names the one whose engines say nothing.
pub(super) fn asked(plan: &Plan) -> anyhow::Result<Vec<Asked>> {
    let mut models: BTreeMap<&str, Vec<&PlannedInstance>> = BTreeMap::new();
    for instance in &plan.instances {
        models.entry(&instance.model).or_default().push(instance);
    }
    let mut all = Vec::new();
    for (model, instances) in models {
        // Of several groups the one that takes least says how long a request may be.
        let says: Vec<Says> = instances.iter().filter_map(|one| says(plan, one)).collect();
        let Some(longest) = says.iter().map(|one| one.longest).min() else {
            anyhow::bail!("no engine of {model} says how long a request may be");
        };
        let counts = instances.iter().find(|one| one.engine != EngineKind::Ollama);
        all.push(Asked {
            model: model.to_owned(),
            tokenizer: counts.map(|one| (address(one), one.served_name().to_owned())),
            longest,
            cache_tokens: says.iter().map(|one| one.cache_tokens).sum(),
            parallel: says.iter().map(|one| one.parallel).sum(),
            takes_images: says.iter().all(|one| one.takes_images),
        });
    }
    Ok(all)
}

/// What one engine says.
struct Says {
    longest: u64,
    parallel: u64,
    cache_tokens: u64,
    takes_images: bool,
}

fn says(plan: &Plan, one: &PlannedInstance) -> Option<Says> {
    let (longest, parallel, takes_images) = match one.engine {
        EngineKind::Vllm => {
            let models = get(&format!("{}/v1/models", address(one)))?;
            let longest = models["data"][0]["max_model_len"].as_u64()?;
            let is_its = |it: &PlannedDevice| it.node == one.node && one.uses(&it.device);
            let large = plan.devices.iter().any(|it| is_its(it) && it.total >= LARGE_CARD);
            let usual = SEQUENCES[usize::from(large)];
            (longest, number_of(one, "--max-num-seqs").unwrap_or(usual), sees(one))
        }
        EngineKind::LlamaServer => {
            let props = get(&format!("{}/props", address(one)))?;
            let longest = props["default_generation_settings"]["n_ctx"].as_u64()?;
            let sees = props["modalities"]["vision"].as_bool().unwrap_or(false);
            (longest, props["total_slots"].as_u64().unwrap_or(1), sees)
        }
        EngineKind::Ollama => {
            let set = one.library.as_ref().and_then(|library| library.num_ctx);
            let parallel = one.environment.get("OLLAMA_NUM_PARALLEL");
            let parallel = parallel.and_then(|text| text.parse().ok()).unwrap_or(1);
            (set.unwrap_or(OLLAMA_CONTEXT), parallel, false)
        }
    };
    let cache_tokens = one.cache_tokens.unwrap_or(longest * parallel);
    Some(Says { longest, parallel: parallel.max(1), cache_tokens, takes_images })
}

fn address(one: &PlannedInstance) -> String {
    match one.host.contains(':') {
        true => format!("http://[{}]:{}", one.host, one.port),
        false => format!("http://{}:{}", one.host, one.port),
    }
}

fn get(url: &str) -> Option<Value> {
    let request = ureq::get(url).config().timeout_global(Some(PATIENCE)).build();
    serde_json::from_str(&request.call().ok()?.into_body().read_to_string().ok()?).ok()
}

fn number_of(one: &PlannedInstance, flag: &str) -> Option<u64> {
    let at = one.args.iter().position(|word| word == flag)?;
    one.args.get(at + 1)?.parse().ok()
}

/// Whether vLLM's model has a vision tower that is not turned off.
fn sees(one: &PlannedInstance) -> bool {
    // Whoever limits pictures may have limited them to none.
    let is_off = ["--language-model-only", "--limit-mm-per-prompt"]
        .iter()
        .any(|flag| one.args.iter().any(|word| word == flag));
    let model = one.args.get(1).map(|source| transformer(source, &Hub::from_env()));
    !is_off && matches!(model, Some(Ok(model)) if model.transformer.vision.is_some())
}
