//! TLS for listeners: certificates read again when they change, and clients known by theirs.
//!
//! Mirrors: OPA `v1/server/certs.go` and `v1/server/identifier/tls.go`, v1.19.0. Handshakes never hold up other connections.

use std::fmt;
use std::io;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::{VerifierBuilderError, WebPkiClientVerifier};
use rustls::sign::{CertifiedKey, SingleCertAndKey};
use rustls::{AlertDescription as Alert, ClientConfig, RootCertStore, ServerConfig};
use tokio::net::TcpStream;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;
use x509_parser::prelude::{FromDer as _, GeneralName, X509Certificate, X509Name};

use super::metrics::{ListenerMetrics, RejectReason};
use super::rejected_connections::RejectedConnection;
use crate::token::SpiffePattern;

/// The time limit of a handshake.
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(10);
/// The two things that are read again, in the words of metrics and log: certificate with key, and roots of clients.
const PAIR: &str = "certificate";
const ROOTS: &str = "ca_cert";
/// The interval of checks for changed files.
const LOOK: Duration = Duration::from_secs(1);

/// The parts of a TLS configuration.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TlsSettings {
    pub certificate: PathBuf,
    pub key: PathBuf,
    /// Roots of the certificates that clients show.
    pub client_roots: Option<PathBuf>,
    /// Client certificates are required.
    pub needs_client: bool,
    /// TLS 1.3 and nothing older.
    pub only_1_3: bool,
    /// Which workloads may connect; empty: all with a certificate of those roots.
    pub clients: Vec<SpiffePattern>,
    /// HTTP/2 is the only application protocol.
    pub is_http2: bool,
}

/// Why there is no TLS.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    #[error("`{}` cannot be read as PEM", .0.display())]
    Pem(PathBuf, #[source] rustls::pki_types::pem::Error),
    #[error("`{}` holds no certificate", .0.display())]
    Empty(PathBuf),
    #[error("certificate and key cannot be used")]
    Tls(#[source] rustls::Error),
    #[error("clients cannot be verified")]
    Clients(#[source] VerifierBuilderError),
}

/// Identifies a version of a file, by metadata and contents; modification times alone can be copied.
type Stamp = Option<(u64, u64, u64, (i64, i64), (i64, i64))>;

fn stamp(path: &Path) -> Stamp {
    let meta = std::fs::metadata(path).ok()?;
    Some((meta.dev(), meta.ino(), meta.size(), (meta.mtime(), meta.mtime_nsec()), (meta.ctime(), meta.ctime_nsec())))
}

/// The newest certificate with its key, and the newest roots, that were whole, each with the stamps of its files.
#[derive(Clone)]
struct Current {
    config: Arc<ServerConfig>,
    pair: Arc<CertifiedKey>,
    pair_stamps: [Stamp; 2],
    roots: Option<Arc<RootCertStore>>,
    roots_stamp: Stamp,
}

/// The stamps of unusable files: each is logged once.
#[derive(Debug, Default)]
struct Unusable {
    pair: Option<[Stamp; 2]>,
    roots: Option<Stamp>,
}

/// Makes TLS of connections.
pub struct Tls {
    settings: TlsSettings,
    current: Mutex<Current>,
    unusable: Mutex<Unusable>,
}

impl fmt::Debug for Tls {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Tls").field("settings", &self.settings).finish_non_exhaustive()
    }
}

/// The certificates of a PEM file, at least one.
fn certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>, TlsError> {
    let failed = |error| TlsError::Pem(path.to_owned(), error);
    let found = CertificateDer::pem_file_iter(path).map_err(failed)?.collect::<Result<Vec<_>, _>>().map_err(failed)?;
    if found.is_empty() { Err(TlsError::Empty(path.to_owned())) } else { Ok(found) }
}

fn private_key(path: &Path) -> Result<PrivateKeyDer<'static>, TlsError> {
    PrivateKeyDer::from_pem_file(path).map_err(|error| TlsError::Pem(path.to_owned(), error))
}

/// The roots of a PEM file; certificates there that cannot be roots are left out.
fn roots(path: &Path) -> Result<RootCertStore, TlsError> {
    let mut roots = RootCertStore::empty();
    roots.add_parsable_certificates(certificates(path)?);
    Ok(roots)
}

/// For a client of such a listener: it trusts the `trusted` roots, and shows the certificate and key of `own`, where there are.
///
/// # Errors
/// A file that cannot be read, or a key that is not the certificate's.
pub fn client_config(trusted: &Path, own: Option<(&Path, &Path)>) -> Result<Arc<ClientConfig>, TlsError> {
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let builder = ClientConfig::builder_with_provider(provider);
    let builder = builder.with_safe_default_protocol_versions().map_err(TlsError::Tls)?;
    let builder = builder.with_root_certificates(roots(trusted)?);
    let config = match own {
        None => builder.with_no_client_auth(),
        Some((certificate, key)) => {
            builder.with_client_auth_cert(certificates(certificate)?, private_key(key)?).map_err(TlsError::Tls)?
        }
    };
    Ok(Arc::new(config))
}

impl TlsSettings {
    /// Which listener it is for, in the words of the metrics.
    fn listener(&self) -> &'static str {
        if self.is_http2 { "grpc" } else { "http" }
    }

    fn pair_stamps(&self) -> [Stamp; 2] {
        [stamp(&self.certificate), stamp(&self.key)]
    }

    fn roots_stamp(&self) -> Stamp {
        self.client_roots.as_deref().and_then(stamp)
    }

    /// The certificate and its key, which fit.
    fn pair(&self) -> Result<Arc<CertifiedKey>, TlsError> {
        let provider = rustls::crypto::aws_lc_rs::default_provider();
        let pair = CertifiedKey::from_der(certificates(&self.certificate)?, private_key(&self.key)?, &provider);
        pair.map(Arc::new).map_err(TlsError::Tls)
    }

    fn roots(&self) -> Result<Option<Arc<RootCertStore>>, TlsError> {
        let found = self.client_roots.as_deref().map(roots).transpose()?;
        match found {
            Some(found) if found.is_empty() => Err(TlsError::Clients(VerifierBuilderError::NoRootAnchors)),
            found => Ok(found.map(Arc::new)),
        }
    }

    fn build(
        &self,
        pair: &Arc<CertifiedKey>,
        roots: Option<&Arc<RootCertStore>>,
    ) -> Result<Arc<ServerConfig>, TlsError> {
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let versions: &[&rustls::SupportedProtocolVersion] = if self.only_1_3 {
            &[&rustls::version::TLS13]
        } else {
            &[&rustls::version::TLS13, &rustls::version::TLS12]
        };
        let builder = ServerConfig::builder_with_provider(Arc::clone(&provider));
        let builder = builder.with_protocol_versions(versions).map_err(TlsError::Tls)?;
        let builder = match roots {
            None => builder.with_no_client_auth(),
            Some(roots) => {
                let verifier = WebPkiClientVerifier::builder_with_provider(Arc::clone(roots), provider);
                let verifier = if self.needs_client { verifier } else { verifier.allow_unauthenticated() };
                builder.with_client_cert_verifier(verifier.build().map_err(TlsError::Clients)?)
            }
        };
        let mut config = builder.with_cert_resolver(Arc::new(SingleCertAndKey::from(Arc::clone(pair))));
        if self.is_http2 {
            config.alpn_protocols = vec![b"h2".to_vec()];
        }
        Ok(Arc::new(config))
    }
}

impl Tls {
    /// Reads the files; without a whole set there is no TLS.
    pub fn new(settings: TlsSettings) -> Result<Self, TlsError> {
        let (pair_stamps, roots_stamp) = (settings.pair_stamps(), settings.roots_stamp());
        let (pair, roots) = (settings.pair()?, settings.roots()?);
        let config = settings.build(&pair, roots.as_ref())?;
        let current = Mutex::new(Current { config, pair, pair_stamps, roots, roots_stamp });
        Ok(Self { settings, current, unusable: Mutex::default() })
    }

    /// Reads the files again whenever they change, without end.
    pub async fn keep_fresh(self: Arc<Self>, metrics: Arc<ListenerMetrics>) {
        metrics.certificate_usable(self.settings.listener(), PAIR, true);
        if self.settings.client_roots.is_some() {
            metrics.certificate_usable(self.settings.listener(), ROOTS, true);
        }
        self.publish_validity(&metrics);
        loop {
            tokio::time::sleep(LOOK).await;
            let (tls, metrics) = (Arc::clone(&self), Arc::clone(&metrics));
            // Files may be on a slow disk.
            let _ = tokio::task::spawn_blocking(move || tls.look(&metrics)).await;
        }
    }

    /// Reads what has changed. Certificate with key, and roots, are two things: what is wrong with one holds up no change of the other,
    /// and least of all a root that is removed. An unreadable file is read again each time. Only this task changes `current`, so
    /// its lock is not held meanwhile.
    fn look(&self, metrics: &ListenerMetrics) {
        let mut new = self.current.lock().clone();
        let mut unusable = self.unusable.lock();
        let (pair_stamps, roots_stamp) = (self.settings.pair_stamps(), self.settings.roots_stamp());
        let mut is_changed = false;
        if new.pair_stamps != pair_stamps {
            let is_news = unusable.pair.replace(pair_stamps) != Some(pair_stamps);
            if let Some(pair) = self.log_result(PAIR, self.settings.pair(), is_news, metrics) {
                (new.pair, new.pair_stamps, unusable.pair, is_changed) = (pair, pair_stamps, None, true);
            }
        }
        if new.roots_stamp != roots_stamp {
            let is_news = unusable.roots.replace(roots_stamp) != Some(roots_stamp);
            if let Some(roots) = self.log_result(ROOTS, self.settings.roots(), is_news, metrics) {
                (new.roots, new.roots_stamp, unusable.roots, is_changed) = (roots, roots_stamp, None, true);
            }
        }
        if !is_changed {
            return;
        }
        match self.settings.build(&new.pair, new.roots.as_ref()) {
            Ok(config) => {
                *self.current.lock() = Current { config, ..new };
                self.publish_validity(metrics);
            }
            // Both parts were whole, so that nothing is expected here.
            Err(error) => tracing::error!(error = crate::telemetry::chain(&error), "TLS stays as it was"),
        }
    }

    /// The parsed files; `None`, and a log line the first time, when they cannot be used.
    fn log_result<T>(
        &self,
        part: &'static str,
        read: Result<T, TlsError>,
        is_news: bool,
        metrics: &ListenerMetrics,
    ) -> Option<T> {
        let listener = self.settings.listener();
        metrics.certificate_usable(listener, part, read.is_ok());
        match read {
            Ok(read) => {
                tracing::info!(listener, part, "files of TLS have changed and were read again");
                return Some(read);
            }
            Err(error) if is_news => {
                let error = crate::telemetry::chain(&error);
                tracing::error!(listener, part, error, "changed files of TLS cannot be used; the old ones stay");
            }
            Err(_) => {}
        }
        None
    }

    fn publish_validity(&self, metrics: &ListenerMetrics) {
        let pair = Arc::clone(&self.current.lock().pair);
        let leaf = pair.cert.first().and_then(|leaf| X509Certificate::from_der(leaf).ok());
        if let Some((_, leaf)) = leaf {
            let (begin, end) = (leaf.validity().not_before.timestamp(), leaf.validity().not_after.timestamp());
            metrics.certificate_valid(self.settings.listener(), begin, end);
        }
    }

    fn config(&self) -> Arc<ServerConfig> {
        Arc::clone(&self.current.lock().config)
    }

    /// The connection once both sides are sure and the client is one of those allowed.
    ///
    /// # Errors
    /// Why it is not to be served.
    pub async fn handshake(
        self: Arc<Self>,
        stream: TcpStream,
    ) -> Result<Box<TlsStream<TcpStream>>, RejectedConnection> {
        let acceptor = TlsAcceptor::from(self.config());
        let shaken = tokio::time::timeout(HANDSHAKE_TIMEOUT, acceptor.accept(stream)).await;
        let late =
            |_| RejectedConnection { reason: RejectReason::Handshake, why: "the handshake took too long".to_owned() };
        let stream = shaken.map_err(late)?.map(Box::new).map_err(|error| refusal(&error))?;
        let clients = &self.settings.clients;
        let id = if clients.is_empty() { None } else { spiffe_id(&stream) };
        if !clients.is_empty() && !id.as_ref().is_some_and(|id| clients.iter().any(|pattern| pattern.matches(id))) {
            let id = id.as_deref().unwrap_or("a certificate without SPIFFE id");
            return Err(RejectedConnection {
                reason: RejectReason::NotAllowed,
                why: format!("{id} is not in allowed_spiffe_ids"),
            });
        }
        Ok(stream)
    }
}

/// The cause of a failed handshake.
fn refusal(error: &io::Error) -> RejectedConnection {
    let tls = error.get_ref().and_then(|inner| inner.downcast_ref::<rustls::Error>());
    let reason = match tls {
        Some(rustls::Error::NoCertificatesPresented) => RejectReason::NoCertificate,
        Some(rustls::Error::AlertReceived(
            Alert::UnknownCA
            | Alert::BadCertificate
            | Alert::CertificateExpired
            | Alert::CertificateRevoked
            | Alert::CertificateUnknown
            | Alert::UnsupportedCertificate,
        )) => RejectReason::ClientRejectedCertificate,
        Some(rustls::Error::InvalidCertificate(_)) => RejectReason::NotAllowed,
        Some(_) => RejectReason::Handshake,
        None => RejectReason::ClientClosed,
    };
    RejectedConnection { reason, why: error.to_string() }
}

/// The id of a client by its certificate: its one URI (X509-SVID section 2).
fn spiffe_id(stream: &TlsStream<TcpStream>) -> Option<String> {
    let (_, connection) = stream.get_ref();
    let (_, certificate) = X509Certificate::from_der(connection.peer_certificates()?.first()?).ok()?;
    let names = certificate.subject_alternative_name().ok()??;
    let mut uris = names.value.general_names.iter().filter_map(|name| match name {
        GeneralName::URI(uri) => Some(*uri),
        _ => None,
    });
    let id = uris.next().filter(|_| uris.next().is_none())?;
    id.starts_with("spiffe://").then(|| id.to_owned())
}

/// The certificates that the client has shown, its own first, in DER.
pub fn client_certificates(stream: &TlsStream<TcpStream>) -> Arc<[Vec<u8>]> {
    let (_, connection) = stream.get_ref();
    connection.peer_certificates().unwrap_or_default().iter().map(|certificate| certificate.to_vec()).collect()
}

/// The subject of the certificate that the client has shown and proven, as Go writes it.
pub fn client_subject(stream: &TlsStream<TcpStream>) -> Option<String> {
    let (_, connection) = stream.get_ref();
    let leaf = connection.peer_certificates()?.first()?;
    let (_, certificate) = X509Certificate::from_der(leaf).ok()?;
    Some(subject(certificate.subject()))
}

/// RFC 2253 order: the last name first.
fn subject(name: &X509Name<'_>) -> String {
    let short = |id: &str| match id {
        "2.5.4.3" => Some("CN"),
        "2.5.4.5" => Some("SERIALNUMBER"),
        "2.5.4.6" => Some("C"),
        "2.5.4.7" => Some("L"),
        "2.5.4.8" => Some("ST"),
        "2.5.4.9" => Some("STREET"),
        "2.5.4.10" => Some("O"),
        "2.5.4.11" => Some("OU"),
        "2.5.4.17" => Some("POSTALCODE"),
        _ => None,
    };
    let escaped = |text: &str| {
        let mut out = String::new();
        let last = text.chars().count().saturating_sub(1);
        for (at, char) in text.chars().enumerate() {
            let special = matches!(char, ',' | '+' | '"' | '\\' | '<' | '>' | ';')
                || (at == 0 && matches!(char, ' ' | '#'))
                || (at == last && char == ' ');
            out.push_str(if special { "\\" } else { "" });
            out.push(char);
        }
        out
    };
    let mut parts: Vec<String> = name
        .iter_rdn()
        .map(|set| {
            let attributes = set.iter().map(|attribute| {
                let id = attribute.attr_type().to_id_string();
                format!("{}={}", short(&id).unwrap_or(&id), escaped(attribute.as_str().unwrap_or_default()))
            });
            attributes.collect::<Vec<_>>().join("+")
        })
        .collect();
    parts.reverse();
    parts.join(",")
}
