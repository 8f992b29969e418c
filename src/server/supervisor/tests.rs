//! The supervisor with a handler that echoes bytes.

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
