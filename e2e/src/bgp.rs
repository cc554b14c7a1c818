//! BIRD and FRR as Debian has them, in places of the lab.

use std::time::Duration;

use anyhow::{Context, Result};

use crate::cluster::Cluster;
use crate::place::Place;
use crate::topology::Family;

/// How long a session may take to come up: connect retry times are 5 and 10 seconds.
const SESSION: Duration = Duration::from_secs(60);

/// Shell: a lock for the daemons that are started next; theirs as long as one lives.
const LOCK: &str = "exec 9>/run/bgp.lock
flock --nonblock 9 || { echo 'a routing daemon runs here already' >&2; exit 1; }
";

/// Shell: what FRR needs in an ordinary user's namespace, which has root alone (and files
/// of other users cannot be read): its user and groups are names of root's, in this lab.
const ONLY_ROOT: &str = "only_root_for_frr() {
    for file in passwd group; do
        sed -E 's/^(frr|frrvty):([^:]*):[0-9]+(:[0-9]+)?:/\\1:\\2:0\\3:/; /^frr:/s/:0:[0-9]+:/:0:0:/' \
            /etc/$file >/run/$file
        mv /run/$file /etc/$file
    done
    rm -f /etc/frr
    mkdir -p /etc/frr /run/frr
    : >/etc/frr/vtysh.conf
}
";

/// A routing daemon. Its processes hold a lock, by which their end is waited for:
/// a daemon's parent is not there to do it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Daemon {
    /// BIRD 2.
    Bird,
    /// FRR: zebra and bgpd.
    Frr,
}

impl Daemon {
    /// What `weft export` calls it.
    pub fn word(self) -> &'static str {
        match self {
            Self::Bird => "bird",
            Self::Frr => "frr",
        }
    }

    /// Starts it with exactly `config`; returns when it has read that. An error with
    /// what it said where it does not take all of it.
    pub fn start(self, place: &Place, config: &str) -> Result<()> {
        place.write_file("/run/bgp.conf", config)?;
        let start = match self {
            Self::Bird => "bird -c /run/bgp.conf -s /run/bird.ctl -P /run/bird.pid",
            Self::Frr => {
                "install -d -o frr -g frr /run/frr 2>/dev/null || only_root_for_frr
                 for daemon in zebra bgpd; do
                     : >/run/frr/$daemon.conf
                 done
                 unshare --mount sh -e -c '
                     # Where FRR leaves a directory for each process.
                     mount -n -t tmpfs -o mode=1777 tmp /var/tmp
                     for daemon in zebra bgpd; do
                         # FRR 10 keeps its standard streams open.
                         /usr/lib/frr/$daemon -d -A 127.0.0.1 -f /run/frr/$daemon.conf \\
                             </dev/null >/run/$daemon.out 2>&1 ||
                             { cat /run/$daemon.out >&2; exit 1; }
                     done'
                 said=$(vtysh -f /run/bgp.conf 2>&1)
                 case $said in *%*|*nknown*) echo \"$said\" >&2; exit 1;; esac"
            }
        };
        place.sh(&format!("{LOCK}{ONLY_ROOT}{start}")).map(drop)
    }

    /// Ends it as its service does; returns when it is gone.
    pub fn stop(self, place: &Place) -> Result<()> {
        let kill = match self {
            Self::Bird => "kill -TERM $(cat /run/bird.pid)",
            Self::Frr => "kill -TERM $(cat /run/frr/bgpd.pid) $(cat /run/frr/zebra.pid)",
        };
        place.sh(&format!("{kill}\nflock --timeout 30 /run/bgp.lock true")).map(drop)
    }
}

impl Place {
    /// The next hop of the route to exactly this range; none without one.
    pub fn next_hop(&self, range: &str) -> Result<Option<String>> {
        let option = if range.contains(':') { "-6" } else { "-4" };
        let routes = self.json(&["ip", option, "-j", "route", "show", range])?;
        Ok(routes[0]["gateway"].as_str().map(str::to_string))
    }

    /// Waits until BGP has brought a range this next hop, or none.
    pub fn wait_for_next_hop(&self, range: &str, wanted: Option<&str>) -> Result<()> {
        let what = format!("{range} by way of {wanted:?}");
        self.wait_until(&what, SESSION, || {
            Ok((self.next_hop(range)?.as_deref() == wanted).then_some(()))
        })
    }
}

impl Cluster {
    /// What `weft export WORDS` prints on a node.
    pub fn export(&self, node: &str, words: &[&str]) -> Result<String> {
        self.weft(node, &[&["export"], words].concat())?.ok()
    }

    /// Starts a daemon on a node with exactly what `weft export` prints there.
    pub fn start_daemon(&self, daemon: Daemon, node: &str) -> Result<()> {
        daemon.start(self.node(node)?, &self.export(node, &[daemon.word()])?)
    }

    /// Starts a daemon on the router with exactly what `weft export --router` prints.
    pub fn start_router(&self, daemon: Daemon) -> Result<()> {
        let node = self.nodes().next().context("no node to print the router's part")?;
        let config = self.export(node.name(), &[daemon.word(), "--router"])?;
        daemon.start(self.lab().router(), &config)
    }

    /// Starts a daemon on the router and on every node; returns when the router has a
    /// route to all their pods.
    pub fn start_bgp(&self, daemon: Daemon) -> Result<()> {
        self.start_router(daemon)?;
        self.nodes().try_for_each(|node| self.start_daemon(daemon, node.name()))?;
        self.nodes().try_for_each(|node| self.wait_for_announced(node.name(), true))
    }

    /// Waits until BGP has given the router a node's pod ranges by way of that node, or
    /// has withdrawn them.
    pub fn wait_for_announced(&self, node: &str, announced: bool) -> Result<()> {
        let node = self.node(node)?;
        node.host().pod_ranges.iter().try_for_each(|range| {
            let via = node.address(Family::of(range.ip()))?.to_string();
            let via = announced.then_some(via.as_str());
            self.lab().router().wait_for_next_hop(&range.to_string(), via)
        })
    }
}
