//! The tasks of a receiver: it fetches SETs from a transmitter that does not push (RFC 8936), and asks for verification events, so
//! that a stream that has gone silent is noticed.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use super::{SetError, Stream};
use crate::hub::Hub;
use crate::lifecycle::Lifecycle;
use crate::remote::RemoteError;
use crate::remote::service::{Service, ServiceSettings};
use crate::telemetry::chain;

/// The transmitter may wait so long for an event before it answers.
const LONG_POLL: Duration = Duration::from_secs(75);
/// SETs of one answer.
const MAX_SETS: usize = 100;
/// Bytes of an answer.
const MAX_ANSWER_BYTES: usize = 8 << 20;
/// The first and the longest pause after an error.
const FIRST_PAUSE: Duration = Duration::from_secs(1);
const LONGEST_PAUSE: Duration = Duration::from_secs(60);

/// Where SETs are fetched.
#[derive(Clone, Debug)]
pub struct PollSettings {
    /// With its credentials.
    pub service: ServiceSettings,
    /// The path of the poll endpoint.
    pub resource: String,
    /// Between two requests that found nothing.
    pub interval: Duration,
}

/// Where verification events are asked for.
#[derive(Clone, Debug)]
pub struct VerifySettings {
    pub service: ServiceSettings,
    /// The path of the verification endpoint.
    pub resource: String,
    pub stream_id: String,
    pub interval: Duration,
}

/// Starts what each stream does by itself.
pub fn start(hub: &Arc<Hub>, lifecycle: &Lifecycle) {
    for stream in &hub.streams {
        if let Some(poll) = stream.settings.poll.clone() {
            lifecycle.spawn_until_stop(fetch(Arc::clone(hub), Arc::clone(stream), poll));
        }
        if let Some(verify) = stream.settings.verify.clone() {
            lifecycle.spawn_until_stop(ask(Arc::clone(hub), Arc::clone(stream), verify));
        }
    }
}

/// The answers that go to the transmitter with the next request.
#[derive(Debug, Default)]
struct Answers {
    accepted: Vec<String>,
    refused: BTreeMap<String, Value>,
}

async fn fetch(hub: Arc<Hub>, stream: Arc<Stream>, settings: PollSettings) {
    let service = Service::new(ServiceSettings { header_timeout: LONG_POLL, ..settings.service });
    let mut answers = Answers::default();
    let mut pause = FIRST_PAUSE;
    loop {
        if !stream.leads() {
            tokio::time::sleep(FIRST_PAUSE).await;
            continue;
        }
        let began = Instant::now();
        match fetch_once(&hub, &stream, &service, &settings.resource, &mut answers).await {
            Ok(has_more) => {
                pause = FIRST_PAUSE;
                // Answers go with the next request, at once. Some transmitters do not wait for events before they say that there are none.
                if !has_more && answers.accepted.is_empty() && answers.refused.is_empty() {
                    tokio::time::sleep(settings.interval.saturating_sub(began.elapsed())).await;
                }
            }
            Err(error) => {
                tracing::warn!(stream = stream.settings.name, error, "events cannot be fetched");
                tokio::time::sleep(pause).await;
                pause = pause.saturating_mul(2).min(LONGEST_PAUSE);
            }
        }
    }
}

/// One request; true if there is more.
async fn fetch_once(
    hub: &Arc<Hub>,
    stream: &Arc<Stream>,
    service: &Service,
    resource: &str,
    answers: &mut Answers,
) -> Result<bool, String> {
    let mut body = json!({"maxEvents": MAX_SETS, "returnImmediately": false, "ack": answers.accepted});
    if !answers.refused.is_empty()
        && let Some(members) = body.as_object_mut()
    {
        members.insert("setErrs".to_owned(), json!(answers.refused));
    }
    let headers = [("content-type", "application/json"), ("accept", "application/json")];
    let sent = service.post_for(resource, &headers, body.to_string().into_bytes(), MAX_ANSWER_BYTES).await;
    let (status, body) = match sent {
        Ok(sent) => sent,
        // It waited for an event, and there was none.
        Err(RemoteError::Late(_)) => return Ok(false),
        Err(error) => return Err(chain(&error)),
    };
    if status != 200 {
        return Err(format!("the transmitter answered {status}"));
    }
    let answer: Value = serde_json::from_slice(&body).map_err(|error| error.to_string())?;
    // It has them: they are not sent again.
    *answers = Answers::default();
    let sets = answer.get("sets").and_then(Value::as_object);
    let mut failed = None;
    for (jti, set) in sets.into_iter().flatten().take(MAX_SETS) {
        match hub.receive(stream, set.as_str().unwrap_or_default()).await {
            Ok(()) => answers.accepted.push(jti.clone()),
            Err(SetError::Invalid(code, description)) => {
                answers.refused.insert(jti.clone(), json!({"err": code, "description": description}));
            }
            // Not acknowledged: it comes again. Those behind it are not kept waiting.
            Err(error) => failed = Some(chain(&error)),
        }
    }
    if let Some(error) = failed {
        return Err(error);
    }
    stream.heard.store(hub.clock.now(), Ordering::Release);
    Ok(answer.get("moreAvailable").and_then(Value::as_bool).unwrap_or(false))
}

/// Asks for a verification event again and again. That it came is seen by the age of the source.
async fn ask(hub: Arc<Hub>, stream: Arc<Stream>, settings: VerifySettings) {
    let service = Service::new(settings.service);
    loop {
        if !stream.leads() {
            tokio::time::sleep(FIRST_PAUSE).await;
            continue;
        }
        let state = uuid::Uuid::new_v4().simple().to_string();
        *stream.asked.lock() = Some(state.clone());
        let body = json!({"stream_id": settings.stream_id, "state": state}).to_string();
        let headers = [("content-type", "application/json")];
        let sent = service.post(&settings.resource, &headers, body.into_bytes()).await;
        let error = match sent {
            Ok(200..=299) => None,
            Ok(status) => Some(format!("the transmitter answered {status}")),
            Err(error) => Some(chain(&error)),
        };
        if let Some(error) = error {
            tracing::warn!(stream = stream.settings.name, error, "a verification event cannot be asked for");
        }
        let age = hub.clock.now().saturating_sub(stream.heard.load(Ordering::Acquire));
        tracing::debug!(stream = stream.settings.name, age, "a verification event was asked for");
        tokio::time::sleep(settings.interval).await;
    }
}
