//! The words that an engine is started with, less the port, which the placement decides.

use std::collections::BTreeMap;

use crate::memory::llama_cpp::flags;
use crate::memory::ollama::Request;
use crate::plan::LibraryModel;
use crate::spec::flags as spec_flags;
use crate::spec::{Deployment, EngineKind, FlagValue, Flags};

/// Memory that llama-server takes only as requests come, and without a bound worth the name: past
/// prompts in up to 8 GiB, and up to 32 states of the sliding layers for each slot. A plan counts
/// what these flags allow, so they are small unless the spec asks for more.
const BOUNDED: &[(&str, &str)] = &[("--cache-ram", "0"), ("--ctx-checkpoints", "4")];

/// The words that memory depends on: the model's own flags, what berth pins so that the budget
/// holds, and what is known of the extra words.
pub(super) fn memory_args(model: &Deployment) -> Vec<String> {
    let mut args = llama_server_args(model);
    args.extend(flags::known_words(&model.extra_args));
    args
}

/// The model's own flags as words, and after them what berth pins.
fn llama_server_args(model: &Deployment) -> Vec<String> {
    let mut args: Vec<String> =
        model.flags.iter().flat_map(|(name, value)| flags::words(name, value)).collect();
    let extra = flags::known_words(&model.extra_args);
    for (flag, value) in BOUNDED {
        let is_given =
            |word: &String| flags::find(word).is_some_and(|found| found.spellings.contains(flag));
        if !args.iter().chain(&extra).any(is_given) {
            args.extend([*flag, *value].map(str::to_owned));
        }
    }
    args
}

/// Where an instance listens, and what it runs on.
pub(super) struct Listen<'a> {
    /// The address.
    pub(super) host: &'a str,
    /// The port.
    pub(super) port: u16,
    /// Whether it has GPUs; else it is kept to the host's memory.
    pub(super) on_gpus: bool,
}

/// How an instance is started.
#[derive(Debug, PartialEq)]
pub(super) struct Start {
    /// All its arguments.
    pub(super) args: Vec<String>,
    /// What its environment has beside what its machine gives it.
    pub(super) environment: BTreeMap<String, String>,
    /// What it is told to load once it answers.
    pub(super) library: Option<LibraryModel>,
}

impl Start {
    /// The start of a model whose weights are at `path`.
    pub(super) fn new(model: &Deployment, path: &str, listen: &Listen<'_>) -> Self {
        let args = args(model, path, listen);
        match model.engine {
            EngineKind::LlamaServer | EngineKind::Vllm => {
                Self { args, environment: BTreeMap::new(), library: None }
            }
            EngineKind::Ollama => {
                let request = ollama_request(&model.flags);
                let Request { num_ctx, num_batch, .. } = request;
                let library = LibraryModel { name: path.to_owned(), num_ctx, num_batch };
                Self {
                    args,
                    environment: ollama_environment(request, listen),
                    library: Some(library),
                }
            }
        }
    }
}

/// What makes an Ollama server hold one model for good, and nothing else (`envconfig/config.go` of Ollama at
/// fb30760).
fn ollama_environment(request: Request, listen: &Listen<'_>) -> BTreeMap<String, String> {
    let Listen { host, port, .. } = listen;
    let host = match host.contains(':') {
        true => format!("[{host}]:{port}"),
        false => format!("{host}:{port}"),
    };
    let mut environment = BTreeMap::from([
        ("OLLAMA_HOST", host),
        ("OLLAMA_KEEP_ALIVE", "-1".to_owned()),
        ("OLLAMA_MAX_LOADED_MODELS", "1".to_owned()),
        // Models of somebody else's machine are not what is planned.
        ("OLLAMA_NO_CLOUD", "1".to_owned()),
        // Servers that share a folder would throw away what another one is pulling.
        ("OLLAMA_NOPRUNE", "1".to_owned()),
        ("OLLAMA_NUM_PARALLEL", request.num_parallel.to_string()),
    ]);
    if let Some(num_ctx) = request.num_ctx {
        environment.insert("OLLAMA_CONTEXT_LENGTH", num_ctx.to_string());
    }
    environment.into_iter().map(|(name, value)| (name.to_owned(), value)).collect()
}

/// What flags say of what Ollama decides.
pub(super) fn ollama_request(flags: &Flags) -> Request {
    let number = |name: &str| match flags.get(name) {
        Some(FlagValue::Int(number)) => u64::try_from(*number).ok(),
        _ => None,
    };
    Request {
        num_ctx: number("num_ctx"),
        num_parallel: number("num_parallel").unwrap_or(1),
        num_batch: number("num_batch"),
    }
}

/// All arguments of an instance.
fn args(model: &Deployment, path: &str, listen: &Listen<'_>) -> Vec<String> {
    let Listen { host, port, on_gpus } = listen;
    match model.engine {
        EngineKind::LlamaServer => {
            let port = port.to_string();
            let own = ["--model", path, "--alias", &model.model, "--host", host, "--port", &port];
            // Verbosity 4 makes it log every buffer, which the ledger reads.
            let seen = ["--metrics", "--log-verbosity", "4"];
            // Pages in a browser may not talk to the engine behind the gateway's back.
            let closed = ["--no-webui", "--cors-origins", "http://127.0.0.1"];
            // Host memory is what is planned: a build that finds a GPU would use it by itself.
            let device: &[&str] = if *on_gpus { &[] } else { &["--device", "none"] };
            let own = own
                .into_iter()
                .chain(device.iter().copied())
                .chain(seen)
                .chain(closed)
                .map(str::to_owned);
            own.chain(llama_server_args(model)).chain(model.extra_args.iter().cloned()).collect()
        }
        EngineKind::Vllm => {
            let port = port.to_string();
            let own = ["serve", path, "--served-model-name", &model.model];
            let own = own.into_iter().chain(["--host", host, "--port", &port]);
            let flags = model.flags.iter().flat_map(|(name, value)| vllm_words(name, value));
            let extra = model.extra_args.iter().cloned();
            own.map(str::to_owned).chain(flags).chain(extra).collect()
        }
        EngineKind::Ollama => vec!["serve".to_owned()],
    }
}

/// A flag of vLLM's, spelled as on its command line.
fn vllm_words(name: &str, value: &FlagValue) -> Vec<String> {
    let spelled = name.replace('_', "-");
    spec_flags::words(&format!("--{spelled}"), Some(&format!("--no-{spelled}")), value)
}
