//! XXX twoskip
