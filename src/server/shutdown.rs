//! The two steps of stopping. While the gateway is *draining* it refuses new work, and requests in
//! flight end by themselves. The *cut* follows at the drain deadline: whatever is left ends at
//! once, with an error that says why.

use tokio_util::sync::CancellationToken;

/// The two steps, each as a token. Clones share them.
#[derive(Clone, Debug, Default)]
pub struct Shutdown {
    draining: CancellationToken,
    cut: CancellationToken,
}

impl Shutdown {
    /// Refuses new work from now on.
    pub fn drain(&self) {
        self.draining.cancel();
    }

    /// Ends whatever is left, and refuses new work.
    pub fn cut(&self) {
        self.draining.cancel();
        self.cut.cancel();
    }

    /// Returns whether new work is refused.
    #[must_use]
    pub fn is_draining(&self) -> bool {
        self.draining.is_cancelled()
    }

    /// Resolves when new work is refused. Cancel safe.
    pub async fn draining(&self) {
        self.draining.cancelled().await;
    }

    /// Returns the token that is cancelled at the cut. Whatever takes long listens to it.
    #[must_use]
    pub fn cut_token(&self) -> CancellationToken {
        self.cut.clone()
    }
}
