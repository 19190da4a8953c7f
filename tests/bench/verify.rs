//! A client that asks for checks and knows the right answers: `verify ADDRESS SECONDS RATE CONNECTIONS`. A rate of 0 asks as fast as
//! answers come.
//!
//! Every answer names the revision that it was decided on, in the header `x-revision`. A key is allowed when the CRC-32 of
//! `<revision>:<key>` is a multiple of three. Prints one line of JSON.

use std::time::{Duration, Instant};

use envoy_types::pb::envoy::service::auth::v3::attribute_context::{HttpRequest, Request};
use envoy_types::pb::envoy::service::auth::v3::authorization_client::AuthorizationClient;
use envoy_types::pb::envoy::service::auth::v3::check_response::HttpResponse;
use envoy_types::pb::envoy::service::auth::v3::{AttributeContext, CheckRequest, CheckResponse};
use tonic::transport::{Channel, Endpoint};

#[global_allocator]
static ALLOCATOR: stepgate_allocator::MiMalloc = stepgate_allocator::MiMalloc;

const KEYS: u64 = 20_000;
/// Requests in flight on one connection.
const STREAMS: u64 = 8;

#[derive(Default)]
struct Tally {
    micros: Vec<u64>,
    wrong: u64,
    failed: u64,
    revisions: std::collections::BTreeSet<String>,
}

fn request(key: u64) -> CheckRequest {
    let http = HttpRequest { method: "GET".to_owned(), path: format!("/k{key}"), ..HttpRequest::default() };
    let request = Request { http: Some(http), ..Request::default() };
    CheckRequest { attributes: Some(AttributeContext { request: Some(request), ..AttributeContext::default() }) }
}

fn revision(answer: &CheckResponse) -> Option<String> {
    let headers = match answer.http_response.as_ref()? {
        HttpResponse::OkResponse(ok) => &ok.headers,
        HttpResponse::DeniedResponse(denied) => &denied.headers,
        _ => return None,
    };
    let found = headers.iter().filter_map(|option| option.header.as_ref()).find(|header| header.key == "x-revision")?;
    Some(if found.value.is_empty() {
        String::from_utf8_lossy(&found.raw_value).into_owned()
    } else {
        found.value.clone()
    })
}

/// The answer is the one of the policy of its own revision.
fn is_right(answer: &CheckResponse, revision: &str, key: u64) -> bool {
    let mut crc = flate2::Crc::new();
    crc.update(format!("{revision}:k{key}").as_bytes());
    let allowed = answer.status.as_ref().is_some_and(|status| status.code == 0);
    allowed == crc.sum().is_multiple_of(3)
}

async fn ask(
    mut client: AuthorizationClient<Channel>,
    begin: Instant,
    end: Instant,
    pause: Duration,
    seed: u64,
) -> Tally {
    let mut tally = Tally::default();
    let (mut key, mut due) = (seed, begin);
    while Instant::now() < end {
        if !pause.is_zero() {
            due += pause;
            tokio::time::sleep_until(due.into()).await;
        }
        key = (key * 1_103_515_245 + 12_345) % 2_147_483_648;
        let asked = Instant::now();
        let answer = client.check(request(key % KEYS)).await;
        tally.micros.push(u64::try_from(asked.elapsed().as_micros()).unwrap_or(u64::MAX));
        match answer.map(tonic::Response::into_inner) {
            Err(_) => tally.failed += 1,
            Ok(answer) => match revision(&answer) {
                None => tally.failed += 1,
                Some(revision) => {
                    tally.wrong += u64::from(!is_right(&answer, &revision, key % KEYS));
                    tally.revisions.insert(revision);
                }
            },
        }
    }
    tally
}

#[tokio::main]
async fn main() {
    let mut args = std::env::args().skip(1);
    let address = args.next().expect("usage: verify ADDRESS SECONDS RATE CONNECTIONS");
    let mut number = || args.next().and_then(|text| text.parse::<u64>().ok()).expect("a number");
    let (seconds, rate, connections) = (number(), number(), number());
    let begin = Instant::now();
    let end = begin + Duration::from_secs(seconds);
    let tasks = connections * STREAMS;
    let pause = if rate == 0 { Duration::ZERO } else { Duration::from_secs_f64(tasks as f64 / rate as f64) };
    let mut running = Vec::new();
    for connection in 0..connections {
        let channel = Endpoint::from_shared(format!("http://{address}")).expect("an address").connect().await;
        let client = AuthorizationClient::new(channel.expect("a server"));
        for stream in 0..STREAMS {
            let at = connection * STREAMS + stream;
            // Evenly over the pause, not all at once.
            let offset = pause.mul_f64(at as f64 / tasks as f64);
            running.push(tokio::spawn(ask(client.clone(), begin + offset, end, pause, at + 1)));
        }
    }
    let mut all = Tally::default();
    for task in running {
        let tally = task.await.expect("the task ends");
        all.micros.extend(tally.micros);
        all.wrong += tally.wrong;
        all.failed += tally.failed;
        all.revisions.extend(tally.revisions);
    }
    all.micros.sort_unstable();
    let quantile = |share: f64| all.micros.get((all.micros.len() as f64 * share) as usize).copied().unwrap_or_default();
    let rate = all.micros.len() as f64 / begin.elapsed().as_secs_f64();
    println!(
        r#"{{"checks": {}, "rate": {rate:.0}, "p50": {}, "p99": {}, "wrong": {}, "failed": {}, "revisions": {}}}"#,
        all.micros.len(),
        quantile(0.5),
        quantile(0.99),
        all.wrong,
        all.failed,
        all.revisions.len()
    );
}
