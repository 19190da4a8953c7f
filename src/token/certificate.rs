//! Tokens bound to a client's certificate (RFC 8705 section 3): which certificate the request came with.

use aws_lc_rs::digest::{SHA256, digest};
use base64::Engine as _;
use base64::engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD};

use crate::opa::input::Attributes;
use crate::opa::rest::percent_decoded;

/// Bytes of a header that are read.
const MAX_HEADER_BYTES: usize = 65_536;

/// Sources of the client certificate beside Envoy's own view.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct CertificateSettings {
    /// The trusted element of `x-forwarded-client-cert`, counted from its end; `None`: the header is ignored.
    pub xfcc_from_end: Option<usize>,
    /// Use `client-cert` (RFC 9440).
    pub client_cert: bool,
}

/// The `x5t#S256` of the client's certificate: by Envoy's own view, else by the one trusted header.
pub fn thumbprint(attributes: &Attributes<'_>, settings: CertificateSettings) -> Option<String> {
    if !attributes.source_certificate.is_empty() {
        return of_pem(attributes.source_certificate);
    }
    match settings.xfcc_from_end {
        Some(from_end) => of_element(single_header(attributes, "x-forwarded-client-cert")?, from_end),
        None if settings.client_cert => of_client_cert(single_header(attributes, "client-cert")?),
        None => None,
    }
}

/// The URI of the last element of `x-forwarded-client-cert`, which is what the proxy before us has seen; nothing when that
/// element has no URI, or several.
pub fn forwarded_uri(attributes: &Attributes<'_>) -> Option<String> {
    let mut elements = elements(single_header(attributes, "x-forwarded-client-cert")?)?;
    let mut uris = elements.pop()?.into_iter().filter(|(key, _)| key.eq_ignore_ascii_case("uri"));
    let (_, uri) = uris.next()?;
    (!uri.is_empty() && uris.next().is_none()).then_some(uri)
}

/// A header that is there once, and not too long.
pub fn single_header<'a>(attributes: &Attributes<'a>, name: &str) -> Option<&'a str> {
    let values = attributes.http.as_ref()?.header_values(name);
    let [value] = values.as_slice() else { return None };
    std::str::from_utf8(value).ok().filter(|text| text.len() <= MAX_HEADER_BYTES)
}

/// From a Byte Sequence with the certificate (RFC 9440 section 2.2, RFC 9651 section 3.3.5).
fn of_client_cert(text: &str) -> Option<String> {
    let body = text.trim().strip_prefix(':')?.strip_suffix(':')?;
    let der = STANDARD.decode(body).ok().filter(|der| !der.is_empty())?;
    Some(URL_SAFE_NO_PAD.encode(digest(&SHA256, &der)))
}

/// From an element of `x-forwarded-client-cert`, counted from the end.
fn of_element(text: &str, from_end: usize) -> Option<String> {
    let elements = elements(text)?;
    let element = elements.get(elements.len().checked_sub(1)?.checked_sub(from_end)?)?;
    let mut hashes = element.iter().filter(|(key, _)| key.eq_ignore_ascii_case("hash"));
    let (_, hash) = hashes.next()?;
    let bytes = hex::decode(hash).ok().filter(|bytes| bytes.len() == 32 && hashes.next().is_none())?;
    Some(URL_SAFE_NO_PAD.encode(bytes))
}

/// From a certificate in URL-encoded PEM, the first if there are several.
fn of_pem(encoded: &str) -> Option<String> {
    let pem = percent_decoded(encoded)?;
    let (_, rest) = pem.split_once("-----BEGIN CERTIFICATE-----")?;
    let (body, _) = rest.split_once("-----END CERTIFICATE-----")?;
    let plain: String = body.chars().filter(|char| !char.is_ascii_whitespace()).collect();
    let der = STANDARD.decode(plain).ok().filter(|der| !der.is_empty())?;
    Some(URL_SAFE_NO_PAD.encode(digest(&SHA256, &der)))
}

/// The elements of `x-forwarded-client-cert`, each its keys and values; nothing when it is malformed.
fn elements(text: &str) -> Option<Vec<Vec<(String, String)>>> {
    let mut elements = vec![Vec::new()];
    let mut rest = text;
    loop {
        let (key, after) = rest.split_once('=')?;
        let (value, after) = match after.strip_prefix('"') {
            Some(quoted) => quoted_value(quoted)?,
            None => {
                let end = after.find([';', ',']).unwrap_or(after.len());
                let (value, after) = after.split_at(end);
                (value.to_owned(), after)
            }
        };
        elements.last_mut()?.push((key.trim().to_owned(), value));
        rest = match after.split_at_checked(1) {
            None => return Some(elements),
            Some((";", more)) => more,
            Some((",", more)) => {
                elements.push(Vec::new());
                more
            }
            Some(_) => return None,
        };
    }
}

/// Up to the closing quote, and what follows it.
fn quoted_value(text: &str) -> Option<(String, &str)> {
    let mut value = String::new();
    let mut chars = text.char_indices();
    while let Some((at, char)) = chars.next() {
        match char {
            '"' => return Some((value, text.get(at.saturating_add(1)..)?)),
            '\\' => value.push(chars.next()?.1),
            char => value.push(char),
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn elements_are_split_where_no_quote_says_otherwise() {
        let all = elements(r#"By=spiffe://a;Hash=aa;Subject="CN=x,O=\"y;z\"";URI=,By=b;hash=bb"#).expect("well formed");
        assert_eq!(all.len(), 2);
        assert_eq!(all[0][2], ("Subject".to_owned(), "CN=x,O=\"y;z\"".to_owned()));
        assert_eq!((&all[0][3].1, &all[1][1]), (&String::new(), &("hash".to_owned(), "bb".to_owned())));
        for bad in ["", "x", "a=\"b", "a=\"b\"c", "a=b;", "a=b,", "a=\"b\\"] {
            assert_eq!(elements(bad), None, "{bad}");
        }
    }

    #[test]
    fn certificates_are_read_strictly() {
        let pem = "-----BEGIN%20CERTIFICATE-----%0AaGk%3D%0A-----END%20CERTIFICATE-----%0A";
        assert_eq!(of_pem(pem), Some(URL_SAFE_NO_PAD.encode(digest(&SHA256, b"hi"))));
        for bad in ["", "aGk=", "-----BEGIN%20CERTIFICATE-----", "%zz"] {
            assert_eq!(of_pem(bad), None, "{bad}");
        }
    }
}
