//! Where the work of streams is done.

use std::collections::VecDeque;
use std::future::Future;
use std::panic::AssertUnwindSafe;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, AtomicUsize, Ordering};
use std::task::{Context, Waker};
use std::time::{Duration, Instant};

use parking_lot::Mutex;

use crate::lifecycle::Lifecycle;

/// Work that keeps its connection waiting longer than this is slow.
const SLOW: Duration = Duration::from_micros(300);
/// The number of streams whose work moves to the overflow queue after slow work.
const ASIDE_AFTER_SLOW: u32 = 64;

/// The queued work of one stream.
pub type Work = Pin<Box<dyn Future<Output = ()> + Send>>;

/// Chooses the executor of streams: the task that read them from their connection, or, after slow work, the overflow queue.
/// Reading and writing of a connection must not queue behind slow work at each step.
#[derive(Clone)]
pub struct StreamExecutor {
    tasks: Lifecycle,
    /// The number of streams that still go to the overflow queue.
    left_aside: Arc<AtomicU32>,
    /// The length of the overflow queue. Later work queues as well.
    waiting: Arc<AtomicUsize>,
    aside: Arc<Mutex<Aside>>,
    /// As many as there are threads.
    max_takers: usize,
}

/// Work in the order in which it came, and how many tasks take from it.
#[derive(Default)]
struct Aside {
    works: VecDeque<Work>,
    takers: usize,
}

impl StreamExecutor {
    pub fn new(tasks: Lifecycle, max_takers: usize) -> Self {
        Self { tasks, left_aside: Arc::default(), waiting: Arc::default(), aside: Arc::default(), max_takers }
    }

    /// Comes when everything is to stop.
    pub fn stopping(&self) -> impl Future<Output = ()> + Send + 'static {
        self.tasks.stopping()
    }

    /// Does `work` here and now, unless it has to wait or slow work went before it. What is only a refusal never stands behind others:
    /// their number is bounded by that, too.
    pub fn run(&self, work: Work, is_refusal: bool) {
        if is_refusal || !self.is_aside() {
            return self.run_here(work);
        }
        let mut aside = self.aside.lock();
        aside.works.push_back(work);
        self.waiting.fetch_add(1, Ordering::Relaxed);
        if aside.takers < self.max_takers {
            aside.takers = aside.takers.saturating_add(1);
            self.tasks.spawn(self.clone().take_all());
        }
    }

    /// The next work goes to the overflow queue.
    fn is_aside(&self) -> bool {
        let left = &self.left_aside;
        let takes_one = || left.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |left| left.checked_sub(1)).is_ok();
        (left.load(Ordering::Relaxed) > 0 && takes_one()) || self.waiting.load(Ordering::Relaxed) > 0
    }

    fn run_here(&self, mut work: Work) {
        let begin = Instant::now();
        // A pending future is polled again by its own task, so it needs no waker here.
        let mut nobody = Context::from_waker(Waker::noop());
        // Twice: a check that has waited steps back once, so that it ends here if its stream was reset, and else goes on.
        let mut is_done = || work.as_mut().poll(&mut nobody).is_ready();
        // Checks catch their own panics; a panic of other work must end neither its connection nor the worker.
        match std::panic::catch_unwind(AssertUnwindSafe(|| is_done() || is_done())) {
            Ok(true) => {}
            Ok(false) => self.tasks.spawn(work),
            Err(_) => tracing::error!("the work of a stream panicked"),
        }
        if begin.elapsed() > SLOW {
            self.left_aside.store(ASIDE_AFTER_SLOW, Ordering::Relaxed);
        }
    }

    /// Runs overflow work until the queue is empty.
    async fn take_all(self) {
        let mut begin = Instant::now();
        while let Some(work) = self.next_aside() {
            self.run_here(work);
            if begin.elapsed() > SLOW {
                tokio::task::yield_now().await;
                begin = Instant::now();
            }
        }
    }

    /// Pops the next queued future; a worker that finds the queue empty exits.
    fn next_aside(&self) -> Option<Work> {
        let mut aside = self.aside.lock();
        let work = aside.works.pop_front();
        match &work {
            Some(_) => _ = self.waiting.fetch_sub(1, Ordering::Relaxed),
            None => aside.takers = aside.takers.saturating_sub(1),
        }
        work
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Work that is polled where `run` is called counts 1, in a task of its own 100.
    fn counted(count: &Arc<AtomicUsize>, delay: Duration) -> Work {
        let (count, caller) = (Arc::clone(count), tokio::task::try_id());
        Box::pin(async move {
            std::thread::sleep(delay);
            count.fetch_add(if tokio::task::try_id() == caller { 1 } else { 100 }, Ordering::Relaxed);
        })
    }

    #[tokio::test]
    async fn quick_work_is_done_at_once_and_slow_work_is_followed_by_tasks() {
        let count = Arc::new(AtomicUsize::new(0));
        let runner = StreamExecutor::new(Lifecycle::default(), 1);
        let left = || runner.left_aside.load(Ordering::Relaxed);
        runner.run(counted(&count, SLOW * 2), false);
        assert_eq!((count.load(Ordering::Relaxed), left()), (1, ASIDE_AFTER_SLOW));
        for _ in 0..=ASIDE_AFTER_SLOW {
            runner.run(counted(&count, Duration::ZERO), false);
        }
        assert_eq!((count.load(Ordering::Relaxed), left()), (1, 0), "nothing ran here, as long as others wait");
        runner.run(counted(&count, Duration::ZERO), true);
        assert_eq!(count.load(Ordering::Relaxed), 2, "a refusal does");
        runner.tasks.ended().await;
        assert_eq!(count.load(Ordering::Relaxed), 2 + 100 * (ASIDE_AFTER_SLOW as usize + 1));
    }

    #[tokio::test]
    async fn work_aside_is_done_in_order_also_after_a_panic() {
        let (order, runner) = (Arc::new(Mutex::new(Vec::new())), StreamExecutor::new(Lifecycle::default(), 1));
        runner.left_aside.store(4, Ordering::Relaxed);
        for n in 0..4 {
            let order = Arc::clone(&order);
            runner.run(
                Box::pin(async move {
                    assert_ne!(n, 1, "a defect");
                    order.lock().push(n);
                }),
                false,
            );
        }
        assert_eq!((order.lock().len(), runner.aside.lock().takers), (0, 1));
        while runner.aside.lock().takers > 0 {
            tokio::task::yield_now().await;
        }
        assert_eq!(*order.lock(), [0, 2, 3]);
    }

    #[tokio::test]
    async fn work_that_waits_is_finished_by_a_task() {
        let (send, receive) = tokio::sync::oneshot::channel();
        let (done, is_done) = tokio::sync::oneshot::channel();
        let work = async move {
            let value: u32 = receive.await.expect("a value");
            done.send(value).expect("the receiver waits");
        };
        let runner = StreamExecutor::new(Lifecycle::default(), 1);
        runner.run(Box::pin(work), false);
        // Another stream runs meanwhile.
        let count = Arc::new(AtomicUsize::new(0));
        runner.left_aside.store(1, Ordering::Relaxed);
        runner.run(counted(&count, Duration::ZERO), false);
        while count.load(Ordering::Relaxed) == 0 {
            tokio::task::yield_now().await;
        }
        send.send(7).expect("the receiver waits");
        assert_eq!(is_done.await.expect("a value"), 7);
    }
}
