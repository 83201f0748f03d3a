//! Names outside of the cluster: asked of the machine's resolvers and remembered for a while.
//!
//! Each question goes out from a socket of its own, so that an answer cannot be forged by guessing sixteen bits.
//! Upstream: CoreDNS plugins forward and cache.

use std::collections::HashMap;
use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use hickory_proto::op::{Message, Query, ResponseCode};
use hickory_proto::rr::{RData, RecordType};
use parking_lot::Mutex;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpStream, UdpSocket};

const TIMEOUT: Duration = Duration::from_secs(2);
/// Rounds over all resolvers before giving up.
const ROUNDS: usize = 2;
/// Seconds; longer-lived answers are asked again.
const MAX_TTL: u32 = 30;
const MAX_ENTRIES: usize = 10_000;

/// Question, and whether DNSSEC records were asked for.
type CacheKey = (Query, bool);

struct Cached {
    message: Message,
    stored: Instant,
    ttl: u32,
}

pub struct Forwarder {
    upstreams: Vec<SocketAddr>,
    cache: Mutex<HashMap<CacheKey, Cached>>,
}

/// The `nameserver` lines of a resolv.conf, without loopback ones: that would be ourselves.
pub fn nameservers(resolv_conf: &str) -> Vec<SocketAddr> {
    let lines = resolv_conf.lines().filter_map(|line| line.trim().strip_prefix("nameserver"));
    let ips = lines.filter_map(|rest| rest.split('%').next()?.trim().parse::<IpAddr>().ok());
    ips.filter(|ip| !ip.is_loopback()).map(|ip| SocketAddr::new(ip, 53)).collect()
}

impl Forwarder {
    pub fn new(upstreams: Vec<SocketAddr>) -> Self {
        Forwarder { upstreams, cache: Mutex::default() }
    }

    /// The answer to the request's question, with the request's id. Errors: no resolver, or none that answers.
    pub async fn resolve(&self, request: &Message, now: Instant) -> Result<Message> {
        let query = request.queries.first().context("no question")?;
        let mut folded = query.clone();
        folded.set_name(query.name().to_lowercase());
        let dnssec = request.edns.as_ref().is_some_and(|e| e.flags().dnssec_ok);
        let key = (folded, dnssec);
        if let Some(mut message) = self.remembered(&key, now) {
            message.metadata.id = request.metadata.id;
            message.queries.clone_from(&request.queries);
            return Ok(message);
        }
        let answer = self.ask(request).await?;
        self.remember(key, &answer, now);
        Ok(answer)
    }

    async fn ask(&self, request: &Message) -> Result<Message> {
        ensure!(!self.upstreams.is_empty(), "no upstream resolver");
        let mut last = None;
        for upstream in std::iter::repeat_n(&self.upstreams, ROUNDS).flatten() {
            match exchange(*upstream, request).await {
                Ok(answer) => return Ok(answer),
                Err(error) => last = Some(error.context(format!("asking {upstream}"))),
            }
        }
        Err(last.context("no resolver was asked")?)
    }

    fn remembered(&self, key: &CacheKey, now: Instant) -> Option<Message> {
        let cache = self.cache.lock();
        let cached = cache.get(key)?;
        let age = u32::try_from(now.saturating_duration_since(cached.stored).as_secs()).unwrap_or(u32::MAX);
        if age >= cached.ttl {
            return None;
        }
        let mut message = cached.message.clone();
        let sections = [&mut message.answers, &mut message.authorities, &mut message.additionals];
        for record in sections.into_iter().flatten() {
            record.ttl = record.ttl.saturating_sub(age);
        }
        Some(message)
    }

    fn remember(&self, key: CacheKey, message: &Message, now: Instant) {
        let ttl = lifetime(message);
        if ttl == 0 || message.metadata.truncation {
            return;
        }
        let mut cache = self.cache.lock();
        if cache.len() >= MAX_ENTRIES {
            cache.retain(|_, c| now.saturating_duration_since(c.stored).as_secs() < u64::from(c.ttl));
        }
        if cache.len() < MAX_ENTRIES {
            cache.insert(key, Cached { message: message.clone(), stored: now, ttl });
        }
    }
}

/// Seconds for which the answer may be repeated; 0: not at all.
fn lifetime(message: &Message) -> u32 {
    let soa_minimum = message.authorities.iter().find_map(|record| match &record.data {
        RData::SOA(soa) => Some(soa.minimum.min(record.ttl)),
        _ => None,
    });
    let positive = message.answers.iter().filter(|r| r.record_type() != RecordType::OPT).map(|r| r.ttl).min();
    match message.metadata.response_code {
        ResponseCode::NoError => positive.or(soa_minimum).unwrap_or(0).min(MAX_TTL),
        ResponseCode::NXDomain => soa_minimum.unwrap_or(0).min(MAX_TTL),
        _ => 0,
    }
}

/// One question to one resolver, over TCP if the answer does not fit into a datagram.
async fn exchange(upstream: SocketAddr, request: &Message) -> Result<Message> {
    let mut question = Message::query();
    let id = question.metadata.id;
    question.metadata.recursion_desired = true;
    question.queries.clone_from(&request.queries);
    question.edns.clone_from(&request.edns);
    let bytes = question.to_vec()?;
    let mut answer = tokio::time::timeout(TIMEOUT, over_udp(upstream, &bytes, &question)).await.context("timed out")??;
    if answer.metadata.truncation {
        answer = tokio::time::timeout(TIMEOUT, over_tcp(upstream, &bytes)).await.context("timed out")??;
    }
    ensure!(answer.metadata.id == id, "an answer to another question");
    answer.metadata.id = request.metadata.id;
    Ok(answer)
}

async fn over_udp(upstream: SocketAddr, question: &[u8], asked: &Message) -> Result<Message> {
    let any: SocketAddr = if upstream.is_ipv4() { "0.0.0.0:0".parse()? } else { "[::]:0".parse()? };
    let socket = UdpSocket::bind(any).await?;
    socket.connect(upstream).await?;
    socket.send(question).await?;
    let mut buffer = vec![0; 65_535];
    loop {
        let length = socket.recv(&mut buffer).await?;
        match Message::from_vec(&buffer[..length]) {
            Ok(answer) if answer.metadata.id == asked.metadata.id && answer.queries == asked.queries => return Ok(answer),
            // Not ours: wait for the right one until the time is up.
            _ => {}
        }
    }
}

async fn over_tcp(upstream: SocketAddr, question: &[u8]) -> Result<Message> {
    let mut stream = TcpStream::connect(upstream).await?;
    let Ok(length) = u16::try_from(question.len()) else { bail!("the question is too long") };
    stream.write_all(&[&length.to_be_bytes(), question].concat()).await?;
    let mut buffer = vec![0; usize::from(stream.read_u16().await?)];
    stream.read_exact(&mut buffer).await?;
    Ok(Message::from_vec(&buffer)?)
}

#[cfg(test)]
mod tests {
    use std::str::FromStr;

    use hickory_proto::op::{MessageType, OpCode};
    use hickory_proto::rr::rdata::A;
    use hickory_proto::rr::{Name, Record};

    use super::*;

    #[test]
    fn resolv_conf() {
        let text = "search a.b\nnameserver 10.0.0.2\n nameserver 127.0.0.53\nnameserver fe80::1%eth0\noptions ndots:5\n";
        let found: Vec<String> = nameservers(text).iter().map(ToString::to_string).collect();
        assert_eq!(found, ["10.0.0.2:53", "[fe80::1]:53"]);
    }

    #[test]
    fn answers_age_in_the_cache() {
        let forwarder = Forwarder::new(Vec::new());
        let name = Name::from_str("example.com.").unwrap();
        let query = Query::query(name.clone(), RecordType::A);
        let mut message = Message::new(1, MessageType::Response, OpCode::Query);
        message.add_answer(Record::from_rdata(name, 20, RData::A(A::new(192, 0, 2, 1))));
        let now = Instant::now();
        forwarder.remember((query.clone(), false), &message, now);
        let later = forwarder.remembered(&(query.clone(), false), now + Duration::from_secs(15)).unwrap();
        assert_eq!(later.answers[0].ttl, 5);
        assert!(forwarder.remembered(&(query.clone(), false), now + Duration::from_secs(20)).is_none());
        assert!(forwarder.remembered(&(query, true), now).is_none());
    }
}
