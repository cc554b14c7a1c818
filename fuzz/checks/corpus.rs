//! The inputs that are kept.

use std::fs;
use std::path::Path;

/// Calls `check` with every input kept for `target`, and says which it is.
pub(crate) fn replay(target: &str, check: fn(&[u8])) {
    let dir = Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/../fuzz/corpus")).join(target);
    let files = fs::read_dir(&dir).unwrap_or_else(|error| panic!("{}: {error}", dir.display()));
    let mut count = 0;
    for file in files {
        let path = file.expect("a directory entry").path();
        println!("{}", path.display());
        check(&fs::read(&path).expect("a file"));
        count += 1;
    }
    assert!(count > 0, "{} is empty", dir.display());
}
