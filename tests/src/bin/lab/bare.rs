//! gRPC on bare HTTP/2: a client that costs little, and that sends and reads no faster than it wants to.

use std::io;

use bytes::{BufMut, Bytes, BytesMut};
use chassis::auth::{Caller, Credentials};
use h2::client::SendRequest;
use http::{HeaderMap, Request};
use prost::Message;
use tokio::net::TcpStream;
use tonic::metadata::MetadataMap;

/// Before every message stand a flag and its length.
pub(crate) const LENGTH_BYTES: usize = 5;

/// A message as gRPC sends it: uncompressed, behind its length.
pub(crate) fn framed(message: &impl Message) -> Bytes {
    let mut bytes = BytesMut::with_capacity(LENGTH_BYTES + message.encoded_len());
    bytes.put_u8(0);
    bytes.put_u32(u32::try_from(message.encoded_len()).unwrap_or(u32::MAX));
    bytes.put(message.encode_to_vec().as_slice());
    bytes.freeze()
}

/// How a caller begins a call, `SERVICE/METHOD`, at the address of a service.
pub(crate) fn opening(address: &str, call: &str, caller: Caller) -> http::Result<Request<()>> {
    let opening = Request::post(format!("{address}/{call}"));
    let mut opening = opening.header("content-type", "application/grpc").header("te", "trailers").body(())?;
    let mut metadata = MetadataMap::new();
    Credentials::Metadata(caller).present(&mut metadata);
    opening.headers_mut().extend(metadata.into_headers());
    Ok(opening)
}

/// A connection to where a call goes. Of each answer the server may send that many bytes before they are read.
pub(crate) async fn connect(opening: &Request<()>, window: u32) -> io::Result<SendRequest<Bytes>> {
    let server = opening.uri().authority().ok_or(io::ErrorKind::InvalidInput)?;
    let stream = TcpStream::connect(server.as_str()).await?;
    stream.set_nodelay(true)?;
    let handshake = h2::client::Builder::new().initial_window_size(window).handshake(stream).await;
    let (streams, connection) = handshake.map_err(io::Error::other)?;
    tokio::spawn(connection);
    Ok(streams)
}

/// The window of HTTP/2 unless a client asks for another one.
pub(crate) const WINDOW_DEFAULT: u32 = 65_535;

/// One call on a connection: what it ended with, and the answer if there is one.
pub(crate) async fn exchange(
    streams: SendRequest<Bytes>,
    opening: Request<()>,
    message: Bytes,
) -> Result<(HeaderMap, Vec<u8>), h2::Error> {
    let (answer, mut sending) = streams.ready().await?.send_request(opening, false)?;
    sending.send_data(message, true)?;
    let (head, mut body) = answer.await?.into_parts();
    let mut answer = vec![];
    while let Some(piece) = body.data().await {
        let piece = piece?;
        body.flow_control().release_capacity(piece.len())?;
        answer.extend_from_slice(&piece);
    }
    Ok((body.trailers().await?.unwrap_or(head.headers), answer))
}
