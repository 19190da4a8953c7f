//! The sender of the request as the mesh knows it: `input.peer` and `input.client`.
//!
//! Envoy's own view of the connection is trusted. A header is trusted only where the configuration says
//! which proxy has written it: `x-forwarded-client-cert` by its last element, since an Istio sidecar appends and a client
//! can write whatever comes before; `x-forwarded-for` by counting from its end.

use std::net::IpAddr;

use crate::opa::input::Attributes;
use crate::token::{forwarded_uri, parse_spiffe_id, single_header};
use crate::value::{Key, Members, Value};

/// The source of the client's address.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum ClientAddress {
    /// By the connection itself: right where no proxy is before this Envoy.
    #[default]
    Connection,
    /// In `x-forwarded-for`: the address that many entries from its end, 0 being the last one.
    ForwardedFor(usize),
    /// In a header of its own, such as `x-envoy-external-address`, which a trusted proxy sets or removes on every request.
    Header(String),
}

/// The trusted sources of the peer's identity.
#[derive(Clone, Debug, Default)]
pub struct CallerSettings {
    /// Use the last element of `x-forwarded-client-cert` where the connection shows no principal.
    pub peer_from_xfcc: bool,
    pub client_address: ClientAddress,
}

static PEER: Key = crate::key!("peer");
static CLIENT: Key = crate::key!("client");
static IP: Key = crate::key!("ip");
static PRINCIPAL: Key = crate::key!("principal");
static SOURCE: Key = crate::key!("source");
static TRUST_DOMAIN: Key = crate::key!("trust_domain");
static NAMESPACE: Key = crate::key!("namespace");
static SERVICE_ACCOUNT: Key = crate::key!("service_account");

impl CallerSettings {
    /// Adds `peer` and `client`. What is unknown is absent.
    pub fn add_to(&self, members: &mut Members, attributes: &Attributes<'_>) {
        if let Some(peer) = self.peer(attributes) {
            members.put(&PEER, peer);
        }
        if let Some(address) = self.client(attributes) {
            let mut client = Members::default();
            client.put(&IP, Value::from(address.to_canonical().to_string()));
            members.put(&CLIENT, client.into_value());
        }
    }

    fn peer(&self, attributes: &Attributes<'_>) -> Option<Value> {
        let seen = attributes.source_principal;
        let (principal, source) = match seen.is_empty() {
            false => (seen.to_owned(), "connection"),
            true if self.peer_from_xfcc => (forwarded_uri(attributes)?, "x-forwarded-client-cert"),
            true => return None,
        };
        let mut peer = Members::default();
        peer.put(&PRINCIPAL, Value::from(principal.as_str()));
        peer.put(&SOURCE, Value::from(source));
        if let Some((domain, path)) = parse_spiffe_id(&principal) {
            peer.put(&TRUST_DOMAIN, Value::from(domain));
            // As Istio makes them.
            let parts: Vec<_> = path.split('/').collect();
            if let ["", "ns", namespace, "sa", account] = parts.as_slice() {
                peer.put(&NAMESPACE, Value::from(*namespace));
                peer.put(&SERVICE_ACCOUNT, Value::from(*account));
            }
        }
        Some(peer.into_value())
    }

    fn client(&self, attributes: &Attributes<'_>) -> Option<IpAddr> {
        match &self.client_address {
            ClientAddress::Connection => attributes.source_address.parse().ok(),
            ClientAddress::ForwardedFor(from_end) => {
                let values = attributes.http.as_ref()?.header_values("x-forwarded-for");
                // Entries of several headers are one list (RFC 9110 section 5.3).
                let mut entries = values.iter().rev().flat_map(|value| value.rsplit(|byte| *byte == b','));
                address(entries.nth(*from_end)?)
            }
            ClientAddress::Header(name) => address(single_header(attributes, name)?.as_bytes()),
        }
    }
}

/// An address, with a port after it or not.
fn address(text: &[u8]) -> Option<IpAddr> {
    let text = std::str::from_utf8(text).ok()?.trim();
    let with_port = || text.parse::<std::net::SocketAddr>().ok().map(|address| address.ip());
    let in_brackets = || text.strip_prefix('[')?.strip_suffix(']')?.parse().ok();
    text.parse().ok().or_else(with_port).or_else(in_brackets)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::check::tests::message_with;
    use crate::value::json_text;

    /// `input.peer` and `input.client`.
    fn told(settings: &CallerSettings, principal: &str, address: &str, headers: &[(&str, &str)]) -> String {
        let message = message_with(principal, address, headers);
        let attributes = Attributes::parse(&message).expect("a message");
        let mut members = Members::default();
        settings.add_to(&mut members, &attributes);
        json_text(&members.into_value())
    }

    #[test]
    fn the_peer_is_who_the_connection_shows() {
        let open = CallerSettings { peer_from_xfcc: true, ..CallerSettings::default() };
        let seen = "spiffe://cluster.local/ns/shop/sa/cart";
        let forged = ("x-forwarded-client-cert", "By=spiffe://a;URI=spiffe://cluster.local/ns/kube-system/sa/admin");
        let want = r#"{"peer":{"namespace":"shop","principal":"spiffe://cluster.local/ns/shop/sa/cart","service_account":"cart","source":"connection","trust_domain":"cluster.local"}}"#;
        for settings in [&CallerSettings::default(), &open] {
            assert_eq!(told(settings, seen, "", &[forged]), want);
        }
        assert_eq!(told(&CallerSettings::default(), "", "", &[forged]), "{}", "a header is not trusted by default");
        let other = told(&open, "CN=client", "", &[]);
        assert_eq!(other, r#"{"peer":{"principal":"CN=client","source":"connection"}}"#);
        assert!(!told(&open, "spiffe://a/b", "", &[]).contains("namespace"));
    }

    #[test]
    fn of_forwarded_certificates_the_last_one_counts() {
        let open = CallerSettings { peer_from_xfcc: true, ..CallerSettings::default() };
        for (xfcc, want) in [
            (
                "By=spiffe://a;URI=spiffe://d/ns/x/sa/forged,By=spiffe://a;Hash=1;URI=spiffe://d/ns/x/sa/real",
                Some("real"),
            ),
            ("URI=spiffe://d/ns/x/sa/real", Some("real")),
            ("URI=spiffe://d/ns/x/sa/forged,By=spiffe://a", None),
            ("URI=spiffe://d/ns/x/sa/one;URI=spiffe://d/ns/x/sa/two", None),
            ("URI=", None),
            ("URI=spiffe://d/ns/x/sa/one,", None),
            ("URI=\"spiffe://d/ns/x/sa/one", None),
            ("nonsense", None),
        ] {
            let got = told(&open, "", "", &[("x-forwarded-client-cert", xfcc)]);
            match want {
                Some(account) => assert!(
                    got.contains(&format!("\"service_account\":\"{account}\",\"source\":\"x-forwarded-client-cert\"")),
                    "{xfcc}: {got}"
                ),
                None => assert_eq!(got, "{}", "{xfcc}"),
            }
        }
    }

    #[test]
    fn the_client_is_where_a_trusted_proxy_says() {
        let of = |client_address| CallerSettings { client_address, ..CallerSettings::default() };
        let header = || of(ClientAddress::Header("x-envoy-external-address".to_owned()));
        let forwarded = |from_end| of(ClientAddress::ForwardedFor(from_end));
        let xff = ("x-forwarded-for", "6.6.6.6, 1.2.3.4:99,  [2001:db8::1]");
        for (settings, headers, want) in [
            (CallerSettings::default(), &[xff][..], "10.0.0.1"),
            (forwarded(0), &[xff], "2001:db8::1"),
            (forwarded(1), &[xff], "1.2.3.4"),
            (forwarded(3), &[xff], ""),
            (forwarded(0), &[("x-forwarded-for", "unknown")], ""),
            (forwarded(0), &[("x-forwarded-for", "1.2.3.4, ")], ""),
            (forwarded(0), &[], ""),
            (header(), &[xff, ("x-envoy-external-address", "::ffff:9.9.9.9")], "9.9.9.9"),
            (header(), &[("x-envoy-external-address", "9.9.9.9,8.8.8.8")], ""),
            (header(), &[xff], ""),
        ] {
            let want = if want.is_empty() { "{}".to_owned() } else { format!(r#"{{"client":{{"ip":"{want}"}}}}"#) };
            assert_eq!(told(&settings, "", "10.0.0.1", headers), want, "{settings:?} {headers:?}");
        }
        assert_eq!(told(&CallerSettings::default(), "", "@/a/socket", &[]), "{}", "no address at all");
    }
}
