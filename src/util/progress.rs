//! Progress of long work, shown on a terminal only.
