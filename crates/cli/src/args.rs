//! The command line.

use std::net::SocketAddr;
use std::path::PathBuf;

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

const EXIT_CODES: &str = "Exit codes: 0 done; 1 failed; 2 bad usage or spec; 3 does not fit.\n\
     Without --state: $BERTH_STATE, or berth/ in $XDG_STATE_HOME or ~/.local/state.";

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// What one model takes, term by term; or many cases from a file
    Fit(FitArgs),
    /// Which model goes where, and why; changes nothing
    Plan(PlanArgs),
    /// Make the plan so, and leave it running
    Apply(PlanArgs),
    /// Plan, apply, and serve until Ctrl-C, which stops what was started
    Up(UpArgs),
    /// Watch over what is applied and serve it; Ctrl-C leaves the engines running
    Serve(ServeArgs),
    /// What runs, and its planned, reported and observed memory
    Status(StatusArgs),
    /// Stop what berth started, and nothing else
    Down(StatusArgs),
    /// The JSON schema of the spec
    Schema,
}

#[derive(Debug, ClapArgs)]
pub(crate) struct FitArgs {
    /// A .gguf file
    #[arg(required_unless_present = "cases", conflicts_with = "cases")]
    pub(crate) model: Option<PathBuf>,
    /// A file with one case a line, as JSON
    #[arg(long, value_name = "FILE.jsonl")]
    pub(crate) cases: Option<PathBuf>,
    /// Where the cases' models are: NAME.gguf
    #[arg(long, value_name = "DIR", default_value = ".")]
    pub(crate) models: PathBuf,
    /// Print JSON
    #[arg(long)]
    pub(crate) json: bool,
    /// The engine's flags, after `--`
    #[arg(last = true)]
    pub(crate) flags: Vec<String>,
}

#[derive(Debug, ClapArgs)]
pub(crate) struct PlanArgs {
    /// The spec
    #[arg(short, long, value_name = "FILE", default_value = "berth.toml")]
    pub(crate) file: PathBuf,
    /// Print JSON
    #[arg(long)]
    pub(crate) json: bool,
}

#[derive(Debug, ClapArgs)]
pub(crate) struct UpArgs {
    /// The spec
    #[arg(short, long, value_name = "FILE", default_value = "berth.toml")]
    pub(crate) file: PathBuf,
    /// The gateway's address, in place of the spec's; on loopback
    #[arg(long, value_name = "ADDR:PORT")]
    pub(crate) listen: Option<SocketAddr>,
}

#[derive(Debug, ClapArgs)]
pub(crate) struct ServeArgs {}

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
