//! XXX dlist
