//! Answers `http.send` from memory, as a host with an HTTP client would from the network.

use stepgate_rego::{Host, HttpClient, HttpError, HttpRequest, HttpResponse, Policy, SystemHost, Value};

const POLICY: &str = "package directory

roles := http.send({\"method\": \"GET\", \"url\": \"http://directory/roles\"}).body
allow if roles[input.user] == \"admin\"
";

struct Network;

impl Host for Network {
    fn now_ns(&self) -> i64 {
        SystemHost.now_ns()
    }

    fn random(&self, bytes: &mut [u8]) {
        SystemHost.random(bytes);
    }

    fn http_client(&self) -> Option<&dyn HttpClient> {
        Some(self)
    }
}

impl HttpClient for Network {
    fn send(&self, request: &HttpRequest) -> Result<HttpResponse, HttpError> {
        if request.url != "http://directory/roles" {
            return Err(HttpError::Network(format!("no route to {}", request.url)));
        }
        let headers = vec![("content-type".to_owned(), "application/json".to_owned())];
        Ok(HttpResponse { status: 200, reason: "OK".to_owned(), headers, body: br#"{"alice": "admin"}"#.to_vec() })
    }
}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let policy = Policy::compile([("directory.rego", POLICY)])?;
    let input: Value = r#"{"user": "alice"}"#.parse()?;
    let allowed = policy.query("data.directory.allow")?.with_host(&Network).eval(&input)?;
    println!("allow: {allowed:?}");
    Ok(())
}
