//! The two steps of stopping: *draining* (no new work, what is in flight ends) and *cut* (the drain deadline is over: what is
//! left ends now, with an error that says so).

use tokio_util::sync::CancellationToken;

/// The two steps, each a token; clones are the same.
#[derive(Clone, Debug, Default)]
pub struct Shutdown {
    draining: CancellationToken,
    cut: CancellationToken,
}

impl Shutdown {
    /// No new work from now on.
    pub fn drain(&self) {
        self.draining.cancel();
    }

    /// What is left ends now.
    pub fn cut(&self) {
        self.draining.cancel();
        self.cut.cancel();
    }

    /// Whether new work is refused.
    pub fn is_draining(&self) -> bool {
        self.draining.is_cancelled()
    }

    /// Resolves when new work is refused. Cancel safe.
    pub async fn draining(&self) {
        self.draining.cancelled().await;
    }

    /// The token that ends what is left; long work listens to it.
    pub fn cut_token(&self) -> CancellationToken {
        self.cut.clone()
    }
}
