//! The command line, in OPA's words.

mod bundle;
mod check;
mod coverage;
mod doctor;
mod eval;
mod explain;
mod hub;
mod memory_limit;
mod run;
mod tail;
mod test;
mod token;

use std::process::ExitCode;

use clap::{CommandFactory as _, Parser, Subcommand};

use crate::policy::OPA_VERSION;

/// External authorization for Envoy and Istio.
#[derive(Debug, Parser)]
#[command(name = "stepgate", version, about)]
pub struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Serve ext_authz with the given policies and data
    #[command(args_override_self = true)]
    Run(Box<run::Run>),
    /// Evaluate a query
    Eval(eval::Eval),
    /// Run Rego tests
    Test(test::Test),
    /// Compile policies and say everything that is wrong with them
    Check(check::Check),
    /// Put policies and data into a bundle
    Build(bundle::Build),
    /// Sign the files of a bundle
    Sign(bundle::Sign),
    /// Show what a bundle holds
    Inspect(bundle::Inspect),
    /// Show which lines of the policy decided about a request
    Explain(explain::Explain),
    /// Show the decisions of a running server as they are made
    Tail(tail::Tail),
    /// Run the hub of revocations, or show the state of one
    Hub(Box<hub::Hub>),
    /// Revoke a user, session, token, client, group, device, key or issuer at a running hub
    Revoke(hub::Revoke),
    /// Find what is wrong with a running server, with manifests, or with a move from OPA-Envoy
    Doctor(doctor::Doctor),
    /// Make keys and tokens for development and tests
    #[command(subcommand)]
    Token(token::Token),
    /// Print the version, the commit, and the levels of Rego and OPA
    Version,
    /// Print the completion script of a shell
    Completion {
        /// The shell, such as bash, zsh or fish
        shell: clap_complete::Shell,
    },
    /// Print the JSON Schema of the configuration, for editors
    ConfigSchema,
    /// Print what `doctor k8s` looks for in Markdown
    #[command(hide = true)]
    LintReference,
}

impl Cli {
    /// Carries the command out.
    pub fn execute(self) -> anyhow::Result<ExitCode> {
        match self.command {
            Command::Run(run) => run.execute().map(|()| ExitCode::SUCCESS),
            Command::Eval(eval) => eval.execute(),
            Command::Test(test) => test.execute(),
            Command::Check(check) => check.execute(),
            Command::Build(build) => build.execute(),
            Command::Sign(sign) => sign.execute(),
            Command::Inspect(inspect) => inspect.execute(),
            Command::Explain(explain) => explain.execute(),
            Command::Tail(tail) => tail.execute(),
            Command::Hub(hub) => hub.execute(),
            Command::Revoke(revoke) => revoke.execute(),
            Command::Doctor(doctor) => doctor.execute(),
            Command::Token(token) => token.execute().map(|()| ExitCode::SUCCESS),
            Command::Version => {
                print!("{}", version());
                Ok(ExitCode::SUCCESS)
            }
            Command::Completion { shell } => {
                clap_complete::generate(shell, &mut Self::command(), "stepgate", &mut std::io::stdout());
                Ok(ExitCode::SUCCESS)
            }
            Command::ConfigSchema => {
                println!("{:#}", crate::config::schema());
                Ok(ExitCode::SUCCESS)
            }
            Command::LintReference => {
                print!("{}", crate::doctor::reference());
                Ok(ExitCode::SUCCESS)
            }
        }
    }
}

/// The commit of the build, where `STEPGATE_COMMIT` was set for it.
pub const COMMIT: &str = match option_env!("STEPGATE_COMMIT") {
    Some(commit) => commit,
    None => "unknown",
};

fn version() -> String {
    let (own, os, arch) = (env!("CARGO_PKG_VERSION"), std::env::consts::OS, std::env::consts::ARCH);
    format!("Version: {own}\nCommit: {COMMIT}\nRego Version: v1\nOPA Version: {OPA_VERSION}\nPlatform: {os}/{arch}\n")
}
