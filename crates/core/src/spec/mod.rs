//! What the user asked for: one TOML file, parsed low and validated high.
//!
//! - [`raw`]: the file as it is written; strict, so a misspelt key is an error. The JSON schema
//!   comes from these types.
//! - `overlay`: a strategy laid over a spec
//! - `validate`: [`Spec`], where what can't work can't be said
//! - [`deployment`]: the groups of instances that a model is run as
//! - [`domains`]: failure domains, and how instances are spread over them
//! - [`external`]: servers that somebody else runs
//! - [`nodes`]: machines that are planned for, and rules that choose among machines
//! - `source`, `check_flags`: where weights are; whether an engine has a flag
//! - [`error`]: errors that name line, column and the nearest right key
//! - [`gateway`]: the one address, who may use it, and which requests go where
//! - [`flags`]: the engines' own flags, passed through under their own names

mod check_flags;
pub mod deployment;
pub mod domains;
pub mod error;
pub mod external;
pub mod flags;
pub mod gateway;
pub mod nodes;
mod overlay;
pub mod raw;
mod source;
mod validate;

pub use deployment::{AssumedFacts, Deployment, Running};
pub use domains::{Beside, Domain, Spread, unknown_domain};
pub use error::{SpecError, SpecProblem};
pub use external::External;
pub use flags::{FlagValue, Flags};
pub use gateway::{GatewaySpec, HeaderIs, RouteRule, TlsFiles};
pub use nodes::NodeRule;
pub use raw::{Backend, Demand, EngineKind, RawWritten as Written, Replicas};
pub use source::{DeviceSelector, Source};
pub(crate) use validate::PORT_RANGE;
pub use validate::{ClusterSpec, RaySpec, Spec, Strategy};

/// The JSON schema of the file, for editors; a test keeps `berth.schema.json` equal to it.
pub fn json_schema() -> serde_json::Value {
    schemars::schema_for!(raw::RawSpec).into()
}
