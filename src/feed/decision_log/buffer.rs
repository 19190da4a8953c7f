//! Events that wait for an upload, within limits.

use std::collections::VecDeque;

use parking_lot::Mutex;
use tokio::sync::Notify;

/// The behaviour when the buffer is full.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Overflow {
    /// The oldest events go, as in OPA.
    #[default]
    DropOld,
    DropNew,
    /// The oldest events go to disk.
    Spill,
    /// New events wait, and with them, behind a full queue, the checks that must be logged.
    Wait,
}

/// The capacity of the buffer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    pub bytes: usize,
    pub events: usize,
    pub overflow: Overflow,
}

/// Events on their way.
#[derive(Debug)]
pub struct Buffer {
    state: Mutex<State>,
    filled: Notify,
    freed: Notify,
}

#[derive(Debug)]
struct State {
    events: VecDeque<String>,
    bytes: usize,
    limits: Limits,
}

impl State {
    fn has_room(&self, length: usize) -> bool {
        self.bytes.saturating_add(length) <= self.limits.bytes && self.events.len() < self.limits.events
    }

    fn push(&mut self, event: String) {
        self.bytes = self.bytes.saturating_add(event.len());
        self.events.push_back(event);
    }

    fn pop(&mut self) -> Option<String> {
        let event = self.events.pop_front()?;
        self.bytes = self.bytes.saturating_sub(event.len());
        Some(event)
    }

    fn is_half_full(&self) -> bool {
        self.bytes > self.limits.bytes / 2 || self.events.len() > self.limits.events / 2
    }
}

impl Buffer {
    pub fn new(limits: Limits) -> Self {
        let state = State { events: VecDeque::new(), bytes: 0, limits };
        Self { state: Mutex::new(state), filled: Notify::new(), freed: Notify::new() }
    }

    pub fn set_limits(&self, limits: Limits) {
        self.state.lock().limits = limits;
        self.freed.notify_one();
    }

    pub fn limits(&self) -> Limits {
        self.state.lock().limits
    }

    /// Takes an event in when there is room for it, or when it would be alone; gives it back otherwise.
    pub fn offer(&self, event: String) -> Result<(), String> {
        let mut state = self.state.lock();
        if !state.has_room(event.len()) && !state.events.is_empty() {
            return Err(event);
        }
        state.push(event);
        if state.is_half_full() {
            self.filled.notify_one();
        }
        Ok(())
    }

    /// Takes an event in whatever it costs; gives how many older ones had to go.
    pub fn force(&self, event: String) -> usize {
        let mut state = self.state.lock();
        let mut gone = 0usize;
        while !state.has_room(event.len()) && state.pop().is_some() {
            gone = gone.saturating_add(1);
        }
        state.push(event);
        self.filled.notify_one();
        gone
    }

    /// Takes an event in beyond the limits.
    pub fn cram(&self, event: String) {
        self.state.lock().push(event);
    }

    /// The oldest events, about `bytes` of them and at least one.
    pub fn take(&self, bytes: usize) -> Vec<String> {
        let mut state = self.state.lock();
        let (mut taken, mut sum) = (Vec::new(), 0usize);
        while let Some(next) = state.events.front() {
            sum = sum.saturating_add(next.len());
            if sum > bytes && !taken.is_empty() {
                break;
            }
            taken.extend(state.pop());
        }
        self.freed.notify_one();
        taken
    }

    /// Puts events back where they were taken from.
    pub fn put_back(&self, events: Vec<String>) {
        let mut state = self.state.lock();
        for event in events.into_iter().rev() {
            state.bytes = state.bytes.saturating_add(event.len());
            state.events.push_front(event);
        }
    }

    /// Says that an event has found no room.
    pub fn log_full(&self) {
        self.filled.notify_one();
    }

    pub fn is_half_full(&self) -> bool {
        self.state.lock().is_half_full()
    }

    /// Comes when the buffer is half full.
    pub async fn filled(&self) {
        self.filled.notified().await;
    }

    /// Comes when there may be room again.
    pub async fn freed(&self) {
        self.freed.notified().await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn limits_hold_for_bytes_and_for_events() {
        let buffer = Buffer::new(Limits { bytes: 10, events: 3, overflow: Overflow::DropOld });
        for event in ["aaaa", "bbbb"] {
            assert_eq!(buffer.offer(event.to_owned()), Ok(()));
        }
        assert_eq!(buffer.offer("cccc".to_owned()), Err("cccc".to_owned()));
        assert_eq!(buffer.force("cccc".to_owned()), 1);
        assert_eq!(buffer.offer("d".to_owned()), Ok(()));
        assert_eq!(buffer.offer("e".to_owned()), Err("e".to_owned()), "three are enough");
        assert_eq!(buffer.take(5), ["bbbb"]);
        buffer.put_back(vec!["bbbb".to_owned()]);
        assert_eq!(buffer.take(100), ["bbbb", "cccc", "d"]);
        let large = "x".repeat(100);
        assert_eq!(buffer.offer(large.clone()), Ok(()), "one that is alone always fits");
        assert_eq!(buffer.take(1), [large], "and goes alone");
        assert!(buffer.take(1).is_empty());
    }
}
