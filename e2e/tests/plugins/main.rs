//! Single plugins as a caller sees them: environment and standard input in, one JSON
//! value and an exit status out, and what is in the kernel and the lease store
//! afterwards.

mod bad_input;
mod call;
mod callers;
mod neighbours;
mod orphans;
mod rollback;
mod verbs;
