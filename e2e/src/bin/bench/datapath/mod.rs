//! `bench datapath`: what packets pay on their way from pod to pod, weft's modes beside
//! flannel's layout and plain routed veth pairs, all on the same two nodes' hardware:
//! veth pairs for cables and a bridge for a switch, so that only software is compared.

mod layout;
mod load;
mod peer;

use std::fmt::Write;

use anyhow::Result;

use super::stats::quantile;
use layout::{Change, Layout, Mode, Stage};
use load::LOADS;

pub(crate) use peer::run as peer;

/// What is compared, in the table's order.
const LAYOUTS: [Layout; 5] =
    [Layout::Hosts, Layout::Routed, Layout::Native, Layout::Tunnel, Layout::Flannel];

/// What `variants` compares: native and tunnel with one thing changed at a time.
const VARIANTS: [Layout; 17] = [
    Layout::Routed,
    Layout::Native,
    Layout::With(Mode::Native, Change::NoSpoofCheck),
    Layout::With(Mode::Native, Change::NoMasquerade),
    Layout::With(Mode::Native, Change::NoRules),
    Layout::With(Mode::Native, Change::Steered),
    Layout::With(Mode::Native, Change::Gro),
    Layout::With(Mode::Native, Change::LongSegments),
    Layout::Tunnel,
    Layout::With(Mode::Tunnel, Change::Steered),
    Layout::With(Mode::Tunnel, Change::NoSpoofCheck),
    Layout::With(Mode::Tunnel, Change::NoMasquerade),
    Layout::With(Mode::Tunnel, Change::NoPeerGuard),
    Layout::With(Mode::Tunnel, Change::Tracked),
    Layout::With(Mode::Tunnel, Change::Gro),
    Layout::With(Mode::Tunnel, Change::NoChecksumOffload),
    Layout::With(Mode::Tunnel, Change::FewSourcePorts),
];

/// Ratios that have to hold: the first layout's TCP throughput at least the second's.
const GOALS: [(Layout, Layout); 2] =
    [(Layout::Tunnel, Layout::Flannel), (Layout::Native, Layout::Routed)];

/// The samples of one layout under one load.
type Samples = Vec<Vec<Vec<load::Sample>>>;

/// Runs every load over every layout in turn, `rounds` times; the tables in Markdown.
pub(crate) fn run(variants: bool, rounds: usize) -> Result<String> {
    let layouts: &[Layout] = if variants { &VARIANTS } else { &LAYOUTS };
    let mut stages = Vec::new();
    for layout in layouts {
        stages.push(Stage::start(*layout)?);
    }
    let mut samples: Samples = vec![vec![Vec::new(); layouts.len()]; LOADS.len()];
    for round in 0..rounds {
        eprintln!("datapath: round {} of {rounds}", round + 1);
        for (load, samples) in LOADS.iter().zip(&mut samples) {
            // Who comes first changes from round to round.
            for turn in 0..stages.len() * load.runs_a_round() {
                let at = (round + turn) % stages.len();
                samples[at].push(load.run(&stages[at])?);
            }
        }
    }
    Ok(tables(layouts, &samples, variants))
}

fn tables(layouts: &[Layout], samples: &Samples, variants: bool) -> String {
    let mut text =
        String::from("\n**Data path** (medians; in brackets the share of the first row)\n\n|");
    for load in &LOADS {
        let _ = write!(text, " | {}", load.heading());
    }
    text.push_str(" |\n|---");
    LOADS.iter().for_each(|_| text.push_str("|--:"));
    text.push_str("|\n");
    for (at, layout) in layouts.iter().enumerate() {
        let _ = write!(text, "| {}", layout.name());
        for (load, samples) in LOADS.iter().zip(samples) {
            let cell = load.cell(&samples[at], &samples[0]);
            let _ = write!(text, " | {cell}");
        }
        text.push_str(" |\n");
    }
    text.push('\n');
    for (layout, about) in layouts.iter().filter_map(|layout| Some((layout, layout.about()?))) {
        let _ = writeln!(text, "- {}: {about}", layout.name());
    }
    if !variants {
        text.push('\n');
        for (ours, theirs) in GOALS {
            text.push_str(&goal(layouts, samples, ours, theirs));
        }
    }
    text
}

/// The lines that compare two layouts' TCP throughput, round by round: their ratio's median.
fn goal(layouts: &[Layout], samples: &Samples, ours: Layout, theirs: Layout) -> String {
    let at = |layout| layouts.iter().position(|other| *other == layout);
    let (Some(ours_at), Some(theirs_at)) = (at(ours), at(theirs)) else { return String::new() };
    let mut text = String::new();
    for (load, samples) in LOADS.iter().zip(samples).filter(|(load, _)| load.is_throughput()) {
        let pairs = samples[ours_at].iter().zip(&samples[theirs_at]);
        let ratios: Vec<f64> = pairs.map(|(ours, theirs)| ours.value / theirs.value).collect();
        let ratio = quantile(&ratios, 0.5).unwrap_or(f64::NAN);
        let verdict = if ratio >= 1.0 { "holds" } else { "does not hold" };
        let _ = writeln!(
            text,
            "- {}: {} / {} = {ratio:.3}; goal at least 1: {verdict}",
            load.heading(),
            ours.name(),
            theirs.name()
        );
    }
    text
}
