//! `berth gateway`: a gateway alone. It takes its routes from a file that a controller writes, and goes on with them
//! when that is gone; any number of them can run side by side.

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use berth_core::spec::{GatewaySpec, TlsFiles};
use berth_gateway::{Gateway, Table};

use crate::args::GatewayArgs;
use crate::failure::Failure;
use crate::files::{self, LOOK};
use crate::in_flight::Said;
use crate::lifecycle::{self, DRAIN_LIMIT};
use crate::output;
use crate::prepare;

pub(crate) fn run(state: &Path, args: &GatewayArgs) -> Result<ExitCode, Failure> {
    let routes = match &args.routes {
        Some(file) => file.clone(),
        None => prepare::state_dir(state)?.routes(),
    };
    if !args.listen.ip().is_loopback() && args.keys.is_none() && !args.allow_remote {
        let error = anyhow::anyhow!("{} is reachable from other machines", args.listen);
        return Err(Failure::bad_spec(error).hint(
            "name a file of keys with --keys (`berth key` makes them), or say --allow-remote if anybody who \
             reaches it may use the models",
        ));
    }
    let text = |path: &PathBuf| path.display().to_string();
    let tls = args.certificate.as_ref().zip(args.certificate_key.as_ref());
    let spec = GatewaySpec {
        listen: args.listen,
        keys: args.keys.as_ref().map(text),
        tls: tls
            .map(|(certificate, key)| TlsFiles { certificate: text(certificate), key: text(key) }),
        access_log: args.access_log,
        ..GatewaySpec::default()
    };
    let gateway = lifecycle::gateway(&spec)?;
    gateway.set_table(table(&routes)?);
    lifecycle::runtime()?.block_on(async {
        let listener = lifecycle::bind(args.listen).await?;
        output::talk(&format!("serving at {}, by {}", lifecycle::url(&spec), routes.display()));
        tokio::spawn(say(gateway.clone(), routes.clone()));
        tokio::spawn(follow(gateway.clone(), routes));
        tokio::spawn(lifecycle::follow_keys(gateway.clone(), args.keys.clone()));
        tokio::spawn({
            let gateway = gateway.clone();
            async move {
                lifecycle::signal().await;
                output::talk("finishing what runs");
                gateway.drain();
            }
        });
        gateway.serve(listener, DRAIN_LIMIT).await.map_err(Failure::new)?;
        Ok(ExitCode::SUCCESS)
    })
}

/// Takes up the routes whenever they change. A file that is broken changes nothing.
async fn follow(gateway: Gateway, routes: PathBuf) {
    let take_up = |file: &Path| {
        gateway.set_table(table(file)?);
        Ok(())
    };
    files::follow(&routes, "the routes", take_up).await;
}

/// Says what is in flight and what waits. Where that can't be written nobody drains for this gateway; it serves all
/// the same.
async fn say(gateway: Gateway, routes: PathBuf) {
    let Ok(said) = Said::new(&routes) else { return };
    loop {
        drop(said.say(&gateway));
        tokio::time::sleep(LOOK).await;
    }
}

fn table(file: &Path) -> Result<Table, Failure> {
    let text = std::fs::read_to_string(file).map_err(|error| {
        let what = format!("the routes {} can't be read", file.display());
        Failure::new(anyhow::Error::new(error).context(what)).hint(
            "`berth serve` or `berth up` writes them into its --state; --routes names another file",
        )
    })?;
    serde_json::from_str(&text).map_err(|error| {
        let what = anyhow::anyhow!("{}: {error}", file.display());
        Failure::bad_spec(what)
            .hint("it is written by `berth serve`; docs/gateway.md says what is in it")
    })
}
