//! The inputs that fuzzing has kept, tried again (docs/fuzzing.md).

#[path = "../../fuzz/checks/corpus.rs"]
mod corpus;
#[path = "../../fuzz/checks/lease_files.rs"]
mod lease_files;

#[test]
fn kept_lease_files() {
    corpus::replay("lease_files", lease_files::check);
}
