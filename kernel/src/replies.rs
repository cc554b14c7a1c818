//! What must hold for whatever a netlink socket receives. Not part of the crate as it is
//! used: fuzz targets and a test alone see this module.

use crate::neighbour::{FdbEntry, Neighbour};
use crate::netlink::{Attribute, Attributes, Datagram, Incoming, Message, Reply};
use crate::{address, link, neighbour, nexthop, nft, route};

/// Levels of attributes that are looked into.
const DEPTH: usize = 4;

/// Reads a datagram by every parser of the crate. Panics if what was read asks for
/// something else than was read.
pub fn check(datagram: &[u8]) {
    let mut bytes = 0;
    for (_, incoming) in Datagram(datagram) {
        match incoming {
            Incoming::Data(reply) => {
                bytes += reply.body.len();
                read(&reply);
            }
            Incoming::Refused(error) => assert!(!error.to_string().is_empty()),
            Incoming::Done | Incoming::Interrupted => {}
        }
    }
    assert!(bytes <= datagram.len());
}

fn read(reply: &Reply) {
    nft::parse_every(reply);
    for header in [4, 8, 12, 16] {
        read_attributes(reply.attributes(header), DEPTH);
    }
    let _ = link::parse(reply);
    if let Some(read) = address::parse(reply) {
        assert_eq!(reread(read.add(), address::parse), Some(read));
    }
    if let Some(read) = nexthop::parse(reply) {
        assert_eq!(reread(read.add(), nexthop::parse), Some(read));
    }
    if let Some(read) = route::parse(reply) {
        assert_eq!(reread(read.add(), route::parse), Some(read));
    }
    read_neighbours(reply);
}

/// We set no entry that another program learns.
fn read_neighbours(reply: &Reply) {
    let parse = |reply: &Reply| neighbour::parse(reply)?.neighbour();
    if let Some(read) = parse(reply) {
        assert_eq!(reread(read.set(), parse), Some(Neighbour { external: false, ..read }));
    }
    let parse = |reply: &Reply| neighbour::parse(reply)?.fdb_entry();
    if let Some(read) = parse(reply) {
        assert_eq!(reread(read.set(), parse), Some(FdbEntry { external: false, ..read }));
    }
}

/// What `parse` reads in a request of our own, which has the form of a reply.
fn reread<T>(mut message: Message, parse: impl Fn(&Reply) -> Option<T>) -> Option<T> {
    match Datagram(message.finish(1, false)).next() {
        Some((_, Incoming::Data(reply))) => parse(&reply),
        _ => None,
    }
}

fn read_attributes(attributes: Attributes, depth: usize) {
    for attribute in attributes {
        let Attribute { payload, .. } = attribute;
        assert!(payload.len() <= attributes.0.len());
        assert_eq!(attribute.u32().is_some(), payload.len() >= 4);
        assert_eq!(attribute.ip().is_some(), [4, 16].contains(&payload.len()));
        assert_eq!(attribute.mac().is_some(), payload.len() == 6);
        let _ = (attribute.u8(), attribute.be16(), attribute.be32(), attribute.be64());
        assert!(attribute.str().is_none_or(|text| !text.contains('\0')));
        if depth > 0 {
            read_attributes(attribute.nested(), depth - 1);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kept_datagrams() {
        let dir = concat!(env!("CARGO_MANIFEST_DIR"), "/../fuzz/corpus/netlink");
        let files: Vec<_> = std::fs::read_dir(dir).unwrap().map(|file| file.unwrap()).collect();
        assert!(!files.is_empty());
        for file in files {
            println!("{}", file.path().display());
            check(&std::fs::read(file.path()).unwrap());
        }
    }
}
