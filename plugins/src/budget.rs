//! Time that a STATUS may take: whoever asks has no timeout of its own, and holds up every
//! ADD meanwhile (containerd).

use std::sync::mpsc;
use std::time::Duration;

/// Limit on the STATUS of a whole chain, documented in docs/convergence.md.
const CHAIN: Duration = Duration::from_secs(1);

/// For starting and ending the processes of a chain.
const PROCESSES: Duration = Duration::from_millis(300);

/// Limit on the question whether addresses are left, `veth`'s share of [`CHAIN`].
pub(crate) const IPAM_STATUS: Duration = Duration::from_millis(200);

/// Limit on a sync by STATUS, `routing`'s share of [`CHAIN`]: no plugin knows what the others
/// took. A sync of ten thousand nodes that finds nothing to do takes a fraction of it, and
/// one that is cut off has done part of its work.
pub(crate) const SYNC_STATUS: Duration =
    CHAIN.saturating_sub(PROCESSES).saturating_sub(IPAM_STATUS);

/// Does `work` on a thread of its own; `None` where that is not done within `time`. The
/// thread then goes on until the process ends, which is as if it were killed.
pub(crate) fn within<T: Send + 'static>(
    time: Duration,
    work: impl FnOnce() -> T + Send + 'static,
) -> Option<T> {
    let (send, receive) = mpsc::channel();
    let worker = move || {
        // Where nobody listens any more, the time is over.
        let _ = send.send(work());
    };
    match std::thread::Builder::new().spawn(worker) {
        Ok(_) => receive.recv_timeout(time).ok(),
        Err(_) => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_takes_too_long_is_not_waited_for() {
        assert_eq!(within(Duration::from_secs(20), || 7), Some(7));
        let (_open, never) = mpsc::channel::<()>();
        assert_eq!(within(Duration::from_millis(10), move || never.recv()), None);
    }
}
