//! The control plane: tasks that keep the stores fresh. They may wait, retry and fail; no check ever waits for one,
//! except, briefly and by name, for keys.

pub mod bundle;
pub mod files;
pub mod keys;
