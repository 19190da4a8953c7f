//! Shows what a policy prints and which statements were executed.

use stepgate_rego::{Host, Options, Place, Source, SystemHost, Tracer, Value, Version, compile};

const POLICY: &str = "package trace

allow if {
    input.role == \"admin\"
    print(\"an admin:\", input.user)
}
";

/// The system's clock and randomness, and a tracer that prints.
struct TracingHost;

impl Host for TracingHost {
    fn now_ns(&self) -> i64 {
        SystemHost.now_ns()
    }

    fn random(&self, bytes: &mut [u8]) {
        SystemHost.random(bytes);
    }

    fn tracer(&self) -> Option<&dyn Tracer> {
        Some(self)
    }
}

impl Tracer for TracingHost {
    fn print(&self, line: &str) {
        println!("print: {line}");
    }

    fn visit(&self, place: &Place) {
        println!("{}:{} {}", place.file, place.at.row, if place.is_head { "is true" } else { "is evaluated" });
    }
}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let source = Source { path: "trace.rego".into(), text: POLICY.to_owned(), version: Version::V1 };
    let options = Options { traced: true, ..Options::default() };
    let policy = compile(&[source], Value::empty_object(), &options).map_err(stepgate_rego::CompileErrors)?;
    let input: Value = r#"{"user": "alice", "role": "admin"}"#.parse()?;
    let allowed = policy.query("data.trace.allow")?.with_host(&TracingHost).eval(&input)?;
    println!("allow: {allowed:?}");
    Ok(())
}
