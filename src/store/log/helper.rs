//! The thread that deflates beside the caller while much streams in.
//!
//! It owns the [`Sink`] while it runs and is fed full buffers through a short queue, so memory is
//! bounded and a slow disk slows the caller. It ends when its queue is closed, or at its first error,
//! which the next [`Helper::give`] notices and [`Helper::join`] returns. Dropping it makes it forget
//! what is queued, and waits: at most for the buffer it is at.

use super::sink::Sink;
use crate::error::{Error, Kind, Result};
use crossbeam_channel::{Receiver, Sender, bounded};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{Builder, JoinHandle};

/// Buffers that may wait.
const QUEUE: usize = 2;

type Outcome = (Box<Sink>, Result<()>);

pub(super) struct Helper {
    full: Option<Sender<Vec<u8>>>,
    empty: Receiver<Vec<u8>>,
    give_up: Arc<AtomicBool>,
    thread: Option<JoinHandle<Option<Outcome>>>,
}

impl Helper {
    /// Starts the thread. Gives `sink` back if there is none to be had.
    pub(super) fn start(sink: Box<Sink>) -> std::result::Result<Helper, Box<Sink>> {
        let (full, queue) = bounded(QUEUE);
        let (spare, empty) = bounded(QUEUE + 2);
        let (hand, start) = bounded::<Box<Sink>>(1);
        let give_up = Arc::new(AtomicBool::new(false));
        let stop = Arc::clone(&give_up);
        let thread = Builder::new().name("deflate".into()).spawn(move || {
            let sink = start.recv().ok()?;
            Some(run(sink, &queue, &spare, &stop))
        });
        match thread {
            Ok(thread) => match hand.send(sink) {
                Ok(()) => Ok(Helper {
                    full: Some(full),
                    empty,
                    give_up,
                    thread: Some(thread),
                }),
                Err(back) => Err(back.0),
            },
            Err(_) => Err(sink),
        }
    }

    /// Hands `buffer` over and replaces it by an empty one; waits while the queue is full. False if
    /// the thread has stopped: its error is in [`Helper::join`].
    pub(super) fn give(&mut self, buffer: &mut Vec<u8>) -> bool {
        let spare = self.empty.try_recv().unwrap_or_default();
        let full = std::mem::replace(buffer, spare);
        self.full.as_ref().is_some_and(|to| to.send(full).is_ok())
    }

    /// Waits until everything given is deflated, and ends the thread.
    pub(super) fn join(mut self) -> Result<Outcome> {
        self.full = None;
        self.thread
            .take()
            .and_then(|thread| thread.join().ok().flatten())
            .ok_or_else(|| Error::new(Kind::Internal, "the deflating thread panicked"))
    }
}

impl Drop for Helper {
    fn drop(&mut self) {
        self.give_up.store(true, Ordering::Relaxed);
        self.full = None;
        if let Some(thread) = self.thread.take() {
            // Its outcome does not matter to anybody any more.
            let _ = thread.join();
        }
    }
}

fn run(
    mut sink: Box<Sink>,
    queue: &Receiver<Vec<u8>>,
    spare: &Sender<Vec<u8>>,
    give_up: &AtomicBool,
) -> Outcome {
    for mut plain in queue {
        if give_up.load(Ordering::Relaxed) {
            break;
        }
        if let Err(e) = sink.put(&plain) {
            return (sink, Err(e));
        }
        plain.clear();
        // A full shelf just frees the buffer.
        let _ = spare.try_send(plain);
    }
    (sink, Ok(()))
}
