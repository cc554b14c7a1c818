//! The inputs that fuzzing has kept, tried again (docs/fuzzing.md).

#[path = "../../fuzz/checks/corpus.rs"]
mod corpus;
#[path = "../../fuzz/checks/node_map.rs"]
mod node_map;

#[test]
fn kept_node_maps() {
    corpus::replay("node_map", node_map::check);
}
