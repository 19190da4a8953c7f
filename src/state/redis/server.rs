//! The servers of tables: which one is used, and what it must be like.

use std::path::PathBuf;
use std::time::Duration;

use redis::{Client, Connection, ConnectionAddr, IntoConnectionInfo as _, RedisError, TlsCertificates, cmd};

use crate::state::StateError;

/// A server that does not answer for so long is away.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(1);
const ANSWER_TIMEOUT: Duration = Duration::from_secs(3);

/// When a change counts as durable.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Durability {
    /// The server has an append-only file with `appendfsync always`.
    AofAlways,
    /// `WAITAOF` confirms each change (Redis 7.2, Valkey).
    WaitAof,
    /// The server has an append-only file, and a replica confirms each change.
    Replica,
    /// The owner of the server says so.
    External,
}

/// A server that several processes share.
#[derive(Clone, Debug)]
pub struct RedisSettings {
    /// Its addresses, `redis://` or `rediss://`: of those that can be used the first is.
    pub urls: Vec<String>,
    /// All keys are below `{sg:<namespace>}`.
    pub namespace: String,
    pub username: Option<String>,
    /// Read with every connection.
    pub password_file: Option<PathBuf>,
    /// Roots of its certificate; those of the system otherwise.
    pub ca_cert_file: Option<PathBuf>,
    pub durability: Durability,
}

/// A connection to a server that was looked at.
pub(super) struct Link {
    pub connection: Connection,
    /// Identifies the memory of the server.
    pub generation: String,
}

impl RedisSettings {
    pub(super) fn key(&self, name: &str) -> String {
        format!("{{sg:{}}}:{name}", self.namespace)
    }

    /// A connection to the first server that can be used.
    pub(super) fn connect(&self) -> Result<Link, StateError> {
        let mut reasons = Vec::new();
        for url in &self.urls {
            match self.connect_to(url) {
                Ok(link) => return Ok(link),
                Err(reason) => reasons.push(format!("`{url}`: {reason}")),
            }
        }
        Err(StateError::NoServer(reasons.join("; ")))
    }

    fn connect_to(&self, url: &str) -> Result<Link, String> {
        let text = |error: RedisError| error.to_string();
        let read = |path: &PathBuf| {
            std::fs::read(path).map_err(|error| format!("`{}` cannot be read: {error}", path.display()))
        };
        let info = url.into_connection_info().map_err(text)?;
        // An ACL need not allow what is only for a list of clients.
        let mut login = info.redis_settings().clone().set_skip_set_lib_name();
        if let Some(name) = &self.username {
            login = login.set_username(name);
        }
        if let Some(path) = &self.password_file {
            let password = String::from_utf8(read(path)?).map_err(|_| "the password is not UTF-8".to_owned())?;
            login = login.set_password(password.trim_end_matches(['\r', '\n']));
        }
        let info = info.set_redis_settings(login);
        let client = match info.addr() {
            ConnectionAddr::TcpTls { .. } => {
                let root_cert = self.ca_cert_file.as_ref().map(read).transpose()?;
                Client::build_with_tls(info, TlsCertificates { client_tls: None, root_cert })
            }
            _ => Client::open(info),
        };
        let mut connection =
            client.and_then(|client| client.get_connection_with_timeout(CONNECT_TIMEOUT)).map_err(text)?;
        connection.set_read_timeout(Some(ANSWER_TIMEOUT)).map_err(text)?;
        connection.set_write_timeout(Some(ANSWER_TIMEOUT)).map_err(text)?;
        let generation = self.look_at(&mut connection)?;
        Ok(Link { connection, generation })
    }

    /// Examines a server: it is a primary, and keeps what it has acknowledged. Gives its generation.
    fn look_at(&self, connection: &mut Connection) -> Result<String, String> {
        let info: String = cmd("INFO")
            .arg(&["server", "replication", "persistence", "memory"])
            .query(connection)
            .map_err(|error| format!("INFO: {error}"))?;
        let info = Info(&info);
        if info.get("role") != "master" {
            return Err("it is a replica".to_owned());
        }
        if info.get("loading") == "1" {
            return Err("it is still loading its data".to_owned());
        }
        if info.major() < 7 {
            return Err(format!("it is Redis {}: 7.0, or Valkey 7.2, is the oldest", info.get("redis_version")));
        }
        if info.get("maxmemory") != "0" && info.get("maxmemory_policy") != "noeviction" {
            return Err(format!(
                "it evicts keys (maxmemory-policy {}), which would un-revoke: set noeviction",
                info.get("maxmemory_policy")
            ));
        }
        self.look_at_durability(&info, connection)?;
        // In a cluster: this server has the keys.
        let _: Option<String> =
            cmd("GET").arg(self.key("lock")).query(connection).map_err(|error| format!("GET: {error}"))?;
        Ok(info.generation())
    }

    fn look_at_durability(&self, info: &Info<'_>, connection: &mut Connection) -> Result<(), String> {
        let durability = self.durability;
        if durability == Durability::External {
            return Ok(());
        }
        if info.get("aof_enabled") != "1" {
            return Err("it has no append-only file: set `appendonly yes`".to_owned());
        }
        if durability != Durability::AofAlways {
            return Ok(());
        }
        let set: Vec<String> = cmd("CONFIG").arg(&["GET", "appendfsync"]).query(connection).map_err(|error| {
            format!("CONFIG GET: {error}; if this is forbidden, `durability: external` says that it is durable")
        })?;
        match set.get(1).map(String::as_str) {
            Some("always") => Ok(()),
            other => Err(format!(
                "appendfsync is {}: set `appendfsync always`, or another `durability`",
                other.unwrap_or("unknown")
            )),
        }
    }
}

/// An answer to `INFO`.
pub(super) struct Info<'a>(pub &'a str);

impl<'a> Info<'a> {
    /// The value of a name; empty without it.
    pub fn get(&self, name: &str) -> &'a str {
        let value = |line: &'a str| line.strip_prefix(name)?.strip_prefix(':');
        self.0.lines().find_map(value).unwrap_or_default().trim()
    }

    fn major(&self) -> u32 {
        self.get("redis_version").split('.').next().and_then(|major| major.parse().ok()).unwrap_or_default()
    }

    pub fn generation(&self) -> String {
        format!("{}/{}", self.get("run_id"), self.get("master_replid"))
    }
}
