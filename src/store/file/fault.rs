//! A file in memory for tests: fails or freezes at the Nth operation, and models power loss.
//!
//! Operations that may change the file (write, set length, sync) are counted from 1, reads apart from them. A fault is either
//! transient (that one operation fails) or final (everything from there on fails and changes nothing,
//! as if the process had been killed). What a disk would hold afterwards is asked with
//! [`FaultFile::after_kill`] and [`FaultFile::after_power_loss`].

use super::LogFile;
use std::io;
use std::sync::{Arc, Mutex, MutexGuard};

/// What goes wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// This operation fails with EIO; a write has put half of its bytes.
    Eio,
    /// Writes fail with ENOSPC from here on until [`FaultFile::heal`]; the first puts half of its bytes.
    NoSpace,
    /// A sync fails, and what it was to save never reaches the disk, as the kernel may drop it then;
    /// later syncs claim success.
    SyncLies,
    /// Everything from here on fails and changes nothing.
    Freeze,
}

/// A file in memory with faults on demand. Clones are handles of the same file.
#[derive(Clone, Default)]
pub struct FaultFile {
    state: Arc<Mutex<State>>,
}

#[derive(Default)]
struct State {
    data: Vec<u8>,
    durable: Vec<u8>,
    unsynced: Vec<Op>,
    operations: u64,
    syncs: u64,
    plan: Option<(u64, Fault)>,
    reads: u64,
    read_plan: Option<u64>,
    largest_write: usize,
}

#[derive(Clone)]
enum Op {
    Write(u64, Vec<u8>),
    SetLen(u64),
}

impl FaultFile {
    /// An empty file without faults.
    pub fn new() -> FaultFile {
        FaultFile::default()
    }

    /// A file that durably holds `data`.
    pub fn with(data: &[u8]) -> FaultFile {
        let file = FaultFile::new();
        file.lock().data = data.to_vec();
        file.lock().durable = data.to_vec();
        file
    }

    /// Lets `fault` happen at operation number `at` (the first is 1).
    pub fn plan(&self, at: u64, fault: Fault) {
        self.lock().plan = Some((at, fault));
    }

    /// Takes the plan back: everything works from now on.
    pub fn heal(&self) {
        self.lock().plan = None;
    }

    /// Lets the read number `at` fail with EIO, and no other.
    pub fn plan_read(&self, at: u64) {
        self.lock().read_plan = Some(at);
    }

    /// How many reads were asked for so far.
    pub fn reads(&self) -> u64 {
        self.lock().reads
    }

    /// How many operations were asked for so far.
    pub fn operations(&self) -> u64 {
        self.lock().operations
    }

    /// How many syncs succeeded so far.
    pub fn syncs(&self) -> u64 {
        self.lock().syncs
    }

    /// The largest single write so far, in bytes.
    pub fn largest_write(&self) -> usize {
        self.lock().largest_write
    }

    /// What is in the file once the process is gone.
    pub fn after_kill(&self) -> Vec<u8> {
        self.lock().data.clone()
    }

    /// What is on the disk after a power loss: all that was synced, and of each later operation all,
    /// nothing or the first part, as `seed` decides. Seed 0 drops everything that was not synced.
    pub fn after_power_loss(&self, seed: u64) -> Vec<u8> {
        let state = self.lock();
        let mut data = state.durable.clone();
        let mut dice = seed;
        for op in state.unsynced.iter().filter(|_| seed != 0) {
            dice = next_random(dice);
            match (op, dice >> 33 & 3) {
                (_, 0) => {}
                (Op::Write(offset, bytes), 1) => {
                    let cut = (dice >> 40) as usize % (bytes.len() + 1);
                    put(&mut data, *offset, &bytes[..cut]);
                }
                (op, _) => carry_out(&mut data, op),
            }
        }
        data
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(|e| e.into_inner())
    }
}

impl State {
    /// Counts an operation; returns the fault that strikes it.
    fn strike(&mut self) -> Option<Fault> {
        self.operations += 1;
        let (at, fault) = self.plan?;
        let lasting = matches!(fault, Fault::Freeze | Fault::NoSpace);
        (self.operations == at || (lasting && self.operations > at)).then_some(fault)
    }

    fn change(&mut self, op: Op) {
        carry_out(&mut self.data, &op);
        self.unsynced.push(op);
    }
}

impl LogFile for FaultFile {
    fn read_at(&self, buf: &mut [u8], offset: u64) -> io::Result<usize> {
        let mut state = self.lock();
        state.reads += 1;
        if state.read_plan == Some(state.reads) {
            return Err(errno(Fault::Eio));
        }
        let start = usize::try_from(offset)
            .unwrap_or(usize::MAX)
            .min(state.data.len());
        let got = buf.len().min(state.data.len() - start);
        buf[..got].copy_from_slice(&state.data[start..start + got]);
        Ok(got)
    }

    fn write_at(&self, buf: &[u8], offset: u64) -> io::Result<()> {
        let mut state = self.lock();
        state.largest_write = state.largest_write.max(buf.len());
        let fault = state.strike();
        let first = state.plan.is_some_and(|(at, _)| at == state.operations);
        match fault {
            None | Some(Fault::SyncLies) => state.change(Op::Write(offset, buf.to_vec())),
            Some(Fault::Freeze) => return Err(frozen()),
            Some(fault) => {
                if first {
                    state.change(Op::Write(offset, buf[..buf.len() / 2].to_vec()));
                }
                return Err(errno(fault));
            }
        }
        Ok(())
    }

    fn len(&self) -> io::Result<u64> {
        Ok(self.lock().data.len() as u64)
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        let mut state = self.lock();
        match state.strike() {
            Some(Fault::Freeze) => Err(frozen()),
            Some(Fault::Eio) => Err(errno(Fault::Eio)),
            _ => {
                state.change(Op::SetLen(len));
                Ok(())
            }
        }
    }

    fn sync_data(&self) -> io::Result<()> {
        let mut state = self.lock();
        match state.strike() {
            None => {
                // Not what is in memory: a sync that lied has left holes.
                let State {
                    durable, unsynced, ..
                } = &mut *state;
                unsynced.drain(..).for_each(|op| carry_out(durable, &op));
                state.syncs += 1;
                Ok(())
            }
            Some(Fault::Freeze) => Err(frozen()),
            Some(Fault::SyncLies) => {
                state.unsynced.clear();
                Err(errno(Fault::Eio))
            }
            Some(fault) => Err(errno(fault)),
        }
    }
}

fn carry_out(data: &mut Vec<u8>, op: &Op) {
    match op {
        Op::Write(offset, bytes) => put(data, *offset, bytes),
        Op::SetLen(len) => data.resize(*len as usize, 0),
    }
}

fn put(data: &mut Vec<u8>, offset: u64, bytes: &[u8]) {
    let start = offset as usize;
    if data.len() < start + bytes.len() {
        data.resize(start + bytes.len(), 0);
    }
    data[start..start + bytes.len()].copy_from_slice(bytes);
}

fn errno(fault: Fault) -> io::Error {
    io::Error::from_raw_os_error(if fault == Fault::NoSpace {
        libc::ENOSPC
    } else {
        libc::EIO
    })
}

fn frozen() -> io::Error {
    io::Error::other("frozen")
}

/// One step of a small random generator; good enough to choose faults.
pub(crate) fn next_random(seed: u64) -> u64 {
    seed.wrapping_mul(6364136223846793005)
        .wrapping_add(1442695040888963407)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn power_loss_keeps_what_was_synced_and_maybe_more() {
        let file = FaultFile::new();
        file.write_at(b"aaaa", 0).unwrap();
        file.sync_data().unwrap();
        file.write_at(b"bbbb", 4).unwrap();
        assert_eq!(file.after_kill(), b"aaaabbbb");
        assert_eq!(file.after_power_loss(0), b"aaaa");
        let kept: Vec<usize> = (1..200).map(|s| file.after_power_loss(s).len()).collect();
        assert!(kept.iter().all(|n| (4..=8).contains(n)));
        assert!(kept.contains(&4) && kept.contains(&6) && kept.contains(&8));
    }

    #[test]
    fn faults_strike_once_or_for_good() {
        let file = FaultFile::new();
        file.plan(2, Fault::Eio);
        file.write_at(b"aa", 0).unwrap();
        let e = file.write_at(b"bbbb", 2).unwrap_err();
        assert_eq!(e.raw_os_error(), Some(libc::EIO));
        assert_eq!(file.after_kill(), b"aabb");
        file.write_at(b"cccc", 2).unwrap();

        file.plan(4, Fault::NoSpace);
        let e = file.write_at(b"dd", 6).unwrap_err();
        assert_eq!(e.kind(), io::ErrorKind::StorageFull);
        assert!(file.write_at(b"dd", 6).is_err());
        file.set_len(6).unwrap();
        file.heal();
        file.write_at(b"dd", 6).unwrap();
        assert_eq!(file.after_kill(), b"aaccccdd");

        file.plan(8, Fault::Freeze);
        assert!(file.write_at(b"zz", 0).is_err());
        assert!(file.sync_data().is_err());
        assert!(file.set_len(0).is_err());
        assert_eq!(file.after_kill(), b"aaccccdd");
    }

    #[test]
    fn a_lying_sync_loses_what_it_was_to_save() {
        let file = FaultFile::new();
        file.plan(2, Fault::SyncLies);
        file.write_at(b"aaaa", 0).unwrap();
        assert!(file.sync_data().is_err());
        assert_eq!(file.after_power_loss(0), b"");
        file.write_at(b"bb", 4).unwrap();
        file.sync_data().unwrap();
        assert_eq!(file.after_kill(), b"aaaabb");
        assert_eq!(file.after_power_loss(0), b"\0\0\0\0bb");
    }

    #[test]
    fn one_read_fails() {
        let file = FaultFile::with(b"abcd");
        file.plan_read(2);
        let mut buf = [0; 2];
        assert_eq!(file.read_at(&mut buf, 0).unwrap(), 2);
        assert!(file.read_at(&mut buf, 2).is_err());
        assert_eq!(file.read_at(&mut buf, 2).unwrap(), 2);
        assert_eq!(file.reads(), 3);
    }
}
