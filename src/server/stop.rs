//! The stop flag: everybody who waits learns through it that the process is leaving.
//!
//! Two levels, never lowered: `Hup` (leave when the clients have left) and `Term` (leave within the drain time).
//! Each level has a descriptor that is readable from then on for ever, so that a session waits on its socket and
//! on the flag with one poll, and a channel for those that select. Creating it fails only for want of
//! descriptors; nothing else here can fail or block.

use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::UnixStream;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, Sender, bounded};

/// Requests this close together are one wish. Under systemd a stop signals every process of the unit while master
/// signals its process group, so two TERMs within milliseconds are the rule there; and for one HUP
/// master 3.6 sends up to one for each entry of cyrus.conf.
const ONE_WISH: Duration = Duration::from_millis(800);

/// Why and how the process leaves.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum DrainKind {
    /// Serve the clients until they leave; a successor takes new ones.
    Hup,
    /// Serve the clients until the drain time is over.
    Term,
}

/// What became of a request to stop.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Request {
    /// A drain begins, or becomes a shorter one.
    Begun,
    /// It says what was said before.
    Repeated,
    /// A second TERM: the one who asks does not want to wait.
    Impatient,
}

/// The stop flag; clones are the same flag.
#[derive(Clone, Debug)]
pub struct Stop {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    state: Mutex<State>,
    hup: UnixStream,
    term: UnixStream,
    begun: Receiver<()>,
}

#[derive(Debug)]
struct State {
    draining: Option<(Instant, DrainKind)>,
    /// Dropping these makes the other ends readable.
    hup: Option<(UnixStream, Sender<()>)>,
    term: Option<UnixStream>,
}

impl Stop {
    /// A flag that is not set. Takes four descriptors.
    pub fn new() -> io::Result<Stop> {
        let (hup, hup_tx) = UnixStream::pair()?;
        let (term, term_tx) = UnixStream::pair()?;
        let (begun_tx, begun) = bounded(0);
        let state = Mutex::new(State {
            draining: None,
            hup: Some((hup_tx, begun_tx)),
            term: Some(term_tx),
        });
        let inner = Inner {
            state,
            hup,
            term,
            begun,
        };
        Ok(Stop {
            inner: Arc::new(inner),
        })
    }

    /// Begins to drain, or makes a drain under `Hup` one under `Term`, whose time then counts from now. Anything
    /// else changes nothing.
    pub fn begin(&self, kind: DrainKind) {
        let mut state = self.state();
        if state.draining.is_none_or(|(_, now)| now < kind) {
            state.raise(kind, Instant::now());
        }
    }

    /// A request by signal, where repeating it means something: a second HUP, sent when the first had its time,
    /// is a `Term` (two generations of draining processes would leave none to accept); a second TERM is
    /// `Impatient`. What comes within a moment of the last step is the same wish.
    pub fn request(&self, kind: DrainKind) -> Request {
        self.request_at(kind, Instant::now())
    }

    fn request_at(&self, kind: DrainKind, now: Instant) -> Request {
        let mut state = self.state();
        let raised = match state.draining {
            None => kind,
            Some((_, DrainKind::Hup)) if kind == DrainKind::Term => kind,
            Some((since, was)) => {
                if now.saturating_duration_since(since) < ONE_WISH {
                    return Request::Repeated;
                }
                match (was, kind) {
                    (DrainKind::Hup, _) => DrainKind::Term,
                    (DrainKind::Term, DrainKind::Hup) => return Request::Repeated,
                    (DrainKind::Term, DrainKind::Term) => return Request::Impatient,
                }
            }
        };
        state.raise(raised, now);
        Request::Begun
    }

    /// Since when the process drains, and how. `None`: it does not.
    pub fn draining(&self) -> Option<(Instant, DrainKind)> {
        self.state().draining
    }

    /// When a session must be over, if the drain time is `drain`. `None`: no such time (yet).
    pub fn deadline(&self, drain: Duration) -> Option<Instant> {
        match self.draining()? {
            (_, DrainKind::Hup) => None,
            (since, DrainKind::Term) => since.checked_add(drain),
        }
    }

    /// Readable for ever once the process drains at `level` or above.
    pub fn fd(&self, level: DrainKind) -> BorrowedFd<'_> {
        match level {
            DrainKind::Hup => self.inner.hup.as_fd(),
            DrainKind::Term => self.inner.term.as_fd(),
        }
    }

    /// Disconnected for ever once the process drains.
    pub fn channel(&self) -> &Receiver<()> {
        &self.inner.begun
    }

    fn state(&self) -> MutexGuard<'_, State> {
        // Nothing that can panic runs under the lock.
        let locked = self.inner.state.lock();
        locked.unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    fn raise(&mut self, kind: DrainKind, now: Instant) {
        self.draining = Some((now, kind));
        self.hup = None;
        if kind == DrainKind::Term {
            self.term = None;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sys::fd::{Watch, poll};

    fn readable(stop: &Stop, level: DrainKind) -> bool {
        let mut w = [Watch::readable(stop.fd(level))];
        poll(&mut w, Some(Duration::ZERO)).unwrap() == 1
    }

    #[test]
    fn levels_rise_and_stay() {
        let stop = Stop::new().unwrap();
        let clone = stop.clone();
        assert!(stop.draining().is_none() && !readable(&stop, DrainKind::Hup));
        assert!(stop.channel().try_recv().unwrap_err().is_empty());

        clone.begin(DrainKind::Hup);
        assert_eq!(stop.draining().map(|d| d.1), Some(DrainKind::Hup));
        assert!(readable(&stop, DrainKind::Hup) && !readable(&stop, DrainKind::Term));
        assert!(stop.channel().try_recv().unwrap_err().is_disconnected());
        assert_eq!(stop.deadline(Duration::from_secs(5)), None);

        stop.begin(DrainKind::Term);
        let (since, kind) = clone.draining().unwrap();
        assert_eq!(kind, DrainKind::Term);
        assert!(readable(&stop, DrainKind::Hup) && readable(&stop, DrainKind::Term));
        assert_eq!(
            stop.deadline(Duration::from_secs(5)),
            Some(since + Duration::from_secs(5))
        );

        stop.begin(DrainKind::Hup);
        stop.begin(DrainKind::Term);
        assert_eq!(stop.draining(), Some((since, DrainKind::Term)));
    }

    #[test]
    fn signals_close_together_are_one_wish_and_later_ones_mean_more() {
        use DrainKind::{Hup, Term};
        let start = Instant::now();
        let at = |ms| start + Duration::from_millis(ms);

        let stop = Stop::new().unwrap();
        assert_eq!(stop.request_at(Term, at(0)), Request::Begun);
        assert_eq!(stop.request_at(Term, at(300)), Request::Repeated);
        assert_eq!(stop.request_at(Hup, at(9000)), Request::Repeated);
        assert_eq!(stop.request_at(Term, at(9001)), Request::Impatient);
        assert_eq!(stop.draining(), Some((start, Term)));

        let stop = Stop::new().unwrap();
        assert_eq!(stop.request_at(Hup, at(0)), Request::Begun);
        assert_eq!(stop.request_at(Hup, at(500)), Request::Repeated);
        assert_eq!(stop.draining(), Some((start, Hup)));
        assert_eq!(stop.request_at(Hup, at(5000)), Request::Begun);
        assert_eq!(stop.draining(), Some((at(5000), Term)));

        // The TERM that follows a HUP is a first one, however soon it comes.
        let stop = Stop::new().unwrap();
        assert_eq!(stop.request_at(Hup, at(0)), Request::Begun);
        assert_eq!(stop.request_at(Term, at(10)), Request::Begun);
        assert_eq!(stop.request_at(Term, at(20)), Request::Repeated);
        assert_eq!(stop.request_at(Term, at(2000)), Request::Impatient);
    }
}
