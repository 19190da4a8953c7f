//! The shortest program: a policy, an input, a query.

use stepgate_rego::{Policy, Value};

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let policy = Policy::compile([("hello.rego", "package hello\nallow if input.user == \"alice\"")])?;
    let input: Value = r#"{"user": "alice"}"#.parse()?;
    println!("{:?}", policy.query("data.hello.allow")?.eval(&input)?);
    Ok(())
}
