//! Certificates, read again when their files change: renewal needs no restart.

use std::{
    fs,
    path::{Path, PathBuf},
    sync::{Arc, Mutex},
    time::{Duration, Instant, SystemTime},
};

use rustls::{
    ServerConfig,
    crypto::ring,
    pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject},
};
use tokio_rustls::TlsAcceptor;

/// How often the files are looked at.
const CHECK_INTERVAL: Duration = Duration::from_secs(10);

/// A certificate chain and its key.
pub struct Tls {
    cert: PathBuf,
    key: PathBuf,
    current: Mutex<Current>,
}

struct Current {
    acceptor: TlsAcceptor,
    /// When the files were changed and looked at last.
    changed: [Option<SystemTime>; 2],
    checked: Instant,
}

impl Tls {
    /// Reads a certificate chain and its private key, both PEM.
    ///
    /// # Errors
    /// A file cannot be read, has no certificate or key, or they do not belong together.
    pub fn open(cert: &Path, key: &Path) -> Result<Self, String> {
        let changed = [modified(cert), modified(key)];
        let current = Current { acceptor: acceptor(cert, key)?, changed, checked: Instant::now() };
        Ok(Self { cert: cert.to_owned(), key: key.to_owned(), current: Mutex::new(current) })
    }

    /// Returns what accepts connections now. Files that were changed and cannot be used leave the
    /// certificate as it was, with a warning.
    pub fn acceptor(&self) -> TlsAcceptor {
        let mut current = self.current.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        if current.checked.elapsed() >= CHECK_INTERVAL {
            current.checked = Instant::now();
            let changed = [modified(&self.cert), modified(&self.key)];
            if changed != current.changed {
                match acceptor(&self.cert, &self.key) {
                    Ok(acceptor) => {
                        tracing::info!("the certificate was renewed");
                        (current.acceptor, current.changed) = (acceptor, changed);
                    }
                    // Half of a renewal, perhaps: it is tried again.
                    Err(problem) => tracing::warn!("the renewed certificate is not used: {problem}"),
                }
            }
        }
        current.acceptor.clone()
    }
}

fn modified(path: &Path) -> Option<SystemTime> {
    fs::metadata(path).and_then(|metadata| metadata.modified()).ok()
}

fn acceptor(cert: &Path, key: &Path) -> Result<TlsAcceptor, String> {
    let unusable = |path: &Path, e: &dyn std::fmt::Display| format!("{} cannot be used: {e}", path.display());
    let chain = CertificateDer::pem_file_iter(cert)
        .and_then(Iterator::collect::<Result<Vec<_>, _>>)
        .map_err(|e| unusable(cert, &e))?;
    if chain.is_empty() {
        return Err(unusable(cert, &"it has no certificate; give a PEM file with the whole chain"));
    }
    let private = PrivateKeyDer::from_pem_file(key).map_err(|e| unusable(key, &e))?;
    let config = ServerConfig::builder_with_provider(Arc::new(ring::default_provider()))
        .with_safe_default_protocol_versions()
        .map_err(|e| e.to_string())?
        .with_no_client_auth()
        .with_single_cert(chain, private);
    let mut config = config.map_err(|e| unusable(key, &format!("{e}; is it the certificate's key?")))?;
    config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    Ok(TlsAcceptor::from(Arc::new(config)))
}
