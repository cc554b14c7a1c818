//! Where the plugin executables under test are.

use std::fs;
use std::io::{self, ErrorKind};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Mutex, OnceLock, PoisonError};
use std::time::Duration;

use anyhow::{Context, Result, ensure};

use crate::process::run_within;

/// The names under which `weft` is installed.
const NAMES: [&str; 5] = ["weft", "veth", "host-local", "routing", "loopback"];

/// How long cargo may take, which may have to wait for another build to end.
const BUILD: Duration = Duration::from_secs(1800);

/// The directory that holds the plugins, for CNI_PATH: `WEFT_BIN_DIR` where that is
/// set, else `target/PROFILE/cni-bin`, filled with hard links to a `weft` that cargo
/// has just brought up to date in the profile that this library was built with.
/// Set WEFT_BIN_DIR where every test is a process of its own, to ask cargo once.
pub fn weft_bin_dir() -> Result<PathBuf> {
    static BUILT: OnceLock<PathBuf> = OnceLock::new();
    static BUILDING: Mutex<()> = Mutex::new(());
    if let Some(dir) = std::env::var_os("WEFT_BIN_DIR") {
        return std::path::absolute(&dir).context("WEFT_BIN_DIR");
    }
    // One thread at a time: the temporary names of links are the process's.
    let _building = BUILDING.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some(dir) = BUILT.get() {
        return Ok(dir.clone());
    }
    let dir = build()?;
    Ok(BUILT.get_or_init(|| dir).clone())
}

fn build() -> Result<PathBuf> {
    let release = !cfg!(debug_assertions);
    let mut command = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    command.args(["build", "--quiet", "--package", "weft"]);
    command.args(release.then_some("--release"));
    command.args(["--message-format", "json-render-diagnostics"]);
    command.current_dir(env!("CARGO_MANIFEST_DIR"));
    let output = run_within(BUILD, &mut command)?;
    ensure!(output.success(), "cargo build --package weft: {}", output.stderr);
    let executable = output
        .stdout
        .lines()
        .filter_map(|line| serde_json::from_str::<serde_json::Value>(line).ok())
        .find_map(|message| Some(PathBuf::from(message["executable"].as_str()?)))
        .context("cargo built no executable of package weft")?;
    let dir = executable.parent().context("weft has no directory")?.join("cni-bin");
    fs::create_dir_all(&dir).with_context(|| dir.display().to_string())?;
    for name in NAMES {
        link(&executable, &dir.join(name)).with_context(|| format!("linking {name}"))?;
    }
    Ok(dir)
}

/// Makes `path` a hard link of `executable`, at no time absent once it was there and
/// whoever else is doing the same.
fn link(executable: &Path, path: &Path) -> io::Result<()> {
    let inode = |path: &Path| fs::metadata(path).map(|meta| (meta.dev(), meta.ino()));
    let wanted = inode(executable)?;
    if inode(path).is_ok_and(|found| found == wanted) {
        return Ok(());
    }
    let temporary = path.with_extension(format!("new{}", std::process::id()));
    match fs::remove_file(&temporary) {
        Err(error) if error.kind() != ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    fs::hard_link(executable, &temporary)?;
    fs::rename(&temporary, path)?;
    // Renaming one link of a file over another does nothing and leaves both (rename(2)).
    match fs::remove_file(&temporary) {
        Err(error) if error.kind() != ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}
