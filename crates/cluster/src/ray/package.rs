//! The Python module that starts engines on a cluster's nodes, as Ray takes it: a zip in its own store.
//!
//! Ray forgets a package some time after the last replica that uses it, so it is looked for, and put
//! there anew, before each change.

use std::fs;
use std::io::{self, Cursor, Write as _};
use std::path::Path;

use berth_core::digest::Digest;
use zip::write::SimpleFileOptions;
use zip::{CompressionMethod, ZipWriter};

use super::client::{Ray, RayError};

/// The module's version; it refuses to run for another one.
pub const VERSION: &str = "3";

const FILES: &[(&str, &str)] = &[
    ("berth_serve/__init__.py", include_str!("module/berth_serve/__init__.py")),
    ("berth_serve/engine.py", include_str!("module/berth_serve/engine.py")),
    (
        "berth_serve/inside_vllm/berth_guard.py",
        include_str!("module/berth_serve/inside_vllm/berth_guard.py"),
    ),
    ("berth_serve/ollama.py", include_str!("module/berth_serve/ollama.py")),
    ("berth_serve/supervisor.py", include_str!("module/berth_serve/supervisor.py")),
];

/// Where Ray finds the module, as in `gcs://_ray_pkg_0123456789abcdef.zip`.
pub fn uri() -> String {
    format!("gcs://{}", name())
}

fn name() -> String {
    let digest = Digest::of(&FILES).to_string();
    let digest: String = digest.chars().filter(char::is_ascii_hexdigit).take(16).collect();
    format!("_ray_pkg_{digest}.zip")
}

/// Sees to it that Ray has the module.
///
/// # Errors
/// Where Ray can't be asked or doesn't take it.
pub fn ensure(ray: &Ray) -> Result<(), RayError> {
    let path = format!("/api/packages/gcs/{}", name());
    if ray.has(&path)? {
        return Ok(());
    }
    ray.put(&path, "application/octet-stream", &archive())
}

/// Writes the module's files into a folder.
///
/// # Errors
/// Where they can't be written.
pub fn write(folder: &Path) -> io::Result<()> {
    for (path, text) in FILES {
        let path = folder.join(path);
        fs::create_dir_all(path.parent().unwrap_or(folder))?;
        fs::write(path, text)?;
    }
    Ok(())
}

/// The same bytes for the same files.
fn archive() -> Vec<u8> {
    let options = SimpleFileOptions::default().compression_method(CompressionMethod::Stored);
    let mut zip = ZipWriter::new(Cursor::new(Vec::new()));
    let written: Result<(), zip::result::ZipError> = FILES.iter().try_for_each(|(path, text)| {
        zip.start_file(*path, options)?;
        Ok(zip.write_all(text.as_bytes())?)
    });
    // Nothing is written but to memory.
    match written.and_then(|()| zip.finish()) {
        Ok(bytes) => bytes.into_inner(),
        Err(_) => Vec::new(),
    }
}
