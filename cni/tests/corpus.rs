//! The inputs that fuzzing has kept, tried again (docs/fuzzing.md).

#[path = "../../fuzz/checks/corpus.rs"]
mod corpus;
#[path = "../../fuzz/checks/results.rs"]
mod results;
#[path = "../../fuzz/checks/stdin.rs"]
mod stdin;

#[test]
fn kept_calls() {
    corpus::replay("stdin", stdin::check);
}

#[test]
fn kept_results() {
    corpus::replay("results", results::check);
}
