//! `berth key`: a new API key, and its entry in the file of keys.

use std::io::Read as _;
use std::process::ExitCode;

use berth_gateway::keys;

use crate::args::KeyArgs;
use crate::failure::Failure;
use crate::output;

/// Bytes of chance in a key.
const BYTES: usize = 32;

pub(crate) fn run(args: &KeyArgs) -> Result<ExitCode, Failure> {
    let is_plain = |letter: char| letter.is_ascii_alphanumeric() || "-_.".contains(letter);
    if args.name.is_empty() || !args.name.chars().all(is_plain) {
        let error = anyhow::anyhow!("`{}` is no name for a key", args.name);
        return Err(Failure::bad_spec(error).hint("use letters, digits, and - _ ."));
    }
    let mut chance = [0; BYTES];
    std::fs::File::open("/dev/urandom")
        .and_then(|mut file| file.read_exact(&mut chance))
        .map_err(Failure::new)?;
    let digits: String = chance.iter().map(|byte| format!("{byte:02x}")).collect();
    let secret = format!("berth-{digits}");
    output::talk(&format!(
        "the key, which is shown once and kept nowhere:\n\n    {secret}\n\nits entry in the file of keys:\n"
    ));
    output::data(keys::entry(&args.name, &secret).trim_end());
    Ok(ExitCode::SUCCESS)
}
