//! https: a certificate and its key, read from files.

use std::path::Path;
use std::sync::Arc;

use tokio_rustls::TlsAcceptor;
use tokio_rustls::rustls::ServerConfig;
use tokio_rustls::rustls::crypto::ring;
use tokio_rustls::rustls::pki_types::pem::PemObject as _;
use tokio_rustls::rustls::pki_types::{CertificateDer, PrivateKeyDer};

/// Why there is no https.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    /// A file is not what it should be.
    #[error("{file} holds no {what} in PEM: {reason}")]
    File {
        /// The file.
        file: String,
        /// What it should hold.
        what: &'static str,
        /// Why not.
        reason: String,
    },
    /// The two don't belong together.
    #[error("the certificate and its key can't be used: {0}")]
    Pair(String),
}

/// What connections are accepted with. Clients are offered HTTP/2 and HTTP/1.1.
///
/// # Errors
/// Where the files aren't a certificate and its key.
pub fn acceptor(certificate: &Path, key: &Path) -> Result<TlsAcceptor, TlsError> {
    let bad = |file: &Path, what, reason: String| TlsError::File {
        file: file.display().to_string(),
        what,
        reason,
    };
    let chain =
        CertificateDer::pem_file_iter(certificate).and_then(Iterator::collect::<Result<Vec<_>, _>>);
    let chain = chain.map_err(|error| bad(certificate, "certificate", error.to_string()))?;
    if chain.is_empty() {
        return Err(bad(certificate, "certificate", "there is none".to_owned()));
    }
    let secret =
        PrivateKeyDer::from_pem_file(key).map_err(|error| bad(key, "key", error.to_string()))?;
    let pair = |error: tokio_rustls::rustls::Error| TlsError::Pair(error.to_string());
    let config = ServerConfig::builder_with_provider(Arc::new(ring::default_provider()));
    let config = config.with_safe_default_protocol_versions().map_err(pair)?;
    let mut config = config.with_no_client_auth().with_single_cert(chain, secret).map_err(pair)?;
    config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    Ok(TlsAcceptor::from(Arc::new(config)))
}
