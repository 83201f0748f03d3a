//! The sockets: a message in, a message out, over UDP and TCP.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use hickory_proto::op::{Edns, Message, MessageType, OpCode, ResponseCode};
use hickory_proto::rr::{DNSClass, Name};
use machinery::CancellationToken;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream, UdpSocket};
use tokio::sync::Semaphore;

use crate::answer::{Answer, Lookup, lookup, start_of_authority};
use crate::forward::Forwarder;
use crate::zone::Zone;

/// The largest datagram we send; larger ones may be lost in fragments.
const MAX_DATAGRAM: u16 = 1232;
const IDLE: Duration = Duration::from_secs(10);
const MAX_CONNECTIONS: usize = 256;

pub struct Server {
    pub zone: Arc<dyn Zone>,
    pub domain: Name,
    pub forwarder: Forwarder,
}

impl Server {
    /// Serves both transports on `address` until cancelled. Errors: the address is taken.
    pub async fn run(self: Arc<Self>, address: SocketAddr, token: CancellationToken) -> Result<()> {
        let udp = Arc::new(UdpSocket::bind(address).await.with_context(|| format!("cannot listen on UDP {address}"))?);
        let tcp = TcpListener::bind(address).await.with_context(|| format!("cannot listen on TCP {address}"))?;
        tracing::info!(%address, zone = %self.domain, "answering");
        tokio::select! {
            () = self.clone().datagrams(udp) => {}
            () = self.connections(tcp) => {}
            () = token.cancelled() => {}
        }
        Ok(())
    }

    async fn datagrams(self: Arc<Self>, socket: Arc<UdpSocket>) {
        let mut buffer = vec![0; 4096];
        loop {
            let (length, client) = match socket.recv_from(&mut buffer).await {
                Ok(received) => received,
                // A client that is gone comes back as an error of this socket.
                Err(error) => {
                    tracing::debug!("receiving: {error}");
                    continue;
                }
            };
            let Ok(request) = Message::from_vec(&buffer[..length]) else { continue };
            let limit = usize::from(request.max_payload().clamp(512, MAX_DATAGRAM));
            let (server, socket) = (self.clone(), socket.clone());
            tokio::spawn(async move {
                let response = server.respond(&request).await;
                if let Some(bytes) = encode(&response, limit)
                    && let Err(error) = socket.send_to(&bytes, client).await
                {
                    tracing::debug!(%client, "answering: {error}");
                }
            });
        }
    }

    async fn connections(self: Arc<Self>, listener: TcpListener) {
        let limit = Arc::new(Semaphore::new(MAX_CONNECTIONS));
        loop {
            let Ok(permit) = limit.clone().acquire_owned().await else { return };
            match listener.accept().await {
                Ok((stream, client)) => {
                    let server = self.clone();
                    tokio::spawn(async move {
                        if let Err(error) = server.conversation(stream).await {
                            tracing::debug!(%client, "conversation ended: {error}");
                        }
                        drop(permit);
                    });
                }
                Err(error) => tracing::debug!("accepting: {error}"),
            }
        }
    }

    async fn conversation(&self, mut stream: TcpStream) -> Result<()> {
        loop {
            let length = match tokio::time::timeout(IDLE, stream.read_u16()).await {
                Ok(Ok(length)) => length,
                _ => return Ok(()),
            };
            let mut buffer = vec![0; usize::from(length)];
            tokio::time::timeout(IDLE, stream.read_exact(&mut buffer)).await??;
            let response = self.respond(&Message::from_vec(&buffer)?).await;
            let Some(bytes) = encode(&response, usize::from(u16::MAX)) else { return Ok(()) };
            let length = u16::try_from(bytes.len())?;
            stream.write_all(&[&length.to_be_bytes(), bytes.as_slice()].concat()).await?;
        }
    }

    pub async fn respond(&self, request: &Message) -> Message {
        let mut response = Message::response(request.metadata.id, request.metadata.op_code);
        response.metadata.recursion_desired = request.metadata.recursion_desired;
        response.metadata.recursion_available = true;
        response.queries.clone_from(&request.queries);
        if request.edns.is_some() {
            let mut edns = Edns::new();
            edns.set_max_payload(MAX_DATAGRAM);
            response.set_edns(edns);
        }
        let refused = request.metadata.message_type != MessageType::Query || request.metadata.op_code != OpCode::Query;
        let ([query], false) = (request.queries.as_slice(), refused) else {
            response.metadata.response_code = if refused { ResponseCode::NotImp } else { ResponseCode::FormErr };
            return response;
        };
        if query.query_class() != DNSClass::IN {
            response.metadata.response_code = ResponseCode::Refused;
            return response;
        }
        match lookup(&*self.zone, &self.domain, query.name(), query.query_type()) {
            Lookup::Ours(answer) => self.fill(&mut response, answer, request).await,
            Lookup::Forward => return self.forward(request, response).await,
        }
        response
    }

    async fn fill(&self, response: &mut Message, answer: Answer, request: &Message) {
        response.metadata.authoritative = true;
        if !answer.exists {
            response.metadata.response_code = ResponseCode::NXDomain;
        }
        if answer.answers.is_empty() {
            response.add_authority(start_of_authority(&self.domain, 1));
        }
        response.add_answers(answer.answers);
        response.add_additionals(answer.additionals);
        let Some(target) = answer.elsewhere else { return };
        let mut question = request.clone();
        question.queries.iter_mut().for_each(|q| {
            q.set_name(target.clone());
        });
        match self.forwarder.resolve(&question, Instant::now()).await {
            Ok(found) => response.add_answers(found.answers),
            Err(error) => {
                tracing::debug!(%target, "cannot follow an external name: {error:#}");
                response
            }
        };
    }

    async fn forward(&self, request: &Message, mut failure: Message) -> Message {
        match self.forwarder.resolve(request, Instant::now()).await {
            Ok(answer) => answer,
            Err(error) => {
                tracing::debug!("cannot resolve {:?}: {error:#}", request.queries.first().map(|q| q.name().to_ascii()));
                failure.metadata.response_code = ResponseCode::ServFail;
                failure
            }
        }
    }
}

/// What does not fit is cut off and marked, so that the client comes back over TCP.
fn encode(response: &Message, limit: usize) -> Option<Vec<u8>> {
    let whole = response.to_vec().ok()?;
    if whole.len() <= limit { Some(whole) } else { response.truncate().to_vec().ok() }
}
