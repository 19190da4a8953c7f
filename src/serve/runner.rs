//! Where the work of streams is done.

use std::collections::VecDeque;
use std::future::Future;
use std::panic::AssertUnwindSafe;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::task::{Context, Waker};
use std::time::{Duration, Instant};

use parking_lot::Mutex;

use crate::lifecycle::Lifecycle;

/// Work that keeps its connection waiting longer than this is slow.
const SLOW: Duration = Duration::from_micros(300);
/// For how many streams work is done aside after a slow one.
const ASIDE_AFTER_SLOW: u32 = 64;

/// All that is to be done for one stream.
pub type Work = Pin<Box<dyn Future<Output = ()> + Send>>;

/// Decides where the work of all connections of a server is done: by the task that read it from its connection, or, after slow work, aside.
/// Whoever reads and writes for a connection must not stand behind everything that is slow, and wait again at each of its steps.
#[derive(Clone)]
pub struct Runner {
    tasks: Lifecycle,
    /// For how many streams work is still done aside.
    left_aside: Arc<AtomicU32>,
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

impl Runner {
    pub fn new(tasks: Lifecycle, max_takers: usize) -> Self {
        Self { tasks, left_aside: Arc::default(), aside: Arc::default(), max_takers }
    }

    /// Comes when everything is to stop.
    pub fn stopping(&self) -> impl Future<Output = ()> + Send + 'static {
        self.tasks.stopping()
    }

    /// Does `work` here and now, unless it has to wait or slow work went before it.
    pub fn run(&self, work: Work) {
        let left = &self.left_aside;
        let is_aside = left.load(Ordering::Relaxed) > 0
            && left.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |left| left.checked_sub(1)).is_ok();
        if !is_aside {
            return self.run_here(work);
        }
        let mut aside = self.aside.lock();
        aside.works.push_back(work);
        if aside.takers < self.max_takers {
            aside.takers = aside.takers.saturating_add(1);
            self.tasks.spawn(self.clone().take_all());
        }
    }

    fn run_here(&self, mut work: Work) {
        let begin = Instant::now();
        // What is not ready is polled again by its own task, so nobody needs to be woken here.
        let mut nobody = Context::from_waker(Waker::noop());
        // Twice: a check that has waited steps back once, so that it ends here if its stream was reset, and else goes on.
        let is_done = work.as_mut().poll(&mut nobody).is_ready() || work.as_mut().poll(&mut nobody).is_ready();
        if !is_done {
            self.tasks.spawn(work);
        }
        if begin.elapsed() > SLOW {
            self.left_aside.store(ASIDE_AFTER_SLOW, Ordering::Relaxed);
        }
    }

    /// Does work aside until there is no more.
    async fn take_all(self) {
        let mut begin = Instant::now();
        while let Some(work) = self.next_aside() {
            // Checks catch their panics themselves; whatever else does not must not end this.
            if std::panic::catch_unwind(AssertUnwindSafe(|| self.run_here(work))).is_err() {
                tracing::error!("the work of a stream panicked");
            }
            if begin.elapsed() > SLOW {
                tokio::task::yield_now().await;
                begin = Instant::now();
            }
        }
    }

    /// The next work; whoever gets none takes no more.
    fn next_aside(&self) -> Option<Work> {
        let mut aside = self.aside.lock();
        let work = aside.works.pop_front();
        if work.is_none() {
            aside.takers = aside.takers.saturating_sub(1);
        }
        work
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::AtomicUsize;

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
        let runner = Runner::new(Lifecycle::default(), 1);
        let left = || runner.left_aside.load(Ordering::Relaxed);
        runner.run(counted(&count, SLOW * 2));
        assert_eq!((count.load(Ordering::Relaxed), left()), (1, ASIDE_AFTER_SLOW));
        for _ in 0..ASIDE_AFTER_SLOW {
            runner.run(counted(&count, Duration::ZERO));
        }
        assert_eq!((count.load(Ordering::Relaxed), left()), (1, 0), "nothing ran here");
        runner.tasks.ended().await;
        assert_eq!(count.load(Ordering::Relaxed), 1 + 100 * ASIDE_AFTER_SLOW as usize);
    }

    #[tokio::test]
    async fn work_aside_is_done_in_order_also_after_a_panic() {
        let (order, runner) = (Arc::new(Mutex::new(Vec::new())), Runner::new(Lifecycle::default(), 1));
        runner.left_aside.store(4, Ordering::Relaxed);
        for n in 0..4 {
            let order = Arc::clone(&order);
            runner.run(Box::pin(async move {
                assert_ne!(n, 1, "a defect");
                order.lock().push(n);
            }));
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
            done.send(value).expect("somebody waits");
        };
        let runner = Runner::new(Lifecycle::default(), 1);
        runner.run(Box::pin(work));
        // Another one has its turn meanwhile.
        let count = Arc::new(AtomicUsize::new(0));
        runner.left_aside.store(1, Ordering::Relaxed);
        runner.run(counted(&count, Duration::ZERO));
        while count.load(Ordering::Relaxed) == 0 {
            tokio::task::yield_now().await;
        }
        send.send(7).expect("somebody waits");
        assert_eq!(is_done.await.expect("a value"), 7);
    }
}
