//! A TCP connection that never rests, for tests that ask whether it stalled.
//!
//! `stream serve ADDRESS` prints a port and sends back whatever comes in. `stream ask
//! ADDRESS PORT` sends a message every few milliseconds, one after the other, and prints
//! a line for each that came back.

use std::io::{Read, Write};
use std::net::{IpAddr, TcpListener, TcpStream};
use std::thread::sleep;
use std::time::Duration;

use anyhow::{Context, Result, bail};

/// Bytes of a message: a few segments, the last of which is not full.
const MESSAGE: usize = 4000;
/// Time from an answer to the next message.
const PAUSE: Duration = Duration::from_millis(10);

fn main() -> Result<()> {
    let words: Vec<String> = std::env::args().skip(1).collect();
    let words: Vec<&str> = words.iter().map(String::as_str).collect();
    match words[..] {
        ["serve", address] => serve(address.parse()?),
        ["ask", address, port] => ask(address.parse()?, port.parse()?),
        _ => bail!("stream serve ADDRESS, or stream ask ADDRESS PORT"),
    }
}

fn serve(address: IpAddr) -> Result<()> {
    let listener = TcpListener::bind((address, 0)).with_context(|| address.to_string())?;
    println!("{}", listener.local_addr()?.port());
    let (mut connection, _) = listener.accept()?;
    connection.set_nodelay(true)?;
    let mut message = [0; MESSAGE];
    loop {
        connection.read_exact(&mut message)?;
        connection.write_all(&message)?;
    }
}

fn ask(address: IpAddr, port: u16) -> Result<()> {
    let mut connection = TcpStream::connect((address, port))?;
    connection.set_nodelay(true)?;
    let mut message = [0; MESSAGE];
    for number in 1_u64.. {
        connection.write_all(&message)?;
        connection.read_exact(&mut message)?;
        // A pipe is no terminal: it would be held back.
        println!("{number}");
        std::io::stdout().flush()?;
        sleep(PAUSE);
    }
    Ok(())
}
