//! The plot of a run: a bar for each chain and verb, on a logarithmic axis.

use std::fmt::Write;

use super::report::{heading, measured};
use super::run::{Circumstances, Results};
use super::stats::{Summary, summary};

const WIDTH: f64 = 860.0;
/// Where bars begin, and how far the axis reaches.
const LEFT: f64 = 130.0;
const RIGHT: f64 = 780.0;
const BAR: f64 = 13.0;
const ROW: f64 = 36.0;
/// Axis: 1 ms to 10 s.
const DECADES: f64 = 4.0;

/// Every part, one below the other.
pub(crate) fn svg(results: &Results, parts: &[Circumstances], machine: &str) -> String {
    let mut body = String::new();
    let mut y = 50.0;
    for at in parts {
        y = part(results, *at, y, &mut body);
    }
    let mut text = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {WIDTH} {y}\" \
         font-family=\"sans-serif\" font-size=\"12\">\n\
         <rect width=\"{WIDTH}\" height=\"{y}\" fill=\"#ffffff\"/>\n\
         <text x=\"16\" y=\"22\" font-size=\"15\" font-weight=\"bold\">What a pod costs: median, and \
         95th percentile as a line (ms, logarithmic)</text>\n\
         <text x=\"16\" y=\"40\" fill=\"#555555\">{}</text>\n",
        escape(machine)
    );
    text.push_str(&body);
    text.push_str("</svg>\n");
    text
}

/// Draws a part from `top` on; returns where the next may begin.
fn part(results: &Results, at: Circumstances, top: f64, text: &mut String) -> f64 {
    let chains: Vec<_> = measured(results, at.part).collect();
    let bottom = top + 40.0 + ROW * chains.len() as f64;
    let _ = writeln!(
        text,
        "<text x=\"16\" y=\"{}\" font-weight=\"bold\">{}</text>",
        top + 22.0,
        escape(&heading(at))
    );
    for decade in 0..=DECADES as i32 {
        let value = 10f64.powi(decade);
        let x = x_of(value);
        let _ = writeln!(
            text,
            "<line x1=\"{x:.1}\" x2=\"{x:.1}\" y1=\"{}\" y2=\"{bottom}\" stroke=\"#dddddd\"/>\
             <text x=\"{x:.1}\" y=\"{}\" text-anchor=\"middle\" fill=\"#555555\">{value}</text>",
            top + 32.0,
            bottom + 14.0
        );
    }
    let mut y = top + 36.0;
    for chain in &chains {
        let label = y + BAR + 3.0;
        let _ = writeln!(text, "<text x=\"16\" y=\"{label}\">{}</text>", chain.name);
        for (verb, colour) in [("ADD", "#2b6cb0"), ("DEL", "#c05621")] {
            if let Some(found) = summary(&results.samples, at.part, chain.name, verb) {
                bar(text, y, verb, colour, found);
            }
            y += BAR + 1.0;
        }
        y += ROW - 2.0 * (BAR + 1.0);
    }
    bottom + 24.0
}

fn bar(text: &mut String, y: f64, verb: &str, colour: &str, found: Summary) {
    let (end, p95) = (x_of(found.median), x_of(found.p95));
    let middle = y + BAR / 2.0;
    let _ = writeln!(
        text,
        "<rect x=\"{LEFT}\" y=\"{y}\" width=\"{:.1}\" height=\"{BAR}\" fill=\"{colour}\"/>\
         <line x1=\"{end:.1}\" x2=\"{p95:.1}\" y1=\"{middle}\" y2=\"{middle}\" stroke=\"{colour}\" \
         stroke-width=\"2\"/>\
         <text x=\"{:.1}\" y=\"{:.1}\" font-size=\"11\">{verb} {:.1}</text>",
        (end - LEFT).max(1.0),
        p95.max(end) + 5.0,
        y + BAR - 2.5,
        found.median,
    );
}

fn x_of(milliseconds: f64) -> f64 {
    let share = milliseconds.max(1.0).log10() / DECADES;
    LEFT + (RIGHT - LEFT) * share.min(1.0)
}

fn escape(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;")
}
