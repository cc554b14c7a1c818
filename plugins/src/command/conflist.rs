//! The networks with `routing` on this node: from the conflists that the runtime
//! reads, or from one file.

use std::ffi::OsStr;
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use cni::{Network, Object, Version, check_network_name};
use serde_json::{Map, Value};

use super::hints;
use crate::routing::config::Config;

/// Where runtimes look.
pub(super) const DIRECTORY: &str = "/etc/cni/net.d";

/// How names of files end that runtimes read there.
pub(super) const EXTENSIONS: [&str; 3] = ["conflist", "conf", "json"];

/// A network whose plugins include `routing`.
#[derive(Clone, Debug)]
pub(super) struct RoutingNetwork {
    /// The file that it is in.
    pub(super) file: PathBuf,
    /// What `routing` is told.
    pub(super) config: Config,
    /// What the plugin whose IPAM plugin is `host-local` is told, if there is one.
    pub(super) host_local: Option<Network>,
    /// Whether that plugin is `veth`.
    pub(super) is_veth: bool,
    /// What in its plugins' keys is probably not meant so, for people.
    pub(super) hints: Vec<String>,
}

/// Every such network, in the order of file names.
pub(super) fn networks(conf: Option<&Path>) -> Result<Vec<RoutingNetwork>> {
    let files = match conf {
        Some(file) => vec![file.to_owned()],
        None => files(Path::new(DIRECTORY))?,
    };
    let mut networks = Vec::new();
    for file in &files {
        let about = || file.display().to_string();
        match parse(file).with_context(about) {
            Ok(whole) => networks.extend(read(file, &whole).with_context(about)?),
            // A broken file of which nobody knows whose it is is not ours to fail for.
            Err(error) if conf.is_none() => log::warn!("{error:#}; the file is skipped"),
            Err(error) => return Err(error),
        }
    }
    refuse_doubles(&networks)?;
    if networks.is_empty() {
        let place = conf.unwrap_or(Path::new(DIRECTORY)).display();
        bail!(
            "{place}: no network here has the plugin \"routing\"; add it to a conflist's plugins"
        );
    }
    Ok(networks)
}

fn files(directory: &Path) -> Result<Vec<PathBuf>> {
    let entries =
        fs::read_dir(directory).with_context(|| format!("cannot read {}", directory.display()))?;
    let mut files = Vec::new();
    for entry in entries {
        let path = entry.with_context(|| format!("cannot read {}", directory.display()))?.path();
        let extension = path.extension().and_then(OsStr::to_str);
        if extension.is_some_and(|extension| EXTENSIONS.contains(&extension)) {
            files.push(path);
        }
    }
    files.sort();
    Ok(files)
}

fn parse(file: &Path) -> Result<Map<String, Value>> {
    let text = fs::read(file).context("cannot be read")?;
    serde_json::from_slice(&text).context("is not JSON")
}

fn read(file: &Path, whole: &Map<String, Value>) -> Result<Option<RoutingNetwork>> {
    let keys = Object::root(whole);
    if !names(&keys, &["routing"]) {
        return Ok(None);
    }
    let plugins = match keys.get("plugins") {
        Some(_) => keys.list("plugins", Object::of)?,
        None => vec![keys.clone()],
    };
    let mut routing = None;
    let mut host_local = None;
    let mut is_veth = false;
    let hints = plugins.iter().flat_map(hints::of).collect();
    for plugin in plugins {
        if plugin.text("type")? == Some("routing") {
            routing = Some(plugin);
        } else if uses_host_local(&plugin)? {
            is_veth = plugin.text("type")? == Some("veth");
            host_local = Some(plugin);
        }
    }
    let Some(routing) = routing else { return Ok(None) };
    let name = keys.text("name")?.unwrap_or_default();
    check_network_name(name)?;
    let config = Config::of(name, &routing)?;
    let host_local = host_local.map(|plugin| as_ipam_sees_it(name, &plugin));
    Ok(Some(RoutingNetwork { file: file.to_owned(), config, host_local, is_veth, hints }))
}

/// Whether a plugin of the network is one of `wanted`. What is wrong with another
/// network's plugins is not ours to fail for.
fn names(keys: &Object, wanted: &[&str]) -> bool {
    let is_wanted =
        |plugin: &Object| plugin.text("type").ok().flatten().is_some_and(|t| wanted.contains(&t));
    match keys.get("plugins") {
        Some(Value::Array(_)) => {
            let of = |value, path| Ok(Object::of(value, path).is_ok_and(|p| is_wanted(&p)));
            keys.list("plugins", of).is_ok_and(|plugins| plugins.contains(&true))
        }
        Some(_) => false,
        None => is_wanted(keys),
    }
}

/// Whether this is a network's configuration that needs our executables: it names a
/// plugin that only weft has.
pub(super) fn is_ours(content: &[u8]) -> bool {
    let whole: Option<Map<String, Value>> = serde_json::from_slice(content).ok();
    whole.is_some_and(|whole| names(&Object::root(&whole), &["veth", "routing"]))
}

/// The files of runtimes' own directory that are ours, as far as they can be read.
pub(super) fn ours() -> Vec<PathBuf> {
    let mut files = files(Path::new(DIRECTORY)).unwrap_or_default();
    files.retain(|file| fs::read(file).is_ok_and(|content| is_ours(&content)));
    files
}

/// Fails on what weft could not use, or would not know for its own later.
pub(super) fn validate(content: &[u8], file: &Path) -> Result<()> {
    let whole = serde_json::from_slice(content).context("is not JSON")?;
    if Object::root(&whole).text("name")?.is_none() {
        bail!("name: missing; give the network one");
    }
    if !is_ours(content) {
        bail!("names neither veth nor routing; add one of them to its plugins");
    }
    read(file, &whole).map(drop)
}

fn uses_host_local(plugin: &Object) -> Result<bool> {
    let ipam = plugin.object("ipam")?;
    Ok(ipam.map(|ipam| ipam.text("type")).transpose()?.flatten() == Some("host-local"))
}

/// What of a plugin's configuration its IPAM plugin reads.
fn as_ipam_sees_it(name: &str, plugin: &Object) -> Network {
    let ipam = plugin.get("ipam").cloned().unwrap_or_default();
    let keys = [("name".to_owned(), name.into()), ("ipam".to_owned(), ipam)];
    let config = keys.into_iter().collect();
    let version = Version::LATEST;
    Network { version, name: name.to_owned(), config, prev_result: None, path: Vec::new() }
}

/// Two networks that mark routes alike would each delete the other's.
fn refuse_doubles(networks: &[RoutingNetwork]) -> Result<()> {
    for (i, one) in networks.iter().enumerate() {
        for other in networks.iter().skip(i + 1) {
            let files = format!("{} and {}", one.file.display(), other.file.display());
            if one.config.network == other.config.network {
                bail!("{files}: both are called {}; rename one", one.config.network);
            }
            if one.config.protocol == other.config.protocol {
                bail!(
                    "{files}: both mark their routes with protocol {}; set routeProtocol to \
                     another number in one of them",
                    one.config.protocol
                );
            }
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn read(whole: Value) -> Result<Option<RoutingNetwork>> {
        super::read(Path::new("10-pods.conflist"), whole.as_object().expect("an object"))
    }

    #[test]
    fn the_odd_plugins_of_other_networks_are_skipped() {
        for other in [
            json!({ "name": "x", "plugins": [{ "type": "bridge", "ipam": 5 }] }),
            json!({ "name": "x", "plugins": [{ "type": 5 }, "routing", null, ["routing"]] }),
            json!({ "name": "x", "plugins": { "type": "routing" } }),
            json!({ "name": "x", "plugins": "routing" }),
            json!({ "name": "x", "plugins": [] }),
            json!({ "name": "x", "type": 5 }),
            json!({ "name": 5, "type": "bridge", "ipam": [] }),
            json!({}),
        ] {
            assert!(read(other.clone()).expect("no error").is_none(), "{other}");
        }
        // Beside one that is ours it is.
        let ours = json!({ "name": "x", "plugins": [{ "type": "routing" }, { "type": 5 }] });
        let error = read(ours).expect_err("a type that is a number").to_string();
        assert!(error.contains("plugins[1].type"), "{error}");
    }

    #[test]
    fn a_name_that_is_no_file_name_is_refused() {
        let named = |name: Value| {
            read(json!({ "name": name, "plugins": [{ "type": "routing" }] })).map(|_| ())
        };
        named(json!("pods.1_a-b")).expect("a name");
        for name in ["", "../pods", "..", "a/b", "-a", "a b", "a\nb"] {
            let error = named(json!(name)).expect_err(name).to_string();
            assert!(error.starts_with("name: "), "{name:?}: {error}");
        }
        named(Value::Null).expect_err("no name");
    }
}
