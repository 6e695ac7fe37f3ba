//! The binary `berth`: fits several LLMs onto fixed hardware, proves it, and runs them.

use std::process::ExitCode;

use clap::Parser as _;

mod advise;
mod args;
mod cmd;
mod dashboard;
mod failure;
mod files;
mod in_flight;
mod learn;
mod lifecycle;
mod output;
mod prepare;
mod proofs;
mod publish;
mod webhook;

fn main() -> ExitCode {
    let args = args::Args::parse();
    output::start_log(args.verbose);
    files::raise_limit();
    match run(args) {
        Ok(code) => code,
        Err(failure) => failure.report(),
    }
}

fn run(args: args::Args) -> Result<ExitCode, failure::Failure> {
    use args::Command;
    match args.command {
        Command::Init(init) => cmd::init::run(&init),
        Command::Fit(fit) => cmd::fit::run(&args.state, &fit),
        Command::Calibrate(calibrate) => cmd::calibrate::run(&args.state, &calibrate),
        Command::Plan(plan) => cmd::plan::run(&args.state, &plan),
        Command::Explain(explain) => cmd::explain::run(&args.state, &explain),
        Command::Apply(apply) => cmd::apply::run(&args.state, &apply),
        Command::Rollback(rollback) => cmd::rollback::run(&args.state, &rollback),
        Command::Up(up) => cmd::up::run(&args.state, &up),
        Command::Serve(serve) => cmd::serve::run(&args.state, &serve),
        Command::Prove(prove) => cmd::prove::run(&args.state, &prove),
        Command::Gateway(gateway) => cmd::gateway::run(&args.state, &gateway),
        Command::Key(key) => cmd::key::run(&key),
        Command::Status(status) => cmd::status::run(&args.state, &status),
        Command::Top(top) => cmd::top::run(&args.state, &top),
        Command::Agent(agent) => cmd::agent::run(&args.state, &agent),
        Command::Down(down) => cmd::down::run(&args.state, &down),
        Command::Doctor(doctor) => cmd::doctor::run(&args.state, &doctor),
        Command::Schema => cmd::schema::run(),
    }
}
