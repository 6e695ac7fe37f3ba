//! The command line.

use std::net::SocketAddr;
use std::path::PathBuf;

use berth_core::strategy::what_if::WhatIf;
use berth_core::units::Bytes;

use clap::{Args as ClapArgs, Parser, Subcommand};

/// Fit several LLMs onto fixed hardware, prove that they fit, and run them behind one address.
#[derive(Debug, Parser)]
#[command(version, propagate_version = true, after_help = EXIT_CODES)]
pub(crate) struct Args {
    #[command(subcommand)]
    pub(crate) command: Command,
    /// Where berth keeps its journal, logs and locks
    #[arg(long, global = true, env = "BERTH_STATE", default_value_os_t = default_state(), hide_default_value = true)]
    pub(crate) state: PathBuf,
    /// Say more about what is being done
    #[arg(short, long, global = true)]
    pub(crate) verbose: bool,
}

const EXIT_CODES: &str = "Exit codes: 0 done; 1 failed; 2 bad usage or spec; 3 does not fit; 4 can't be told (`berth prove`).\n\
     Without --state: $BERTH_STATE, or berth/ in $XDG_STATE_HOME or ~/.local/state.";

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Look at a Ray cluster or this machine, and write a first spec
    Init(InitArgs),
    /// What one model takes, term by term; or many cases from a file
    Fit(FitArgs),
    /// Learn from vLLM's own log what it took on your GPUs
    Calibrate(CalibrateArgs),
    /// Which model goes where, and why; changes nothing
    Plan(ComparingArgs),
    /// Why a model is where it is, why not elsewhere, and what is in the way
    Explain(ExplainArgs),
    /// What is wrong before anything is tried: with this machine, a Ray cluster, or a Serve config
    Doctor(DoctorArgs),
    /// Make the plan so, and leave it running
    Apply(ApplyArgs),
    /// Bring the plan before the one in force back, or the last one of a strategy
    Rollback(RollbackArgs),
    /// Plan, apply, and serve until Ctrl-C, which stops what was started
    Up(UpArgs),
    /// Watch over what is applied and serve it; Ctrl-C leaves the engines running
    Serve(ServeArgs),
    /// Saturate all models at once, and say whether what is in force holds: PASS, FAIL or INCONCLUSIVE
    Prove(ProveArgs),
    /// A gateway alone: to the servers of a spec, or by the routes that a controller writes
    Gateway(GatewayArgs),
    /// A new API key for the gateway, and its entry in the file of keys
    Key(KeyArgs),
    /// What runs, and its planned, reported and observed memory
    Status(StatusArgs),
    /// Memory as bars, live: what is planned, what is held and by whom, what is wrong
    Top(TopArgs),
    /// Look at this machine's memory, and say what is seen to Prometheus; it needs nothing else of berth
    Agent(AgentArgs),
    /// Stop what berth started, and nothing else
    Down(StatusArgs),
    /// The JSON schema of the spec
    Schema,
}

#[derive(Debug, ClapArgs)]
pub(crate) struct InitArgs {
    /// The file to write; one that is there stays
    #[arg(short, long, value_name = "FILE", default_value = "berth.toml")]
    pub(crate) file: PathBuf,
    /// A Ray cluster's dashboard [default: http://127.0.0.1:8265 where one answers, else this machine]
    #[arg(long, value_name = "URL")]
    pub(crate) ray: Option<String>,
    /// A model to begin with: as `source` in a spec; may be repeated
    #[arg(long, value_name = "SOURCE")]
    pub(crate) model: Vec<String>,
}

#[derive(Debug, ClapArgs)]
#[command(after_help = FIT_EXAMPLES)]
pub(crate) struct FitArgs {
    /// For vLLM a folder with a config.json, a name that berth knows, or a repository on the hub; a .gguf
    /// file for llama.cpp (on the CPU without --gpu); ollama:FILE.gguf for Ollama
    #[arg(required_unless_present = "cases", conflicts_with = "cases")]
    pub(crate) model: Option<String>,
    /// The GPUs' kind (A10, H100...) or the size of one as CUDA sees it ("22.06 GiB")
    #[arg(long, value_name = "KIND")]
    pub(crate) gpu: Option<String>,
    /// How many GPUs there are; as many as the flags need where it isn't said
    #[arg(long, value_name = "N")]
    pub(crate) gpus: Option<usize>,
    /// What other processes hold on each GPU
    #[arg(long, value_name = "BYTES")]
    pub(crate) foreign: Option<Bytes>,
    /// Another model with its flags, started next on the same GPUs; may be repeated
    #[arg(long, value_name = "MODEL FLAGS")]
    pub(crate) then: Vec<String>,
    /// vLLM's version
    #[arg(long, value_name = "VERSION", default_value = "0.26.0")]
    pub(crate) engine_version: String,
    /// What to look for, instead of what the flags give
    #[arg(long, value_enum, value_name = "WHAT")]
    pub(crate) find: Option<Find>,
    /// With --find utilization: requests at once
    #[arg(long, value_name = "N", requires = "tokens")]
    pub(crate) requests: Option<u64>,
    /// With --requests: tokens of each
    #[arg(long, value_name = "N", requires = "requests")]
    pub(crate) tokens: Option<u64>,
    /// With --find utilization: what must stay free on each GPU
    #[arg(long, value_name = "BYTES", conflicts_with = "requests")]
    pub(crate) leave: Option<Bytes>,
    /// A file with one case a line, as JSON
    #[arg(long, value_name = "FILE.jsonl")]
    pub(crate) cases: Option<PathBuf>,
    /// Where the cases' models are: NAME.gguf, NAME/config.json
    #[arg(long, value_name = "DIR", default_value = ".")]
    pub(crate) models: PathBuf,
    /// Print JSON
    #[arg(long)]
    pub(crate) json: bool,
    /// The engine's flags, after `--`
    #[arg(last = true)]
    pub(crate) flags: Vec<String>,
}

const FIT_EXAMPLES: &str = "Examples:
  berth fit medgemma-27b --gpu A10 -- --tensor-parallel-size 4 --gpu-memory-utilization 0.9
  berth fit medgemma-27b-text --gpu H100 --then \"medgemma-4b --gpu-memory-utilization 0.17\" -- --gpu-memory-utilization 0.8
  berth fit llama-3.1-8b --gpu L4 --find utilization --requests 8 --tokens 4096
  berth fit llama-3.1-8b --gpu H100 --find utilization --leave 20GiB
  berth fit qwen3-8b --gpu A10 --find length
  berth fit medgemma-27b --gpu A10 --gpus 4 --find layout
  berth fit ollama:medgemma-4b-q8.gguf --gpu A10 -- --num-ctx 8192";

/// What `berth fit` can look for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum Find {
    /// The smallest gpu_memory_utilization for --requests of --tokens, or the largest that leaves --leave
    Utilization,
    /// The largest max_model_len
    Length,
    /// Which tensor_parallel_size, pipeline_parallel_size and quantization fit
    Layout,
}

#[derive(Debug, ClapArgs)]
pub(crate) struct CalibrateArgs {
    /// vLLM's log of a start, from its first line on; may be repeated
    #[arg(long, required_unless_present = "load", value_name = "FILE")]
    pub(crate) log: Vec<PathBuf>,
    /// A load test's points instead, one a line as JSON: batch, prompt_tokens, answer_tokens, token_ms
    #[arg(long, value_name = "FILE", conflicts_with = "log")]
    pub(crate) load: Option<PathBuf>,
    /// The model that it started
    #[arg(long)]
    pub(crate) model: String,
    /// The kind of GPU
    #[arg(long, value_name = "KIND")]
    pub(crate) gpu: String,
    /// Only show; change nothing
    #[arg(long)]
    pub(crate) dry_run: bool,
    /// The flags that it was started with, after `--`
    #[arg(last = true)]
    pub(crate) flags: Vec<String>,
}

#[derive(Debug, ClapArgs)]
pub(crate) struct PlanArgs {
    /// The spec
    #[arg(short, long, value_name = "FILE", default_value = "berth.toml")]
    pub(crate) file: PathBuf,
    /// A strategy of the spec, by its name
    #[arg(long, value_name = "NAME")]
    pub(crate) strategy: Option<String>,
    /// Print JSON
    #[arg(long)]
    pub(crate) json: bool,
}

#[derive(Debug, ClapArgs)]
pub(crate) struct ApplyArgs {
    #[command(flatten)]
    pub(crate) plan: PlanArgs,
    /// Bring the plan into force that berth advises (`berth status` shows it)
    #[arg(long, conflicts_with_all = ["file", "strategy"])]
    pub(crate) advised: bool,
    /// Prove it then (`berth prove`), and go back where it fails; a running berth has to serve it
    #[arg(long)]
    pub(crate) prove: bool,
    /// With --prove: seconds of the steady load
    #[arg(long, value_name = "SECONDS", default_value = "60", requires = "prove", value_parser = clap::value_parser!(u64).range(1..=86_400))]
    pub(crate) duration: u64,
}

#[derive(Debug, ClapArgs)]
#[command(after_help = PLAN_EXAMPLES)]
pub(crate) struct ComparingArgs {
    #[command(flatten)]
    pub(crate) plan: PlanArgs,
    /// Set all strategies side by side, those of the spec and those that berth finds
    #[arg(long)]
    pub(crate) compare: bool,
    /// Write the comparison as a document too: .md or .html
    #[arg(long, value_name = "FILE", requires = "compare")]
    pub(crate) report: Option<PathBuf>,
    /// Show what would become of it: add=4 nodes, lose=NODE, gpu=KIND, demand=2 times; may be repeated
    #[arg(long, value_name = "CHANGE", conflicts_with = "compare")]
    pub(crate) what_if: Vec<WhatIf>,
    /// Print it in another program's words instead: Ray Serve, ray.serve.llm, KubeRay, a shell, systemd
    #[arg(long, value_enum, value_name = "WHAT", conflicts_with_all = ["compare", "what_if"])]
    pub(crate) emit: Option<Emit>,
    /// With --emit ray or kuberay: the folder on every node that has the module that starts engines; it is
    /// written there
    #[arg(long, value_name = "FOLDER", requires = "emit")]
    pub(crate) module: Option<PathBuf>,
    /// The language of the report
    #[arg(long, value_name = "LANGUAGE", default_value = "en", value_parser = ["en", "es"])]
    pub(crate) lang: String,
}

/// In whose words `berth plan --emit` prints.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum Emit {
    /// A config for Ray Serve, with the lines that start the cluster
    Ray,
    /// A config for Ray's own ray.serve.llm
    RayServeLlm,
    /// A RayService for Kubernetes
    Kuberay,
    /// Commands for a shell
    Vllm,
    /// Units for systemd
    Systemd,
}

#[derive(Debug, ClapArgs)]
pub(crate) struct RollbackArgs {
    /// The strategy whose last plan is meant
    #[arg(value_name = "STRATEGY")]
    pub(crate) strategy: Option<String>,
    /// Print JSON
    #[arg(long)]
    pub(crate) json: bool,
}

#[derive(Debug, ClapArgs)]
pub(crate) struct ExplainArgs {
    /// A model, a deployment or a node
    pub(crate) what: String,
    #[command(flatten)]
    pub(crate) plan: PlanArgs,
}

const PLAN_EXAMPLES: &str = "Examples:
  berth plan -f examples/two-models.toml
  berth plan -f examples/medgemma-16x4.toml --compare
  berth plan -f examples/medgemma-16x4.toml --strategy 1A-lower-090
  berth plan -f examples/medgemma-16x4.toml --strategy half-fp8 --what-if lose=node-3
  berth plan -f examples/medgemma-16x4.toml --compare --report report.html --lang es
  berth plan -f examples/medgemma-16x4.toml --strategy 2-dedicate --emit ray --module /opt/berth";

#[derive(Debug, ClapArgs)]
pub(crate) struct UpArgs {
    #[command(flatten)]
    pub(crate) plan: PlanArgs,
    /// The gateway's address, in place of the spec's; on loopback
    #[arg(long, value_name = "ADDR:PORT")]
    pub(crate) listen: Option<SocketAddr>,
    #[command(flatten)]
    pub(crate) dashboard: DashboardArgs,
    /// Rehearse on emulated machines: those of [[cluster.nodes]], with emulated engines behind real sockets
    #[arg(long)]
    pub(crate) emulate: bool,
    /// With --emulate: how many times faster than real ones engines start and answer
    #[arg(long, value_name = "TIMES", default_value = "20", requires = "emulate")]
    pub(crate) speedup: f64,
}

#[derive(Debug, ClapArgs)]
pub(crate) struct DoctorArgs {
    /// The spec
    #[arg(short, long, value_name = "FILE", default_value = "berth.toml")]
    pub(crate) file: PathBuf,
    /// A config for Ray Serve instead, in YAML or JSON: keys that Ray would ignore, values that fail late
    #[arg(long, value_name = "FILE")]
    pub(crate) serve_config: Option<PathBuf>,
}

#[derive(Debug, ClapArgs)]
pub(crate) struct ServeArgs {
    #[command(flatten)]
    pub(crate) dashboard: DashboardArgs,
}

#[derive(Debug, ClapArgs)]
pub(crate) struct DashboardArgs {
    /// The dashboard's address, or `off`; beyond loopback it needs a password [default: 127.0.0.1:8090, or any free
    /// port where that is taken]
    #[arg(long, value_name = "ADDR:PORT", value_parser = where_to)]
    pub(crate) dashboard: Option<Where>,
    /// A file with the dashboard's password [default: what BERTH_DASHBOARD_PASSWORD says, else none]
    #[arg(long, value_name = "FILE")]
    pub(crate) dashboard_password: Option<PathBuf>,
}

/// Where the dashboard is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Where {
    /// At an address.
    At(SocketAddr),
    /// Nowhere.
    Off,
}

fn where_to(text: &str) -> Result<Where, String> {
    match text {
        "off" => Ok(Where::Off),
        address => match address.parse() {
            Ok(address) => Ok(Where::At(address)),
            Err(_) => Err("write ADDRESS:PORT, as in 127.0.0.1:8090, or off".to_owned()),
        },
    }
}

#[derive(Clone, Debug, ClapArgs)]
pub(crate) struct ProveArgs {
    /// Seconds of the steady load that follows the worst
    #[arg(long, value_name = "SECONDS", default_value = "60", value_parser = clap::value_parser!(u64).range(1..=86_400))]
    pub(crate) duration: u64,
    /// Its requests a second of each model [default: the spec's demand, else half of what the models were seen to be
    /// good for]
    #[arg(long, value_name = "N", value_parser = positive)]
    pub(crate) rate: Option<f64>,
    /// A request meets its target where its first token comes within so many milliseconds...
    #[arg(long, value_name = "MS")]
    pub(crate) ttft: Option<f64>,
    /// ...each further one within so many on average...
    #[arg(long, value_name = "MS")]
    pub(crate) itl: Option<f64>,
    /// ...and the whole answer within so many; without any of these no latency is judged
    #[arg(long, value_name = "MS")]
    pub(crate) e2e: Option<f64>,
    /// Requests of the steady load: ShareGPT's JSON, or OpenAI's batch lines
    #[arg(long, value_name = "FILE")]
    pub(crate) dataset: Option<PathBuf>,
    /// When the steady load's requests are sent: seconds, a line each, or lines of JSON with "timestamp"
    #[arg(long, value_name = "FILE", conflicts_with = "rate")]
    pub(crate) trace: Option<PathBuf>,
    /// The same load as with this number before, whose prompts engines may remember [default: another each time]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(..1 << 48))]
    pub(crate) seed: Option<u64>,
    /// Print JSON
    #[arg(long)]
    pub(crate) json: bool,
}

fn positive(text: &str) -> Result<f64, String> {
    let number: Option<f64> = text.parse().ok();
    number
        .filter(|number| number.is_finite() && *number > 0.0)
        .ok_or_else(|| "write a number above zero, as in 0.5".to_owned())
}

impl ProveArgs {
    /// What is proved where nobody says more.
    pub(crate) fn of(duration: u64) -> Self {
        let (rate, ttft, itl, e2e) = (None, None, None, None);
        let (dataset, trace) = (None, None);
        Self { duration, rate, ttft, itl, e2e, dataset, trace, seed: None, json: false }
    }
}

#[derive(Debug, ClapArgs)]
pub(crate) struct GatewayArgs {
    /// A spec whose models are all `external`: it needs nothing else, and is read again when it changes
    #[arg(short = 'f', long = "spec", value_name = "SPEC", conflicts_with = "routes")]
    pub(crate) spec: Option<PathBuf>,
    /// The file of routes [default: routes.json in the state folder, which `berth serve` keeps up to date]
    #[arg(long, value_name = "FILE")]
    pub(crate) routes: Option<PathBuf>,
    /// Address and port [default: the spec's, else 127.0.0.1:8080]
    #[arg(long)]
    pub(crate) listen: Option<SocketAddr>,
    /// Threads [default: as many as there are processors]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=1024))]
    pub(crate) workers: Option<u16>,
    /// The file of API keys; it is read again when it changes
    #[arg(long, value_name = "FILE")]
    pub(crate) keys: Option<PathBuf>,
    /// A certificate in PEM, for https
    #[arg(long, value_name = "FILE", requires = "certificate_key")]
    pub(crate) certificate: Option<PathBuf>,
    /// The certificate's key
    #[arg(long, value_name = "FILE", requires = "certificate")]
    pub(crate) certificate_key: Option<PathBuf>,
    /// Listen beyond loopback without keys
    #[arg(long)]
    pub(crate) allow_remote: bool,
    /// A line in the log for each request, without what it asks
    #[arg(long)]
    pub(crate) access_log: bool,
}

#[derive(Debug, ClapArgs)]
pub(crate) struct TopArgs {
    /// Once, and not again and again
    #[arg(long)]
    pub(crate) once: bool,
    /// As JSON, a line a look
    #[arg(long)]
    pub(crate) json: bool,
}

#[derive(Debug, ClapArgs)]
pub(crate) struct AgentArgs {
    /// Address and port of /metrics
    #[arg(long, default_value = "127.0.0.1:9410")]
    pub(crate) listen: SocketAddr,
    /// Listen beyond loopback: whoever reaches it sees what processes hold memory here
    #[arg(long)]
    pub(crate) allow_remote: bool,
}

#[derive(Debug, ClapArgs)]
pub(crate) struct KeyArgs {
    /// The key's name, in logs and metrics
    pub(crate) name: String,
}

#[derive(Debug, ClapArgs)]
pub(crate) struct StatusArgs {
    /// Print JSON
    #[arg(long)]
    pub(crate) json: bool,
}

fn default_state() -> PathBuf {
    let var = |name| std::env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
    let state = var("XDG_STATE_HOME");
    let home = || var("HOME").unwrap_or_default().join(".local").join("state");
    state.unwrap_or_else(home).join("berth")
}
