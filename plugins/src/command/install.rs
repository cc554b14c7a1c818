//! `weft install` and `weft uninstall`: the executable under its names, a node map and
//! a conflist, put where a runtime reads them while it goes on making pods.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context, Result, bail};
use cluster::Map;

use super::installed::{self, Found, Kind, Target};
use super::print::print;
use super::{conflist, nodes};
use crate::PLUGINS;

pub(super) const HELP: &str = "\
Usage: weft install [--bin DIR] [--map FILE [--map-dir DIR]]
                    [--conf FILE [--conf-dir DIR]] [--replace-foreign]
       weft uninstall [--bin DIR] [--map FILE [--map-dir DIR]]
                      [--conf FILE [--conf-dir DIR]]

install puts this executable under its names (veth, host-local, routing, loopback and
weft, one file) into --bin, /opt/cni/bin where that is not given. Then, where they are
given, a node map into --map-dir (/etc/weft/nodes.d), and last a conflist into
--conf-dir (/etc/cni/net.d), each under FILE's own name. Each file takes its place by
rename when it is whole and on the disk, so that this may be done while pods are made
and removed. Run again it completes what an interrupted run began.

An older file of weft's is replaced. Another program's file of the same name, and a
symbolic link, is refused, and then nothing at all is changed; with --replace-foreign
it is kept as NAME.before-weft. Files that weft could not use are refused, too.

uninstall removes the conflist first (the one that has the name of FILE, which itself
is not read), then the executables and the node map: of these what is weft's, and puts
back what install kept. It is for a node whose pods are gone: without the executables
none can be removed. `weft teardown`, before it, removes what is between nodes.
";

/// What is to be installed where, or to be removed from where.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Request {
    /// Where executables go.
    pub(super) bin: PathBuf,
    /// A file and the directory that it goes to.
    pub(super) map: Option<(PathBuf, PathBuf)>,
    /// Likewise.
    pub(super) conflist: Option<(PathBuf, PathBuf)>,
    pub(super) replace_foreign: bool,
}

/// The command's own name.
const COMMAND: &str = "weft";

impl Request {
    /// Executables by the names of plugins, then the command's.
    fn executables(&self) -> Vec<Target> {
        let names = PLUGINS.iter().map(|(name, _)| *name).chain([COMMAND]);
        let target = |name: &str| Target {
            dir: self.bin.clone(),
            name: name.to_owned(),
            kind: Kind::Executable,
        };
        names.map(target).collect()
    }

    fn map(&self) -> Result<Option<Target>> {
        let named = |(file, dir): &(PathBuf, PathBuf)| named(file, dir, Kind::Map, &["json"]);
        self.map.as_ref().map(named).transpose()
    }

    fn conflist(&self) -> Result<Option<Target>> {
        let named = |(file, dir): &(PathBuf, PathBuf)| {
            named(file, dir, Kind::Conflist, &conflist::EXTENSIONS)
        };
        self.conflist.as_ref().map(named).transpose()
    }
}

/// A file that goes to `dir` under its own name, which readers there know by its extension.
fn named(file: &Path, dir: &Path, kind: Kind, extensions: &[&str]) -> Result<Target> {
    let name = file.file_name().and_then(|name| name.to_str()).unwrap_or_default();
    let extension = Path::new(name).extension().and_then(|extension| extension.to_str());
    if !extension.is_some_and(|extension| extensions.contains(&extension)) {
        let wanted = extensions.join(", .");
        bail!("{}: its name must end in .{wanted}, or nobody will read it", file.display());
    }
    Ok(Target { dir: dir.to_owned(), name: name.to_owned(), kind })
}

/// Everything that an install writes, read and judged.
struct Content {
    executable: Vec<u8>,
    executables: Vec<Target>,
    /// The map, then the conflist, with what they say.
    files: Vec<(Target, Vec<u8>)>,
}

/// Serves `weft install`.
pub(super) fn install(request: &Request) -> Result<ExitCode> {
    let content = Content::read(request)?;
    // Before directories are made, too: a refusal changes nothing.
    content.find(request.replace_foreign)?;
    for dir in content.dirs() {
        fs::create_dir_all(dir).with_context(|| format!("cannot make {}", dir.display()))?;
    }
    let _locked = installed::lock(&content.dirs())?;
    let found = content.find(request.replace_foreign)?;
    content.sweep()?;
    let done = content.put(&found);
    if done.is_err() {
        // The error tells what is wrong; what cannot be swept now the next run sweeps.
        let _ = content.sweep();
    }
    print(&done?)?;
    Ok(ExitCode::SUCCESS)
}

impl Content {
    fn read(request: &Request) -> Result<Self> {
        let executable = fs::read("/proc/self/exe").context("cannot read /proc/self/exe")?;
        if !installed::is_weft(&executable) {
            bail!("/proc/self/exe: this file would not be known for weft's later; build it anew");
        }
        let mut files = Vec::new();
        if let (Some((file, dir)), Some(target)) = (&request.map, request.map()?) {
            let content = fs::read(file).with_context(|| file.display().to_string())?;
            nodes::refuse_unusable(&Map::from_json(&content, &file.display().to_string())?)?;
            if dir.exists() {
                nodes::refuse_contradiction(dir, &target.name, file)?;
            }
            files.push((target, content));
        }
        if let (Some((file, _)), Some(target)) = (&request.conflist, request.conflist()?) {
            let content = fs::read(file).with_context(|| file.display().to_string())?;
            conflist::validate(&content, file).with_context(|| file.display().to_string())?;
            files.push((target, content));
        }
        Ok(Self { executable, executables: request.executables(), files })
    }

    fn targets(&self) -> impl Iterator<Item = &Target> {
        self.executables.iter().chain(self.files.iter().map(|(target, _)| target))
    }

    fn dirs(&self) -> Vec<&Path> {
        let mut dirs: Vec<&Path> = self.targets().map(|target| target.dir.as_path()).collect();
        dirs.dedup();
        dirs
    }

    /// What is there for each target; refused where that is foreign and to stay.
    fn find(&self, replace_foreign: bool) -> Result<Vec<Found>> {
        let found = self.targets().map(Target::look).collect::<Result<Vec<Found>>>()?;
        let both = self.targets().zip(&found);
        let foreign = both.filter(|(_, found)| **found == Found::Foreign);
        let foreign: Vec<String> =
            foreign.map(|(target, _)| target.path().display().to_string()).collect();
        if !replace_foreign && !foreign.is_empty() {
            bail!(
                "not weft's: {}; nothing is changed. With --replace-foreign each is kept as \
                 NAME.before-weft, and weft uninstall puts it back",
                foreign.join(", ")
            );
        }
        Ok(found)
    }

    fn sweep(&self) -> Result<()> {
        self.targets().try_for_each(Target::sweep)
    }

    /// Puts everything into its place, executables before what names them; returns what
    /// there is to say.
    fn put(&self, found: &[Found]) -> Result<String> {
        let (executables, files) = found.split_at(self.executables.len());
        let mut said = self.put_executables(executables)?;
        for ((target, content), found) in self.files.iter().zip(files) {
            let unchanged = *found == Found::Ours
                && fs::read(target.path()).is_ok_and(|there| there == *content);
            if !unchanged {
                target.write_waiting(content, 0o644)?;
                target.replace(*found)?;
                sync(&target.dir)?;
            }
            let done = if unchanged { "unchanged" } else { "installed" };
            said += &format!("{}: {done}\n", target.path().display());
            said += &kept(target, *found);
        }
        Ok(said)
    }

    fn put_executables(&self, found: &[Found]) -> Result<String> {
        let Some(command) = self.executables.last() else { return Ok(String::new()) };
        command.write_waiting(&self.executable, 0o755)?;
        let mut said = String::new();
        for (target, found) in self.executables.iter().zip(found) {
            if target != command {
                fs::hard_link(command.waiting(), target.waiting())
                    .with_context(|| format!("cannot write {}", target.waiting().display()))?;
            }
            target.replace(*found)?;
            said += &kept(target, *found);
        }
        sync(&command.dir)?;
        let names: Vec<&str> = self.executables.iter().map(|target| target.name.as_str()).collect();
        Ok(format!("{}: installed {}\n{said}", command.dir.display(), names.join(", ")))
    }
}

fn kept(target: &Target, found: Found) -> String {
    match found {
        Found::Foreign => format!(
            "{}: another program's, kept as {}\n",
            target.path().display(),
            target.saved().display()
        ),
        _ => String::new(),
    }
}

/// Serves `weft uninstall`.
pub(super) fn uninstall(request: &Request) -> Result<ExitCode> {
    let mut targets: Vec<Target> = request.conflist()?.into_iter().collect();
    targets.extend(request.executables());
    targets.extend(request.map()?);
    targets.retain(|target| target.dir.is_dir());
    let dirs: Vec<&Path> = targets.iter().map(|target| target.dir.as_path()).collect();
    let _locked = installed::lock(&dirs)?;
    let mut said = String::new();
    for target in &targets {
        target.sweep()?;
        if let Some(done) = take_away(target)? {
            said += &format!("{}: {done}\n", target.path().display());
        }
        // A conflist that came back after a power cut would name plugins that are gone.
        if target.kind == Kind::Conflist {
            sync(&target.dir)?;
        }
    }
    dirs.iter().try_for_each(|dir| sync(dir))?;
    for file in conflist::ours() {
        eprintln!(
            "weft: warning: {} still names plugins of weft; --conf removes it",
            file.display()
        );
    }
    print(if said.is_empty() { "nothing was there\n" } else { &said })?;
    Ok(ExitCode::SUCCESS)
}

/// Removes our file and puts back what was there before it; returns what was done.
fn take_away(target: &Target) -> Result<Option<&'static str>> {
    let found = target.look()?;
    let saved = installed::present(&target.saved())?.is_some();
    Ok(match (found, saved) {
        (Found::Nothing, false) => None,
        (Found::Ours, false) => {
            installed::remove(&target.path())?;
            Some("removed")
        }
        (Found::Ours | Found::Nothing, true) => {
            fs::rename(target.saved(), target.path())
                .with_context(|| format!("cannot put back {}", target.saved().display()))?;
            Some("put back what was there before")
        }
        (Found::Foreign, true) if target.saved_is_in_place()? => {
            installed::remove(&target.saved())?;
            Some("stays as it was before")
        }
        (Found::Foreign, true) => {
            Some("another program's by now, left; the one before it is still NAME.before-weft")
        }
        (Found::Foreign, false) => Some("not weft's, left"),
    })
}

/// Waits until renames in a directory are on the disk.
fn sync(dir: &Path) -> Result<()> {
    let done = fs::File::open(dir).and_then(|dir| dir.sync_all());
    done.with_context(|| format!("cannot sync {}", dir.display()))
}
