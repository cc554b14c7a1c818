//! A blocking netlink socket.
//!
//! Many messages go out in one system call. Only the last of a batch asks for an
//! acknowledgement: refusals come back unasked, and 270 acknowledgements are
//! more than the default receive buffer holds (ENOBUFS), while one stands for
//! any number. A batch is cut so that even if the kernel refuses every message
//! of it, the refusals fit.

use std::io;
use std::ops::{Deref, DerefMut};
use std::os::fd::{AsRawFd, RawFd};

use netlink_sys::constants::{NETLINK_NETFILTER, NETLINK_ROUTE};
use nix::errno::Errno;
use nix::sys::socket::setsockopt;
use nix::sys::socket::sockopt::SndBufForce;

use super::attribute::array;
use super::message::HEADER;
use super::{Attributes, Message};
use crate::error::{Error, Result};
use crate::uapi::NLMSGERR_ATTR_MSG;

/// Messages a batch may hold: refusals are charged about 768 bytes each against a
/// receive buffer of 212,992.
const BATCH_MESSAGES: usize = 200;
/// Bytes a batch may hold; far below the default send buffer.
const BATCH_BYTES: usize = 64 << 10;
/// Bytes read at once; the kernel fills dumps up to 32 KiB (`netlink_dump`).
const RECEIVE_BYTES: usize = 64 << 10;
/// Times that a dump is repeated because what it lists changed meanwhile.
const DUMP_ATTEMPTS: usize = 20;

/// A netlink socket of any family.
#[derive(Debug)]
pub struct Socket {
    socket: netlink_sys::Socket,
    sequence: u32,
    buffer: Vec<u8>,
}

/// A socket of the rtnetlink family, in the network namespace in which it was
/// opened, whatever namespace the thread enters later.
#[derive(Debug)]
pub struct Rtnetlink(Socket);

/// A message of a batch that the kernel refused.
#[derive(Clone, Debug)]
pub struct Refusal {
    /// Which one, counted from the first of the batch.
    pub index: usize,
    /// Why.
    pub error: Error,
}

/// A message that the kernel sent.
#[derive(Clone, Copy, Debug)]
pub struct Reply<'a> {
    /// Message type, RTM_NEWLINK for example.
    pub kind: u16,
    /// The message behind `struct nlmsghdr`.
    pub body: &'a [u8],
}

impl Reply<'_> {
    /// The attributes behind a fixed header of `length` bytes.
    pub fn attributes(&self, length: usize) -> Attributes<'_> {
        Attributes(self.body.get(length..).unwrap_or(&[]))
    }
}

/// What one received message means to the one who waits.
pub(crate) enum Incoming<'a> {
    Data(Reply<'a>),
    Done,
    Refused(Error),
    Interrupted,
}

impl Rtnetlink {
    /// Opens a socket in the thread's network namespace.
    pub fn open() -> Result<Self> {
        let socket = Socket::open(NETLINK_ROUTE)?;
        let strict = socket.socket.set_netlink_get_strict_chk(true);
        strict.map_err(|e| Error::io("cannot ask rtnetlink for strict checking", &e))?;
        Ok(Self(socket))
    }
}

impl Deref for Rtnetlink {
    type Target = Socket;

    fn deref(&self) -> &Socket {
        &self.0
    }
}

impl DerefMut for Rtnetlink {
    fn deref_mut(&mut self) -> &mut Socket {
        &mut self.0
    }
}

impl AsRawFd for Socket {
    fn as_raw_fd(&self) -> RawFd {
        self.socket.as_raw_fd()
    }
}

impl Socket {
    /// Opens a socket for nf_tables in the thread's network namespace.
    pub fn netfilter() -> Result<Self> {
        Self::open(NETLINK_NETFILTER)
    }

    fn open(protocol: isize) -> Result<Self> {
        let open = || -> io::Result<netlink_sys::Socket> {
            let socket = netlink_sys::Socket::new(protocol)?;
            socket.set_ext_ack(true)?;
            socket.set_cap_ack(true)?;
            Ok(socket)
        };
        let socket = open().map_err(|e| Error::io("cannot open a netlink socket", &e))?;
        Ok(Self { socket, sequence: 0, buffer: Vec::with_capacity(RECEIVE_BYTES) })
    }

    /// Sends `messages` in order and returns those that the kernel refused. A
    /// refusal does not stop what comes after it.
    ///
    /// # Errors
    /// The socket itself failed; what was done then is unknown.
    pub fn batch(&mut self, messages: &mut [Message]) -> Result<Vec<Refusal>> {
        let mut refused = Vec::new();
        let mut first = 0;
        while first < messages.len() {
            let rest = messages.get_mut(first..).unwrap_or_default();
            let count = batch_length(rest);
            let chunk = rest.get_mut(..count).unwrap_or_default();
            self.send_chunk(chunk, first, &mut refused)?;
            first += count;
        }
        Ok(refused)
    }

    /// Sends one message and waits until the kernel has done it.
    pub fn request(&mut self, message: Message) -> Result<()> {
        let mut messages = [message];
        match self.batch(&mut messages)?.pop() {
            None => Ok(()),
            Some(refusal) => Err(refusal.error),
        }
    }

    /// Asks for one object; `None` where the kernel says that it is not there. The answer
    /// is the object or a refusal, and nothing after it.
    pub fn get<T>(
        &mut self,
        mut message: Message,
        parse: impl Fn(&Reply) -> Option<T>,
    ) -> Result<Option<T>> {
        let sequence = self.next_sequence();
        self.send(message.finish(sequence, false))?;
        let outcome = self.receive(sequence, sequence, |incoming, _| match incoming {
            Incoming::Data(reply) => Some(Ok(parse(&reply))),
            Incoming::Done => Some(Ok(None)),
            Incoming::Refused(error) => Some(Err(error)),
            Incoming::Interrupted => None,
        })?;
        match outcome {
            Ok(found) => Ok(found),
            Err(error) if error.is_gone() => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Asks for several objects by one system call; an answer for each message,
    /// `None` where the kernel says that the object is not there. A few dozen
    /// answers fit the receive buffer.
    pub fn get_each<T>(
        &mut self,
        messages: &mut [Message],
        parse: impl Fn(&Reply) -> Option<T>,
    ) -> Result<Vec<Option<T>>> {
        let first = self.sequence.wrapping_add(1);
        let count = messages.len();
        let mut bytes = Vec::with_capacity(messages.iter().map(Message::len).sum());
        for message in messages.iter_mut() {
            let sequence = self.next_sequence();
            bytes.extend_from_slice(message.finish(sequence, false));
        }
        let mut found: Vec<Option<T>> = messages.iter().map(|_| None).collect();
        if count == 0 {
            return Ok(found);
        }
        self.send(&bytes)?;
        let last = self.sequence;
        // Refused wholesale, for want of a right, only the first gets an answer.
        let outcome = self.receive(first, last, |incoming, sequence| {
            let index = sequence.wrapping_sub(first) as usize;
            match incoming {
                Incoming::Data(reply) => {
                    if let Some(slot) = found.get_mut(index) {
                        *slot = parse(&reply);
                    }
                }
                Incoming::Refused(error) if !error.is_gone() => return Some(Err(error)),
                Incoming::Refused(_) | Incoming::Done => {}
                Incoming::Interrupted => return None,
            }
            (sequence == last).then_some(Ok(()))
        })?;
        outcome.map(|()| found)
    }

    /// Lists objects; `parse` picks. Repeated from the start when the list
    /// changed while it was read.
    pub fn dump<T>(
        &mut self,
        message: &Message,
        mut parse: impl FnMut(&Reply) -> Option<T>,
    ) -> Result<Vec<T>> {
        for _ in 0..DUMP_ATTEMPTS {
            match self.dump_once(message.clone(), &mut parse) {
                Ok(Some(list)) => return Ok(list),
                Ok(None) => {}
                // Part of the list was lost; what is left of it has an old sequence number.
                Err(error) if error.errno == Errno::ENOBUFS => {}
                Err(error) => return Err(error),
            }
        }
        Err(Error::new("cannot list: it changed each time it was read", Errno::EAGAIN))
    }

    fn dump_once<T>(
        &mut self,
        mut message: Message,
        parse: &mut impl FnMut(&Reply) -> Option<T>,
    ) -> Result<Option<Vec<T>>> {
        let sequence = self.next_sequence();
        self.send(message.finish(sequence, false))?;
        let mut list = Vec::new();
        let mut torn = false;
        let outcome = self.receive(sequence, sequence, |incoming, _| match incoming {
            Incoming::Data(reply) => {
                list.extend(parse(&reply));
                None
            }
            Incoming::Interrupted => {
                torn = true;
                None
            }
            Incoming::Done => Some(Ok(())),
            Incoming::Refused(error) => Some(Err(error)),
        })?;
        outcome?;
        Ok(if torn { None } else { Some(list) })
    }

    fn send_chunk(
        &mut self,
        chunk: &mut [Message],
        offset: usize,
        refused: &mut Vec<Refusal>,
    ) -> Result<()> {
        let first = self.sequence.wrapping_add(1);
        let count = chunk.len();
        let mut bytes = Vec::with_capacity(chunk.iter().map(Message::len).sum());
        for (i, message) in chunk.iter_mut().enumerate() {
            let sequence = self.next_sequence();
            bytes.extend_from_slice(message.finish(sequence, i + 1 == count));
        }
        self.send(&bytes)?;
        let last = self.sequence;
        self.receive(first, last, |incoming, sequence| {
            if let Incoming::Refused(error) = incoming {
                let index = offset + sequence.wrapping_sub(first) as usize;
                refused.push(Refusal { index, error });
            }
            (sequence == last).then_some(())
        })
    }

    /// Sends a nfnetlink transaction, from its begin to its end, in one piece and
    /// returns the messages for which the kernel refused it. Refused once, it is
    /// refused whole.
    ///
    /// # Errors
    /// The socket itself failed; what was done then is unknown.
    pub fn transaction(&mut self, messages: &mut [Message]) -> Result<Vec<Refusal>> {
        let first = self.sequence.wrapping_add(1);
        // The last command, not the end of the transaction: that is
        // acknowledged since Linux 6.10 only.
        let acknowledged = messages.len().saturating_sub(2);
        let mut bytes = Vec::with_capacity(messages.iter().map(Message::len).sum());
        for (i, message) in messages.iter_mut().enumerate() {
            let sequence = self.next_sequence();
            bytes.extend_from_slice(message.finish(sequence, i == acknowledged));
        }
        self.make_room(bytes.len())?;
        self.send(&bytes)?;
        let last = first.wrapping_add(acknowledged as u32);
        let mut refused = Vec::new();
        self.receive(first, last, |incoming, sequence| {
            if let Incoming::Refused(error) = incoming {
                refused.push(Refusal { index: sequence.wrapping_sub(first) as usize, error });
            }
            // Refused at its begin, a transaction may get no other answer.
            (sequence == last || sequence == first).then_some(())
        })?;
        Ok(refused)
    }

    /// Lets the send buffer hold a message of `length` bytes.
    fn make_room(&self, length: usize) -> Result<()> {
        if length <= BATCH_BYTES {
            return Ok(());
        }
        setsockopt(&self.socket, SndBufForce, &length).map_err(|errno| {
            Error::new(format!("cannot make a netlink send buffer of {length} bytes"), errno)
        })
    }

    fn next_sequence(&mut self) -> u32 {
        self.sequence = self.sequence.wrapping_add(1);
        self.sequence
    }

    fn send(&self, bytes: &[u8]) -> Result<()> {
        loop {
            match self.socket.send(bytes, 0) {
                Ok(_) => return Ok(()),
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(e) => return Err(Error::io("cannot send to the kernel by netlink", &e)),
            }
        }
    }

    /// Hands each message that answers sequence numbers `first` to `last` to
    /// `on`, until that returns something.
    fn receive<T>(
        &mut self,
        first: u32,
        last: u32,
        mut on: impl FnMut(Incoming, u32) -> Option<T>,
    ) -> Result<T> {
        loop {
            self.buffer.clear();
            match self.socket.recv(&mut self.buffer, 0) {
                Ok(_) => {}
                Err(e) if e.kind() == io::ErrorKind::Interrupted => continue,
                Err(e) => return Err(Error::io("cannot receive from the kernel by netlink", &e)),
            }
            for (header, incoming) in Datagram(&self.buffer) {
                // An answer to a request given up on earlier.
                if header.sequence.wrapping_sub(first) > last.wrapping_sub(first) {
                    continue;
                }
                if header.flags & libc::NLM_F_DUMP_INTR as u16 != 0 {
                    if let Some(result) = on(Incoming::Interrupted, header.sequence) {
                        return Ok(result);
                    }
                }
                if let Some(result) = on(incoming, header.sequence) {
                    return Ok(result);
                }
            }
        }
    }
}

/// How many of `messages` go out together.
fn batch_length(messages: &[Message]) -> usize {
    let mut bytes = 0;
    let fitting = messages.iter().take(BATCH_MESSAGES).take_while(|message| {
        bytes += message.len();
        bytes <= BATCH_BYTES
    });
    fitting.count().max(1)
}

/// What of `struct nlmsghdr` matters in an answer.
pub(crate) struct Header {
    kind: u16,
    flags: u16,
    sequence: u32,
}

/// The messages of what one system call received; malformed rest ends the iteration.
pub(crate) struct Datagram<'a>(pub(crate) &'a [u8]);

impl<'a> Iterator for Datagram<'a> {
    type Item = (Header, Incoming<'a>);

    fn next(&mut self) -> Option<Self::Item> {
        let length = u32::from_ne_bytes(array(self.0, 0)?) as usize;
        let header = Header {
            kind: u16::from_ne_bytes(array(self.0, 4)?),
            flags: u16::from_ne_bytes(array(self.0, 6)?),
            sequence: u32::from_ne_bytes(array(self.0, 8)?),
        };
        let body = self.0.get(HEADER..length)?;
        self.0 = self.0.get(length.next_multiple_of(4)..).unwrap_or(&[]);
        let incoming = classify(&header, body);
        Some((header, incoming))
    }
}

fn classify<'a>(header: &Header, body: &'a [u8]) -> Incoming<'a> {
    match i32::from(header.kind) {
        libc::NLMSG_ERROR => match error_of(header.flags, body) {
            None => Incoming::Done,
            Some(error) => Incoming::Refused(error),
        },
        // A dump's end carries an error number too (`netlink_dump_done`).
        libc::NLMSG_DONE => match array(body, 0).map(i32::from_ne_bytes) {
            Some(code) if code < 0 => Incoming::Refused(refused(code, None)),
            _ => Incoming::Done,
        },
        _ => Incoming::Data(Reply { kind: header.kind, body }),
    }
}

/// The error that an NLMSG_ERROR carries; `None` for an acknowledgement.
fn error_of(flags: u16, body: &[u8]) -> Option<Error> {
    let code = array(body, 0).map_or(-libc::EIO, i32::from_ne_bytes);
    if code == 0 {
        return None;
    }
    // `struct nlmsgerr`: the code, the header of the request, and, unless
    // capped, the request's payload; then the extended ACK's attributes.
    let request = array(body, 4).map_or(0, u32::from_ne_bytes) as usize;
    let capped = flags & libc::NLM_F_CAPPED as u16 != 0;
    let attributes = 4 + if capped { HEADER } else { request.next_multiple_of(4) };
    let extended = flags & libc::NLM_F_ACK_TLVS as u16 != 0;
    let tail = if extended { body.get(attributes..).unwrap_or(&[]) } else { &[] };
    let text = Attributes(tail).find(|a| a.kind == NLMSGERR_ATTR_MSG).and_then(|a| a.str());
    Some(refused(code, text))
}

/// `code` is the error number, negative, as the kernel sends it.
fn refused(code: i32, text: Option<&str>) -> Error {
    let mut error = Error::new("the kernel refused", Errno::from_raw(code.saturating_neg()));
    error.extack = text.map(str::to_owned);
    error
}

#[cfg(test)]
mod tests {
    use super::*;

    fn error(kind: i32, code: i32) -> Option<Error> {
        let header = Header { kind: kind as u16, flags: 0, sequence: 1 };
        match classify(&header, &code.to_ne_bytes()) {
            Incoming::Refused(error) => Some(error),
            _ => None,
        }
    }

    #[test]
    fn any_error_number_is_an_answer() {
        for kind in [libc::NLMSG_ERROR, libc::NLMSG_DONE] {
            assert_eq!(error(kind, 0), None);
            assert_eq!(error(kind, -libc::EPERM).map(|e| e.errno), Some(Errno::EPERM));
            assert_eq!(error(kind, i32::MIN).map(|e| e.errno), Some(Errno::UnknownErrno));
        }
    }
}
