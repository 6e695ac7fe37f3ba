//! The token that a Ray cluster may want: from a file, else from the environment. Never shown.

use berth_core::spec::RaySpec;

use super::client::RayError;

/// Ray's own variable for it.
const VARIABLE: &str = "RAY_AUTH_TOKEN";

/// The token, if there is one.
///
/// # Errors
/// Where the file that the spec names can't be read.
pub fn read(spec: &RaySpec) -> Result<Option<String>, RayError> {
    let Some(file) = &spec.token_file else {
        return Ok(std::env::var(VARIABLE).ok().filter(|token| !token.is_empty()));
    };
    let unreadable =
        |error: std::io::Error| RayError::NoToken { file: file.clone(), source: error };
    let token = std::fs::read_to_string(file).map_err(unreadable)?;
    Ok(Some(token.trim().to_owned()))
}
