//! Running a child that is to end before we do.

use std::io;
use std::process::{Command, ExitStatus};
use std::thread;

use signal_hook::consts::{SIGHUP, SIGINT, SIGQUIT, SIGTERM};
use signal_hook::iterator::Signals;

/// Runs a command and waits for its end, also when we are told to end meanwhile: an interrupt from
/// the terminal is the child's own business, TERM and HUP are passed on to it. Fails if it cannot
/// be started.
pub fn run(command: &mut Command) -> io::Result<ExitStatus> {
    // Handlers, not ignored signals: what is ignored stays so in the child.
    let mut signals = Signals::new([SIGINT, SIGQUIT, SIGTERM, SIGHUP])?;
    let handle = signals.handle();
    let mut child = command.spawn()?;
    let pid = child.id();
    let passer = thread::Builder::new()
        .name("signals".into())
        .spawn(move || {
            for signal in signals.forever() {
                if signal == SIGTERM || signal == SIGHUP {
                    send(pid, signal);
                }
            }
        });
    let status = child.wait();
    handle.close();
    if let Ok(passer) = passer {
        // It has nothing to say.
        let _ = passer.join();
    }
    status
}

/// Sends a signal to a process; that it is gone already is fine.
fn send(pid: u32, signal: i32) {
    if let Ok(pid) = libc::pid_t::try_from(pid) {
        // SAFETY: no memory is involved.
        let _ = unsafe { libc::kill(pid, signal) };
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::process::ExitStatusExt;

    #[test]
    fn its_end_is_told() {
        let shell = |text: &str| run(Command::new("/bin/sh").arg("-c").arg(text)).unwrap();
        assert_eq!(shell("exit 3").code(), Some(3));
        assert_eq!(shell("kill -9 $$").signal(), Some(9));
        let missing = run(&mut Command::new("/no/such/program"));
        assert_eq!(missing.unwrap_err().kind(), io::ErrorKind::NotFound);
    }

    #[test]
    fn told_to_end_we_tell_the_child_and_wait() {
        let us = std::process::id();
        let text = format!(
            "trap 'exit 7' TERM; kill -INT {us}; kill -TERM {us}; while :; do sleep 0.05; done"
        );
        let status = run(Command::new("/bin/sh").arg("-c").arg(text)).unwrap();
        assert_eq!(status.code(), Some(7));
    }
}
