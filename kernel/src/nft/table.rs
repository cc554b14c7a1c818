//! A table as a value, and as the messages that make it.

use std::fmt;
use std::str::FromStr;

use crate::netlink::Message;

use super::rule::Rule;
use super::set::{Element, IpVersion, Set};
use super::uapi::{chain, element, expression, family, msg, rule, set, table, verdict};
use super::{NESTED, put_be32, request, userdata};

/// A table of the `inet` family.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Table {
    name: String,
    sets: Vec<Set>,
    chains: Vec<Chain>,
}

/// Rules one after the other.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Chain {
    name: String,
    hook: Option<Hook>,
    rules: Vec<Rule>,
}

/// Where the kernel calls a chain. Its policy is to accept.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Hook {
    /// Packets received, before connection tracking (-200) and routing, after
    /// reassembly (-400) where connection tracking is in use.
    PreroutingRaw,
    /// Packets for this host, after destination NAT.
    Input,
    /// Packets for other hosts, after destination NAT.
    Forward,
    /// Packets that this host makes, before connection tracking.
    OutputRaw,
    /// First packets of connections, where the source address can be rewritten.
    PostroutingSourceNat,
}

/// What tells whether a table is in the kernel as desired. As text
/// (`weft_87 4f0c… 7 guard=3 …`) it can be kept by who does not want to compute
/// the table anew.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Proof {
    table: String,
    digest: u64,
    uses: u32,
    chains: Vec<(String, u32)>,
}

/// A message of a transaction and what to say where the kernel refuses it.
pub(super) struct Command {
    pub(super) message: Message,
    pub(super) what: String,
}

/// What a new table takes the place of.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Replaced {
    /// There must be no table of its name.
    Nothing,
    /// Whatever table has its name, or none.
    Whatever,
}

/// `netfilter_ipv4.h`: NF_IP_PRI_RAW.
const PRIORITY_RAW: i32 = -300;
/// `netfilter_ipv4.h`: NF_IP_PRI_FILTER.
const PRIORITY_FILTER: i32 = 0;
/// `netfilter_ipv4.h`: NF_IP_PRI_NAT_SRC.
const PRIORITY_SOURCE_NAT: i32 = 100;
/// Elements in a message: an attribute holds 64 KiB, an element at most 36 bytes.
const ELEMENTS_PER_MESSAGE: usize = 1000;
/// What the comment that carries the digest begins with.
const COMMENT_PREFIX: &str = "weft ";

impl Hook {
    /// Type, hook number (`netfilter.h`, NF_INET_*) and priority.
    fn numbers(self) -> (&'static str, u32, i32) {
        match self {
            Self::PreroutingRaw => ("filter", 0, PRIORITY_RAW),
            Self::Input => ("filter", 1, PRIORITY_FILTER),
            Self::Forward => ("filter", 2, PRIORITY_FILTER),
            Self::OutputRaw => ("filter", 3, PRIORITY_RAW),
            Self::PostroutingSourceNat => ("nat", 4, PRIORITY_SOURCE_NAT),
        }
    }
}

impl Chain {
    /// A chain that the kernel calls at `hook`.
    pub fn at(hook: Hook, name: impl Into<String>, rules: Vec<Rule>) -> Self {
        Self { name: name.into(), hook: Some(hook), rules }
    }

    /// A chain that rules jump to.
    pub fn called(name: impl Into<String>, rules: Vec<Rule>) -> Self {
        Self { name: name.into(), hook: None, rules }
    }
}

impl Table {
    /// A table without sets or chains.
    pub fn new(name: impl Into<String>) -> Self {
        Self { name: name.into(), sets: Vec::new(), chains: Vec::new() }
    }

    /// Adds a set. Names are unique among a table's sets; one that no rule refers
    /// to is not made.
    pub fn set(mut self, set: Set) -> Self {
        self.sets.push(set);
        self
    }

    /// Adds a chain. Names are unique among a table's chains.
    pub fn chain(mut self, chain: Chain) -> Self {
        self.chains.push(chain);
        self
    }

    /// The table's name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// What [`super::installed`] asks the kernel for.
    pub fn proof(&self) -> Proof {
        Proof {
            table: self.name.clone(),
            digest: digest(&mut self.content()),
            uses: (self.chains.len() + self.used_sets().count()) as u32,
            chains: self.chains.iter().map(|c| (c.name.clone(), self.uses(c))).collect(),
        }
    }

    /// What makes the table.
    pub(super) fn commands(&self, replaced: Replaced) -> Vec<Command> {
        let mut content = self.content();
        let digest = digest(&mut content);
        let mut commands = Vec::with_capacity(content.len() + 3);
        if replaced == Replaced::Whatever {
            // The first makes sure that there is something to delete.
            commands.push(self.create(0, None));
            commands.push(delete(&self.name));
        }
        commands.push(self.create(libc::NLM_F_EXCL, Some(digest)));
        commands.extend(content);
        commands
    }

    /// All but the table itself. Rules come last: a constant set takes no
    /// elements once a rule refers to it, and a jump needs its chain.
    fn content(&self) -> Vec<Command> {
        let mut commands = Vec::new();
        commands.extend(self.chains.iter().map(|chain| self.encode_chain(chain)));
        for (id, set) in (1..).zip(self.used_sets()) {
            commands.push(self.encode_set(set, id));
            let elements = set.elements();
            let chunks = elements.chunks(ELEMENTS_PER_MESSAGE);
            commands.extend(chunks.map(|chunk| self.encode_elements(set, chunk)));
        }
        for chain in &self.chains {
            let rules = (1..).zip(&chain.rules);
            commands.extend(rules.map(|(number, rule)| self.encode_rule(chain, rule, number)));
        }
        commands
    }

    fn used_sets(&self) -> impl Iterator<Item = &Set> {
        let refers = |chain: &Chain, set: &Set| chain.rules.iter().any(|r| r.refers_to(set));
        self.sets.iter().filter(move |set| self.chains.iter().any(|chain| refers(chain, set)))
    }

    /// NFTA_CHAIN_USE: the chain's rules and the jumps to it.
    fn uses(&self, chain: &Chain) -> u32 {
        let rules = self.chains.iter().flat_map(|chain| &chain.rules);
        let jumps = rules.filter(|rule| rule.target() == Some(&chain.name)).count();
        (chain.rules.len() + jumps) as u32
    }

    fn create(&self, flags: i32, digest: Option<u64>) -> Command {
        let mut message = request(msg::NEWTABLE, libc::NLM_F_CREATE | flags, family::INET);
        message.attr_str(table::NAME, &self.name);
        put_be32(&mut message, table::FLAGS, 0);
        if let Some(digest) = digest {
            let comment = format!("{COMMENT_PREFIX}{digest:016x}");
            message.attr(table::USERDATA, &userdata::comment(&comment));
        }
        Command { message, what: format!("cannot make nf_tables table inet {}", self.name) }
    }

    fn encode_chain(&self, chain: &Chain) -> Command {
        let mut message = request(msg::NEWCHAIN, libc::NLM_F_CREATE, family::INET);
        message.attr_str(chain::TABLE, &self.name);
        message.attr_str(chain::NAME, &chain.name);
        if let Some((kind, number, priority)) = chain.hook.map(Hook::numbers) {
            message.nest(chain::HOOK | NESTED, |hook| {
                put_be32(hook, chain::HOOK_NUMBER, number);
                put_be32(hook, chain::HOOK_PRIORITY, priority as u32);
            });
            put_be32(&mut message, chain::POLICY, verdict::ACCEPT as u32);
            message.attr_str(chain::TYPE, kind);
        }
        Command { message, what: format!("cannot make chain {} in {self}", chain.name) }
    }

    fn encode_set(&self, set: &Set, id: u32) -> Command {
        let mut message = request(msg::NEWSET, libc::NLM_F_CREATE, family::INET);
        let intervals = set.has_intervals();
        let flags = set::CONSTANT | if intervals { set::INTERVAL } else { 0 };
        message.attr_str(set::TABLE, &self.name);
        message.attr_str(set::NAME, set.name());
        put_be32(&mut message, set::FLAGS, flags);
        put_be32(&mut message, set::KEY_TYPE, key_type(set.version()));
        put_be32(&mut message, set::KEY_LEN, set.key_length() as u32);
        put_be32(&mut message, set::ID, id);
        // Known size: a hash table that need not grow.
        if !intervals && !set.is_empty() {
            let size = set.elements().len() as u32;
            message.nest(set::DESC | NESTED, |desc| put_be32(desc, set::DESC_SIZE, size));
        }
        Command { message, what: format!("cannot make set {} in {self}", set.name()) }
    }

    fn encode_elements(&self, set: &Set, elements: &[Element]) -> Command {
        let mut message = request(msg::NEWSETELEM, libc::NLM_F_CREATE, family::INET);
        message.attr_str(element::LIST_TABLE, &self.name);
        message.attr_str(element::LIST_SET, set.name());
        message.nest(element::LIST_ELEMENTS | NESTED, |list| {
            for element in elements {
                list.nest(expression::LIST_ELEM | NESTED, |entry| encode_element(entry, element));
            }
        });
        Command { message, what: format!("cannot fill set {} in {self}", set.name()) }
    }

    fn encode_rule(&self, chain: &Chain, rule: &Rule, number: usize) -> Command {
        let flags = libc::NLM_F_CREATE | libc::NLM_F_APPEND;
        let mut message = request(msg::NEWRULE, flags, family::INET);
        message.attr_str(rule::TABLE, &self.name);
        message.attr_str(rule::CHAIN, &chain.name);
        rule.encode(&mut message);
        let what = format!("cannot add rule {number} to chain {} in {self}", chain.name);
        Command { message, what }
    }
}

impl fmt::Display for Table {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "nf_tables table inet {}", self.name)
    }
}

impl Proof {
    /// The table's name.
    pub fn table(&self) -> &str {
        &self.table
    }

    pub(super) fn digest(&self) -> u64 {
        self.digest
    }

    /// NFTA_TABLE_USE: chains and sets.
    pub(super) fn uses(&self) -> u32 {
        self.uses
    }

    pub(super) fn chains(&self) -> &[(String, u32)] {
        &self.chains
    }
}

impl fmt::Display for Proof {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {:016x} {}", self.table, self.digest, self.uses)?;
        self.chains.iter().try_for_each(|(name, uses)| write!(f, " {name}={uses}"))
    }
}

/// The text is no [`Proof`].
#[derive(Debug, PartialEq, Eq)]
pub struct NotAProof;

impl FromStr for Proof {
    type Err = NotAProof;

    fn from_str(text: &str) -> Result<Self, NotAProof> {
        let mut words = text.split(' ');
        let mut next = || words.next().ok_or(NotAProof);
        let table = next()?.to_owned();
        let digest = u64::from_str_radix(next()?, 16).map_err(|_| NotAProof)?;
        let uses = next()?.parse().map_err(|_| NotAProof)?;
        let chains: Result<Vec<_>, NotAProof> = words.map(parse_chain).collect();
        Ok(Self { table, digest, uses, chains: chains? })
    }
}

fn parse_chain(word: &str) -> Result<(String, u32), NotAProof> {
    let (name, uses) = word.split_once('=').ok_or(NotAProof)?;
    Ok((name.to_owned(), uses.parse().map_err(|_| NotAProof)?))
}

/// Deletes a table.
pub(super) fn delete(name: &str) -> Command {
    let mut message = request(msg::DELTABLE, 0, family::INET);
    message.attr_str(table::NAME, name);
    Command { message, what: format!("cannot delete nf_tables table inet {name}") }
}

/// The digest that a table's user data carries.
pub(super) fn parse_digest(user_data: &[u8]) -> Option<u64> {
    let text = userdata::parse_comment(user_data)?;
    u64::from_str_radix(text.strip_prefix(COMMENT_PREFIX)?, 16).ok()
}

fn encode_element(entry: &mut Message, element: &Element) {
    if element.interval_end {
        put_be32(entry, element::FLAGS, element::INTERVAL_END);
    }
    entry.nest(element::KEY | NESTED, |key| {
        key.attr(expression::DATA_VALUE, &element.key);
    });
}

/// The number by which `nft` knows how to print a key (its TYPE_IPADDR and
/// TYPE_IP6ADDR); the kernel only keeps it.
fn key_type(version: IpVersion) -> u32 {
    match version {
        IpVersion::V4 => 7,
        IpVersion::V6 => 8,
    }
}

/// FNV-1a (64 bits) over the messages: tells contents apart that differ by
/// chance, which is all that is asked of it.
fn digest(commands: &mut [Command]) -> u64 {
    const OFFSET_BASIS: u64 = 0xcbf2_9ce4_8422_2325;
    const PRIME: u64 = 0x0100_0000_01b3;
    let bytes = commands.iter_mut().flat_map(|command| command.message.finish(0, false));
    bytes.fold(OFFSET_BASIS, |hash, &byte| (hash ^ u64::from(byte)).wrapping_mul(PRIME))
}
