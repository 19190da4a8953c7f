//! Tasks and their end. Every task of the process is spawned here, so that shutting down knows them all.

use std::future::Future;
use std::time::Duration;

use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

/// The tasks of the process, or of one server in it, and the signal that ends them.
#[derive(Clone, Debug, Default)]
pub struct Lifecycle {
    tasks: TaskTracker,
    stop: CancellationToken,
}

impl Lifecycle {
    /// Runs `task` until it ends; it must watch `stopping`.
    pub fn spawn<F>(&self, task: F)
    where
        F: Future<Output = ()> + Send + 'static,
    {
        self.tasks.spawn(task);
    }

    /// Runs `task` until it ends or everything stops, whichever comes first.
    pub fn spawn_until_stop<F>(&self, task: F)
    where
        F: Future<Output = ()> + Send + 'static,
    {
        let stop = self.stop.clone();
        self.tasks.spawn(async move {
            tokio::select! {
                () = stop.cancelled() => {}
                () = task => {}
            }
        });
    }

    /// Tasks that can be stopped before the others; they end with them at the latest.
    pub fn child(&self) -> Self {
        Self { tasks: self.tasks.clone(), stop: self.stop.child_token() }
    }

    /// Comes when everything is to stop.
    pub fn stopping(&self) -> impl Future<Output = ()> + Send + 'static {
        self.stop.clone().cancelled_owned()
    }

    /// The signal itself.
    pub fn signal(&self) -> CancellationToken {
        self.stop.clone()
    }

    pub fn is_stopping(&self) -> bool {
        self.stop.is_cancelled()
    }

    /// Asks all tasks to stop.
    pub fn stop(&self) {
        self.stop.cancel();
    }

    /// Waits until all tasks have ended, but no longer than `grace`; false when some were still running.
    pub async fn drained(&self, grace: Duration) -> bool {
        tokio::time::timeout(grace, self.ended()).await.is_ok()
    }

    /// Waits until all tasks have ended.
    pub async fn ended(&self) {
        self.tasks.close();
        self.tasks.wait().await;
    }
}
