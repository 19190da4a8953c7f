//! Metrics of listeners: rejected connections and certificates.

use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;

use crate::telemetry::{Labels, Registrar, RoomMetrics};

/// Why a connection was not served.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RejectReason {
    /// `limits.connections` are open.
    Limit,
    /// Too many handshakes are under way, and this one did not go on.
    Handshakes,
    /// TLS was not agreed upon, or took too long.
    Handshake,
    /// The peer left before TLS was agreed upon, as a probe does that only opens the port.
    ClientClosed,
    /// The peer does not trust our certificate, and says so.
    ClientRejectedCertificate,
    /// The peer does not speak HTTP/2 here, or TLS where there is none.
    Protocol,
    /// The peer shows no certificate, and must.
    NoCertificate,
    /// The peer's certificate is not trusted, or it is not one of `allowed_spiffe_ids`.
    NotAllowed,
    /// The peer takes too much of the process: answers that it does not read, header blocks that it does not complete.
    QuotaExceeded,
}

impl RejectReason {
    pub const ALL: [Self; 9] = [
        Self::Limit,
        Self::Handshakes,
        Self::Handshake,
        Self::ClientClosed,
        Self::ClientRejectedCertificate,
        Self::Protocol,
        Self::NoCertificate,
        Self::NotAllowed,
        Self::QuotaExceeded,
    ];

    pub fn label(self) -> &'static str {
        match self {
            Self::Limit => "limit",
            Self::Handshakes => "handshakes",
            Self::Handshake => "handshake",
            Self::ClientClosed => "client_closed",
            Self::ClientRejectedCertificate => "client_rejected_certificate",
            Self::Protocol => "protocol",
            Self::NoCertificate => "no_certificate",
            Self::NotAllowed => "not_allowed",
            Self::QuotaExceeded => "quota_exceeded",
        }
    }
}

#[derive(Debug)]
pub struct ListenerMetrics {
    refused_connections: Family<Labels, Counter>,
    certificate_usable: Family<Labels, Gauge>,
    certificate_not_before: Family<Labels, Gauge>,
    certificate_not_after: Family<Labels, Gauge>,
}

impl RoomMetrics for ListenerMetrics {
    fn register(registrar: &mut Registrar<'_>) -> Self {
        Self {
            refused_connections: registrar
                .counters("stepgate_refused_connections", "Connections that were not served, by listener and reason"),
            certificate_usable: registrar.gauges(
                "stepgate_certificate_usable",
                "1 if the TLS files of a listener are valid as they are on disk, 0 while older ones are in use",
            ),
            certificate_not_before: registrar.gauges(
                "stepgate_certificate_not_before_seconds",
                "Begin of validity (notBefore) of the listener certificate, Unix seconds",
            ),
            certificate_not_after: registrar.gauges(
                "stepgate_certificate_not_after_seconds",
                "Expiry (notAfter) of the listener certificate, Unix seconds",
            ),
        }
    }
}

impl ListenerMetrics {
    pub fn connection_refused(&self, listener: &'static str, reason: RejectReason) {
        let labels = vec![("listener", listener.to_owned()), ("reason", reason.label().to_owned())];
        self.refused_connections.get_or_create(&labels).inc();
    }

    /// The files of this part of a listener's TLS are valid as they are now, or not.
    pub fn certificate_usable(&self, listener: &'static str, part: &'static str, is_usable: bool) {
        let labels = vec![("listener", listener.to_owned()), ("part", part.to_owned())];
        self.certificate_usable.get_or_create(&labels).set(i64::from(is_usable));
    }

    /// The validity of the certificate of a listener, in seconds since the epoch.
    pub fn certificate_valid(&self, listener: &'static str, begin: i64, end: i64) {
        let labels = vec![("listener", listener.to_owned())];
        self.certificate_not_before.get_or_create(&labels).set(begin);
        self.certificate_not_after.get_or_create(&labels).set(end);
    }
}
