//! The revocation store of a sidecar: entries by key, and the verdict over the keys of a verified token.
//!
//! Entries come from a hub (`feed/revocation.rs`) and are never evicted: a lost entry would un-revoke. Knows no token, no I/O and no
//! names: keys are hashes with a key of the hub.

mod entry;
mod events;
mod index;
mod joins;
mod key;
mod line;
mod metrics;
mod snapshot;
mod store;
mod token_names;

pub use self::entry::{Change, Entry, PERMANENT};
pub use self::events::{MAX_USER_BYTES, UserEvents, short};
pub use self::index::ENTRY_BYTES;
pub use self::joins::{Fold, IssuerJoins, Join, MAX_JOINS, MAX_VALUE_BYTES};
pub use self::key::{HubKey, Key, Kind};
pub use self::line::Line;
pub use self::metrics::RevocationMetrics;
pub use self::snapshot::{
    BLOCKS, Block, Decoder, Header, NO_HEADER, Part, Record, SnapshotError, block_of, decode, encode, encode_header,
    write_block, write_events,
};
pub use self::store::{Load, LoadError, Mode, RevocationStore, Revoked, Settings, State, TokenTimes, Verdict};
pub use self::token_names::{TokenName, TokenNames};
