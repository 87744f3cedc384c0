//! What the bare model says, on the same transport as ours. A service by hand, because the project's protocol is for the
//! project.

use std::{
    convert::Infallible,
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};

use tokio_stream::wrappers::UnboundedReceiverStream;
use tonic::{
    Request, Response, Status, Streaming,
    body::Body,
    codegen::{BoxFuture, Service, http},
    server::NamedService,
    transport::{Channel, Endpoint},
};
use tonic_prost::ProstCodec;
use tower::service_fn;

use super::server::Hub;

/// A task, or the number of one.
#[derive(Clone, PartialEq, prost::Message)]
pub struct Job {
    /// Given by the server.
    #[prost(uint64, tag = "1")]
    pub id: u64,
    /// What it is about.
    #[prost(string, tag = "2")]
    pub text: String,
}

/// What an agent says: [`HELLO`], [`ACCEPTED`], [`COMPLETE`].
#[derive(Clone, PartialEq, prost::Message)]
pub struct Said {
    /// Which.
    #[prost(uint32, tag = "1")]
    pub what: u32,
    /// Of which task; with [`HELLO`], how many at once.
    #[prost(uint64, tag = "2")]
    pub id: u64,
    /// As much as a report has.
    #[prost(string, tag = "3")]
    pub text: String,
}

/// An agent is there.
pub const HELLO: u32 = 0;
/// The order is in its journal.
pub const ACCEPTED: u32 = 1;
/// The end is in its journal.
pub const COMPLETE: u32 = 2;

/// What the server says: an order, or that the end of a task is durable.
#[derive(Clone, PartialEq, prost::Message)]
pub struct Told {
    /// The order.
    #[prost(message, optional, tag = "1")]
    pub order: Option<Job>,
    /// The task whose end is durable.
    #[prost(uint64, tag = "2")]
    pub answered: u64,
}

/// What streams to agents.
pub type Orders = UnboundedReceiverStream<Result<Told, Status>>;

/// The server's side.
#[derive(Clone)]
pub struct Plane(pub Arc<Hub>);

impl NamedService for Plane {
    const NAME: &'static str = "bare.Plane";
}

impl Service<http::Request<Body>> for Plane {
    type Response = http::Response<Body>;
    type Error = Infallible;
    type Future = BoxFuture<Self::Response, Infallible>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: http::Request<Body>) -> Self::Future {
        let hub = Arc::clone(&self.0);
        Box::pin(async move {
            Ok(match request.uri().path() {
                "/bare.Plane/Create" => {
                    let create = service_fn(move |job: Request<Job>| {
                        let hub = Arc::clone(&hub);
                        async move { Ok::<_, Status>(Response::new(hub.create(job.into_inner()).await?)) }
                    });
                    tonic::server::Grpc::new(ProstCodec::<Job, Job>::default()).unary(create, request).await
                }
                "/bare.Plane/Agent" => {
                    let attach = service_fn(move |said: Request<Streaming<Said>>| {
                        let hub = Arc::clone(&hub);
                        async move { Ok::<_, Status>(Response::new(hub.attach(said.into_inner()))) }
                    });
                    tonic::server::Grpc::new(ProstCodec::<Told, Said>::default()).streaming(attach, request).await
                }
                "/bare.Plane/Echo" => {
                    let echo = service_fn(|said: Request<Streaming<Said>>| async {
                        Ok::<_, Status>(Response::new(said.into_inner()))
                    });
                    tonic::server::Grpc::new(ProstCodec::<Said, Said>::default()).streaming(echo, request).await
                }
                _ => {
                    let done = service_fn(move |_: Request<Job>| {
                        let job = Job { id: hub.done(), text: String::new() };
                        async { Ok::<_, Status>(Response::new(job)) }
                    });
                    tonic::server::Grpc::new(ProstCodec::<Job, Job>::default()).unary(done, request).await
                }
            })
        })
    }
}

// === the other side ===

/// Connects, as soon as somebody listens.
pub async fn connect(port: &str) -> Channel {
    let endpoint = Endpoint::from_shared(format!("http://127.0.0.1:{port}")).expect("an address").tcp_nodelay(true);
    for _ in 0..500 {
        if let Ok(channel) = endpoint.connect().await {
            return channel;
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    panic!("the bare model does not listen on port {port}");
}

/// Makes a task.
pub async fn create(channel: &Channel, job: Job) -> u64 {
    ask(channel, job, "/bare.Plane/Create").await
}

/// How many are done.
pub async fn done(channel: &Channel) -> u64 {
    ask(channel, Job::default(), "/bare.Plane/Done").await
}

async fn ask(channel: &Channel, job: Job, path: &'static str) -> u64 {
    let mut client = tonic::client::Grpc::new(channel.clone());
    client.ready().await.expect("a connection");
    let path = http::uri::PathAndQuery::from_static(path);
    let answer: Response<Job> =
        client.unary(Request::new(job), path, ProstCodec::<Job, Job>::default()).await.expect("an answer");
    answer.into_inner().id
}

/// Attaches an agent.
pub async fn attach(channel: &Channel, said: UnboundedReceiverStream<Said>) -> Streaming<Told> {
    let mut client = tonic::client::Grpc::new(channel.clone());
    client.ready().await.expect("a connection");
    let path = http::uri::PathAndQuery::from_static("/bare.Plane/Agent");
    let codec = ProstCodec::<Said, Told>::default();
    client.streaming(Request::new(said), path, codec).await.expect("a stream").into_inner()
}

/// Sends messages through the server and back, so many on the way at a time.
pub async fn echo(channel: &Channel, messages: u64, on_the_way: u64) {
    let (say, said) = tokio::sync::mpsc::unbounded_channel();
    let mut client = tonic::client::Grpc::new(channel.clone());
    client.ready().await.expect("a connection");
    let path = http::uri::PathAndQuery::from_static("/bare.Plane/Echo");
    let message = Said { what: COMPLETE, id: 0, text: "x".repeat(super::EVENT_BYTES) };
    (0..on_the_way).for_each(|_| say.send(message.clone()).expect("a stream"));
    let codec = ProstCodec::<Said, Said>::default();
    let stream = UnboundedReceiverStream::new(said);
    let mut back = client.streaming(Request::new(stream), path, codec).await.expect("a stream").into_inner();
    for _ in 0..messages {
        let message: Said = back.message().await.expect("the stream goes on").expect("a message");
        say.send(message).expect("a stream");
    }
}
