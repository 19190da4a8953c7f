//! Envoy's attributes, typed: the few fields that stepgate itself reads, borrowed from the message.
//!
//! The policy's document is built separately (`document`); both read the same bytes and refuse the same messages.

use super::wire::{Fields, WireError, entry};

/// Room for the headers of an ordinary request.
const USUAL_HEADERS: usize = 24;

/// The parts of a `CheckRequest` that stepgate reads.
#[derive(Debug, Default)]
pub struct Attributes<'a> {
    pub source_principal: &'a str,
    /// Where the connection comes from: an IP address, or empty.
    pub source_address: &'a str,
    /// The client's certificate in URL-encoded PEM, where Envoy sends it (`include_peer_certificate`).
    pub source_certificate: &'a str,
    /// Absent for a request of the TCP filter.
    pub http: Option<Http<'a>>,
}

/// The HTTP request being checked.
#[derive(Debug, Default)]
pub struct Http<'a> {
    pub method: &'a str,
    /// Path and query, as sent.
    pub path: &'a str,
    /// `:authority`, as the client sent it.
    pub host: &'a str,
    pub body: &'a str,
    pub raw_body: &'a [u8],
    /// Names are lower case; Envoy joins repeated headers by a comma.
    headers: Vec<(&'a str, &'a str)>,
    /// The headers when Envoy is configured to send them unjoined (`encode_raw_headers`).
    header_map: Vec<(&'a str, &'a [u8])>,
}

impl<'a> Attributes<'a> {
    pub fn parse(message: &'a [u8]) -> Result<Self, WireError> {
        let mut attributes = Self::default();
        for field in Fields::of(message) {
            if let (1, payload) = field? {
                attributes.read(payload.bytes()?)?;
            }
        }
        Ok(attributes)
    }

    fn read(&mut self, context: &'a [u8]) -> Result<(), WireError> {
        for field in Fields::of(context) {
            match field? {
                (1, peer) => {
                    for field in Fields::of(peer.bytes()?) {
                        match field? {
                            (1, address) => self.source_address = socket_address(address.bytes()?)?,
                            (4, principal) => self.source_principal = principal.text()?,
                            (5, certificate) => self.source_certificate = certificate.text()?,
                            _ => {}
                        }
                    }
                }
                (4, request) => {
                    for field in Fields::of(request.bytes()?) {
                        if let (2, http) = field? {
                            self.http = Some(Http::parse(http.bytes()?)?);
                        }
                    }
                }
                _ => {}
            }
        }
        Ok(())
    }
}

/// The address in an `Address` of a socket; empty in any other.
fn socket_address(message: &[u8]) -> Result<&str, WireError> {
    let mut found = "";
    for field in Fields::of(message) {
        let (1, socket) = field? else { continue };
        for field in Fields::of(socket.bytes()?) {
            if let (2, address) = field? {
                found = address.text()?;
            }
        }
    }
    Ok(found)
}

impl<'a> Http<'a> {
    fn parse(message: &'a [u8]) -> Result<Self, WireError> {
        let mut http = Self { headers: Vec::with_capacity(USUAL_HEADERS), ..Self::default() };
        for field in Fields::of(message) {
            let (number, payload) = field?;
            match number {
                2 => http.method = payload.text()?,
                3 => {
                    let (name, value) = entry(payload.bytes()?)?;
                    http.headers.push((name, std::str::from_utf8(value).map_err(|_| WireError::Utf8)?));
                }
                4 => http.path = payload.text()?,
                5 => http.host = payload.text()?,
                11 => http.body = payload.text()?,
                12 => http.raw_body = payload.bytes()?,
                13 => http.read_header_map(payload.bytes()?)?,
                _ => {}
            }
        }
        Ok(http)
    }

    fn read_header_map(&mut self, message: &'a [u8]) -> Result<(), WireError> {
        for field in Fields::of(message) {
            let (1, header) = field? else { continue };
            let (mut name, mut value) = ("", &[][..]);
            for field in Fields::of(header.bytes()?) {
                match field? {
                    (1, payload) => name = payload.text()?,
                    (2 | 3, payload) => value = payload.bytes()?,
                    _ => {}
                }
            }
            self.header_map.push((name, value));
        }
        Ok(())
    }

    /// The header `name` (lower case) as OPA reads it: from the joined map only.
    pub fn joined_header(&self, name: &str) -> Option<&'a str> {
        // Map semantics: of two entries with one key, the last one counts.
        self.headers.iter().rev().find(|(key, _)| *key == name).map(|&(_, value)| value)
    }

    /// Every value of the header `name`, in whichever of the two forms Envoy sent the headers.
    pub fn header_values(&self, name: &str) -> Vec<&'a [u8]> {
        let joined = self.joined_header(name).map(str::as_bytes);
        let raw = self.header_map.iter().filter(|(key, _)| key.eq_ignore_ascii_case(name)).map(|&(_, value)| value);
        joined.into_iter().chain(raw).collect()
    }

    /// The names of all headers that were received.
    pub fn header_names(&self) -> impl Iterator<Item = &'a str> {
        self.headers.iter().map(|&(name, _)| name).chain(self.header_map.iter().map(|&(name, _)| name))
    }

    /// The bytes of the body: `body` when Envoy sent text, else `raw_body`.
    pub fn payload(&self) -> &'a [u8] {
        if self.body.is_empty() { self.raw_body } else { self.body.as_bytes() }
    }
}
