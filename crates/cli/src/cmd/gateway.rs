//! `berth gateway`: a gateway alone. It takes its routes from a file that a controller writes, and goes on with them
//! when that is gone; any number of them can run side by side.

use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::{Duration, SystemTime};

use berth_gateway::{Gateway, Settings, Table};

use crate::args::GatewayArgs;
use crate::failure::Failure;
use crate::lifecycle::{self, DRAIN_LIMIT};
use crate::output;
use crate::prepare;

/// Between two looks at the files.
const LOOK: Duration = Duration::from_millis(200);

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
    let settings = Settings { access_log: args.access_log, ..Settings::default() };
    let gateway = Gateway::new(settings);
    gateway.set_table(table(&routes)?);
    if let Some(keys) = &args.keys {
        read_keys(&gateway, keys)?;
    }
    lifecycle::runtime()?.block_on(async {
        let listener = lifecycle::bind(args.listen).await?;
        output::talk(&format!("serving at http://{}, by {}", args.listen, routes.display()));
        tokio::spawn(follow(gateway.clone(), routes, args.keys.clone()));
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

/// Takes up what changes. A file that is broken changes nothing.
async fn follow(gateway: Gateway, routes: PathBuf, keys: Option<PathBuf>) {
    let mut seen = (changed(&routes), keys.as_deref().and_then(changed));
    loop {
        tokio::time::sleep(LOOK).await;
        let now = (changed(&routes), keys.as_deref().and_then(changed));
        if now.0 != seen.0 {
            match table(&routes) {
                Ok(table) => gateway.set_table(table),
                Err(failure) => {
                    failure.report();
                    output::talk("the routes stay as they were");
                }
            }
        }
        if let Some(keys) = keys.as_deref().filter(|_| now.1 != seen.1)
            && let Err(failure) = read_keys(&gateway, keys)
        {
            failure.report();
            output::talk("the keys stay as they were");
        }
        seen = now;
    }
}

fn changed(file: &Path) -> Option<(SystemTime, u64)> {
    let about = std::fs::metadata(file).ok()?;
    Some((about.modified().ok()?, about.len()))
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

/// Reads a file of keys into a gateway.
pub(crate) fn read_keys(gateway: &Gateway, file: &Path) -> Result<(), Failure> {
    gateway.read_keys(file).map_err(|error| {
        Failure::bad_spec(anyhow::Error::new(error))
            .hint("`berth key NAME` prints a new key and its entry")
    })
}
