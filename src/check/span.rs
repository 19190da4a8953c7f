//! The observer of one check: its log record with the permit in the decision queue, its phases, its trace and its counters. A span that
//! is dropped before it is finished belongs to a check whose client gave up.

use tokio::time::Instant;

use super::fault::Fault;
use super::metrics::{CheckMetrics, Phase};
use crate::decision_queue::{QueuePermit, Record};
use crate::policy::PolicyMetrics;
use crate::telemetry::{CheckOutcome, ChildSpans, SpanAttributes, Trace, Tracer};

/// The observer of one check.
pub struct CheckSpan<'a> {
    /// The event of the decision log, as far as it is known.
    pub record: Record,
    permit: Option<QueuePermit<'a>>,
    metrics: &'a CheckMetrics,
    policy_metrics: &'a PolicyMetrics,
    arrived: Instant,
    phase_began: Instant,
    /// The phases of this check are timed.
    is_sample: bool,
    trace: Option<(Box<Trace>, &'a Tracer)>,
    is_finished: bool,
}

impl<'a> CheckSpan<'a> {
    /// The span of a check whose stream was opened at `arrived`; its time in the queue ends now.
    pub fn begin(metrics: &'a CheckMetrics, policy_metrics: &'a PolicyMetrics, arrived: Instant) -> Self {
        let is_sample = metrics.is_sample();
        let phase_began = Instant::now();
        if is_sample {
            metrics.phase(Some(Phase::Queue), phase_began.duration_since(arrived));
        }
        let record = Record::default();
        let (permit, trace, is_finished) = (None, None, false);
        Self { record, permit, metrics, policy_metrics, arrived, phase_began, is_sample, trace, is_finished }
    }

    /// The event goes to the decision queue when the check has ended.
    pub fn log_to(&mut self, record: Record, permit: Option<QueuePermit<'a>>) {
        (self.record, self.permit) = (record, permit);
    }

    /// Starts a trace if the incoming traceparent is sampled or local sampling selects this check.
    pub fn trace_to(
        &mut self,
        tracer: &'a Tracer,
        traceparent: Option<&str>,
        now_ns: i64,
        attributes: impl FnOnce() -> SpanAttributes,
    ) {
        let took = i64::try_from(self.arrived.elapsed().as_nanos()).unwrap_or_default();
        let trace = tracer.begin(traceparent, self.arrived.into_std(), now_ns.saturating_sub(took));
        self.trace = trace.map(|mut trace| {
            trace.told = attributes();
            trace.phase(Phase::Queue.label(), self.arrived.into_std(), self.phase_began.into_std());
            (trace, tracer)
        });
    }

    /// The spans of requests to other servers, if the check is traced.
    pub fn child_spans(&self) -> Option<ChildSpans> {
        self.trace.as_ref().map(|(trace, _)| trace.followed())
    }

    /// This phase ends now, and the next begins.
    pub fn end_phase(&mut self, phase: Phase) {
        if !self.is_sample && self.trace.is_none() {
            return;
        }
        let now = Instant::now();
        if self.is_sample {
            self.metrics.phase(Some(phase), now.duration_since(self.phase_began));
        }
        if let Some((trace, _)) = &mut self.trace {
            trace.phase(phase.label(), self.phase_began.into_std(), now.into_std());
        }
        self.phase_began = now;
    }

    /// The check ends in a denial because of `fault`.
    pub fn fault(&mut self, fault: &Fault) {
        self.metrics.fault(fault.reason(), fault.opa_reason());
        let record = &mut self.record;
        record.result = None;
        record.reason = fault.reason();
        if record.has_consumers {
            let message = fault.grpc_error().map(|(_, message)| message);
            record.error = Some(message.unwrap_or_else(|| crate::telemetry::chain(fault)));
        }
    }

    /// The check is answered; `word` is what Envoy was answered.
    pub fn finish(mut self, outcome: CheckOutcome, word: &'static str) {
        self.is_finished = true;
        let reason = self.record.reason;
        self.record.answered = word;
        self.metrics.answered(outcome, self.arrived.elapsed());
        self.policy_metrics.decisions.count(outcome, reason);
        if outcome != CheckOutcome::Allow && word == "allow" {
            self.metrics.dry_run_allowed.inc();
        }
        self.end(outcome.name(), reason);
    }

    /// No check was made after all: nothing is counted or logged.
    pub fn discard(mut self) {
        self.is_finished = true;
    }

    fn end(&mut self, outcome: &'static str, reason: &'static str) {
        if self.is_sample {
            self.metrics.phase(None, self.arrived.elapsed());
        }
        if let Some((mut trace, tracer)) = self.trace.take() {
            (trace.told.decision, trace.told.reason) = (outcome, reason);
            tracer.end(trace);
        }
        if let Some(permit) = self.permit.take() {
            permit.take(Record { total: self.arrived.elapsed(), ..std::mem::take(&mut self.record) });
        }
    }
}

impl Drop for CheckSpan<'_> {
    fn drop(&mut self) {
        if self.is_finished {
            return;
        }
        if std::thread::panicking() {
            // The handler of panics logs the check.
            self.permit = None;
            return self.end("fault", "");
        }
        let fault = Fault::Cancelled;
        self.metrics.cancelled(fault.opa_reason());
        self.record.reason = fault.reason();
        self.record.error = Some(fault.to_string());
        self.end("cancelled", "");
    }
}

#[cfg(test)]
mod tests {
    use std::panic::{AssertUnwindSafe, catch_unwind};
    use std::sync::Arc;

    use super::*;
    use crate::decision_queue::DecisionQueue;
    use crate::telemetry::Metrics;

    #[test]
    fn a_check_is_logged_once_however_it_ends() {
        let metrics = Arc::new(Metrics::new(None));
        let (checks, policies) = (metrics.of::<CheckMetrics>(), metrics.of::<PolicyMetrics>());
        let (decision_queue, mut records) = DecisionQueue::new(&metrics, 16 << 20);
        let span = || {
            let mut span = CheckSpan::begin(&checks, &policies, Instant::now());
            span.log_to(Record::default(), decision_queue.reserve());
            span
        };
        span().finish(CheckOutcome::Allow, "allow");
        assert_eq!(records.try_recv().expect("an event").record.reason, "");
        drop(span());
        assert_eq!(records.try_recv().expect("an event").record.reason, "cancelled");
        let broken = catch_unwind(AssertUnwindSafe(|| {
            let _span = span();
            panic!("a defect");
        }));
        assert!(broken.is_err() && records.try_recv().is_err(), "it was not cancelled");
        assert!(metrics.text().contains("stepgate_cancelled_checks_total 1"));
    }

    #[test]
    fn one_check_in_sixteen_is_timed() {
        let metrics = Metrics::new(None);
        let (checks, policies) = (metrics.of::<CheckMetrics>(), metrics.of::<PolicyMetrics>());
        for _ in 0..32 {
            let mut span = CheckSpan::begin(&checks, &policies, Instant::now());
            span.end_phase(Phase::Eval);
            span.finish(CheckOutcome::Allow, "allow");
        }
        let text = metrics.text();
        for phase in ["queue", "eval", "total"] {
            let line = format!("stepgate_check_phase_seconds_count{{phase=\"{phase}\"}} 2");
            assert!(text.lines().any(|known| known == line), "{line} is not in\n{text}");
        }
    }
}
