//! What the user asked for: one TOML file, parsed low and validated high.
//!
//! - [`raw`]: the file as it is written; strict, so a misspelt key is an error. The JSON schema
//!   comes from these types.
//! - `validate`: [`Spec`], where what can't work can't be said
//! - [`error`]: errors that name line, column and the nearest right key
//! - [`flags`]: the engines' own flags, passed through under their own names

pub mod error;
pub mod flags;
pub mod raw;
mod validate;

pub use error::{SpecError, SpecProblem};
pub use flags::{FlagValue, Flags};
pub use raw::{Backend, EngineKind, Replicas};
pub(crate) use validate::PORT_RANGE;
pub use validate::{ClusterSpec, DeviceSelector, GatewaySpec, ModelSpec, Source, Spec};

/// The JSON schema of the file, for editors; a test keeps `berth.schema.json` equal to it.
pub fn json_schema() -> serde_json::Value {
    schemars::schema_for!(raw::RawSpec).into()
}
