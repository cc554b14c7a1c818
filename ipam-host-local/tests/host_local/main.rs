//! host-local from outside: as a process beside the reference plugin, and as a
//! library where a test has to say what the host knows.

mod concurrent;
mod differential;
mod hostile;
mod kill;
mod reclaim;
mod util;
mod verbs;
