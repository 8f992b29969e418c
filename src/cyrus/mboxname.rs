//! XXX mboxname
