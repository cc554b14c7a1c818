//! `bench peers`: what a sync and an ADD cost with few and with many other nodes, by map
//! of ours and by the list that kubectl prints, beside the kernel's own share.

use std::fmt::Write;
use std::net::Ipv4Addr;
use std::thread;

use anyhow::{Context, Result, ensure};
use e2e::{Lab, NODE_MAP, Node, Topology};
use ipnetwork::IpNetwork;
use serde_json::{Value, json};

use super::chain::{self, Chain};
use super::maps::{self, Shape};
use super::report::{Limit, Target};
use super::run::{Executables, MAP_SETTLES, Runtime, milliseconds};
use super::stats::quantile;

/// How often each sync is measured.
const FIRST: usize = 3;
const NOTHING: usize = 5;
const CHANGED: usize = 3;
/// How often the bare batch is.
const BATCHES: usize = 3;
/// Pods of each node, the nodes taking turns.
const PODS: usize = 41;
/// The same in a full run.
const PODS_FULL: usize = 101;
/// Name of the VXLAN device where none is configured.
const DEVICE: &str = "weft.1";

/// A node: how many peers its map has, and in which shape.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Case {
    dual: bool,
    shape: Shape,
    peers: usize,
}

/// Runs of the same kind, milliseconds of time, and of processor time.
#[derive(Clone, Debug, Default)]
struct Runs {
    walls: Vec<f64>,
    cpu: Vec<f64>,
}

/// What was measured on a node.
#[derive(Clone, Debug)]
struct Row {
    case: Case,
    first: Runs,
    nothing: Runs,
    changed: Runs,
    /// Peak resident set of any of the syncs, bytes.
    peak: u64,
    /// `routing` alone, and the whole chain, milliseconds.
    routing: Vec<f64>,
    adds: Vec<f64>,
    batch: Vec<f64>,
}

/// The table of a run with these numbers of peers, in Markdown, and what it is held to.
pub(crate) fn run(
    sizes: &[usize],
    full: bool,
    executables: &Executables,
) -> Result<(String, Vec<Target>)> {
    let pods = if full { PODS_FULL } else { PODS };
    let mut rows = Vec::new();
    for dual in [false, true] {
        rows.extend(family(sizes, dual, pods, executables)?);
    }
    Ok((table(&rows, pods), targets(&rows)))
}

/// All cases of a family, each on a node of its own in one lab, so that the ADDs can take turns.
fn family(sizes: &[usize], dual: bool, pods: usize, executables: &Executables) -> Result<Vec<Row>> {
    let shapes = [Shape::Compact, Shape::NodeList];
    let cases: Vec<Case> = shapes
        .into_iter()
        .flat_map(|shape| sizes.iter().map(move |&peers| Case { dual, shape, peers }))
        .collect();
    let lab = Lab::start(topology(cases.len())?)?;
    let chain = chain::ALL.into_iter().find(|chain| chain.name == "weft").context("no weft")?;
    let mut sites = Vec::new();
    for (case, node) in cases.into_iter().zip(lab.nodes()) {
        sites.push(Site::start(case, chain, node, executables)?);
    }
    for site in &mut sites {
        eprintln!("peers: {}", site.row.case.words());
        site.syncs()?;
    }
    thread::sleep(MAP_SETTLES);
    for site in &mut sites {
        site.settle()?;
    }
    eprintln!("peers: {pods} pods of each");
    for turn in 1..=pods {
        // No size always comes after the same one.
        sites.rotate_left(1);
        for site in &mut sites {
            site.pod(turn)?;
        }
    }
    for site in &mut sites {
        site.batches()?;
    }
    sites.sort_by_key(|site| (site.row.case.shape == Shape::NodeList, site.row.case.peers));
    Ok(sites.into_iter().map(|site| site.row).collect())
}

/// Nodes of one link, `count` of them.
fn topology(count: usize) -> Result<Topology> {
    let mut topology = Topology { links: Vec::new(), hosts: Vec::new() };
    let address = |last: u8| IpNetwork::new(Ipv4Addr::new(192, 168, 1, last).into(), 24);
    let link = topology.add_link("net1", vec![address(254)?]);
    for number in 1..=count {
        let addresses = vec![address(number as u8)?];
        topology.add_host(&format!("node{number}"), link, addresses, Vec::new());
    }
    Ok(topology)
}

/// A node and its runtime.
struct Site<'a> {
    node: &'a Node,
    chain: Chain,
    runtime: Runtime,
    own: Ipv4Addr,
    row: Row,
}

impl<'a> Site<'a> {
    fn start(
        case: Case,
        chain: Chain,
        node: &'a Node,
        executables: &Executables,
    ) -> Result<Site<'a>> {
        let conflist = json!({
            "cniVersion": "1.0.0", "name": "pods", "plugins": chain.plugins(case.dual),
        });
        node.write_file("/etc/cni/net.d/10-pods.conflist", conflist.to_string())?;
        let runtime = Runtime::start(node, chain, case.dual, executables)?;
        let own = node.host().addresses.first().context("no address")?.ip().to_string().parse()?;
        let (first, nothing, changed) = Default::default();
        let (routing, adds, batch) = Default::default();
        let row = Row { case, first, nothing, changed, peak: 0, routing, adds, batch };
        Ok(Site { node, chain, runtime, own, row })
    }

    fn write_map(&self, peers: usize, changed: usize) -> Result<()> {
        let Case { shape, dual, .. } = self.row.case;
        self.node.write_file(NODE_MAP, maps::map(shape, self.own, peers, changed, dual)?)
    }

    fn weft(&mut self, word: &str, memory: bool) -> Result<Value> {
        self.runtime.request(&json!({"verb": "COMMAND", "words": [word], "memory": memory}))
    }

    /// A sync; memory is looked at in the last one of each kind alone, as that takes a wrapper.
    fn sync(&mut self, runs: fn(&mut Row) -> &mut Runs, last: bool) -> Result<()> {
        let answer = self.weft("sync", last)?;
        self.row.peak = self.row.peak.max(answer["peak"].as_u64().unwrap_or_default());
        let runs = runs(&mut self.row);
        runs.walls.push(milliseconds(&answer["wall"]));
        runs.cpu.push(milliseconds(&answer["cpu"]));
        Ok(())
    }

    fn syncs(&mut self) -> Result<()> {
        let peers = self.row.case.peers;
        self.write_map(peers, 0)?;
        for round in 1..=FIRST {
            self.sync(|row| &mut row.first, round == FIRST)?;
            if round < FIRST {
                self.weft("teardown", false)?;
            }
        }
        for round in 1..=NOTHING {
            self.sync(|row| &mut row.nothing, round == NOTHING)?;
        }
        for round in 1..=CHANGED {
            // There, back, and there again: a hundredth has other addresses each time.
            let changed = if round % 2 == 1 { peers.div_ceil(100) } else { 0 };
            self.write_map(peers, changed)?;
            self.sync(|row| &mut row.changed, round == CHANGED)?;
        }
        Ok(())
    }

    /// Has the stamp written that the fast path of an ADD goes by, and all else made that a
    /// first pod finds missing.
    fn settle(&mut self) -> Result<()> {
        self.weft("sync", false)?;
        self.pod(0)?;
        self.row.routing.clear();
        self.row.adds.clear();
        let stamp = self.node.path("/run/weft/pods.stamp");
        ensure!(stamp.exists(), "no stamp with {}", self.row.case.words());
        Ok(())
    }

    /// A pod's life.
    fn pod(&mut self, number: usize) -> Result<()> {
        let pod = self.chain.pod(number, self.row.case.dual);
        let plugins = self.runtime.verb("ADD", &pod)?;
        self.runtime.verb("DEL", &pod)?;
        let routing = plugins.iter().find(|(plugin, _)| plugin == "routing");
        self.row.routing.extend(routing.map(|(_, wall)| *wall));
        self.row.adds.push(plugins.iter().map(|(_, wall)| wall).sum());
        Ok(())
    }

    fn batches(&mut self) -> Result<()> {
        let Case { peers, dual, .. } = self.row.case;
        self.write_map(0, 0)?;
        for _ in 0..BATCHES {
            self.weft("teardown", false)?;
            self.weft("sync", false)?;
            let request = json!({"verb": "BATCH", "device": DEVICE, "peers": peers, "dual": dual});
            let answer = self.runtime.request(&request)?;
            self.row.batch.push(milliseconds(&answer["wall"]));
        }
        Ok(())
    }
}

impl Case {
    fn families(self) -> &'static str {
        if self.dual { "IPv4 and IPv6" } else { "IPv4" }
    }

    fn words(self) -> String {
        format!("{} peers, {}, {} map", self.peers, self.families(), self.shape.name())
    }
}

fn median(values: &[f64]) -> f64 {
    quantile(values, 0.5).unwrap_or(f64::NAN)
}

fn table(rows: &[Row], pods: usize) -> String {
    let mut text = format!(
        "\n**Syncs and ADDs by number of peers** (milliseconds, medians; processor time in \
         brackets; {pods} ADDs each, taking turns)\n\n"
    );
    text.push_str(
        "| families | map | peers | first sync | bare batch | nothing to do | 1 % changed | \
         ADD, `routing` | p95 | ADD, whole | p95 | peak, MiB |\n\
         |---|---|--:|--:|--:|--:|--:|--:|--:|--:|--:|--:|\n",
    );
    for row in rows {
        let runs = |runs: &Runs| format!("{:.1} ({:.1})", median(&runs.walls), median(&runs.cpu));
        let adds = |walls: &[f64]| {
            let p95 = quantile(walls, 0.95).unwrap_or(f64::NAN);
            format!("{:.2} | {p95:.2}", median(walls))
        };
        let Case { shape, peers, .. } = row.case;
        // Writing to a string does not fail.
        let _ = writeln!(
            text,
            "| {} | {} | {peers} | {} | {:.1} | {} | {} | {} | {} | {:.1} |",
            row.case.families(),
            shape.name(),
            runs(&row.first),
            median(&row.batch),
            runs(&row.nothing),
            runs(&row.changed),
            adds(&row.routing),
            adds(&row.adds),
            row.peak as f64 / f64::from(1 << 20),
        );
    }
    text
}

/// The limits for 10,000 peers.
fn targets(rows: &[Row]) -> Vec<Target> {
    let of = |dual, shape, peers| {
        let case = Case { dual, shape, peers };
        rows.iter().find(|row| row.case == case)
    };
    let mut targets = Vec::new();
    if let Some(row) = of(false, Shape::Compact, 10_000) {
        let most = |what: &str, value, limit| Target::new(what, value, Limit::Most(limit));
        targets.extend([
            most(
                "10,000 IPv4 peers, compact map: first sync, ms",
                median(&row.first.walls),
                1000.0,
            ),
            most("… nothing to do, ms", median(&row.nothing.walls), 150.0),
            most("… peak memory, MiB", row.peak as f64 / f64::from(1 << 20), 64.0),
        ]);
    }
    for dual in [false, true] {
        let pair = (of(dual, Shape::Compact, 10), of(dual, Shape::Compact, 10_000));
        let (Some(few), Some(many)) = pair else { continue };
        let mut ratio = |what: &str, of: fn(&Row) -> &[f64]| {
            let what = format!("{}, ADD, {what}: 10,000 peers / 10", few.case.families());
            let ratio = median(of(many)) / median(of(few));
            targets.push(Target::new(&what, ratio, Limit::Most(1.1)));
        };
        ratio("`routing`", |row| &row.routing);
        ratio("whole chain", |row| &row.adds);
    }
    targets
}
