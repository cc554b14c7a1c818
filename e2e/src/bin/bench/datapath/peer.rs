//! The two ends of the loads that iperf3 does not make: one byte there and back over a
//! connection that stays, and over a connection made for it.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

/// The port of the server.
pub(super) const PORT: u16 = 5300;

/// Longest wait for an answer.
const PATIENCE: Duration = Duration::from_secs(10);

/// `bench peer serve`, or `bench peer requests|connections ADDRESS SECONDS`, which
/// prints how many there were and how many seconds that took.
pub(crate) fn run(words: &[String]) -> Result<()> {
    let words: Vec<&str> = words.iter().map(String::as_str).collect();
    match words[..] {
        ["serve"] => serve(),
        ["requests", address, seconds] => count(seconds, requests(address)?),
        ["connections", address, seconds] => {
            let address: SocketAddr = address.parse()?;
            count(seconds, move || connection(address))
        }
        _ => bail!("peer: {words:?}"),
    }
}

fn serve() -> Result<()> {
    let listener = TcpListener::bind(("::", PORT))?;
    println!("listening");
    for stream in listener.incoming() {
        let mut stream = stream?;
        stream.set_nodelay(true)?;
        let mut byte = [0];
        stream.read_exact(&mut byte)?;
        stream.write_all(&byte)?;
        // `c`: closed here, so that the client's ports do not run out in TIME_WAIT.
        if byte != *b"c" {
            thread::spawn(move || echo(stream));
        }
    }
    Ok(())
}

fn echo(mut stream: TcpStream) {
    let mut byte = [0];
    while stream.read_exact(&mut byte).is_ok() && stream.write_all(&byte).is_ok() {}
}

fn requests(address: &str) -> Result<impl FnMut() -> Result<()> + use<>> {
    let address: SocketAddr = address.parse()?;
    let mut stream = TcpStream::connect_timeout(&address, PATIENCE)?;
    stream.set_nodelay(true)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    Ok(move || {
        let mut byte = [0];
        stream.write_all(b"r")?;
        Ok(stream.read_exact(&mut byte)?)
    })
}

fn connection(address: SocketAddr) -> Result<()> {
    let mut stream = TcpStream::connect_timeout(&address, PATIENCE)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.write_all(b"c")?;
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).context("no answer")?;
    Ok(())
}

fn count(seconds: &str, mut once: impl FnMut() -> Result<()>) -> Result<()> {
    let end = Duration::from_secs_f64(seconds.parse()?);
    let start = Instant::now();
    let mut done = 0_u64;
    while start.elapsed() < end {
        once()?;
        done += 1;
    }
    println!("{done} {}", start.elapsed().as_secs_f64());
    Ok(())
}
