//! What the parts of a check cost: the document, a token (cold and cached), the evaluation, and all of it.

mod setup;

use std::hint::black_box;
use std::sync::Arc;
use std::time::Duration;

use criterion::{Criterion, criterion_group, criterion_main};
use stepgate::jws::Alg;
use stepgate::opa::input::{self, Attributes};
use tokio::time::Instant;

use self::setup::{OPTIONS, checker, message_of, new_key, snapshot, verifier};

fn parts(c: &mut Criterion) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    let [rsa, ec] = [Alg::Rs256, Alg::Es256].map(new_key);
    let (key, message) = (&rsa, message_of(&rsa));
    let attributes = Attributes::parse(&message).expect("it parses");
    let far = || Instant::now() + Duration::from_secs(3_600);

    c.bench_function("input build", |b| {
        b.iter(|| {
            let attributes = Attributes::parse(black_box(&message)).expect("it parses");
            input::build(&message, &attributes, &OPTIONS, input::BodyUse::Decision)
                .expect("a document")
                .members
                .into_value()
        });
    });
    for key in [&rsa, &ec] {
        let message = message_of(key);
        let attributes = Attributes::parse(&message).expect("it parses");
        c.bench_function(&format!("token cold, {}", key.alg().name()), |b| {
            b.iter_batched(
                || verifier(key),
                |verifier| runtime.block_on(verifier.verify(&attributes, far())),
                criterion::BatchSize::SmallInput,
            );
        });
    }
    let warm = Arc::new(verifier(key));
    runtime.block_on(warm.verify(&attributes, far()));
    c.bench_function("token cached", |b| b.iter(|| runtime.block_on(warm.verify(black_box(&attributes), far()))));

    let document = input::build(&message, &attributes, &OPTIONS, input::BodyUse::Decision)
        .expect("a document")
        .members
        .into_value();
    let policy = snapshot();
    let budget = Duration::from_millis(50);
    c.bench_function("evaluation", |b| {
        b.iter(|| policy.eval(black_box(&document), budget, far().into_std()).expect("a result"));
    });

    let checker = checker(warm);
    c.bench_function("whole check, cached token", |b| {
        b.iter(|| runtime.block_on(checker.check(black_box(&message), far())))
    });
}

criterion_group!(benches, parts);
criterion_main!(benches);
