//! The control group that pods of a test are in: the machine's, not a node's, so it has
//! to be removed.

use std::fs;
use std::path::PathBuf;
use std::process::{ChildStdin, Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};

use anyhow::Result;
use e2e::{Running, spawn};

/// Shell: waits for the end of its standard input, that is of the test, however that
/// comes; then removes a control group in every hierarchy as soon as the lab's last
/// process is gone.
const REAPER: &str = r#"
cat >/dev/null
for try in $(seq 200); do
    find /sys/fs/cgroup -depth -type d -path "*/$1*" -exec rmdir {} + 2>/dev/null
    [ -n "$(find /sys/fs/cgroup -maxdepth 2 -type d -name "$1")" ] || exit 0
    sleep 0.05
done
echo "control group $1 is still there" >&2
exit 1
"#;

/// A control group's name, and the process that removes it.
#[derive(Debug)]
pub(crate) struct ControlGroup {
    name: String,
    reaper: Running,
    stdin: Option<ChildStdin>,
}

impl ControlGroup {
    /// A name that no other test has. The group itself is made by the runtime.
    pub(crate) fn new() -> Result<ControlGroup> {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let number = COUNT.fetch_add(1, Ordering::Relaxed);
        let name = format!("weft-test-{}-{number}.pods", std::process::id());
        let mut reaper = spawn(
            Command::new("sh")
                .args(["-c", REAPER, "sh", &name])
                .stdin(Stdio::piped())
                .stdout(Stdio::null()),
        )?;
        let stdin = Some(reaper.stdin()?);
        Ok(ControlGroup { name, reaper, stdin })
    }

    /// Its path in each hierarchy.
    pub(crate) fn path(&self) -> String {
        format!("/{}", self.name)
    }

    /// Where it is now.
    pub(crate) fn directories(name: &str) -> Result<Vec<PathBuf>> {
        let root = PathBuf::from("/sys/fs/cgroup");
        let mut places = vec![root.join(name)];
        for hierarchy in fs::read_dir(&root)? {
            places.push(hierarchy?.path().join(name));
        }
        places.retain(|path| path.exists());
        Ok(places)
    }
}

impl Drop for ControlGroup {
    fn drop(&mut self) {
        drop(self.stdin.take());
        // It says itself what is wrong, unless it does not end.
        if let Err(error) = self.reaper.wait() {
            eprintln!("{error:#}");
        }
    }
}
