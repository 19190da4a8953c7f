//! `stepgate token`: keys and tokens for development and tests. Not for production: keys lie unprotected in files.

use std::path::{Path, PathBuf};

use anyhow::{Context as _, bail};
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use clap::Subcommand;
use serde_json::{Map, Value, json};
use stepgate_jose::{Algorithm, PrivateKey, SigningKey, signing_input};

use crate::clock::Clock;

#[derive(Debug, Subcommand)]
pub enum Token {
    /// Make a private key (PEM) and print its public key set
    Keygen {
        /// RS256, ES256 or another algorithm of their families
        #[arg(long, default_value = "ES256")]
        alg: String,
        #[arg(long, default_value = "dev")]
        kid: String,
        /// Where the private key goes
        #[arg(long)]
        out: PathBuf,
    },
    /// Sign claims and print the token
    Sign {
        #[arg(long)]
        key: PathBuf,
        #[arg(long, default_value = "ES256")]
        alg: String,
        #[arg(long, default_value = "dev")]
        kid: String,
        #[arg(long, default_value = "at+jwt")]
        typ: String,
        /// Lifetime in seconds; negative for an expired token
        #[arg(long, default_value_t = 600, allow_negative_numbers = true)]
        lifetime: i64,
        /// Claims as a JSON object; `iat` and `exp` are added unless they are given
        claims: String,
    },
    /// Print the public key set of a private key
    Jwks {
        #[arg(long)]
        key: PathBuf,
        #[arg(long, default_value = "ES256")]
        alg: String,
        #[arg(long, default_value = "stepgate")]
        kid: String,
    },
    /// Print a token's header and claims without checking anything
    Decode { token: String },
}

impl Token {
    pub fn execute(self) -> anyhow::Result<()> {
        match self {
            Self::Keygen { alg, kid, out } => keygen(&alg, &kid, &out),
            Self::Sign { key, alg, kid, typ, lifetime, claims } => {
                println!("{}", sign(&key, &alg, &kid, &typ, lifetime, &claims, &Clock::System)?);
                Ok(())
            }
            Self::Jwks { key, alg, kid } => {
                let pem = std::fs::read_to_string(&key).with_context(|| format!("cannot read {}", key.display()))?;
                println!("{}", key_set(&SigningKey::from_pem(named(&alg)?, &pem)?, &kid));
                Ok(())
            }
            Self::Decode { token } => decode(&token),
        }
    }
}

fn named(alg: &str) -> anyhow::Result<Algorithm> {
    Algorithm::asymmetric(alg)
        .with_context(|| format!("`{alg}` is none of {}", Algorithm::asymmetric_names().join(", ")))
}

fn keygen(alg: &str, kid: &str, out: &Path) -> anyhow::Result<()> {
    use std::io::Write as _;
    use std::os::unix::fs::OpenOptionsExt as _;

    let alg = named(alg)?;
    let pem = PrivateKey::generate(alg)?;
    let keys = key_set(&SigningKey::from_pem(alg, &pem)?, kid);
    let mut file = std::fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(out);
    let file = file.as_mut().map_err(|error| anyhow::anyhow!("`{}`: {error}", out.display()))?;
    file.write_all(pem.as_bytes())?;
    println!("{keys}");
    Ok(())
}

/// The public half of a key, as services read it (RFC 7517 section 5).
fn key_set(key: &SigningKey, kid: &str) -> Value {
    let mut jwk = key.public_jwk();
    jwk.extend([("kid", kid.to_owned()), ("use", "sig".to_owned()), ("alg", key.algorithm().name().to_owned())]);
    json!({"keys": [jwk]})
}

fn sign(
    key: &Path,
    alg: &str,
    kid: &str,
    typ: &str,
    lifetime: i64,
    claims: &str,
    clock: &Clock,
) -> anyhow::Result<String> {
    let alg = named(alg)?;
    let pem = std::fs::read_to_string(key).with_context(|| format!("`{}` cannot be read", key.display()))?;
    let key = SigningKey::from_pem(alg, &pem)?;
    let mut claims: Map<String, Value> = serde_json::from_str(claims).context("the claims are not a JSON object")?;
    let now = clock.now();
    claims.entry("iat").or_insert_with(|| json!(now.min(now.saturating_add(lifetime))));
    claims.entry("exp").or_insert_with(|| json!(now.saturating_add(lifetime)));
    let header = json!({"alg": alg.name(), "kid": kid, "typ": typ});
    let signed = signing_input(&header.to_string(), &Value::Object(claims).to_string());
    Ok(format!("{signed}.{}", key.sign(signed.as_bytes())?))
}

fn decode(token: &str) -> anyhow::Result<()> {
    let parts: Vec<_> = token.trim().split('.').collect();
    let [header, claims, _] = parts.as_slice() else { bail!("a token has three parts") };
    for part in [header, claims] {
        let bytes = URL_SAFE_NO_PAD.decode(part).context("a part is not base64url")?;
        let value: Value = serde_json::from_slice(&bytes).context("a part is not JSON")?;
        println!("{value:#}");
    }
    Ok(())
}
