//! `weft status`: this node, its peers, and everything else of weft's on it.

use std::collections::BTreeMap;
use std::io::IsTerminal;
use std::process::ExitCode;
use std::time::UNIX_EPOCH;

use anyhow::Result;
use cluster::{Family, Way};
use kernel::Rtnetlink;
use serde_json::{Value, json};

use super::conflist::RoutingNetwork;
use super::in_the_way::in_the_way;
use super::ipam::{usage, usage_json, usage_text};
use super::plan::plan;
use super::print::{print, table};
use crate::routing::config::mode_word;
use crate::routing::record::{Record, Run};
use crate::routing::survey::{Peer, State, Survey, survey};

pub(super) const HELP: &str = "\
Usage: weft status [--conf FILE] [-o json]

Prints how things stand on this node, and changes nothing: one line for each
part, then the peers. Of more than 20 peers only those are listed that are not
well. Their states:
  ok         all there
  missing    something of the way is not there: weft plan says what, weft sync mends it
  foreign    another program's route goes to the peer's pods
  host       native and on no link of this node: the host's own routes are used
Exit status 1 only where the state cannot be told.
";

/// How many peers are listed.
const LISTED: usize = 20;

/// All there is to say about a network.
struct Status<'a> {
    network: &'a RoutingNetwork,
    survey: Survey,
    usage: Option<Vec<ipam_host_local::Usage>>,
    changes: Vec<String>,
    firewalls: Vec<(String, Vec<String>)>,
    record: Option<Record>,
}

impl<'a> Status<'a> {
    fn read(network: &'a RoutingNetwork) -> Result<Self> {
        let mut host = Rtnetlink::open()?;
        let survey = survey(&network.config, &mut host)?;
        let changes = plan(network, &mut host)?.changes;
        let firewalls = in_the_way(&survey.own.pod_ranges)?;
        let record = Record::read(&network.config.network);
        Ok(Self { network, survey, usage: usage(network)?, changes, firewalls, record })
    }
}

/// Prints the status of one network.
pub(super) fn show(network: &RoutingNetwork) -> Result<ExitCode> {
    let paint = Paint(std::io::stdout().is_terminal());
    let status = Status::read(network).inspect_err(|_| {
        // What is still known; whoever closed standard output does not want it.
        let record = Record::read(&network.config.network);
        let _ = print(&format!("{}{}", heading(network), last_sync(record.as_ref(), paint)));
    })?;
    print(&text(&status, paint))?;
    Ok(ExitCode::SUCCESS)
}

/// Colours, where somebody sees them.
#[derive(Clone, Copy, Debug)]
struct Paint(bool);

impl Paint {
    fn colour(self, good: bool, text: &str) -> String {
        match (self.0, good) {
            (false, _) => text.to_owned(),
            (true, true) => format!("\x1b[32m{text}\x1b[0m"),
            (true, false) => format!("\x1b[31m{text}\x1b[0m"),
        }
    }
}

fn text(status: &Status, paint: Paint) -> String {
    let Status { network, survey, .. } = status;
    let mut text = heading(network);
    let mut line = |name: &str, value: String| text += &labelled(name, &value);
    line("node", format!("{}, {}", survey.own.name, survey.by));
    line("mode", mode(status, paint));
    line("peers", summary(&survey.peers, paint));
    line("map", map(survey, paint));
    for usage in status.usage.iter().flatten() {
        line("addresses", usage_text(usage));
    }
    for (name, installed) in &survey.tables {
        let state = if *installed { "in place" } else { "missing or changed" };
        line("nf_tables", format!("{name}: {}", paint.colour(*installed, state)));
    }
    line(
        "firewalls",
        match status.firewalls.len() {
            0 => paint.colour(true, "none in the way"),
            _ => paint.colour(false, "may drop what pods send and get, see below"),
        },
    );
    line(
        "drift",
        match status.changes.len() {
            0 => paint.colour(true, "none"),
            count => paint.colour(false, &format!("{count} change(s) to make, see weft plan")),
        },
    );
    text += &last_sync(status.record.as_ref(), paint);
    text += &peer_table(&survey.peers);
    for (chain, commands) in &status.firewalls {
        text += &format!("  {chain} drops what no rule before accepts; to let pods through:\n");
        text.extend(commands.iter().map(|command| format!("    {command}\n")));
    }
    let warnings = survey.loaded.warnings.iter().chain(&survey.notes);
    text.extend(warnings.map(|warning| format!("  warning: {warning}\n")));
    text
}

fn heading(network: &RoutingNetwork) -> String {
    format!("{} ({})\n", network.config.network, network.file.display())
}

fn labelled(name: &str, value: &str) -> String {
    format!("  {name:<11} {value}\n")
}

/// The last sync, and the last that changed something if that is another.
fn last_sync(record: Option<&Record>, paint: Paint) -> String {
    let Some(record) = record else {
        return labelled("last sync", "never since this node started");
    };
    let now = UNIX_EPOCH.elapsed().map_or(0, |since| since.as_secs());
    let mut text = labelled("last sync", &run_text(&record.last, now, paint));
    for failure in &record.last.failures {
        text += &labelled("", failure);
    }
    if let Some(change) = record.last_change.as_ref().filter(|change| **change != record.last) {
        text += &labelled("last change", &run_text(change, now, paint));
    }
    text
}

/// "12 s ago by STATUS, 3 change(s) made, at 2026-01-31T23:59:59Z".
fn run_text(run: &Run, now: u64, paint: Paint) -> String {
    let age = now.checked_sub(run.at).map_or("in the future".to_owned(), ago);
    let failed = match run.failed {
        0 => String::new(),
        count => format!(", {}", paint.colour(false, &format!("{count} failure(s)"))),
    };
    let Run { trigger, changes, .. } = run;
    format!("{age} by {trigger}, {changes} change(s) made{failed}, at {}", utc(run.at))
}

fn ago(seconds: u64) -> String {
    match seconds {
        0..120 => format!("{seconds} s ago"),
        120..7_200 => format!("{} min ago", seconds / 60),
        7_200..172_800 => format!("{} h ago", seconds / 3_600),
        _ => format!("{} days ago", seconds / 86_400),
    }
}

/// Seconds since 1970 as RFC 3339 writes them. The Gregorian calendar repeats after 400
/// years, and with years that begin in March the leap day is their last.
fn utc(seconds: u64) -> String {
    let (days, time) = (seconds / 86_400, seconds % 86_400);
    // From 0000-03-01.
    let days = days + 719_468;
    let (era, day_of_era) = (days / 146_097, days % 146_097);
    let year_of_era =
        (day_of_era - day_of_era / 1_460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    // Months from March have 153 days in each five.
    let month = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * month + 2) / 5 + 1;
    let (year, month) = match month {
        0..10 => (era * 400 + year_of_era, month + 3),
        _ => (era * 400 + year_of_era + 1, month - 9),
    };
    let (hour, minute, second) = (time / 3_600, time / 60 % 60, time % 60);
    format!("{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}Z")
}

fn run_json(run: &Run) -> Value {
    json!({
        "at": utc(run.at), "trigger": run.trigger, "changes": run.changes,
        "failed": run.failed, "failures": run.failures,
    })
}

fn mode(status: &Status, paint: Paint) -> String {
    let (config, survey) = (&status.network.config, &status.survey);
    let (link, mtu) = &survey.underlay;
    let word = mode_word(config.mode);
    let pods = format!("pod MTU {}, over {link} (MTU {mtu})", survey.pod_mtu);
    match (config.tunnel_port, &survey.device) {
        (None, _) => format!("{word}, no tunnel, {pods}"),
        (Some(port), device) => {
            let state = match device {
                None => paint.colour(false, "missing"),
                Some(link) if !link.up => paint.colour(false, "down"),
                Some(_) => paint.colour(true, "up"),
            };
            format!(
                "{word}, {} {state}, VNI {}, UDP port {port}, {pods}",
                config.device, config.vni
            )
        }
    }
}

fn state_word(state: State) -> &'static str {
    match state {
        State::Ok => "ok",
        State::Missing => "missing",
        State::Foreign(_) => "foreign",
        State::HostRoutes => "host",
    }
}

fn is_well(peer: &Peer) -> bool {
    matches!(peer.state, State::Ok | State::HostRoutes)
}

/// "4 of 4 well (2 tunnel ok, 2 native host)"; IPv4 and IPv6 count separately.
fn summary(peers: &[Peer], paint: Paint) -> String {
    let mut counts: BTreeMap<String, usize> = BTreeMap::new();
    for peer in peers {
        let what = format!("{} {}", peer.decision.way, state_word(peer.state));
        *counts.entry(what).or_default() += 1;
    }
    let well = peers.iter().filter(|peer| is_well(peer)).count();
    let parts: Vec<String> = counts.iter().map(|(what, count)| format!("{count} {what}")).collect();
    let text = format!("{well} of {} well", peers.len());
    let text = paint.colour(well == peers.len(), &text);
    if parts.is_empty() { text } else { format!("{text} ({})", parts.join(", ")) }
}

fn map(survey: &Survey, paint: Paint) -> String {
    let map = &survey.loaded.map;
    let text = format!(
        "{} node(s) from {}, {} incomplete, {} quarantined",
        map.nodes.len(),
        map.origin,
        map.incomplete.len(),
        map.quarantined.len()
    );
    paint.colour(survey.loaded.warnings.is_empty(), &text)
}

fn peer_table(peers: &[Peer]) -> String {
    let all = peers.len() <= LISTED;
    let listed: Vec<&Peer> = peers.iter().filter(|peer| all || !is_well(peer)).collect();
    if listed.is_empty() {
        return String::new();
    }
    let heading = ["PEER", "FAMILY", "WAY", "STATE", "WHY"].map(str::to_owned);
    let rows = listed.iter().take(LISTED).map(|peer| {
        let state = match peer.state {
            State::Foreign(protocol) => format!("foreign (protocol {protocol})"),
            state => state_word(state).to_owned(),
        };
        let Peer { name, family, decision, .. } = peer;
        [
            name.clone(),
            family.to_string(),
            decision.way.to_string(),
            state,
            decision.reason.to_string(),
        ]
    });
    let mut text = table(std::iter::once(heading).chain(rows));
    if listed.len() > LISTED {
        text += &format!("  and {} more that are not well\n", listed.len() - LISTED);
    }
    text
}

/// The status of one network as JSON, every peer in it.
pub(super) fn json(network: &RoutingNetwork) -> Result<Value> {
    let status = Status::read(network)?;
    let Status { survey, .. } = &status;
    let config = &network.config;
    let quarantined = &survey.loaded.map.quarantined;
    let quarantined: Vec<Value> = quarantined
        .iter()
        .map(|record| json!({ "item": record.item, "file": record.file, "why": record.why }))
        .collect();
    let firewalls = status.firewalls.iter();
    let firewalls: Vec<Value> = firewalls
        .map(|(chain, commands)| json!({ "chain": chain, "commands": commands }))
        .collect();
    Ok(json!({
        "network": config.network,
        "file": network.file.display().to_string(),
        "node": { "name": survey.own.name, "recognised": survey.by },
        "routingMode": mode_word(config.mode),
        "podMTU": survey.pod_mtu,
        "underlay": survey.underlay.0,
        "device": survey.device.as_ref().map(|link| json!({ "name": link.name, "up": link.up })),
        "peers": survey.peers.iter().map(peer_json).collect::<Vec<_>>(),
        "map": { "origin": survey.loaded.map.origin, "nodes": survey.loaded.map.nodes.len(),
                 "incomplete": survey.loaded.map.incomplete.len(), "quarantined": quarantined },
        "ranges": status.usage.iter().flatten().map(usage_json).collect::<Vec<_>>(),
        "tables": survey.tables.iter().map(|(name, installed)| {
            json!({ "name": name, "installed": installed })
        }).collect::<Vec<_>>(),
        "firewalls": firewalls,
        "changes": status.changes,
        "lastSync": status.record.as_ref().map(|record| run_json(&record.last)),
        "lastChange": status.record.as_ref().and_then(|r| r.last_change.as_ref()).map(run_json),
        "warnings": survey.loaded.warnings.iter().chain(&survey.notes).collect::<Vec<_>>(),
    }))
}

fn peer_json(peer: &Peer) -> Value {
    json!({
        "name": peer.name,
        "family": if peer.family == Family::V4 { "ipv4" } else { "ipv6" },
        "way": if peer.decision.way == Way::Tunnel { "tunnel" } else { "native" },
        "why": peer.decision.reason.to_string(),
        "state": state_word(peer.state),
    })
}

#[cfg(test)]
mod tests {
    use cluster::{Decision, Reason};

    use super::*;

    fn peers(count: usize, bad: usize) -> Vec<Peer> {
        let decision = Decision { way: Way::Tunnel, reason: Reason::TunnelMode };
        let state = |i| if i < bad { State::Missing } else { State::Ok };
        let peer =
            |i| Peer { name: format!("n{i}"), family: Family::V4, decision, state: state(i) };
        (0..count).map(peer).collect()
    }

    #[test]
    fn thousands_of_peers_are_summarised() {
        assert_eq!(peer_table(&peers(5_000, 0)), "");
        assert_eq!(peer_table(&peers(5_000, 3)).lines().count(), 4);
        let many = peer_table(&peers(5_000, 100));
        assert_eq!(many.lines().count(), 22);
        assert!(many.ends_with("and 80 more that are not well\n"), "{many}");
        assert_eq!(peer_table(&peers(3, 0)).lines().count(), 4);
        let text = summary(&peers(5_000, 3), Paint(false));
        assert_eq!(text, "4997 of 5000 well (3 tunnel missing, 4997 tunnel ok)");
        assert_eq!(summary(&[], Paint(false)), "0 of 0 well");
    }

    #[test]
    fn times_are_of_the_calendar() {
        for (seconds, text) in [
            (0, "1970-01-01T00:00:00Z"),
            (951_782_399, "2000-02-28T23:59:59Z"),
            (951_782_400, "2000-02-29T00:00:00Z"),
            (951_868_800, "2000-03-01T00:00:00Z"),
            (1_767_225_599, "2025-12-31T23:59:59Z"),
            (4_107_542_400, "2100-03-01T00:00:00Z"),
        ] {
            assert_eq!(utc(seconds), text);
        }
    }

    #[test]
    fn the_last_sync_is_told_with_age_trigger_and_failures() {
        let run = |at, trigger: &str, changes, failures: Vec<String>| Run {
            at,
            trigger: trigger.to_owned(),
            changes,
            failed: failures.len() as u64,
            failures,
        };
        let paint = Paint(false);
        let quiet = run(1_000, "STATUS", 0, Vec::new());
        let text = run_text(&quiet, 1_119, paint);
        assert_eq!(text, "119 s ago by STATUS, 0 change(s) made, at 1970-01-01T00:16:40Z");
        assert!(run_text(&quiet, 999, paint).starts_with("in the future by STATUS"));
        let busy = run(500, "weft sync", 7, vec!["no".to_owned()]);
        assert!(run_text(&busy, 500, paint).contains("7 change(s) made, 1 failure(s), at"));
        let record = |last: &Run| {
            let (last, last_change) = (last.clone(), Some(busy.clone()));
            Record { protocol: 87, device: "weft.1".to_owned(), last, last_change }
        };
        assert_eq!(last_sync(Some(&record(&quiet)), paint).lines().count(), 2);
        assert_eq!(last_sync(Some(&record(&busy)), paint).lines().count(), 2);
        assert_eq!(last_sync(None, paint), "  last sync   never since this node started\n");
    }

    #[test]
    fn colour_is_for_terminals() {
        assert_eq!(Paint(false).colour(true, "ok"), "ok");
        assert_eq!(Paint(true).colour(false, "bad"), "\x1b[31mbad\x1b[0m");
    }
}
