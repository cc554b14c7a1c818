//! The two ends of the loads that iperf3 does not make: one byte there and back over a
//! connection that stays, and over a connection made for it; and what iproute2 of
//! Debian 12 has no word for.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use kernel::Rtnetlink;
use kernel::link::LinkChange;
use nix::time::{ClockId, clock_gettime};

/// The port of the server.
pub(super) const PORT: u16 = 5300;

/// Longest wait for an answer.
const PATIENCE: Duration = Duration::from_secs(10);

/// `bench peer serve`, or `bench peer requests|connections|packets ADDRESS SECONDS`, which
/// prints how many there were, how many seconds that took, and how many of CPU time.
pub(crate) fn run(words: &[String]) -> Result<()> {
    let words: Vec<&str> = words.iter().map(String::as_str).collect();
    match words[..] {
        ["serve"] => serve(),
        ["requests", address, seconds] => count(seconds, requests(address)?),
        ["connections", address, seconds] => {
            let address: SocketAddr = address.parse()?;
            count(seconds, move || connection(address))
        }
        ["packets", address, seconds] => count(seconds, packets(address)?),
        ["segments", bytes] => segments(bytes.parse()?),
        _ => bail!("peer: {words:?}"),
    }
}

fn serve() -> Result<()> {
    let listener = TcpListener::bind(("::", PORT))?;
    // Nobody reads: what packets cost until they are at the socket is what is measured.
    let _sink = UdpSocket::bind(("::", PORT))?;
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

/// `bench peer segments BYTES`: the longest segment that a link takes whole, GSO and GRO of
/// both families, for every link here but `lo`.
fn segments(bytes: u32) -> Result<()> {
    // if_link.h: IFLA_GSO_MAX_SIZE, IFLA_GRO_MAX_SIZE, IFLA_GSO_IPV4_MAX_SIZE,
    // IFLA_GRO_IPV4_MAX_SIZE (Linux 6.3).
    const SIZES: [u16; 4] = [41, 58, 63, 64];
    let mut socket = Rtnetlink::open()?;
    for link in socket.links()?.iter().filter(|link| !link.loopback) {
        let nothing = LinkChange::default();
        let mut message = nothing.message(link.index);
        SIZES.iter().for_each(|size| {
            message.attr_u32(*size, bytes);
        });
        socket.request(message).with_context(|| link.name.clone())?;
    }
    Ok(())
}

fn packets(address: &str) -> Result<impl FnMut() -> Result<()> + use<>> {
    let socket = UdpSocket::bind(("0.0.0.0", 0))?;
    socket.connect(address)?;
    Ok(move || {
        socket.send(&[0; 64])?;
        Ok(())
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
    let cpu = Duration::from(clock_gettime(ClockId::CLOCK_PROCESS_CPUTIME_ID)?);
    println!("{done} {} {}", start.elapsed().as_secs_f64(), cpu.as_secs_f64());
    Ok(())
}
