//! The engine from outside: one binary, one file per concern.

mod certificates;
mod differences;
mod facade;
mod hostile;
mod random;
mod suite;
mod test_host;
mod typing;
