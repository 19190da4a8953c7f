//! Answers as many checks as it is told, for a program that counts instructions: `count CHECKS`.

#[path = "../../benches/setup/mod.rs"]
mod setup;

use std::sync::Arc;
use std::time::Duration;

use stepgate::jws::Alg;
use tokio::time::Instant;

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() {
    let checks: u32 = std::env::args().nth(1).and_then(|text| text.parse().ok()).expect("usage: count CHECKS");
    // The cheaper key to make; the token is verified once.
    let key = setup::new_key(Alg::Es256);
    let checker = setup::checker(Arc::new(setup::verifier(&key)));
    let message = setup::message_of(&key);
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    let deadline = Instant::now() + Duration::from_secs(3_600);
    runtime.block_on(async {
        for _ in 0..checks {
            std::hint::black_box(checker.check(std::hint::black_box(&message), deadline).await);
        }
    });
}
