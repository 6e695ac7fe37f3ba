//! The words that an engine is started with, less the port, which the placement decides.

use crate::memory::llama_cpp::flags;
use crate::spec::flags as spec_flags;
use crate::spec::{Deployment, EngineKind, FlagValue};

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

/// All arguments of an instance.
pub(super) fn args(model: &Deployment, path: &str, listen: &Listen<'_>) -> Vec<String> {
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
