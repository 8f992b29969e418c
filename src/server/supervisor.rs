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
mod tests {
    use super::*;
    use crate::server::listen::Listener;
    use crate::server::stream::{Wake, Watch};
    use std::io::{ErrorKind, Read, Write};
    use std::net::{SocketAddr, TcpStream};
    use std::sync::atomic::{AtomicUsize, Ordering};

    const SOON: Duration = Duration::from_millis(200);
    const LONG: Duration = Duration::from_secs(20);

    struct Shared {
        drain: Duration,
        live: AtomicUsize,
        most: AtomicUsize,
    }

    /// Echoes bytes; `!` panics, `~` sleeps for ever. Says `*` first.
    fn echo(mut stream: Stream, _: Peer, shared: Arc<Shared>, stop: Stop) {
        struct Live<'a>(&'a AtomicUsize);
        impl Drop for Live<'_> {
            fn drop(&mut self) {
                self.0.fetch_sub(1, Ordering::SeqCst);
            }
        }
        let live = shared.live.fetch_add(1, Ordering::SeqCst) + 1;
        let _live = Live(&shared.live);
        shared.most.fetch_max(live, Ordering::SeqCst);
        if stream.write_all(b"*").is_err() {
            return;
        }
        loop {
            let watch = match stop.draining() {
                None => Watch::Drain(&stop),
                Some((_, DrainKind::Hup)) => Watch::Term(&stop),
                Some(_) => Watch::Client,
            };
            let left = stop
                .deadline(shared.drain)
                .map_or(LONG, |d| d.saturating_duration_since(Instant::now()));
            match stream.wait_readable(watch, left).unwrap() {
                Wake::Stopping => continue,
                Wake::Timeout => return,
                Wake::Readable => {}
            }
            let mut byte = [0];
            match stream.read(&mut byte) {
                Ok(1) => {}
                _ => return,
            }
            match byte[0] {
                b'!' => panic!("told to"),
                b'~' => {
                    let _ = stream.read(&mut byte);
                }
                _ => {}
            }
            if stream.write_all(&byte).is_err() {
                return;
            }
        }
    }

    struct Server {
        addrs: Vec<SocketAddr>,
        stop: Stop,
        shared: Arc<Shared>,
        thread: JoinHandle<Result<u8>>,
    }

    fn server(max_connections: usize, drain: Duration, listeners: usize) -> Server {
        let mut all = Listeners::default();
        for _ in 0..listeners {
            all.sockets.extend(Listener::tcp("127.0.0.1:0").unwrap());
        }
        start(all, max_connections, drain)
    }

    fn start(all: Listeners, max_connections: usize, drain: Duration) -> Server {
        let addrs = all.sockets.iter().filter_map(|s| s.local_addr()).collect();
        let stop = Stop::new().unwrap();
        let shared = Arc::new(Shared {
            drain,
            live: AtomicUsize::new(0),
            most: AtomicUsize::new(0),
        });
        let limits = Limits {
            max_connections,
            drain,
        };
        let (theirs, mine) = (shared.clone(), stop.clone());
        let thread = thread::spawn(move || run(all, limits, mine, theirs, echo));
        Server {
            addrs,
            stop,
            shared,
            thread,
        }
    }

    impl Server {
        fn client(&self, listener: usize) -> TcpStream {
            let client = TcpStream::connect(self.addrs[listener]).unwrap();
            client.set_read_timeout(Some(LONG)).unwrap();
            client
        }

        fn greeted(&self, listener: usize) -> TcpStream {
            let client = self.client(listener);
            assert_eq!(byte(&client).unwrap(), Some(b'*'));
            client
        }

        fn stop(self) -> u8 {
            self.stop.begin(DrainKind::Term);
            self.thread.join().unwrap().unwrap()
        }
    }

    fn byte(mut client: &TcpStream) -> std::io::Result<Option<u8>> {
        let mut b = [0];
        Ok(match client.read(&mut b)? {
            0 => None,
            _ => Some(b[0]),
        })
    }

    fn echoed(mut client: &TcpStream, b: u8) -> bool {
        client.write_all(&[b]).is_ok() && byte(client).is_ok_and(|got| got == Some(b))
    }

    #[test]
    fn many_clients_on_several_listeners() {
        let server = server(200, LONG, 3);
        let clients: Vec<_> = (0..90).map(|i| server.greeted(i % 3)).collect();
        for (i, c) in (0u8..).zip(&clients) {
            assert!(echoed(c, b'A' + i % 20));
        }
        assert_eq!(server.shared.most.load(Ordering::SeqCst), 90);
        drop(clients);
        assert_eq!(server.stop(), 0);
    }

    #[test]
    fn a_panic_costs_one_session() {
        let server = server(2, LONG, 1);
        let other = server.greeted(0);
        for _ in 0..3 {
            let mut bad = server.greeted(0);
            bad.write_all(b"!").unwrap();
            assert_eq!(byte(&bad).unwrap(), None);
        }
        assert!(echoed(&other, b'x'));
        drop(other);
        assert_eq!(server.stop(), 0);
    }

    #[test]
    fn in_a_full_house_clients_wait_for_their_turn() {
        let server = server(2, LONG, 2);
        let first = server.greeted(0);
        let second = server.greeted(1);
        let (third, fourth) = (server.client(0), server.client(1));
        for waiting in [&third, &fourth] {
            waiting.set_read_timeout(Some(SOON)).unwrap();
            let e = byte(waiting).unwrap_err();
            assert_eq!(e.kind(), ErrorKind::WouldBlock);
            waiting.set_read_timeout(Some(LONG)).unwrap();
        }
        drop(first);
        // Whose turn it is is not promised.
        let turn = |c: &TcpStream| {
            c.set_read_timeout(Some(SOON)).unwrap();
            byte(c).is_ok_and(|b| b == Some(b'*'))
        };
        let start = Instant::now();
        let served = loop {
            if let Some(c) = [&third, &fourth].into_iter().find(|c| turn(c)) {
                break c;
            }
            assert!(start.elapsed() < LONG);
        };
        served.set_read_timeout(Some(LONG)).unwrap();
        assert!(echoed(served, b'x'));
        assert_eq!(server.shared.most.load(Ordering::SeqCst), 2);
        drop((second, third, fourth));
        assert_eq!(server.stop(), 0);
    }

    #[test]
    fn term_closes_the_door_and_serves_until_the_time_is_over() {
        let server = server(9, 2 * SOON, 1);
        let (busy, idle) = (server.greeted(0), server.greeted(0));
        let start = Instant::now();
        server.stop.begin(DrainKind::Term);
        thread::sleep(SOON / 2);
        assert!(TcpStream::connect(server.addrs[0]).is_err());
        assert!(echoed(&busy, b'x') && echoed(&idle, b'y'));
        drop(busy);
        assert_eq!(byte(&idle).unwrap(), None);
        assert_eq!(server.stop(), 0);
        assert!(start.elapsed() >= 2 * SOON && start.elapsed() < LONG);
    }

    #[test]
    fn hup_waits_for_the_clients_and_a_later_term_does_not() {
        let server = server(9, SOON, 1);
        let (a, b) = (server.greeted(0), server.greeted(0));
        server.stop.begin(DrainKind::Hup);
        thread::sleep(3 * SOON);
        assert!(TcpStream::connect(server.addrs[0]).is_err());
        assert!(echoed(&a, b'x') && echoed(&b, b'y'));
        drop(a);
        assert!(echoed(&b, b'z'));
        assert!(!server.thread.is_finished());
        let start = Instant::now();
        assert_eq!(server.stop(), 0);
        assert!(start.elapsed() >= SOON && start.elapsed() < LONG);
        assert_eq!(byte(&b).unwrap(), None);
    }

    #[test]
    fn a_session_that_does_not_end_is_cut_off() {
        let server = server(9, Duration::ZERO, 1);
        let mut stuck = server.greeted(0);
        stuck.write_all(b"~").unwrap();
        thread::sleep(SOON);
        let start = Instant::now();
        assert_eq!(server.stop(), 0);
        assert!(start.elapsed() >= GRACE && start.elapsed() < 2 * GRACE);
    }

    #[test]
    fn a_listener_shut_down_by_its_owner_ends_in_a_drain() {
        let socket = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let addr = socket.local_addr().unwrap();
        let masters = Stream::from(TcpStream::from(std::os::fd::OwnedFd::from(
            socket.try_clone().unwrap(),
        )));
        let mut all = Listeners::default();
        all.sockets
            .push(Listener::inherited(socket.into(), "x/0".into()).unwrap());
        let server = start(all, 9, LONG);
        let client = TcpStream::connect(addr).unwrap();
        assert_eq!(byte(&client).unwrap(), Some(b'*'));
        masters.shutdown(std::net::Shutdown::Both).unwrap();
        let start = Instant::now();
        while server.stop.draining().is_none() {
            assert!(start.elapsed() < LONG);
            thread::sleep(SOON / 10);
        }
        assert!(echoed(&client, b'x'));
        drop(client);
        assert_eq!(server.thread.join().unwrap().unwrap(), 0);
    }

    #[test]
    fn master_hears_of_connections_and_of_the_drain_and_its_death_ends_us() {
        use crate::cyrus::master::encode;
        let (ours, mut theirs) = UnixStream::pair().unwrap();
        theirs.set_read_timeout(Some(LONG)).unwrap();
        let mut all = Listeners {
            sockets: Listener::tcp("127.0.0.1:0").unwrap(),
            ..Listeners::default()
        };
        all.master = Some(Status::new(ours.into()));
        let server = start(all, 9, SOON);
        let client = server.greeted(0);
        let mut said = || {
            let mut message = [0; 8];
            theirs.read_exact(&mut message).map(|()| message)
        };
        let pid = std::process::id();
        assert_eq!(said().unwrap(), encode(Message::ConnectionMulti, pid));
        server.stop.begin(DrainKind::Hup);
        assert_eq!(said().unwrap(), encode(Message::Unavailable, pid));
        assert!(TcpStream::connect(server.addrs[0]).is_err());
        assert!(echoed(&client, b'x'));

        drop(theirs);
        assert_eq!(byte(&client).unwrap(), None);
        assert_eq!(server.thread.join().unwrap().unwrap(), 0);
    }
}
