//! nf_tables: whole tables, replaced whole.
//!
//! A [`Table`] is a value: its sets, chains and rules. [`ensure`] makes the
//! kernel's table of that name equal to it, in one transaction, so that at no
//! moment half of it is in force. What is there is not read back rule by rule:
//! the table carries a digest of what it was made from, and the kernel counts
//! the rules of each chain, so that [`installed`] tells with a handful of small
//! questions, sent together, whether it is still whole.
//!
//! All tables of ours are of the `inet` family, IPv4 and IPv6 at once.

mod observe;
mod rule;
mod set;
mod table;
#[cfg(test)]
mod tests;
mod uapi;
mod userdata;

use nix::errno::Errno;

#[cfg(any(test, fuzzing))]
pub(crate) use observe::parse_every;
pub use observe::{Counter, ForwardDrop, counters, forward_drops, generation, tables};
pub use rule::Rule;
pub use set::{IpVersion, Set};
pub use table::{Chain, Hook, Proof, Table};

use crate::error::{Error, Result};
use crate::netlink::{Message, Socket};

use table::{Command, Replaced};
use uapi::{SUBSYSTEM, family};

/// NLA_F_NESTED, which the kernel's own dumps set and `nft` expects.
const NESTED: u16 = libc::NLA_F_NESTED as u16;

/// Whether the table that `proof` speaks of is in the kernel, unchanged: its
/// digest, its chains' policies and their counts of rules. A rule exchanged for
/// another goes unnoticed; a flush, a deletion or an insertion does not.
pub fn installed(socket: &mut Socket, proof: &Proof) -> Result<bool> {
    let names = proof.chains().iter().map(|(name, _)| name.as_str());
    let found = observe::table_with_chains(socket, proof.table(), names);
    let (table, chains) = found.map_err(|e| unreadable(e, proof.table()))?;
    let whole = |table: observe::FoundTable| {
        !table.dormant && table.digest == Some(proof.digest()) && table.uses == proof.uses()
    };
    let wanted = proof.chains().iter().map(|(_, uses)| Some(*uses));
    let uses = chains.iter().map(|chain| {
        let chain = chain.as_ref().filter(|chain| !chain.policy_drops);
        chain.map(|chain| chain.uses)
    });
    Ok(table.is_some_and(whole) && uses.eq(wanted))
}

/// Whether a table of this name is there, whatever it holds.
pub fn exists(socket: &mut Socket, name: &str) -> Result<bool> {
    let found = observe::table(socket, name).map_err(|e| unreadable(e, name))?;
    Ok(found.is_some())
}

/// Makes the kernel's table equal to `table`; false where it was already.
/// Counters start again at zero where it was not.
pub fn ensure(socket: &mut Socket, table: &Table) -> Result<bool> {
    if installed(socket, &table.proof())? {
        return Ok(false);
    }
    // Where there is nothing to delete, deleting nothing spares the wait for
    // the kernel's RCU grace period at the socket's end.
    if !exists(socket, table.name())? {
        match transact(socket, table.commands(Replaced::Nothing)) {
            Err(error) if error.is_exists() => {}
            result => return result.map(|()| true),
        }
    }
    transact(socket, table.commands(Replaced::Whatever)).map(|()| true)
}

/// Deletes the table with all that it holds; false where it was not there.
pub fn remove(socket: &mut Socket, name: &str) -> Result<bool> {
    match transact(socket, vec![table::delete(name)]) {
        Ok(()) => Ok(true),
        Err(error) if error.is_gone() => Ok(false),
        Err(error) => Err(error),
    }
}

/// Applies all of `commands` or none.
fn transact(socket: &mut Socket, commands: Vec<Command>) -> Result<()> {
    let mut names = vec![String::from("cannot open an nf_tables transaction")];
    let mut messages = vec![boundary(uapi::BATCH_BEGIN)];
    for command in commands {
        names.push(command.what);
        messages.push(command.message);
    }
    messages.push(boundary(uapi::BATCH_END));
    // What failed first is the cause; the kernel goes on and refuses what
    // depends on it as well.
    match socket.transaction(&mut messages)?.into_iter().min_by_key(|refusal| refusal.index) {
        None => Ok(()),
        Some(refusal) => {
            let what = names.get(refusal.index).map_or("nf_tables transaction", String::as_str);
            Err(refusal.error.about(what))
        }
    }
}

/// A question about a table that could not be answered. Kernels without
/// nf_tables say EINVAL (`nfnetlink_rcv_msg`).
fn unreadable(error: Error, table: &str) -> Error {
    let hint = if error.errno == Errno::EINVAL { " (is nf_tables in this kernel?)" } else { "" };
    error.about(format_args!("cannot read nf_tables table inet {table}{hint}"))
}

/// A message of nf_tables about a table of `family`: `struct nfgenmsg`, version
/// 0, no resource.
fn request(kind: u16, flags: i32, family: u8) -> Message {
    Message::new(SUBSYSTEM << 8 | kind, flags, &[family, 0, 0, 0])
}

/// Begin or end of a transaction: `struct nfgenmsg` names the subsystem.
fn boundary(kind: u16) -> Message {
    let [high, low] = SUBSYSTEM.to_be_bytes();
    Message::new(kind, 0, &[family::UNSPECIFIED, 0, high, low])
}

fn put_be32(message: &mut Message, kind: u16, value: u32) {
    message.attr(kind, &value.to_be_bytes());
}
