//! XXX imapd.conf
