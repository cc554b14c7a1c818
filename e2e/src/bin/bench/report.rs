//! The tables of a run, in Markdown.

use std::collections::HashSet;
use std::fmt::Write;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use super::chain::{self, Chain};
use super::run::{Circumstances, Results};
use super::stats::{Summary, by_plugin, summary};

/// A figure that the project holds itself to.
#[derive(Clone, Debug)]
pub(crate) struct Target {
    what: String,
    value: f64,
    limit: Limit,
}

/// What a figure may be.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Limit {
    Most(f64),
    Least(f64),
}

impl Target {
    pub(crate) fn new(what: &str, value: f64, limit: Limit) -> Self {
        Self { what: what.to_owned(), value, limit }
    }
}

/// The figures that the project holds itself to, and whether they hold.
pub(crate) fn held_to(targets: &[Target]) -> String {
    if targets.is_empty() {
        return String::new();
    }
    let mut text = String::from("\n**Held to**\n\n| | measured | limit | |\n|---|--:|--:|---|\n");
    for Target { what, value, limit } in targets {
        let (holds, limit) = match limit {
            Limit::Most(most) => (value <= most, format!("at most {most:.2}")),
            Limit::Least(least) => (value >= least, format!("at least {least:.2}")),
        };
        let verdict = if holds { "holds" } else { "does not hold" };
        line(&mut text, format!("| {what} | {value:.2} | {limit} | {verdict} |"));
    }
    text
}

/// All tables.
pub(crate) fn tables(results: &Results, parts: &[Circumstances], installed: u64) -> String {
    let mut text = String::new();
    for at in parts.iter().filter(|at| at.width == 1) {
        text.push_str(&part(results, *at));
    }
    text.push_str(&bursts(results, parts));
    text.push_str(&plugins(results));
    text.push_str(&peaks(results, installed));
    text.push_str(&held_to(&targets(results, installed)));
    text
}

/// The chains that a part measured.
pub(crate) fn measured(results: &Results, part: &str) -> impl Iterator<Item = Chain> {
    let names: HashSet<&str> =
        results.samples.iter().filter(|s| s.part == part).map(|s| s.chain).collect();
    chain::ALL.into_iter().filter(move |chain| names.contains(chain.name))
}

/// What a part is, for a heading.
pub(crate) fn heading(at: Circumstances) -> String {
    let families = if at.dual { "IPv4 and IPv6" } else { "IPv4" };
    let present = match at.present {
        0 => "no other pod".to_owned(),
        n => format!("{n} other pods"),
    };
    let width = if at.width == 1 { String::new() } else { format!(", {} at once", at.width) };
    format!("{families}, {} nodes, {present}{width}", at.nodes)
}

fn part(results: &Results, at: Circumstances) -> String {
    let mut text = format!("\n**{}** (milliseconds)\n\n", heading(at));
    text.push_str("| chain | runs | ADD median | p95 | CPU | × bare | DEL median | p95 | CPU | × bare | CHECK median |\n");
    text.push_str("|---|--:|--:|--:|--:|--:|--:|--:|--:|--:|--:|\n");
    let of = |chain: &str, verb| summary(&results.samples, at.part, chain, verb);
    for chain in measured(results, at.part) {
        let (Some(add), Some(del)) = (of(chain.name, "ADD"), of(chain.name, "DEL")) else {
            continue;
        };
        let check = of(chain.name, "CHECK").map_or(String::new(), |s| format!("{:.2}", s.median));
        let ratio = |own: Summary, verb| {
            of("bare", verb)
                .map_or(String::new(), |bare| format!("{:.2}", own.median / bare.median))
        };
        let cells = |own: Summary, verb| {
            format!("{:.2} | {:.2} | {:.2} | {}", own.median, own.p95, own.cpu, ratio(own, verb))
        };
        let (adds, dels) = (cells(add, "ADD"), cells(del, "DEL"));
        line(&mut text, format!("| {} | {} | {adds} | {dels} | {check} |", chain.name, add.count));
    }
    text
}

fn bursts(results: &Results, parts: &[Circumstances]) -> String {
    let Some(at) = parts.iter().find(|at| at.width > 1) else { return String::new() };
    let mut text = format!("\n**{}**\n\n", heading(*at));
    text.push_str(
        "| chain | pods | ADD all, s | pods/s | one ADD median, ms | p95 | DEL all, s | pods/s |\n",
    );
    text.push_str("|---|--:|--:|--:|--:|--:|--:|--:|\n");
    for chain in measured(results, at.part) {
        let burst = |verb| results.bursts.iter().find(|b| b.chain == chain.name && b.verb == verb);
        let (Some(add), Some(del)) = (burst("ADD"), burst("DEL")) else { continue };
        let Some(one) = summary(&results.samples, at.part, chain.name, "ADD") else { continue };
        let cells = |wall: f64| format!("{:.2} | {:.0}", wall / 1e3, add.pods as f64 / wall * 1e3);
        let (adds, dels) = (cells(add.wall), cells(del.wall));
        line(
            &mut text,
            format!(
                "| {} | {} | {adds} | {:.1} | {:.1} | {dels} |",
                chain.name, add.pods, one.median, one.p95
            ),
        );
    }
    text
}

/// Each plugin's own process, in the first part alone.
fn plugins(results: &Results) -> String {
    let part = "adds";
    let mut chains = measured(results, part).peekable();
    if chains.peek().is_none() {
        return String::new();
    }
    let mut text = String::from("\n**Each plugin's process** (milliseconds, median and p95)\n\n");
    text.push_str("| chain | plugin | ADD | p95 | DEL | p95 |\n|---|---|--:|--:|--:|--:|\n");
    for chain in chains {
        let adds = by_plugin(&results.samples, part, chain.name, "ADD");
        let dels = by_plugin(&results.samples, part, chain.name, "DEL");
        for (plugin, (add, add_p95)) in adds {
            let Some((del, del_p95)) = dels.get(&plugin) else { continue };
            line(
                &mut text,
                format!(
                    "| {} | {plugin} | {add:.2} | {add_p95:.2} | {del:.2} | {del_p95:.2} |",
                    chain.name
                ),
            );
        }
    }
    text
}

fn peaks(results: &Results, installed: u64) -> String {
    let mut text =
        String::from("\n**Peak resident memory** (KiB, over all verbs, children included)\n\n");
    text.push_str("| part | chain | plugin | peak |\n|---|---|---|--:|\n");
    for peak in &results.peaks {
        let kib = peak.bytes >> 10;
        line(&mut text, format!("| {} | {} | {} | {kib} |", peak.part, peak.chain, peak.plugin));
    }
    let _ = write!(text, "\nInstalled: {:.2} MB.\n", installed as f64 / 1e6);
    text
}

/// The ratios that the project holds itself to, where the run measured both sides.
fn targets(results: &Results, installed: u64) -> Vec<Target> {
    let median = |part: &str, chain: &str, verb: &str| {
        summary(&results.samples, part, chain, verb).map(|summary| summary.median)
    };
    let ratio = |part, a, b, verb| Some(median(part, a, verb)? / median(part, b, verb)?);
    let rate = |chain: &str| {
        let burst = results.bursts.iter().find(|b| b.chain == chain && b.verb == "ADD")?;
        Some(burst.pods as f64 / burst.wall)
    };
    let largest = |part: &str| {
        let ours = results.peaks.iter().filter(|p| p.part == part && p.chain.starts_with("weft"));
        ours.map(|peak| peak.bytes).max().map(|bytes| bytes as f64 / f64::from(1 << 20))
    };
    let most = [
        ("ADD, weft / bare", ratio("adds", "weft", "bare", "ADD"), 2.0),
        ("ADD, weft / ptp", ratio("adds", "weft", "ptp", "ADD"), 1.0 / 3.0),
        ("ADD, weft / ptp masq", ratio("adds", "weft", "ptp masq", "ADD"), 0.1),
        ("ADD, weft / flannel", ratio("adds", "weft", "flannel", "ADD"), 0.1),
        ("DEL, weft / bare", ratio("adds", "weft", "bare", "DEL"), 1.3),
        ("ADD IPv4 and IPv6, weft / bare", ratio("dual", "weft", "bare", "ADD"), 2.0),
        ("peak memory, MiB, 3 nodes", largest("adds"), 6.0),
        ("installed, MB", Some(installed as f64 / 1e6), 4.0),
    ];
    let most = most
        .into_iter()
        .filter_map(|(what, value, limit)| Some(Target::new(what, value?, Limit::Most(limit))));
    let throughput = try_ratio(rate("weft"), rate("ptp masq"));
    let least = throughput
        .map(|ratio| Target::new("ADD throughput, weft / ptp masq", ratio, Limit::Least(5.0)));
    most.chain(least).collect()
}

fn try_ratio(a: Option<f64>, b: Option<f64>) -> Option<f64> {
    Some(a? / b?)
}

fn line(text: &mut String, line: String) {
    text.push_str(&line);
    text.push('\n');
}

/// Bytes on disk of the files in a directory, each inode once.
pub(crate) fn disk_usage(dir: &Path) -> std::io::Result<u64> {
    let mut seen = HashSet::new();
    let mut bytes = 0;
    for entry in std::fs::read_dir(dir)? {
        let meta = entry?.metadata()?;
        if seen.insert(meta.ino()) {
            bytes += meta.blocks() * 512;
        }
    }
    Ok(bytes)
}
