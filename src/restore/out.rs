//! Opens the way out that `--to` names.

use super::Destination;
use super::cyrus::Cyrus;
use super::target::Target;
use crate::client::Login;
use crate::client::csync::{Csync, Timeouts};
use crate::client::imap::Imap;
use crate::cyrus::mboxname::Namespace;
use crate::error::{Error, Kind, Result};

/// What a destination may need to know.
#[derive(Clone, Debug)]
pub struct Setting {
    /// Who logs in at a server.
    pub login: Option<Login>,
    /// How long a server may take.
    pub timeouts: Timeouts,
    /// How names are read and shown.
    pub namespace: Namespace,
}

/// Opens a destination. A server is connected to and logged in at; of files nothing is made before
/// the first folder comes. Each call is a connection of its own.
pub fn open(target: &Target, setting: &Setting) -> Result<Box<dyn Destination>> {
    let login = setting.login.as_ref();
    let cyrus = |csync| {
        Box::new(Cyrus::new(
            csync,
            target.to_string(),
            setting.namespace.clone(),
        ))
    };
    match target {
        Target::Csync(address) => Ok(cyrus(Csync::connect(address, login, setting.timeouts)?)),
        Target::Imap(address) => {
            // As an administrator: only those are offered replication.
            let imap = Imap::connect(address, login, "", setting.timeouts)?;
            if imap.has("X-REPLICATION") {
                return Ok(cyrus(Csync::over_imap(imap.into_stream())));
            }
            let why =
                "the server does not offer us X-REPLICATION, and APPEND is not in this version";
            Err(Error::new(Kind::Config, why).place(target.to_string()))
        }
        Target::Files(..) => {
            let why = "restoring into files is not in this version";
            Err(Error::new(Kind::Config, why).place(target.to_string()))
        }
    }
}
