//! Work on many backups by several threads, told in order.

use crate::error::{Error, Kind, Result};
use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::mpsc;
use std::time::Instant;

/// Does `work` on every item with `jobs` threads and hands what it gives to `tell`, in the order of
/// the items. No further one is begun after `until`, nor when `tell` fails. Returns how many were
/// told: always the first ones.
pub fn in_order<I: Sync, T: Send>(
    items: &[I],
    jobs: usize,
    until: Option<Instant>,
    work: impl Fn(&I) -> T + Sync,
    mut tell: impl FnMut(&I, T) -> Result<()>,
) -> Result<usize> {
    let next = AtomicUsize::new(0);
    let stop = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let (sender, receiver) = mpsc::channel();
        for _ in 0..jobs.clamp(1, items.len().max(1)) {
            let (sender, next, stop, work) = (sender.clone(), &next, &stop, &work);
            scope.spawn(move || {
                while !stop.load(Ordering::Relaxed) && until.is_none_or(|t| Instant::now() < t) {
                    let at = next.fetch_add(1, Ordering::Relaxed);
                    let Some(item) = items.get(at) else { break };
                    if sender.send((at, work(item))).is_err() {
                        break;
                    }
                }
            });
        }
        drop(sender);
        let mut early = BTreeMap::new();
        let mut due = 0;
        for (at, done) in receiver {
            early.insert(at, done);
            while let (Some(done), Some(item)) = (early.remove(&due), items.get(due)) {
                due += 1;
                if let Err(e) = tell(item, done) {
                    stop.store(true, Ordering::Relaxed);
                    return Err(e);
                }
            }
        }
        Ok(due)
    })
}

/// What [`streamed`] tells of an item.
#[derive(Debug)]
pub enum Part<T> {
    /// One of the rows it gave.
    Row(T),
    /// There are no more, and how it ended.
    End(Result<()>),
}

/// Rows that may wait to be told, of each thread.
const WAITING: usize = 256;

/// Does `work` on every item with `jobs` threads. The rows it hands out are told in the order of the
/// items while others are worked at, and never more than a few wait. `work` is to stop with an
/// error when its sink gives one: then nobody wants to hear more. Ends at the first error of `tell`.
pub fn streamed<I: Sync, T: Send>(
    items: &[I],
    jobs: usize,
    work: impl Fn(&I, &mut dyn FnMut(T) -> Result<()>) -> Result<()> + Sync,
    mut tell: impl FnMut(&I, Part<T>) -> Result<()>,
) -> Result<()> {
    let jobs = jobs.clamp(1, items.len().max(1));
    std::thread::scope(|scope| {
        let mut receivers = Vec::new();
        for first in 0..jobs {
            let (sender, receiver) = mpsc::sync_channel(WAITING);
            receivers.push(receiver);
            let work = &work;
            scope.spawn(move || {
                for item in items.iter().skip(first).step_by(jobs) {
                    let mut sink = |row| {
                        let sent = sender.send(Part::Row(row));
                        sent.map_err(|_| Error::new(Kind::Stopping, "stopped"))
                    };
                    let done = work(item, &mut sink);
                    if sender.send(Part::End(done)).is_err() {
                        break;
                    }
                }
            });
        }
        for (at, item) in items.iter().enumerate() {
            loop {
                let part = match receivers.get(at % jobs).map(mpsc::Receiver::recv) {
                    Some(Ok(part)) => part,
                    // It panicked; that was reported.
                    _ => return Err(Error::new(Kind::Internal, "a thread ended early")),
                };
                let last = matches!(part, Part::End(_));
                tell(item, part)?;
                if last {
                    break;
                }
            }
        }
        Ok(())
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    #[test]
    fn order_is_that_of_the_items() {
        let items: Vec<u64> = (0..40).collect();
        for jobs in [0, 1, 3, 100] {
            let mut told = Vec::new();
            let work = |n: &u64| {
                std::thread::sleep(Duration::from_micros((40 - n) * 50));
                n * 2
            };
            let n = in_order(&items, jobs, None, work, |n, twice| {
                told.push((*n, twice));
                Ok(())
            });
            assert_eq!(n.unwrap(), 40);
            assert_eq!(told, items.iter().map(|n| (*n, n * 2)).collect::<Vec<_>>());
        }
        assert_eq!(
            in_order(&[], 2, None, |_: &u8| (), |_, ()| Ok(())).unwrap(),
            0
        );
    }

    #[test]
    fn rows_come_in_the_order_of_the_items() {
        let items: Vec<u64> = (0..20).collect();
        for jobs in [0, 1, 2, 7, 100] {
            let mut told = Vec::new();
            let work = |n: &u64, sink: &mut dyn FnMut(u64) -> Result<()>| {
                (0..1000).try_for_each(|i| sink(n * 1000 + i))?;
                match n % 5 {
                    3 => Err(Error::new(Kind::Damaged, "three")),
                    _ => Ok(()),
                }
            };
            let mut failed = Vec::new();
            streamed(&items, jobs, work, |n, part| {
                match part {
                    Part::Row(row) => told.push(row),
                    Part::End(Err(_)) => failed.push(*n),
                    Part::End(Ok(())) => {}
                }
                Ok(())
            })
            .unwrap();
            assert_eq!(told, (0..20_000).collect::<Vec<u64>>());
            assert_eq!(failed, [3, 8, 13, 18]);
            // Who hears enough is not waited for.
            let mut heard = 0;
            let e = streamed(&items, jobs, work, |_, _| {
                heard += 1;
                match heard {
                    1500 => Err(Error::new(Kind::Io, "closed")),
                    _ => Ok(()),
                }
            });
            assert_eq!(e.unwrap_err().kind(), Kind::Io);
        }
        let none: [u8; 0] = [];
        streamed(
            &none,
            2,
            |_, _: &mut dyn FnMut(u8) -> Result<()>| Ok(()),
            |_, _| Ok(()),
        )
        .unwrap();
    }

    #[test]
    fn time_and_errors_end_it() {
        let items = [0; 50];
        let now = Instant::now();
        let none = in_order(&items, 2, Some(now), |_| (), |_, ()| Ok(()));
        assert_eq!(none.unwrap(), 0);
        let until = Some(now + Duration::from_millis(30));
        let pause = |_: &i32| std::thread::sleep(Duration::from_millis(10));
        let some = in_order(&items, 2, until, pause, |_, ()| Ok(())).unwrap();
        assert!((1..50).contains(&some), "{some}");
        let mut told = 0;
        let e = in_order(
            &items,
            4,
            None,
            |_| (),
            |_, ()| {
                told += 1;
                match told {
                    3 => Err(Error::new(Kind::Io, "closed")),
                    _ => Ok(()),
                }
            },
        );
        assert_eq!((e.unwrap_err().kind(), told), (Kind::Io, 3));
    }
}
