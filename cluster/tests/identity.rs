//! Telling a changed map directory from an unchanged one.

use std::fs::{self, File};
use std::path::PathBuf;
use std::time::{Duration, SystemTime};

use cluster::{Identity, MapError, identity};

struct Directory(PathBuf);

impl Directory {
    fn new(name: &str) -> Self {
        let path =
            std::env::temp_dir().join(format!("weft-identity-{}-{name}", std::process::id()));
        fs::create_dir_all(&path).unwrap();
        Self(path)
    }

    fn write(&self, name: &str, text: &str) {
        fs::write(self.0.join(name), text).unwrap();
    }

    /// The identity as seen a minute from now, when nothing is young.
    fn later(&self) -> Identity {
        identity(&self.0, SystemTime::now() + Duration::from_secs(60)).unwrap().unwrap()
    }
}

impl Drop for Directory {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

#[test]
fn every_change_shows() {
    let dir = Directory::new("changes");
    let mut seen = vec![dir.later()];
    let mut changed = |what: &str| {
        let now = dir.later();
        assert_eq!(now, dir.later());
        assert!(!seen.contains(&now), "{what}");
        let minute = SystemTime::now() + Duration::from_secs(60);
        assert!(now.holds(&dir.0, minute));
        assert!(!seen.iter().any(|old: &Identity| old.holds(&dir.0, minute)), "{what}");
        seen.push(now);
    };
    dir.write("a.json", "one");
    changed("a file made");
    dir.write("a.json", "longer");
    changed("a file's size");
    let hour_ago = SystemTime::now() - Duration::from_secs(3600);
    File::options().write(true).open(dir.0.join("a.json")).unwrap().set_modified(hour_ago).unwrap();
    changed("a file's time");
    dir.write("b.tmp", "longer");
    fs::rename(dir.0.join("b.tmp"), dir.0.join("a.json")).unwrap();
    changed("a file replaced");
    fs::remove_file(dir.0.join("a.json")).unwrap();
    changed("a file removed");
}

#[test]
fn what_is_young_is_not_trusted() {
    let dir = Directory::new("young");
    dir.write("a.json", "{}");
    let written = fs::metadata(dir.0.join("a.json")).unwrap().modified().unwrap();
    assert!(identity(&dir.0, written + Duration::from_millis(900)).unwrap().is_none());
    assert!(identity(&dir.0, written - Duration::from_millis(900)).unwrap().is_none());
    let known = identity(&dir.0, written + Duration::from_secs(2)).unwrap().unwrap();
    assert!(known.holds(&dir.0, written + Duration::from_secs(2)));
    assert!(!known.holds(&dir.0, written + Duration::from_millis(900)));
    // A clock that was set back since.
    assert!(identity(&dir.0, written - Duration::from_secs(3600)).unwrap().is_some());
}

#[test]
fn a_large_directory_is_known_by_itself_alone() {
    let dir = Directory::new("large");
    for n in 0..16 {
        dir.write(&format!("{n}.json"), "{}");
    }
    let small = dir.later();
    dir.write("0.json", "edited in place");
    assert_ne!(small, dir.later());
    dir.write("16.json", "{}");
    let large = dir.later();
    dir.write("0.json", "edited in place once more");
    assert_eq!(large, dir.later());
    dir.write("17.json", "{}");
    assert_ne!(large, dir.later());
}

#[test]
fn it_is_written_and_read() {
    let dir = Directory::new("text");
    let identity = dir.later();
    assert_eq!(identity.to_string().parse::<Identity>().unwrap(), identity);
    assert_eq!(identity.to_string().len(), 32);
    dir.write("b c.json", "{}");
    dir.write("a.json", "{}");
    let identity = dir.later();
    assert_eq!(identity.to_string().parse::<Identity>().unwrap(), identity);
    assert!(identity.to_string().ends_with("/a.json/b c.json"));
    assert!("x".parse::<Identity>().is_err());
    assert!("+0000000000000000000000000000000".parse::<Identity>().is_err());
}

#[test]
fn a_name_that_is_no_line_of_text_proves_nothing() {
    let dir = Directory::new("names");
    dir.write("a\nb.json", "{}");
    let minute = SystemTime::now() + Duration::from_secs(60);
    assert!(identity(&dir.0, minute).unwrap().is_none());
}

#[test]
fn a_missing_directory_is_an_error() {
    let error = identity("/nonexistent/nodes.d".as_ref(), SystemTime::now()).unwrap_err();
    assert!(matches!(error, MapError::Unreadable { .. }));
}
