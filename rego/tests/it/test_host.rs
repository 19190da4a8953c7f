//! A host with a fixed clock, fixed randomness and a deadline.

use std::time::Instant;

use stepgate_rego::{Host, HttpClient, HttpError, HttpRequest, HttpResponse};

/// Answers every question alike in every run.
#[derive(Default)]
pub struct TestHost {
    /// None: the evaluation may take as long as it needs.
    pub end: Option<Instant>,
    pub now_ns: i64,
}

impl TestHost {
    pub fn until(end: Instant) -> Self {
        Self { end: Some(end), ..Self::default() }
    }
}

impl Host for TestHost {
    fn now_ns(&self) -> i64 {
        self.now_ns
    }

    fn is_expired(&self) -> bool {
        self.end.is_some_and(|end| Instant::now() > end)
    }

    fn random(&self, bytes: &mut [u8]) {
        bytes.fill(7);
    }

    fn http_client(&self) -> Option<&dyn HttpClient> {
        Some(self)
    }
}

impl HttpClient for TestHost {
    fn send(&self, _request: &HttpRequest) -> Result<HttpResponse, HttpError> {
        Err(HttpError::Internal("http.send is not enabled".to_owned()))
    }

    fn lookup_ip_addr(&self, name: &str) -> Result<Vec<String>, String> {
        let found = std::net::ToSocketAddrs::to_socket_addrs(&(name, 0)).map_err(|error| error.to_string())?;
        Ok(found.map(|address| address.ip().to_string()).collect())
    }
}
