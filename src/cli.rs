//! The command line, in OPA's words.

mod run;
mod token;

use clap::{Parser, Subcommand};

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
    /// Make keys and tokens for development and tests
    #[command(subcommand)]
    Token(token::Token),
    /// Print the version
    Version,
    /// Print the configuration reference in Markdown
    #[command(hide = true)]
    ConfigReference,
}

impl Cli {
    /// Carries the command out.
    pub fn execute(self) -> anyhow::Result<()> {
        match self.command {
            Command::Run(run) => run.execute(),
            Command::Token(token) => token.execute(),
            Command::Version => {
                println!("Version: {}", env!("CARGO_PKG_VERSION"));
                Ok(())
            }
            Command::ConfigReference => {
                print!("{}", crate::config::reference());
                Ok(())
            }
        }
    }
}
