//! Asking a running stepgate how it is, as a probe does.

use std::io::{BufRead as _, BufReader, Read, Write};
use std::net::{TcpStream, ToSocketAddrs as _};
use std::sync::Arc;
use std::time::Duration;

use rustls::pki_types::ServerName;
use rustls::{ClientConfig, ClientConnection, StreamOwned};

/// The time limit of connecting and of each read.
const PATIENCE: Duration = Duration::from_secs(2);
/// Bytes of an answer.
const MAX_ANSWER_BYTES: u64 = 1 << 20;
/// The size limit of the head of an answer.
const MAX_LINE_BYTES: u64 = 16 << 10;
const MAX_LINES: usize = 200;

/// Why there is no answer.
#[derive(Debug, thiserror::Error)]
pub enum ProbeError {
    #[error("`{0}` is not an address like `http://127.0.0.1:8282`")]
    Address(String),
    #[error("`{0}` is not asked without knowing whom to trust: give --tls-ca-cert-file")]
    Trust(String),
    #[error("no answer from `{0}`")]
    Connection(String, #[source] std::io::Error),
    #[error("`{0}` does not speak HTTP")]
    Answer(String),
}

/// Status and body of a GET of `path` from the diagnostic listener at `url`; one on `https://` is asked with `tls`.
pub fn ask(url: &str, path: &str, tls: Option<&Arc<ClientConfig>>) -> Result<(u16, String), ProbeError> {
    let bad = || ProbeError::Address(url.to_owned());
    let parsed = url::Url::parse(url).map_err(|_| bad())?;
    let (Some(host), Some(port)) = (parsed.host_str(), parsed.port_or_known_default()) else { return Err(bad()) };
    let tls = match parsed.scheme() {
        "http" => None,
        "https" => Some(tls.ok_or_else(|| ProbeError::Trust(url.to_owned()))?),
        _ => return Err(bad()),
    };
    let failed = |error| ProbeError::Connection(url.to_owned(), error);
    let name = host.trim_start_matches('[').trim_end_matches(']');
    let mut last = std::io::Error::from(std::io::ErrorKind::NotFound);
    for address in (name, port).to_socket_addrs().map_err(failed)? {
        match TcpStream::connect_timeout(&address, PATIENCE) {
            Ok(stream) => {
                let answer = patient(stream).and_then(|stream| match tls {
                    None => exchange(stream, host, path),
                    Some(tls) => exchange(secured(stream, name, tls)?, host, path),
                });
                return answer.map_err(failed)?.ok_or_else(|| ProbeError::Answer(url.to_owned()));
            }
            Err(error) => last = error,
        }
    }
    Err(failed(last))
}

fn patient(stream: TcpStream) -> std::io::Result<TcpStream> {
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.set_write_timeout(Some(PATIENCE))?;
    Ok(stream)
}

fn secured(
    stream: TcpStream,
    name: &str,
    tls: &Arc<ClientConfig>,
) -> std::io::Result<StreamOwned<ClientConnection, TcpStream>> {
    let name = ServerName::try_from(name.to_owned()).map_err(std::io::Error::other)?;
    let connection = ClientConnection::new(Arc::clone(tls), name).map_err(std::io::Error::other)?;
    Ok(StreamOwned::new(connection, stream))
}

fn exchange(stream: impl Read + Write, host: &str, path: &str) -> std::io::Result<Option<(u16, String)>> {
    // A proxy of the mesh refuses HTTP/1.0. Only what our own server answers is read, and that has no chunks.
    let Some((status, rest)) = get(stream, "HTTP/1.1", host, path)? else { return Ok(None) };
    let mut body = Vec::new();
    rest.take(MAX_ANSWER_BYTES).read_to_end(&mut body)?;
    Ok(Some((status, String::from_utf8_lossy(&body).into_owned())))
}

/// Sends a GET after which the connection ends; gives the status and where the body is read. Nothing when HTTP is not spoken.
pub fn get<S: Read + Write>(
    mut stream: S,
    version: &str,
    host: &str,
    path: &str,
) -> std::io::Result<Option<(u16, BufReader<S>)>> {
    let request = format!("GET {path} {version}\r\nHost: {host}\r\nConnection: close\r\n\r\n");
    stream.write_all(request.as_bytes())?;
    read_answer(stream)
}

/// The media type of JSON.
pub const JSON: &str = "application/json";
/// The media type of a form.
pub const FORM: &str = "application/x-www-form-urlencoded";

/// Sends a POST after which the connection ends; answers as `get`.
pub fn post<S: Read + Write>(
    mut stream: S,
    host: &str,
    path: &str,
    media: &str,
    body: &str,
) -> std::io::Result<Option<(u16, BufReader<S>)>> {
    let length = body.len();
    let head = format!(
        "POST {path} HTTP/1.0\r\nHost: {host}\r\nContent-Type: {media}\r\nContent-Length: {length}\r\nConnection: close\r\n\r\n"
    );
    stream.write_all(format!("{head}{body}").as_bytes())?;
    read_answer(stream)
}

/// Reads the head of an answer.
fn read_answer<S: Read>(stream: S) -> std::io::Result<Option<(u16, BufReader<S>)>> {
    let mut answer = BufReader::new(stream);
    let line = |answer: &mut BufReader<S>| -> std::io::Result<String> {
        let mut line = String::new();
        answer.take(MAX_LINE_BYTES).read_line(&mut line)?;
        Ok(line)
    };
    let first = line(&mut answer)?;
    let Some(status) = first.strip_prefix("HTTP/1.").and_then(|rest| rest.split(' ').nth(1)?.parse().ok()) else {
        return Ok(None);
    };
    for _ in 0..MAX_LINES {
        if line(&mut answer)?.trim().is_empty() {
            return Ok(Some((status, answer)));
        }
    }
    Ok(None)
}

#[cfg(test)]
mod tests {
    use std::net::TcpListener;

    use super::*;

    #[test]
    fn a_listener_is_asked_once_and_read_to_its_end() {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
        let url = format!("http://{}", listener.local_addr().expect("an address"));
        let server = std::thread::spawn(move || {
            for answer in ["HTTP/1.0 503 Service Unavailable\r\nx: y\r\n\r\n{\"a\":1}", "SSH-2.0-x\r\n"] {
                let mut caller = BufReader::new(listener.accept().expect("a caller").0);
                let head: Vec<String> = caller
                    .by_ref()
                    .lines()
                    .map(|line| line.expect("a line"))
                    .take_while(|line| !line.is_empty())
                    .collect();
                assert_eq!(head.first().map(String::as_str), Some("GET /ready HTTP/1.1"));
                caller.get_mut().write_all(answer.as_bytes()).expect("it is sent");
            }
        });
        assert_eq!(ask(&url, "/ready", None).expect("an answer"), (503, "{\"a\":1}".to_owned()));
        assert!(matches!(ask(&url, "/ready", None), Err(ProbeError::Answer(_))));
        server.join().expect("it ends");
        assert!(matches!(ask(&url, "/ready", None), Err(ProbeError::Connection(..))));
        assert!(matches!(ask("https://127.0.0.1:1", "/", None), Err(ProbeError::Trust(_))));
        for bad in ["127.0.0.1:8282", "unix:///x"] {
            assert!(matches!(ask(bad, "/", None), Err(ProbeError::Address(_))), "{bad}");
        }
    }
}
