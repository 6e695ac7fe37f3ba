//! The dashboard of a running berth.
//!
//! - [`feed`]: what changes, as long as somebody looks
//! - [`source`]: what is asked for and done, from the journal and the spec

pub(crate) mod feed;
mod source;

use std::net::{Ipv4Addr, SocketAddr};
use std::path::Path;
use std::sync::Arc;

use anyhow::Context as _;
use berth_cluster::local::StateDir;
use berth_dashboard::Settings;
use tokio::net::TcpListener;

use crate::args::{DashboardArgs, Where};
use crate::failure::Failure;
use crate::output;
use feed::Feed;
use source::OfState;

/// Where it is, unless somebody says otherwise.
const USUAL: SocketAddr = SocketAddr::new(std::net::IpAddr::V4(Ipv4Addr::LOCALHOST), 8090);
const PASSWORD: &str = "BERTH_DASHBOARD_PASSWORD";

/// Serves it beside everything else; what it is fed with, or none where there shall be no dashboard.
pub(crate) async fn start(
    dir: &StateDir,
    args: &DashboardArgs,
    gateway: SocketAddr,
) -> Result<Option<Feed>, Failure> {
    let address = match args.dashboard {
        Some(Where::Off) => return Ok(None),
        Some(Where::At(address)) => Some(address),
        None => None,
    };
    let password = password(args.dashboard_password.as_deref())?;
    if address.is_some_and(|address| !address.ip().is_loopback()) && password.is_none() {
        let error =
            anyhow::anyhow!("the dashboard may be asked from elsewhere and has no password");
        return Err(Failure::bad_spec(error).hint(format!(
            "name a file with one as --dashboard-password FILE, set {PASSWORD}, or keep it on 127.0.0.1"
        )));
    }
    let listener = listen(address).await?;
    let listens = listener.local_addr().map_err(Failure::new)?;
    let (feed, live) = Feed::new();
    let settings = Settings { password, gateway, version: env!("CARGO_PKG_VERSION") };
    let source = Arc::new(OfState::new(dir.clone()));
    tokio::spawn(async move {
        if let Err(error) = berth_dashboard::serve(listener, settings, source, live).await {
            tracing::warn!(%error, "the dashboard has ended");
        }
    });
    tokio::spawn(feed.clone().follow_status(dir.clone()));
    output::talk(&format!("dashboard at http://{listens}"));
    Ok(Some(feed))
}

/// At an address that was asked for, else at the usual one or wherever there is room.
async fn listen(address: Option<SocketAddr>) -> Result<TcpListener, Failure> {
    if let Some(address) = address {
        return TcpListener::bind(address).await.map_err(|error| {
            let text = format!("the dashboard can't listen on {address}");
            Failure::new(anyhow::Error::new(error).context(text))
                .hint("stop what listens there, or name another with --dashboard ADDR:PORT")
        });
    }
    match TcpListener::bind(USUAL).await {
        Ok(listener) => Ok(listener),
        Err(_) => TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.map_err(Failure::new),
    }
}

/// The password of a file, else of the environment.
fn password(file: Option<&Path>) -> Result<Option<String>, Failure> {
    let said = match file {
        Some(file) => {
            let text = std::fs::read_to_string(file)
                .with_context(|| format!("the password's file {} can't be read", file.display()));
            Some(text.map_err(Failure::bad_spec)?)
        }
        None => std::env::var(PASSWORD).ok(),
    };
    let Some(said) = said else { return Ok(None) };
    match said.trim_end_matches(['\r', '\n']) {
        "" => Err(Failure::bad_spec(anyhow::anyhow!("the dashboard's password is empty"))
            .hint("write one, or leave --dashboard-password out")),
        password => Ok(Some(password.to_owned())),
    }
}
