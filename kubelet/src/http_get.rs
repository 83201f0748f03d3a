//! The HTTP request of probes and lifecycle hooks. It follows redirects to the host it began with, and to no other.
//!
//! Upstream: `pkg/probe/http/{http,request}.go`, v1.33.

use std::time::Duration;

use bytes::Bytes;
use http_body_util::{BodyExt, Empty, Limited};
use hyper_util::rt::TokioIo;
use k8s_openapi::api::core::v1::HTTPHeader;

use crate::handlers::{MAX_BODY, connect, host_port};

/// With the tenth redirect upstream gives up.
const MAX_REQUESTS: usize = 10;

pub struct Answer {
    pub status: u16,
    pub body: String,
    /// Where to ask in its place.
    location: Option<String>,
}

#[derive(Clone, Debug, PartialEq)]
pub struct Place {
    pub tls: bool,
    pub host: String,
    pub port: u16,
    pub path: String,
}

impl Place {
    fn address(&self) -> String {
        host_port(&self.host, self.port)
    }

    fn url(&self) -> String {
        format!("{}://{}{}", if self.tls { "https" } else { "http" }, self.address(), self.path)
    }

    /// Where `location`, said here, leads: a whole URL, a path, or a path beginning at this one's folder.
    fn follow(&self, location: &str) -> Option<Place> {
        let uri: http::Uri = match (location.contains("://"), location.strip_prefix("//"), location.starts_with('/')) {
            (true, ..) => location.parse().ok()?,
            (_, Some(rest), _) => format!("{}://{rest}", if self.tls { "https" } else { "http" }).parse().ok()?,
            (_, _, true) => return Some(Place { path: location.to_owned(), ..self.clone() }),
            _ => {
                let before = self.path.split('?').next().unwrap_or_default();
                let folder = &before[..before.rfind('/').map_or(0, |at| at + 1)];
                return Some(Place { path: format!("{folder}{location}"), ..self.clone() });
            }
        };
        let tls = uri.scheme_str() == Some("https");
        let host = uri.host()?.trim_matches(['[', ']']).to_owned();
        let path = uri.path_and_query().map_or("/", |path| path.as_str()).to_owned();
        Some(Place { tls, host, port: uri.port_u16().unwrap_or(if tls { 443 } else { 80 }), path })
    }
}

/// Errors: no answer, in Go's words.
pub async fn get(mut place: Place, headers: &[HTTPHeader], timeout: Duration, agent: &str) -> Result<Answer, String> {
    let asked = tokio::time::timeout(timeout, last_answer(&mut place, headers, agent)).await;
    let late = || Err("context deadline exceeded (Client.Timeout exceeded while awaiting headers)".to_owned());
    asked.unwrap_or_else(|_| late()).map_err(|error| format!("Get {:?}: {error}", place.url()))
}

async fn last_answer(place: &mut Place, headers: &[HTTPHeader], agent: &str) -> Result<Answer, String> {
    for _ in 0..MAX_REQUESTS {
        let answer = ask(place, headers, agent).await?;
        let redirected = matches!(answer.status, 301 | 302 | 303 | 307 | 308);
        let next = answer.location.as_deref().filter(|_| redirected).and_then(|location| place.follow(location));
        match next.filter(|next| next.host == place.host) {
            Some(next) => *place = next,
            None => return Ok(answer),
        }
    }
    Err(format!("stopped after {MAX_REQUESTS} redirects"))
}

async fn ask(place: &Place, headers: &[HTTPHeader], agent: &str) -> Result<Answer, String> {
    let address = place.address();
    let stream = connect(&address).await?;
    let request = http::Request::get(&place.path).header("host", &address).header("user-agent", agent);
    let mut request = request.header("accept", "*/*").header("connection", "close");
    for header in headers {
        if let Some(headers) = request.headers_mut() {
            let name = http::HeaderName::try_from(&header.name).map_err(|e| e.to_string())?;
            headers.insert(name, http::HeaderValue::try_from(&header.value).map_err(|e| e.to_string())?);
        }
    }
    let request = request.body(Empty::<Bytes>::new()).map_err(|e| e.to_string())?;
    if place.tls {
        let config = machinery::tls::trusting_client();
        let name = rustls_pki_types::ServerName::try_from(place.host.clone()).map_err(|e| e.to_string())?;
        let stream = tokio_rustls::TlsConnector::from(config).connect(name, stream).await.map_err(|e| e.to_string())?;
        send(TokioIo::new(stream), request).await
    } else {
        send(TokioIo::new(stream), request).await
    }
}

async fn send<I>(io: I, request: http::Request<Empty<Bytes>>) -> Result<Answer, String>
where
    I: hyper::rt::Read + hyper::rt::Write + Unpin + Send + 'static,
{
    let (mut sender, connection) = hyper::client::conn::http1::handshake(io).await.map_err(|e| e.to_string())?;
    let driver = tokio::spawn(connection);
    let response =
        sender.send_request(request).await.map_err(|e| if e.is_incomplete_message() { "EOF".to_owned() } else { e.to_string() })?;
    let status = response.status().as_u16();
    let location = response.headers().get("location").and_then(|value| value.to_str().ok()).map(str::to_owned);
    // Read to the end, so that the server sees a client that listens.
    let body = Limited::new(response.into_body(), MAX_BODY).collect().await;
    let body = body.map(|body| String::from_utf8_lossy(&body.to_bytes()).into_owned()).unwrap_or_else(|error| {
        tracing::trace!(%error, "a probe's body was cut");
        String::new()
    });
    driver.abort();
    Ok(Answer { status, body, location })
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    fn place(path: &str) -> Place {
        Place { tls: false, host: "10.0.0.1".into(), port: 8080, path: path.into() }
    }

    #[test]
    fn redirects_lead_as_a_browser_reads_them() {
        let at = |tls, host: &str, port, path: &str| Some(Place { tls, host: host.into(), port, path: path.into() });
        let cases = [
            ("/healthz?full", at(false, "10.0.0.1", 8080, "/healthz?full")),
            ("ready", at(false, "10.0.0.1", 8080, "/a/ready")),
            ("https://10.0.0.1/x", at(true, "10.0.0.1", 443, "/x")),
            ("//10.0.0.2:81", at(false, "10.0.0.2", 81, "/")),
            ("http://[fd00::1]:81/x", at(false, "fd00::1", 81, "/x")),
            ("http://", None),
        ];
        for (location, expected) in cases {
            assert_eq!(place("/a/b?c=/d").follow(location), expected, "{location}");
        }
    }

    /// Answers each request with the redirect that its path names, and any other path with "here".
    async fn server() -> u16 {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        tokio::spawn(async move {
            loop {
                let (mut stream, _) = listener.accept().await.unwrap();
                let mut bytes = vec![0; 4096];
                let read = stream.read(&mut bytes).await.unwrap();
                let text = String::from_utf8_lossy(&bytes[..read]).into_owned();
                let path = text.split(' ').nth(1).unwrap();
                let to = if path == "/round" { Some(path) } else { path.split_once("to=").map(|(_, to)| to) };
                let answer = match to {
                    Some(to) => format!("HTTP/1.1 302 Found\r\nlocation: {to}\r\ncontent-length: 4\r\n\r\naway"),
                    None => "HTTP/1.1 200 OK\r\ncontent-length: 4\r\n\r\nhere".to_owned(),
                };
                stream.write_all(answer.as_bytes()).await.unwrap();
            }
        });
        port
    }

    #[tokio::test]
    async fn only_redirects_to_the_same_host_are_followed() {
        let port = server().await;
        let ask = async |path: &str| {
            let place = Place { tls: false, host: "127.0.0.1".into(), port, path: path.into() };
            get(place, &[], Duration::from_secs(5), "test").await.map(|answer| (answer.status, answer.body))
        };
        assert_eq!(ask("/").await, Ok((200, "here".into())));
        assert_eq!(ask("/?to=/x").await, Ok((200, "here".into())));
        assert_eq!(ask("/?to=http://127.0.0.2/x").await, Ok((302, "away".into())));
        assert_eq!(ask("/round").await.unwrap_err().split(": ").last(), Some("stopped after 10 redirects"));
    }
}
