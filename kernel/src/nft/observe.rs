//! What nf_tables holds: our tables, and other programs' that stand in the way.

use std::fmt;

use nix::errno::Errno;

use crate::error::{Error, Result};
use crate::netlink::{Attribute, Attributes, Message, Reply, Socket};

use super::table::parse_digest;
use super::uapi::{
    SUBSYSTEM, chain, counter, expression, family, generation, immediate, msg, rule, table, verdict,
};
use super::{request, userdata};

/// Length of `struct nfgenmsg`, in front of a reply's attributes.
const NFGENMSG: usize = 4;
/// NFT_TABLE_F_DORMANT: none of the table's chains is called.
const DORMANT: u32 = 1;
/// `netfilter.h`: NF_INET_FORWARD.
const HOOK_FORWARD: u32 = 2;

/// A table of ours, as far as it proves to be whole.
pub(super) struct FoundTable {
    pub(super) dormant: bool,
    pub(super) uses: u32,
    pub(super) digest: Option<u64>,
}

/// A chain of ours.
pub(super) struct FoundChain {
    pub(super) uses: u32,
    pub(super) policy_drops: bool,
}

enum Found {
    Table(FoundTable),
    Chain(FoundChain),
}

/// What a counting rule has counted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Counter {
    /// The rule's chain.
    pub chain: String,
    /// The rule's comment.
    pub comment: Option<String>,
    /// Packets that reached the counter.
    pub packets: u64,
    /// Their bytes, from the IP header on.
    pub bytes: u64,
}

/// A chain that drops forwarded packets which none of its rules accepts.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ForwardDrop {
    /// `inet`, `ip` or `ip6`.
    pub family: &'static str,
    /// Table.
    pub table: String,
    /// Chain at the forward hook.
    pub chain: String,
    /// Whether it is the chain's policy that drops, else its last rule.
    pub by_policy: bool,
}

/// A base chain at the forward hook.
struct ForwardChain {
    family: u8,
    table: String,
    name: String,
    policy_drops: bool,
}

impl fmt::Display for ForwardDrop {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let by = if self.by_policy { "policy" } else { "last rule" };
        write!(f, "{} of chain {} in table {} {}", by, self.chain, self.family, self.table)
    }
}

/// The table of that name.
pub(super) fn table(socket: &mut Socket, name: &str) -> Result<Option<FoundTable>> {
    socket.get(ask_table(name), |reply| Some(parse_table(reply)))
}

/// The table of that name and those of its chains, as far as they are there.
pub(super) fn table_with_chains<'a>(
    socket: &mut Socket,
    name: &str,
    chains: impl Iterator<Item = &'a str>,
) -> Result<(Option<FoundTable>, Vec<Option<FoundChain>>)> {
    let mut questions = vec![ask_table(name)];
    questions.extend(chains.map(|chain| {
        let mut message = request(msg::GETCHAIN, 0, family::INET);
        message.attr_str(chain::TABLE, name).attr_str(chain::NAME, chain);
        message
    }));
    let mut table = None;
    let mut answers = Vec::new();
    for answer in socket.get_each(&mut questions, |reply| Some(parse_either(reply)))? {
        match answer {
            Some(Found::Table(found)) => table = Some(found),
            Some(Found::Chain(found)) => answers.push(Some(found)),
            None => answers.push(None),
        }
    }
    Ok((table, answers))
}

fn ask_table(name: &str) -> Message {
    let mut message = request(msg::GETTABLE, 0, family::INET);
    message.attr_str(table::NAME, name);
    message
}

/// Number of the ruleset: whoever commits a change to any table of the namespace raises it
/// (`nf_tables_commit`), so that while it is the same every table is as it was.
pub fn generation(socket: &mut Socket) -> Result<u32> {
    let number = |reply: &Reply| be32(reply.attributes(NFGENMSG), generation::ID);
    let found = socket.get(request(msg::GETGEN, 0, family::UNSPECIFIED), number);
    let what = "cannot read the number of the nf_tables ruleset";
    found.map_err(|e| e.about(what))?.ok_or_else(|| Error::new(what, Errno::ENODATA))
}

/// Names of the `inet` tables that start with `prefix`.
pub fn tables(socket: &mut Socket, prefix: &str) -> Result<Vec<String>> {
    let listed = socket.dump(&list(msg::GETTABLE, family::INET), |reply| {
        let name = text(reply.attributes(NFGENMSG), table::NAME)?;
        name.starts_with(prefix).then_some(name)
    });
    listed.map_err(|e| e.about("cannot list nf_tables tables"))
}

/// What the counting rules of our table `name` have counted; none where there is
/// no such table.
pub fn counters(socket: &mut Socket, name: &str) -> Result<Vec<Counter>> {
    let mut message = list(msg::GETRULE, family::INET);
    message.attr_str(rule::TABLE, name);
    // Kernels that do not filter dumps list other tables' rules too.
    let listed = socket.dump(&message, |reply| {
        let ours = text(reply.attributes(NFGENMSG), rule::TABLE)? == name;
        if ours { parse_counter(reply) } else { None }
    });
    match listed {
        Err(error) if error.is_gone() => Ok(Vec::new()),
        Err(error) => Err(error.about(format_args!("cannot list the rules of table inet {name}"))),
        Ok(counters) => Ok(counters),
    }
}

/// Chains that drop what is forwarded, by policy or by a last rule that takes
/// every packet. Whether pods' packets get as far is not judged: an earlier rule
/// may accept them.
pub fn forward_drops(socket: &mut Socket) -> Result<Vec<ForwardDrop>> {
    let chains = socket.dump(&list(msg::GETCHAIN, family::UNSPECIFIED), parse_forward_chain);
    let mut drops = Vec::new();
    for chain in chains.map_err(|e| e.about("cannot list nf_tables chains"))? {
        let Some(family) = family_name(chain.family) else { continue };
        let by_policy = chain.policy_drops;
        if by_policy || last_rule_drops(socket, &chain)? {
            drops.push(ForwardDrop { family, table: chain.table, chain: chain.name, by_policy });
        }
    }
    Ok(drops)
}

fn last_rule_drops(socket: &mut Socket, chain: &ForwardChain) -> Result<bool> {
    let mut message = list(msg::GETRULE, chain.family);
    message.attr_str(rule::TABLE, &chain.table).attr_str(rule::CHAIN, &chain.name);
    let rules = socket.dump(&message, |reply| {
        let attributes = reply.attributes(NFGENMSG);
        let same = text(attributes, rule::TABLE)? == chain.table
            && text(attributes, rule::CHAIN)? == chain.name;
        same.then(|| drops_every_packet(expressions(attributes)))
    });
    match rules {
        Err(error) if error.is_gone() => Ok(false),
        Err(error) => Err(error.about(format_args!("cannot list the rules of {}", chain.name))),
        Ok(rules) => Ok(rules.last().copied().unwrap_or(false)),
    }
}

/// Whether a rule tests nothing and ends in drop or reject.
fn drops_every_packet(expressions: Attributes) -> bool {
    let mut drops = false;
    for expression in expressions {
        match text(expression.nested(), expression::NAME).as_deref() {
            Some("counter" | "log") => {}
            Some("reject") => drops = true,
            Some("immediate") => drops = verdict_of(expression) == Some(verdict::DROP),
            _ => return false,
        }
    }
    drops
}

fn verdict_of(expression: Attribute) -> Option<i32> {
    let data = find(expression.nested(), expression::DATA)?;
    let value = find(data.nested(), immediate::DATA)?;
    let verdict = find(value.nested(), expression::DATA_VERDICT)?;
    Some(find(verdict.nested(), expression::VERDICT_CODE)?.be32()? as i32)
}

/// All that is ever read of a reply, for whoever tries replies of every kind.
#[cfg(any(test, fuzzing))]
pub(crate) fn parse_every(reply: &Reply) {
    let _ = (parse_either(reply), parse_table(reply), parse_chain(reply));
    let _ = (parse_forward_chain(reply), parse_counter(reply));
    let _ = drops_every_packet(expressions(reply.attributes(NFGENMSG)));
}

fn parse_either(reply: &Reply) -> Found {
    if reply.kind == SUBSYSTEM << 8 | msg::NEWTABLE {
        Found::Table(parse_table(reply))
    } else {
        Found::Chain(parse_chain(reply))
    }
}

fn parse_table(reply: &Reply) -> FoundTable {
    let attributes = reply.attributes(NFGENMSG);
    FoundTable {
        dormant: be32(attributes, table::FLAGS).unwrap_or(0) & DORMANT != 0,
        uses: be32(attributes, table::USE).unwrap_or(0),
        digest: find(attributes, table::USERDATA).and_then(|a| parse_digest(a.payload)),
    }
}

fn parse_chain(reply: &Reply) -> FoundChain {
    let attributes = reply.attributes(NFGENMSG);
    FoundChain {
        uses: be32(attributes, chain::USE).unwrap_or(0),
        policy_drops: be32(attributes, chain::POLICY) == Some(verdict::DROP as u32),
    }
}

fn parse_forward_chain(reply: &Reply) -> Option<ForwardChain> {
    let attributes = reply.attributes(NFGENMSG);
    let hook = find(attributes, chain::HOOK)?;
    if be32(hook.nested(), chain::HOOK_NUMBER)? != HOOK_FORWARD {
        return None;
    }
    Some(ForwardChain {
        family: reply.body.first().copied()?,
        table: text(attributes, chain::TABLE)?,
        name: text(attributes, chain::NAME)?,
        policy_drops: be32(attributes, chain::POLICY) == Some(verdict::DROP as u32),
    })
}

fn parse_counter(reply: &Reply) -> Option<Counter> {
    let attributes = reply.attributes(NFGENMSG);
    let is_counter =
        |e: &Attribute| text(e.nested(), expression::NAME).as_deref() == Some("counter");
    let counter = expressions(attributes).find(is_counter)?;
    let data = find(counter.nested(), expression::DATA)?.nested();
    let comment = find(attributes, rule::USERDATA)
        .and_then(|a| userdata::parse_comment(a.payload))
        .map(str::to_owned);
    Some(Counter {
        chain: text(attributes, rule::CHAIN)?,
        comment,
        packets: find(data, counter::PACKETS)?.be64()?,
        bytes: find(data, counter::BYTES)?.be64()?,
    })
}

fn expressions(rule: Attributes) -> Attributes {
    find(rule, rule::EXPRESSIONS).map_or(Attributes(&[]), |list| list.nested())
}

/// Families whose forward hook sees routed IP packets.
fn family_name(number: u8) -> Option<&'static str> {
    match number {
        family::INET => Some("inet"),
        family::IPV4 => Some("ip"),
        family::IPV6 => Some("ip6"),
        _ => None,
    }
}

fn list(kind: u16, family: u8) -> Message {
    request(kind, libc::NLM_F_DUMP, family)
}

fn find(mut attributes: Attributes, kind: u16) -> Option<Attribute> {
    attributes.find(|attribute| attribute.kind == kind)
}

fn be32(attributes: Attributes, kind: u16) -> Option<u32> {
    find(attributes, kind)?.be32()
}

fn text(attributes: Attributes, kind: u16) -> Option<String> {
    find(attributes, kind)?.str().map(str::to_owned)
}
