//! Parses the command line and carries it out.

use std::process::ExitCode;

use clap::Parser as _;

#[global_allocator]
static ALLOCATOR: stepgate_allocator::MiMalloc = stepgate_allocator::MiMalloc;

fn main() -> ExitCode {
    match stepgate::cli::Cli::parse().execute() {
        Ok(code) => code,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}
