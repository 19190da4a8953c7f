//! Claims of SETs and logout tokens, signed as by their transmitter: the first line is `typ`, the second says which, the rest are the
//! claims. None is answered as a fault of ours.
#![no_main]

use std::sync::{Arc, LazyLock};

use stepgate::hub::{Hub, LogoutError, SetError};
use stepgate_fuzz::{TOKEN, hub, sign};

static HUB: LazyLock<(Arc<Hub>, tokio::runtime::Runtime)> = LazyLock::new(|| {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().expect("a runtime");
    (hub(), runtime)
});

libfuzzer_sys::fuzz_target!(|text: &str| {
    let mut lines = text.splitn(3, '\n');
    let (Some(typ), Some(kind), Some(claims)) = (lines.next(), lines.next(), lines.next()) else { return };
    let (hub, runtime) = &*HUB;
    let token = sign(typ, claims);
    runtime.block_on(async {
        match kind {
            "logout" => {
                let outcome = Arc::clone(hub).log_out("fuzz", &token).await;
                assert!(!matches!(outcome, Err(LogoutError::Ledger(_) | LogoutError::Keys)), "{outcome:?}");
            }
            name => {
                let Ok(stream) = hub.stream(name, Some(TOKEN)) else { return };
                let outcome = hub.receive(&stream, &token).await;
                assert!(!matches!(outcome, Err(SetError::Ledger(_) | SetError::Keys)), "{outcome:?}");
            }
        }
    });
});
