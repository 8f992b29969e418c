//! TLS as a client: whom a server's certificate must be from, and the handshake.
//!
//! Certificates count only if they are valid today, carry the name the server was called by, and
//! come from an authority in the configured files, or in the system's if none are configured. There
//! is no switch to look away. TLS 1.2 and 1.3.

use super::stream::broken;
use crate::error::{Error, Kind, Result};
use rustls::pki_types::CertificateDer;
use rustls::pki_types::ServerName;
use rustls::pki_types::pem::PemObject;
use rustls::{CertificateError, ClientConfig, ClientConnection, RootCertStore};
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};
use std::sync::{Arc, OnceLock};

/// Where systems keep the authorities that they trust; the first that is there counts.
const SYSTEM: [&str; 5] = [
    "/etc/ssl/certs/ca-certificates.crt",
    "/etc/pki/tls/certs/ca-bundle.crt",
    "/etc/ssl/ca-bundle.pem",
    "/etc/ssl/cert.pem",
    "/usr/local/etc/ssl/cert.pem",
];

/// Which authorities are trusted. The files are read when the first server wants TLS; clones share
/// what was read.
#[derive(Clone, Debug, Default)]
pub struct Trust {
    file: Option<PathBuf>,
    dir: Option<PathBuf>,
    read: Arc<OnceLock<Arc<ClientConfig>>>,
}

impl Trust {
    /// A file with certificates (PEM), and a directory with one in each file that is named by its
    /// hash; both count. With neither: the system's.
    pub fn new(file: Option<PathBuf>, dir: Option<PathBuf>) -> Trust {
        let read = Arc::default();
        Trust { file, dir, read }
    }

    /// Shakes hands over a socket on which nothing of TLS was said yet. `Config` if the server's
    /// certificate is not accepted or ours cannot be read, `Protocol` if no TLS comes about, `Io` if
    /// the connection breaks; all name the host.
    pub fn handshake<S: Read + Write>(
        &self,
        host: &str,
        socket: &mut S,
    ) -> Result<ClientConnection> {
        let with = |e: Error| e.place(format!("TLS with {host}"));
        let name = ServerName::try_from(host.to_owned()).map_err(|_| {
            with(Error::new(
                Kind::Usage,
                "not a name that a certificate can have",
            ))
        })?;
        let config = self.config().map_err(with)?;
        let mut connection = ClientConnection::new(config, name)
            .map_err(|e| with(Error::new(Kind::Internal, e.to_string())))?;
        while connection.is_handshaking() {
            connection
                .complete_io(socket)
                .map_err(|e| with(refused(e)))?;
        }
        log::info!("TLS with {host}: {:?}", connection.protocol_version());
        Ok(connection)
    }

    fn config(&self) -> Result<Arc<ClientConfig>> {
        if let Some(config) = self.read.get() {
            return Ok(config.clone());
        }
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let config = ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .map_err(|e| Error::new(Kind::Internal, e.to_string()))?
            .with_root_certificates(self.authorities()?)
            .with_no_client_auth();
        Ok(self.read.get_or_init(|| Arc::new(config)).clone())
    }

    fn authorities(&self) -> Result<RootCertStore> {
        let mut store = RootCertStore::empty();
        if let Some(file) = &self.file {
            add_file(&mut store, file)?;
        }
        if let Some(dir) = &self.dir {
            add_dir(&mut store, dir)?;
        }
        if self.file.is_none() && self.dir.is_none() {
            let found = SYSTEM.iter().map(Path::new).find(|p| p.exists());
            let none = || {
                let why = "the system has no certificates of authorities (ca-certificates): \
                           set tls_server_ca_file";
                Error::new(Kind::Config, why)
            };
            add_file(&mut store, found.ok_or_else(none)?)?;
        }
        Ok(store)
    }
}

/// Adds the certificates of a file, of which there must be some that can be understood.
fn add_file(store: &mut RootCertStore, path: &Path) -> Result<()> {
    let pem = std::fs::read(path).map_err(|e| {
        Error::io("cannot read certificates", e)
            .with_kind(Kind::Config)
            .at(path)
    })?;
    // Systems trust authorities whose certificates are beyond us; those are left out.
    let certificates = CertificateDer::pem_slice_iter(&pem).filter_map(std::result::Result::ok);
    let (added, _) = store.add_parsable_certificates(certificates);
    match added {
        0 => Err(Error::new(Kind::Config, "no certificate in it").at(path)),
        _ => Ok(()),
    }
}

/// Adds those of a directory that have the name OpenSSL looks for: `5ed36f99.0`.
fn add_dir(store: &mut RootCertStore, dir: &Path) -> Result<()> {
    let fail = |e| {
        Error::io("cannot read certificates", e)
            .with_kind(Kind::Config)
            .at(dir)
    };
    let before = store.len();
    for entry in std::fs::read_dir(dir).map_err(fail)? {
        let entry = entry.map_err(fail)?;
        if entry.file_name().to_str().is_some_and(is_hash) {
            add_file(store, &entry.path())?;
        }
    }
    if store.len() == before {
        let why = "no certificate in it that is named by its hash (openssl rehash)";
        return Err(Error::new(Kind::Config, why).at(dir));
    }
    Ok(())
}

fn is_hash(name: &str) -> bool {
    let Some((hash, number)) = name.split_once('.') else {
        return false;
    };
    hash.len() == 8
        && hash.bytes().all(|b| b.is_ascii_hexdigit())
        && !number.is_empty()
        && number.bytes().all(|b| b.is_ascii_digit())
}

/// A failed handshake in words that say what to do.
fn refused(e: io::Error) -> Error {
    use CertificateError as C;
    let inner = e.get_ref().and_then(|r| r.downcast_ref::<rustls::Error>());
    let Some(inner) = inner else {
        return broken(e);
    };
    let rustls::Error::InvalidCertificate(why) = inner else {
        let text = format!("no TLS comes about: {inner}");
        return Error::new(Kind::Protocol, text);
    };
    let text = match why {
        // One that only has the name of a trusted authority counts as none.
        C::UnknownIssuer | C::BadSignature => {
            "its certificate is from an authority that is not trusted: see tls_server_ca_file"
                .into()
        }
        C::NotValidForName => "its certificate is for another name".into(),
        C::NotValidForNameContext { presented, .. } => {
            let names = match presented.is_empty() {
                true => "no name at all".to_owned(),
                false => presented.join(", "),
            };
            format!("its certificate is for another name: {names}")
        }
        C::Expired | C::ExpiredContext { .. } => "its certificate has expired".into(),
        C::NotValidYet | C::NotValidYetContext { .. } => "its certificate is not valid yet".into(),
        other => format!("its certificate is not accepted: {other}"),
    };
    Error::new(Kind::Config, text)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::net::UnixStream;

    #[test]
    fn names_of_hashed_files() {
        for name in ["5ed36f99.0", "5ED36F99.12"] {
            assert!(is_hash(name), "{name}");
        }
        for name in [
            "5ed36f99",
            "5ed36f99.",
            "5ed36f9.0",
            "5ed36f99.r0",
            "ca.pem",
            "5ed36fxx.0",
        ] {
            assert!(!is_hash(name), "{name}");
        }
    }

    #[test]
    fn files_without_certificates_are_named() {
        let dir = std::env::temp_dir().join(format!("cyr_backup-trust-{}", std::process::id()));
        std::fs::create_dir_all(&dir).unwrap();
        let file = dir.join("empty.pem");
        std::fs::write(&file, "none\n").unwrap();
        let broken = dir.join("5ed36f99.0");
        std::fs::write(
            &broken,
            "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n",
        )
        .unwrap();
        for (trust, wanted) in [
            (
                Trust::new(Some(file.clone()), None),
                "no certificate in it: ",
            ),
            (Trust::new(Some(broken), None), "no certificate in it: "),
            (
                Trust::new(Some(dir.join("none")), None),
                "cannot read certificates: ",
            ),
            (
                Trust::new(None, Some(dir.join("none"))),
                "cannot read certificates: ",
            ),
            (
                Trust::new(None, Some(std::env::temp_dir())),
                "named by its hash",
            ),
            (
                Trust::new(None, Some(dir.clone())),
                "no certificate in it: ",
            ),
        ] {
            let e = trust.config().unwrap_err();
            assert_eq!(e.kind(), Kind::Config);
            assert!(e.to_string().contains(wanted), "{e}");
        }
        std::fs::remove_dir_all(&dir).unwrap();
    }

    #[test]
    fn a_server_without_tls_or_without_words() {
        let Ok(config) = Trust::default().config() else {
            return;
        };
        assert!(Arc::ptr_eq(&config, &config.clone()));
        let (mut ours, theirs) = UnixStream::pair().unwrap();
        (&theirs).write_all(b"* BAD what is this?\r\n").unwrap();
        let e = Trust::default().handshake("host", &mut ours).unwrap_err();
        assert_eq!(e.kind(), Kind::Protocol, "{e}");
        assert!(e.to_string().ends_with("TLS with host"), "{e}");

        let (mut ours, theirs) = UnixStream::pair().unwrap();
        let timeout = Some(std::time::Duration::from_millis(20));
        ours.set_read_timeout(timeout).unwrap();
        let e = Trust::default().handshake("host", &mut ours).unwrap_err();
        assert_eq!(e.to_string(), "the server does not answer: TLS with host");
        drop(theirs);
        let e = Trust::default().handshake("host", &mut ours).unwrap_err();
        assert_eq!(
            e.to_string(),
            "the server closed the connection: TLS with host"
        );
        let e = Trust::default().handshake("a b", &mut ours).unwrap_err();
        assert_eq!(e.kind(), Kind::Usage);
    }
}
