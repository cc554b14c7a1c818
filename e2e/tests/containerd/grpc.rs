//! As much of gRPC over HTTP/2 as a test of one server needs: unary calls on a Unix
//! socket, one after another.

use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use bytes::{BufMut, Bytes, BytesMut};
use h2::RecvStream;
use h2::client::SendRequest;
use http::{HeaderMap, Request};
use prost::Message;
use tokio::net::UnixStream;
use tokio::runtime::{Builder, Runtime};

/// How long the server may work on a call: more than anything takes here, and less than
/// kubelet grants (4 minutes for a pod).
const TIMEOUT: &str = "120S";

/// How long the server may take to say so when that time is over.
const ANSWER: Duration = Duration::from_secs(150);

/// How long the server may take to greet.
const CONNECT: Duration = Duration::from_secs(10);

/// Before each message: whether it is compressed, and its length (gRPC over HTTP2, "Length-Prefixed-Message").
const PREFIX: usize = 5;

/// A connection to a gRPC server.
#[derive(Debug)]
pub(crate) struct Channel {
    runtime: Runtime,
    requests: SendRequest<Bytes>,
}

impl Channel {
    /// Connects to a server's socket.
    pub(crate) fn connect(socket: &Path) -> Result<Channel> {
        let runtime = Builder::new_current_thread().enable_io().enable_time().build()?;
        let requests = within(&runtime, CONNECT, async {
            let stream = UnixStream::connect(socket).await?;
            let (requests, connection) = h2::client::handshake(stream).await?;
            // Ends with the connection, whose errors each call sees itself.
            tokio::spawn(connection);
            anyhow::Ok(requests)
        });
        let requests = requests.with_context(|| socket.display().to_string())?;
        Ok(Channel { runtime, requests })
    }

    /// Calls a method, named `/package.Service/Method`.
    pub(crate) fn call<Q, A>(&self, method: &str, request: &Q) -> Result<A>
    where
        Q: Message,
        A: Message + Default,
    {
        let answer = within(&self.runtime, ANSWER, self.exchange(method, framed(request)?));
        let answer = answer.with_context(|| method.to_owned())?;
        Ok(A::decode(answer)?)
    }

    async fn exchange(&self, method: &str, message: Bytes) -> Result<Bytes> {
        let request = Request::post(format!("http://localhost{method}"))
            .header("content-type", "application/grpc")
            .header("te", "trailers")
            .header("grpc-timeout", TIMEOUT)
            .body(())?;
        let mut requests = self.requests.clone().ready().await?;
        let (response, mut body) = requests.send_request(request, false)?;
        body.send_data(message, true)?;
        let response = response.await?;
        // A refusal without a message comes in the headers.
        check(response.headers())?;
        let mut body = response.into_body();
        let answer = whole(&mut body).await?;
        check(&body.trailers().await?.context("no trailers")?)?;
        ensure!(answer.first() == Some(&0), "no message, or a compressed one");
        Ok(answer.slice(PREFIX.min(answer.len())..))
    }
}

/// What a future comes to, which is an error after `limit`.
fn within<T>(
    runtime: &Runtime,
    limit: Duration,
    work: impl Future<Output = Result<T>>,
) -> Result<T> {
    let limited = async { tokio::time::timeout(limit, work).await };
    runtime.block_on(limited).with_context(|| format!("no answer within {limit:?}"))?
}

fn framed(message: &impl Message) -> Result<Bytes> {
    let mut bytes = BytesMut::with_capacity(PREFIX + message.encoded_len());
    bytes.put_u8(0);
    bytes.put_u32(message.encoded_len().try_into()?);
    message.encode(&mut bytes)?;
    Ok(bytes.freeze())
}

async fn whole(body: &mut RecvStream) -> Result<Bytes> {
    let mut all = BytesMut::new();
    while let Some(part) = body.data().await {
        let part = part?;
        body.flow_control().release_capacity(part.len())?;
        all.extend_from_slice(&part);
    }
    Ok(all.freeze())
}

/// An error where there is a status and it is not 0.
fn check(headers: &HeaderMap) -> Result<()> {
    let text = |key: &str| headers.get(key).map(|value| String::from_utf8_lossy(value.as_bytes()));
    let status = text("grpc-status");
    let message = text("grpc-message").unwrap_or_default();
    ensure!(status.as_deref().is_none_or(|status| status == "0"), "status {status:?}: {message}");
    Ok(())
}
