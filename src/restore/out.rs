//! Opens the way out that `--to` names.

use super::Destination;
use super::cyrus::Cyrus;
use super::files;
use super::imap::Append;
use super::target::Target;
use crate::client::Login;
use crate::client::csync::{Csync, Timeouts};
use crate::client::imap::Imap;
use crate::client::tls::Trust;
use crate::cyrus::mboxname::Namespace;
use crate::error::{Error, Kind, Result};

/// What a destination may need to know.
#[derive(Clone, Debug)]
pub struct Setting {
    /// Who logs in at a server.
    pub login: Option<Login>,
    /// Whom its certificate must be from.
    pub trust: Trust,
    /// How long a server may take.
    pub timeouts: Timeouts,
    /// How names are read and shown.
    pub namespace: Namespace,
}

/// Opens a destination. A server is connected to and logged in at; of files nothing is made before
/// the first folder comes. Each call is a connection of its own.
pub fn open(target: &Target, setting: &Setting) -> Result<Box<dyn Destination>> {
    let (login, trust) = (setting.login.as_ref(), &setting.trust);
    let cyrus = |csync| {
        Box::new(Cyrus::new(
            csync,
            target.to_string(),
            setting.namespace.clone(),
        ))
    };
    match target {
        Target::Csync(address) => Ok(cyrus(Csync::connect(
            address,
            login,
            trust,
            setting.timeouts.clone(),
        )?)),
        Target::Imap(address) => {
            let timeouts = setting.timeouts.clone();
            let mut imap = match Imap::connect(address, login, "", trust, timeouts.clone()) {
                // Who may act for others need not be anybody himself.
                Err(e) if e.kind() == Kind::Denied => None,
                connected => Some(connected?),
            };
            if is_cyrus_admin(imap.as_mut())? {
                let stream = imap.map(Imap::into_stream);
                let gone = || Error::new(Kind::Internal, "no connection");
                return Ok(cyrus(Csync::over_imap(stream.ok_or_else(gone)?)));
            }
            let (name, ns) = (target.to_string(), &setting.namespace);
            let append = Append::new(name, address, imap, login, (trust, timeouts), ns);
            Ok(Box::new(append))
        }
        Target::Files(format, place) => {
            files::open(*format, place, &setting.namespace, target.to_string())
        }
    }
}

/// Whether replication can be spoken there: Cyrus offers it to everybody, and lets administrators.
fn is_cyrus_admin(imap: Option<&mut Imap>) -> Result<bool> {
    match imap {
        Some(imap) if imap.has("X-REPLICATION") => {
            let outcome = imap.command(b"SYNCRESTART", &mut |_| Ok(()))?;
            Ok(outcome.is_ok())
        }
        _ => Ok(false),
    }
}
