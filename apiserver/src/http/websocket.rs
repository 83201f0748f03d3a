//! Answers over a WebSocket: logs as their bytes, watches as one message an event. What the client sends is not read as anything.
//!
//! Upstream counterparts: `apiserver/pkg/util/wsstream/stream.go` (`Reader`), `endpoints/handlers/watch.go` (`HandleWS`, v1.33).

use api::Status;
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use bytes::{Buf, Bytes, BytesMut};
use futures::{SinkExt, StreamExt};
use http::HeaderMap;
use http::header::{
    CONNECTION, HeaderValue, SEC_WEBSOCKET_ACCEPT, SEC_WEBSOCKET_KEY, SEC_WEBSOCKET_PROTOCOL, SEC_WEBSOCKET_VERSION, UPGRADE,
};
use http_body_util::BodyExt;
use hyper::upgrade::OnUpgrade;
use hyper_util::rt::TokioIo;
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::tungstenite::handshake::derive_accept_key;
use tokio_tungstenite::tungstenite::protocol::Role;

use super::respond::{self, Answer, Body};

/// What the body holds, and so where a message ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Contents {
    Bytes,
    /// Lines of JSON.
    JsonEvents,
    /// Frames with their length in front.
    ProtobufEvents,
}

const BASE64: &str = "base64.binary.k8s.io";

pub fn is_asked(headers: &HeaderMap) -> bool {
    headers.get(UPGRADE).is_some_and(|v| v.as_bytes().eq_ignore_ascii_case(b"websocket"))
}

/// Switch protocols, and send the answer's body. Errors: 400 for a handshake that is none, 403 for protocols not spoken here.
pub fn deliver(headers: &HeaderMap, upgrade: OnUpgrade, answer: Answer, contents: Contents) -> Result<Answer, Status> {
    if !answer.status().is_success() {
        return Ok(answer);
    }
    let key = headers.get(SEC_WEBSOCKET_KEY).filter(|_| is_asked(headers) && headers.get(SEC_WEBSOCKET_VERSION).is_some_and(|v| v == "13"));
    let key = key.ok_or_else(|| Status::bad_request("not a websocket handshake"))?;
    let protocol = protocol(headers, contents)?;
    let mut switching = respond::bytes(101, "", Bytes::new());
    let out = switching.headers_mut();
    out.clear();
    out.insert(UPGRADE, HeaderValue::from_static("websocket"));
    out.insert(CONNECTION, HeaderValue::from_static("Upgrade"));
    out.insert(SEC_WEBSOCKET_ACCEPT, derive_accept_key(key.as_bytes()).parse().map_err(Status::internal)?);
    if let Some(protocol) = protocol {
        out.insert(SEC_WEBSOCKET_PROTOCOL, HeaderValue::from_static(protocol));
    }
    tokio::spawn(async move {
        if let Err(error) = send(upgrade, answer.into_body(), contents, protocol == Some(BASE64)).await {
            tracing::debug!(%error, "a websocket ended");
        }
    });
    Ok(switching)
}

/// The first of the client's protocols that is spoken here.
fn protocol(headers: &HeaderMap, contents: Contents) -> Result<Option<&'static str>, Status> {
    let offered = headers.get_all(SEC_WEBSOCKET_PROTOCOL).iter().filter_map(|v| v.to_str().ok()).flat_map(|v| v.split(',')).map(str::trim);
    let offered: Vec<&str> = offered.filter(|p| !p.is_empty()).collect();
    if offered.is_empty() || contents != Contents::Bytes {
        return Ok(None);
    }
    let found = offered.iter().find_map(|offer| ["binary.k8s.io", BASE64].into_iter().find(|ours| ours == offer));
    found.map(Some).ok_or_else(|| {
        Status::bad_request(format!("unable to upgrade: none of the offered protocols is supported: {}", offered.join(", ")))
    })
}

async fn send(upgrade: OnUpgrade, mut body: Body, contents: Contents, base64: bool) -> anyhow::Result<()> {
    let socket = WebSocketStream::from_raw_socket(TokioIo::new(upgrade.await?), Role::Server, None).await;
    let (mut sink, mut stream) = socket.split();
    if contents == Contents::Bytes {
        // Upstream's greeting: the stream is open.
        sink.send(message(Bytes::new(), contents, base64)).await?;
    }
    let mut pending = BytesMut::new();
    loop {
        tokio::select! {
            frame = body.frame() => {
                let Some(frame) = frame else { break };
                let frame = frame.map_err(|e| anyhow::anyhow!(e))?;
                pending.extend_from_slice(frame.data_ref().map_or(&[][..], |data| data));
                while let Some(piece) = split(&mut pending, contents) {
                    sink.send(message(piece, contents, base64)).await?;
                }
            }
            // Pings are answered while reading; an end is an end.
            got = stream.next() => if !matches!(got, Some(Ok(message)) if !message.is_close()) { return Ok(()) },
        }
    }
    sink.send(Message::Close(None)).await?;
    sink.close().await?;
    Ok(())
}

/// One message's worth of what has come, if it is whole.
fn split(pending: &mut BytesMut, contents: Contents) -> Option<Bytes> {
    let end = match contents {
        Contents::Bytes => Some(pending.len()).filter(|length| *length > 0)?,
        Contents::JsonEvents => pending.iter().position(|byte| *byte == b'\n')? + 1,
        Contents::ProtobufEvents => {
            let length = u32::from_be_bytes(pending.get(..4)?.try_into().ok()?) as usize;
            let rest = pending.get(4..4 + length)?.len();
            pending.advance(4);
            rest
        }
    };
    Some(pending.split_to(end).freeze())
}

fn message(piece: Bytes, contents: Contents, base64: bool) -> Message {
    match contents {
        Contents::Bytes if base64 => Message::text(STANDARD.encode(piece)),
        Contents::JsonEvents => Message::text(String::from_utf8_lossy(&piece).into_owned()),
        _ => Message::Binary(piece),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_end_where_events_do() {
        type Case = (Contents, &'static [u8], &'static [&'static [u8]], &'static [u8]);
        let cases: [Case; 3] = [
            (Contents::Bytes, b"a\nb", &[b"a\nb"], b""),
            (Contents::JsonEvents, b"{}\n{\"a\":1}\n{", &[b"{}\n", b"{\"a\":1}\n"], b"{"),
            (Contents::ProtobufEvents, b"\0\0\0\x01a\0\0\0\x02bc\0\0\0\x02d", &[b"a", b"bc"], b"\0\0\0\x02d"),
        ];
        for (contents, input, expected, left) in cases {
            let mut pending = BytesMut::from(input);
            let got: Vec<Bytes> = std::iter::from_fn(|| split(&mut pending, contents)).collect();
            assert_eq!(got, expected, "{contents:?}");
            assert_eq!(pending, left, "{contents:?}");
        }
    }

    #[test]
    fn protocols_are_agreed() {
        for (offered, expected) in
            [("", Some(None)), ("binary.k8s.io", Some(Some("binary.k8s.io"))), ("x, base64.binary.k8s.io", Some(Some(BASE64))), ("x", None)]
        {
            let mut headers = HeaderMap::new();
            headers.insert(SEC_WEBSOCKET_PROTOCOL, offered.parse().unwrap());
            assert_eq!(protocol(&headers, Contents::Bytes).ok(), expected, "{offered}");
        }
    }
}
