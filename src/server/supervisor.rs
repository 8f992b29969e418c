//! The server's threads: who starts them, counts them, and sees them out.
//!
//! `acceptor` accepts when there is room, `signals` raises the stop flag, `master` watches for the death of Cyrus
//! master, `sess-N` serves one connection each; the caller's thread supervises. A panic costs its session
//! only. A drain closes the listening sockets first, then tells master that a successor may start, then
//! waits for the sessions, which end themselves; those still there some seconds after their time are cut off. A
//! second TERM ends the process at once, whatever it is doing.
//!
//! What master hears (Cyrus 3.6 master/master.c): 4 for each connection, which it only counts; 2 when draining, which
//! makes it count us as busy and so fork the process that `prefork=1 maxchild=2` asks for, while we are still here.

use std::collections::HashMap;
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, Sender, bounded, never, select, unbounded};
use signal_hook::consts::{SIGHUP, SIGINT, SIGQUIT, SIGTERM};
use signal_hook::iterator::{Handle, Signals};

use super::acceptor::Acceptor;
use super::listen::Listeners;
use super::stop::{DrainKind, Request, Stop};
use super::stream::{Cutter, Peer, Stream};
use crate::cyrus::master::{Message, Status};
use crate::error::{Error, Kind, Result};
use crate::sys::fd;

/// Left before the work was done. Master takes 75 for "was killed" and not for a failure.
pub const EXIT_UNFINISHED: u8 = 75;

/// Time after the end of the drain until sessions are cut off, and again until the process leaves without them.
const GRACE: Duration = Duration::from_secs(if cfg!(test) { 1 } else { 5 });

/// How often a draining supervisor looks at the clock.
const TICK: Duration = Duration::from_millis(250);

/// How long to wait for room in the pipe to master for what it must hear.
const MASTER_PATIENCE: Duration = Duration::from_secs(1);

/// A full house is logged at most this often.
const FULL_AGAIN: Duration = Duration::from_secs(60);

/// What the server may use.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Sessions at a time (at least 1); further clients wait in the backlog.
    pub max_connections: usize,
    /// How long sessions may wait for their clients after a TERM.
    pub drain: Duration,
}

/// Serves one connection, on a thread of its own, from greeting to end. While `Stop` drains it must end by itself:
/// under `Term` before `Stop::deadline`, under `Hup` when the client leaves.
pub type Handler<C> = fn(Stream, Peer, Arc<C>, Stop);

/// Serves until `stop` is raised, by a signal or otherwise, and the last session has ended. Returns the exit
/// status: 0, or `EXIT_UNFINISHED` when sessions had to be left behind. Fails when a thread cannot be started
/// or listening breaks down.
pub fn run<C: Send + Sync + 'static>(
    listeners: Listeners,
    limits: Limits,
    stop: Stop,
    shared: Arc<C>,
    handler: Handler<C>,
) -> Result<u8> {
    let _signals = SignalThread::start(&stop)?;
    let names: Vec<&str> = listeners.sockets.iter().map(|s| s.name()).collect();
    log::info!("listening on=<{}>", names.join(" "));
    let master = listeners.master.map(Arc::new);
    let _watch = match &master {
        Some(status) => Some(MasterWatch::start(status, &stop)?),
        None => None,
    };
    let (knock_tx, knock) = bounded(0);
    let (accepted_tx, accepted) = bounded(0);
    let acceptor = Acceptor {
        sockets: listeners.sockets,
        keepalive: listeners.keepalive,
        stop: stop.clone(),
        knock: knock_tx,
        accepted: accepted_tx,
    };
    let acceptor = spawn("acceptor".into(), move || acceptor.run())?;
    let (ended_tx, ended) = unbounded();
    let mut house = House {
        sessions: HashMap::new(),
        count: 0,
        ended_tx,
        master,
        stop: stop.clone(),
        shared,
        handler,
    };
    let door = Door {
        knock: Some(knock),
        accepted: Some(accepted),
        acceptor: Some(acceptor),
        full_logged: None,
    };
    let outcome = door.keep(&mut house, &ended, limits);
    log::info!(
        "stopped served={} left_behind={}",
        house.count,
        house.sessions.len()
    );
    outcome
}

/// The supervisor's loop and what it waits on.
struct Door {
    /// `None` once nobody is let in any more.
    knock: Option<Receiver<()>>,
    /// `None` once the acceptor has ended.
    accepted: Option<Receiver<(Stream, Peer)>>,
    acceptor: Option<JoinHandle<std::io::Result<()>>>,
    full_logged: Option<Instant>,
}

impl Door {
    fn keep<C: Send + Sync + 'static>(
        mut self,
        house: &mut House<C>,
        ended: &Receiver<u64>,
        limits: Limits,
    ) -> Result<u8> {
        let stop = house.stop.clone();
        let mut failure = None;
        let mut draining = None;
        let mut cut = false;
        loop {
            let full = house.sessions.len() >= limits.max_connections.max(1);
            if full && draining.is_none() {
                self.log_full(house.sessions.len());
            }
            let nobody = never();
            let knock = self.knock.as_ref().filter(|_| !full).unwrap_or(&nobody);
            let nothing = never();
            let accepted = self.accepted.as_ref().unwrap_or(&nothing);
            let quiet = never();
            let begun = if draining.is_none() {
                stop.channel()
            } else {
                &quiet
            };
            let tick = if draining.is_none() {
                never()
            } else {
                crossbeam_channel::after(TICK)
            };
            select! {
                // The rendezvous itself lets the acceptor go on.
                recv(knock) -> knock => if knock.is_err() {
                    self.knock = None;
                },
                recv(accepted) -> got => match got {
                    Ok((stream, peer)) => house.admit(stream, peer),
                    Err(_) => {
                        failure = self.closed(house);
                        if failure.is_some() {
                            stop.begin(DrainKind::Term);
                        }
                    }
                },
                recv(ended) -> n => if let Ok(n) = n {
                    house.bid_farewell(n);
                },
                recv(begun) -> _ => self.knock = None,
                recv(tick) -> _ => {}
            }
            let now = stop.draining();
            if now != draining {
                if let Some((_, kind)) = now {
                    log::info!("draining kind={kind:?} sessions={}", house.sessions.len());
                }
                draining = now;
            }
            if draining.is_none() || self.accepted.is_some() {
                continue;
            }
            if house.sessions.is_empty() {
                return failure.map_or(Ok(0), Err);
            }
            let late = stop.deadline(limits.drain).map(|d| d.elapsed());
            if late.is_some_and(|l| l >= GRACE) && !std::mem::replace(&mut cut, true) {
                log::warn!("cutting off sessions={}", house.sessions.len());
                house.sessions.values().for_each(|s| s.cutter.cut());
            }
            if late.is_some_and(|l| l >= 2 * GRACE) {
                log::error!("leaving without sessions={}", house.sessions.len());
                return failure.map_or(Ok(EXIT_UNFINISHED), Err);
            }
        }
    }

    /// The acceptor has ended and the sockets are closed: master may start another process now, and not
    /// earlier, because two processes must not accept on one socket. After a failure it may not: it counts
    /// failures of processes that are ready, and that is what stops it from starting them for ever.
    fn closed<C>(&mut self, house: &House<C>) -> Option<Error> {
        self.accepted = None;
        self.knock = None;
        let failure = match self.acceptor.take().map(JoinHandle::join) {
            None | Some(Ok(Ok(()))) => None,
            Some(Ok(Err(e))) => Some(Error::io("cannot accept", e).with_kind(Kind::Io)),
            Some(Err(p)) => Some(Error::new(Kind::Internal, panic_text(&*p)).place("acceptor")),
        };
        match &failure {
            Some(e) => log::error!("IOERROR: listening ended: error=<{e}>"),
            None => house.tell_master(Message::Unavailable, MASTER_PATIENCE),
        }
        failure
    }

    fn log_full(&mut self, sessions: usize) {
        if self.full_logged.is_none_or(|t| t.elapsed() >= FULL_AGAIN) {
            self.full_logged = Some(Instant::now());
            log::warn!("connections are at their limit, further clients wait sessions={sessions}");
        }
    }
}

/// The sessions there are, and what a new one needs.
struct House<C> {
    sessions: HashMap<u64, Session>,
    /// Sessions ever started.
    count: u64,
    ended_tx: Sender<u64>,
    master: Option<Arc<Status>>,
    stop: Stop,
    shared: Arc<C>,
    handler: Handler<C>,
}

struct Session {
    thread: JoinHandle<()>,
    cutter: Cutter,
    peer: Peer,
}

impl<C: Send + Sync + 'static> House<C> {
    fn admit(&mut self, stream: Stream, peer: Peer) {
        self.tell_master(Message::ConnectionMulti, Duration::ZERO);
        self.count += 1;
        let n = self.count;
        let end = Ended(n, self.ended_tx.clone());
        let (handler, shared, stop) = (self.handler, self.shared.clone(), self.stop.clone());
        let cutter = stream.downgrade();
        let started = spawn(format!("sess-{n}"), move || {
            let _end = end;
            handler(stream, peer, shared, stop);
        });
        match started {
            Ok(thread) => {
                let session = Session {
                    thread,
                    cutter,
                    peer,
                };
                self.sessions.insert(n, session);
            }
            // The connection went with the closure.
            Err(e) => log::error!("connection refused peer={peer} error=<{e}>"),
        }
    }

    fn bid_farewell(&mut self, n: u64) {
        let Some(session) = self.sessions.remove(&n) else {
            return;
        };
        // It has reported its end: there is nothing left to wait for but the thread's own.
        if let Err(p) = session.thread.join() {
            let (peer, why) = (session.peer, panic_text(&*p));
            log::error!("session panicked session={n} peer={peer} error=<{why}>");
        }
    }
}

impl<C> House<C> {
    fn tell_master(&self, message: Message, patience: Duration) {
        if let Some(status) = &self.master {
            if let Err(e) = status.send(message, patience) {
                log::debug!("cannot tell master message={message:?} error=<{e}>");
            }
        }
    }
}

/// Reports the end of a session however it comes about.
struct Ended(u64, Sender<u64>);

impl Drop for Ended {
    fn drop(&mut self) {
        // An error says that the supervisor left without us.
        let _ = self.1.send(self.0);
    }
}

fn panic_text(payload: &(dyn std::any::Any + Send)) -> String {
    let text = payload.downcast_ref::<&str>().map(|s| (*s).to_owned());
    text.or_else(|| payload.downcast_ref::<String>().cloned())
        .unwrap_or_else(|| "panic".to_owned())
}

fn spawn<T: Send + 'static>(
    name: String,
    f: impl FnOnce() -> T + Send + 'static,
) -> Result<JoinHandle<T>> {
    let what = format!("cannot start thread {name}");
    let thread = thread::Builder::new().name(name).spawn(f);
    thread.map_err(|e| Error::io(what, e))
}

/// Turns signals into requests to stop, while it lives. After its end the signals are ignored.
struct SignalThread {
    handle: Handle,
    thread: Option<JoinHandle<()>>,
}

impl SignalThread {
    fn start(stop: &Stop) -> Result<SignalThread> {
        let mut signals = Signals::new([SIGTERM, SIGINT, SIGQUIT, SIGHUP])
            .map_err(|e| Error::io("cannot handle signals", e))?;
        let handle = signals.handle();
        let stop = stop.clone();
        let thread = spawn("signals".into(), move || {
            for signal in signals.forever() {
                let kind = if signal == SIGHUP {
                    DrainKind::Hup
                } else {
                    DrainKind::Term
                };
                let request = stop.request(kind);
                log::debug!("signal={signal} request={request:?}");
                if request == Request::Impatient {
                    log::warn!("second signal, leaving at once signal={signal}");
                    signal_hook::low_level::exit(EXIT_UNFINISHED.into());
                }
            }
        })?;
        Ok(SignalThread {
            handle,
            thread: Some(thread),
        })
    }
}

impl Drop for SignalThread {
    fn drop(&mut self) {
        self.handle.close();
        self.thread.take().map(JoinHandle::join);
    }
}

/// Raises the flag when master dies, while it lives: an orphan would keep the port from the next master.
struct MasterWatch {
    done: Option<UnixStream>,
    thread: Option<JoinHandle<()>>,
}

impl MasterWatch {
    fn start(status: &Arc<Status>, stop: &Stop) -> Result<MasterWatch> {
        let (done, over) =
            UnixStream::pair().map_err(|e| Error::io("cannot watch for master", e))?;
        let (status, stop) = (status.clone(), stop.clone());
        let thread = spawn("master".into(), move || {
            let mut on = [
                fd::Watch::broken(status.fd()),
                fd::Watch::readable(over.as_fd()),
            ];
            if let Err(e) = fd::poll(&mut on, None) {
                log::error!("IOERROR: cannot watch for master error=<{e}>");
            } else if on[0].is_broken() {
                log::error!("master is gone, leaving");
                stop.begin(DrainKind::Term);
            }
        })?;
        Ok(MasterWatch {
            done: Some(done),
            thread: Some(thread),
        })
    }
}

impl Drop for MasterWatch {
    fn drop(&mut self) {
        self.done = None;
        self.thread.take().map(JoinHandle::join);
    }
}

#[cfg(test)]
mod tests;
