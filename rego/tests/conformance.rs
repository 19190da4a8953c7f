#[path = "../../tests/it/rego.rs"]
mod rego;
