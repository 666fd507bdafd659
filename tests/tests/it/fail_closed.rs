//! fail_closed
