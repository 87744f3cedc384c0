//! Showing what is measured: `GET /metrics`, for Prometheus and for whoever looks with `curl`.
//!
//! ```text
//!   server ── add(source) ──┐
//!   daemon ── add(source) ──┴─> Exporter <── serve ── hyper, HTTP/1 <── Prometheus
//! ```
//!
//! Two kinds of figures. What happens is counted where it happens, in atomics made once. What can be asked (how many, how old)
//! is asked when somebody looks, and the answer kept for a moment ([`Asked`]): a second count of what the database already
//! knows would be right until the day it matters.
//!
//! The text is OpenMetrics for a client that says it takes that, else the older Prometheus text format; [`classic`] is the
//! difference. Nobody is asked for a key: what is shown are numbers, names of daemons and owners, and states. Nothing here
//! knows what is measured; `server::metrics` and `daemon::metrics` do.

use std::{
    convert::Infallible,
    fmt,
    future::Future,
    pin::Pin,
    sync::{Arc, Mutex, PoisonError, Weak},
    time::Duration,
};

use hyper::{Method, Request, Response, StatusCode, header, server::conn::http1, service::service_fn};
use hyper_util::rt::{TokioIo, TokioTimer};
use prometheus_client::{
    collector::Collector,
    encoding::{DescriptorEncoder, EncodeMetric as _, MetricEncoder, text::encode_registry},
    metrics::{
        MetricType,
        counter::Counter,
        family::Family,
        gauge::{ConstGauge, Gauge},
        histogram::exponential_buckets,
    },
    registry::{Registry, Unit},
};
use tokio::{
    net::{TcpListener, TcpStream},
    sync::Semaphore,
    time::Instant,
};
use tracing::Instrument as _;

use super::lifecycle::Shutdown;

/// Where the metrics are.
pub const PATH: &str = "/metrics";
/// How old an answer may be that is asked for rather than counted: two Prometheus servers cost what one does.
const FRESH: Duration = Duration::from_secs(1);
/// Asking again waits for this many times what asking took, so that it takes a twentieth of one connection at most.
const REST: u32 = 20;
/// The longest such wait.
const REST_LIMIT: Duration = Duration::from_secs(60);
/// What an answer may take: Prometheus gives a scrape ten seconds.
const ASK_WITHIN: Duration = Duration::from_secs(5);
/// Connections at a time: a few Prometheus servers and a person. Those beyond are closed at once.
const MAX_CONNECTIONS: usize = 32;
/// What a client may take to say what it wants, and how long a connection that wants nothing is kept.
const PATIENCE: Duration = Duration::from_secs(120);
/// Bytes of a request.
const MAX_REQUEST: usize = 16 * 1024;
/// The wait after a connection could not be accepted: it is for want of file descriptors.
const ACCEPT_AGAIN: Duration = Duration::from_millis(200);

/// The type of the OpenMetrics text.
const OPENMETRICS: &str = "application/openmetrics-text";

/// Text that comes when it has been asked for.
pub type Text<'a> = Pin<Box<dyn Future<Output = String> + Send + 'a>>;

/// Something that is measured.
pub trait Source: Send + Sync + 'static {
    /// How it stands, as OpenMetrics text without its last line.
    fn text(&self) -> Text<'_>;
}

/// What is shown. Clones share it. It keeps nothing alive: what is measured goes when its owner does.
#[derive(Clone, Default)]
pub struct Exporter(Arc<Mutex<Vec<Weak<dyn Source>>>>);

impl fmt::Debug for Exporter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Exporter({} sources)", self.sources().len())
    }
}

impl Exporter {
    /// Shows this as well, for as long as it lives.
    pub fn add<S: Source>(&self, source: &Arc<S>) {
        let source: Weak<S> = Arc::downgrade(source);
        self.0.lock().unwrap_or_else(PoisonError::into_inner).push(source);
    }

    fn sources(&self) -> Vec<Arc<dyn Source>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).iter().filter_map(Weak::upgrade).collect()
    }

    /// Everything, as OpenMetrics; `None` while nothing is measured yet.
    pub async fn text(&self) -> Option<String> {
        let sources = self.sources();
        if sources.is_empty() {
            return None;
        }
        let mut text = String::new();
        for source in sources {
            text.push_str(&source.text().await);
        }
        text.push_str("# EOF\n");
        Some(text)
    }

    /// Serves until the shutdown asks for the end. A scrape that is cut by it is made up for by the next.
    pub async fn serve(self, listener: TcpListener, shutdown: Shutdown) {
        let room = Arc::new(Semaphore::new(MAX_CONNECTIONS));
        loop {
            let accepted = tokio::select! {
                () = shutdown.soft.cancelled() => return,
                accepted = listener.accept() => accepted,
            };
            let stream = match accepted {
                Ok((stream, _)) => stream,
                Err(error) => {
                    tracing::warn!(%error, "cannot accept a connection for metrics");
                    tokio::time::sleep(ACCEPT_AGAIN).await;
                    continue;
                }
            };
            let Ok(place) = Arc::clone(&room).try_acquire_owned() else {
                tracing::debug!("too many connections for metrics; closing one");
                continue;
            };
            let (exporter, soft) = (self.clone(), shutdown.soft.clone());
            let connection = async move {
                let _place = place;
                tokio::select! {
                    () = soft.cancelled() => {}
                    () = exporter.connection(stream) => {}
                }
            };
            shutdown.spawn(connection.instrument(tracing::debug_span!("scrape")));
        }
    }

    async fn connection(self, stream: TcpStream) {
        let service = service_fn(|request: Request<hyper::body::Incoming>| {
            let exporter = self.clone();
            async move { Ok::<_, Infallible>(exporter.answer(&request).await) }
        });
        let served = http1::Builder::new()
            .timer(TokioTimer::new())
            .header_read_timeout(PATIENCE)
            .max_buf_size(MAX_REQUEST)
            .serve_connection(TokioIo::new(stream), service)
            .await;
        if let Err(error) = served {
            tracing::debug!(%error, "a connection for metrics broke");
        }
    }

    async fn answer<B>(&self, request: &Request<B>) -> Response<String> {
        if request.uri().path() != PATH {
            return plain(StatusCode::NOT_FOUND, format!("nothing is here; the metrics are at {PATH}\n"));
        }
        if !matches!(*request.method(), Method::GET | Method::HEAD) {
            let mut refusal = plain(StatusCode::METHOD_NOT_ALLOWED, "metrics can only be read: use GET\n".to_owned());
            refusal.headers_mut().insert(header::ALLOW, header::HeaderValue::from_static("GET, HEAD"));
            return refusal;
        }
        let begun = Instant::now();
        let Some(text) = self.text().await else {
            return plain(StatusCode::SERVICE_UNAVAILABLE, "nothing is measured yet: it is starting\n".to_owned());
        };
        tracing::debug!(bytes = text.len(), took_us = micros(begun.elapsed()), "scraped");
        let accepts = |value: &header::HeaderValue| value.to_str().is_ok_and(|value| value.contains(OPENMETRICS));
        if request.headers().get_all(header::ACCEPT).iter().any(accepts) {
            return typed(StatusCode::OK, "application/openmetrics-text; version=1.0.0; charset=utf-8", text);
        }
        typed(StatusCode::OK, "text/plain; version=0.0.4; charset=utf-8", classic(&text))
    }
}

fn plain(status: StatusCode, text: String) -> Response<String> {
    typed(status, "text/plain; charset=utf-8", text)
}

fn typed(status: StatusCode, content_type: &'static str, text: String) -> Response<String> {
    let mut response = Response::new(text);
    *response.status_mut() = status;
    response.headers_mut().insert(header::CONTENT_TYPE, header::HeaderValue::from_static(content_type));
    response
}

/// A time in whole microseconds, for a field of a log.
pub fn micros(span: Duration) -> u64 {
    u64::try_from(span.as_micros()).unwrap_or(u64::MAX)
}

/// OpenMetrics text in the format before it: there a counter's type is that of its samples' name, which ends in `_total`, an
/// info is a gauge, and `# UNIT` and `# EOF` are not known.
pub fn classic(text: &str) -> String {
    let mut classic = String::with_capacity(text.len());
    let mut help = None;
    for line in text.lines() {
        if let Some(rest) = line.strip_prefix("# HELP ") {
            help = rest.split_once(' ').map(|(_, help)| help);
        } else if let Some((name, kind)) = line.strip_prefix("# TYPE ").and_then(|rest| rest.split_once(' ')) {
            let (suffix, kind) = match kind {
                "counter" => ("_total", "counter"),
                "info" => ("_info", "gauge"),
                "unknown" => ("", "untyped"),
                other => ("", other),
            };
            if let Some(help) = help.take() {
                classic.push_str(&format!("# HELP {name}{suffix} {help}\n"));
            }
            classic.push_str(&format!("# TYPE {name}{suffix} {kind}\n"));
        } else if !line.starts_with("# ") {
            classic.push_str(line);
            classic.push('\n');
        }
    }
    classic
}

/// A registry as OpenMetrics text without its last line.
pub fn encode(registry: &Registry) -> String {
    let mut text = String::new();
    if let Err(error) = encode_registry(&mut text, registry) {
        // A string takes whatever is written to it: this is a mistake in what was to be written.
        tracing::error!(%error, "metrics cannot be written");
    }
    text
}

// === what is counted ===

/// A counter for each word of a closed list. All are there from the start: what never happened is 0, not absent, so that a
/// first time is seen as a rise.
pub fn counters<const N: usize>(
    registry: &mut Registry,
    name: &str,
    help: &str,
    label: &'static str,
    words: [&'static str; N],
) -> [Counter; N] {
    let family = Family::<[(&'static str, &'static str); 1], Counter>::default();
    registry.register(name, help, family.clone());
    words.map(|word| family.get_or_create_owned(&[(label, word)]))
}

/// A counter.
pub fn counter(registry: &mut Registry, name: &str, help: &str) -> Counter {
    let counter = Counter::default();
    registry.register(name, help, counter.clone());
    counter
}

/// A gauge.
pub fn gauge(registry: &mut Registry, name: &str, help: &str) -> Gauge {
    let gauge = Gauge::default();
    registry.register(name, help, gauge.clone());
    gauge
}

/// How long something took.
#[derive(Clone, Debug)]
pub struct Seconds(prometheus_client::metrics::histogram::Histogram);

impl Seconds {
    /// From `first`, each bucket `factor` times the one before, `length` of them.
    pub fn new(first: f64, factor: f64, length: u16) -> Self {
        Self(prometheus_client::metrics::histogram::Histogram::new(exponential_buckets(first, factor, length)))
    }

    /// From half a millisecond, a disk's own time, to 16 s, when whoever waits has given up.
    pub fn of_work() -> Self {
        Self::new(0.0005, 2.0, 16)
    }

    /// Shows it; `_seconds` is added to the name.
    pub fn register(&self, registry: &mut Registry, name: &str, help: &str) {
        registry.register_with_unit(name, help, Unit::Seconds, self.0.clone());
    }

    /// It took so long.
    pub fn observe(&self, took: Duration) {
        self.0.observe(took.as_secs_f64());
    }
}

/// How many there were at a time.
#[derive(Clone, Debug)]
pub struct Sizes(prometheus_client::metrics::histogram::Histogram);

impl Sizes {
    /// From one, doubling, `length` buckets.
    pub fn new(length: u16) -> Self {
        Self(prometheus_client::metrics::histogram::Histogram::new(exponential_buckets(1.0, 2.0, length)))
    }

    /// Shows it.
    pub fn register(&self, registry: &mut Registry, name: &str, help: &str) {
        registry.register(name, help, self.0.clone());
    }

    /// There were so many.
    #[expect(clippy::cast_precision_loss, reason = "a number of things, far below 2^52")]
    pub fn observe(&self, size: usize) {
        self.0.observe(size as f64);
    }
}

// === what is asked ===

/// Labels of a figure that is asked for: names and values.
pub type Labels = Vec<(&'static str, String)>;

/// Figures that are asked for, as they are at one look: what is gone is gone from the text as well. Shown in the order given.
#[derive(Debug)]
pub struct Figures {
    prefix: &'static str,
    all: Vec<Figure>,
}

#[derive(Debug)]
struct Figure {
    name: &'static str,
    help: &'static str,
    unit: Option<Unit>,
    values: Vec<(Labels, Value)>,
}

#[derive(Clone, Copy, Debug)]
enum Value {
    Number(u64),
    Seconds(f64),
}

impl Figures {
    /// None yet; all names begin with this.
    pub fn new(prefix: &'static str) -> Self {
        Self { prefix, all: Vec::new() }
    }

    /// A number of things.
    pub fn number(&mut self, name: &'static str, help: &'static str, value: u64) {
        self.numbers(name, help, [(Labels::new(), value)]);
    }

    /// Numbers of things by their labels.
    pub fn numbers(&mut self, name: &'static str, help: &'static str, values: impl IntoIterator<Item = (Labels, u64)>) {
        let values = values.into_iter().map(|(labels, value)| (labels, Value::Number(value))).collect();
        self.all.push(Figure { name, help, unit: None, values });
    }

    /// A length of time; `_seconds` is added to the name.
    pub fn seconds(&mut self, name: &'static str, help: &'static str, value: Duration) {
        let values = vec![(Labels::new(), Value::Seconds(value.as_secs_f64()))];
        self.all.push(Figure { name, help, unit: Some(Unit::Seconds), values });
    }

    /// Bytes; `_bytes` is added to the name.
    pub fn bytes(&mut self, name: &'static str, help: &'static str, value: u64) {
        let values = vec![(Labels::new(), Value::Number(value))];
        self.all.push(Figure { name, help, unit: Some(Unit::Bytes), values });
    }

    /// As text.
    pub fn text(self) -> String {
        let mut registry = Registry::with_prefix(self.prefix);
        registry.register_collector(Box::new(self));
        encode(&registry)
    }
}

impl Collector for Figures {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> fmt::Result {
        for Figure { name, help, unit, values } in &self.all {
            let mut metric = encoder.encode_descriptor(name, &format!("{help}."), unit.as_ref(), MetricType::Gauge)?;
            match values.as_slice() {
                // Without braces around nothing.
                [(labels, value)] if labels.is_empty() => value.encode(metric)?,
                values => {
                    for (labels, value) in values {
                        value.encode(metric.encode_family(labels)?)?;
                    }
                }
            }
        }
        Ok(())
    }
}

impl Value {
    fn encode(self, encoder: MetricEncoder<'_>) -> fmt::Result {
        match self {
            Self::Number(number) => ConstGauge::new(i64::try_from(number).unwrap_or(i64::MAX)).encode(encoder),
            Self::Seconds(seconds) => ConstGauge::new(seconds).encode(encoder),
        }
    }
}

/// The last answer to a question that costs something, for as long as it is fresh. Who looks while it is being asked waits for
/// the same answer.
#[derive(Debug)]
pub struct Asked<T> {
    last: tokio::sync::Mutex<Option<(Instant, Option<Arc<T>>)>>,
}

impl<T> Default for Asked<T> {
    fn default() -> Self {
        Self { last: tokio::sync::Mutex::default() }
    }
}

impl<T> Asked<T> {
    /// The answer; `None` where none comes in time, or it is an error, which is then in the log.
    pub async fn get<E: fmt::Display>(&self, ask: impl Future<Output = Result<T, E>>) -> Option<Arc<T>> {
        let mut last = self.last.lock().await;
        let begun = Instant::now();
        if let Some((until, answer)) = &*last
            && begun < *until
        {
            return answer.clone();
        }
        let answer = match tokio::time::timeout(ASK_WITHIN, ask).await {
            Ok(Ok(answer)) => Some(Arc::new(answer)),
            Ok(Err(error)) => {
                tracing::warn!(%error, "cannot ask for what is shown as metrics");
                None
            }
            Err(_) => {
                tracing::warn!("what is shown as metrics takes too long to ask for");
                None
            }
        };
        let rest = (begun.elapsed() * REST).clamp(FRESH, REST_LIMIT);
        *last = Some((Instant::now() + rest, answer.clone()));
        answer
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Fixed(Registry);

    impl Source for Fixed {
        fn text(&self) -> Text<'_> {
            Box::pin(async { encode(&self.0) })
        }
    }

    fn exporter() -> (Exporter, Arc<Fixed>) {
        let mut registry = Registry::with_prefix("makima");
        let [one, _] = counters(&mut registry, "messages", "Worry when", "outcome", ["applied", "fenced"]);
        one.inc_by(3);
        let took = Seconds::new(0.5, 2.0, 2);
        took.register(&mut registry, "commit", "How long");
        took.observe(Duration::from_millis(700));
        let exporter = Exporter::default();
        let fixed = Arc::new(Fixed(registry));
        exporter.add(&fixed);
        (exporter, fixed)
    }

    fn sorted(text: &str) -> Vec<&str> {
        let mut lines: Vec<&str> = text.lines().collect();
        lines.sort_unstable();
        lines
    }

    async fn ask(method: Method, path: &str, accept: Option<&str>) -> (StatusCode, String, String) {
        let mut request = Request::builder().method(method).uri(path);
        if let Some(accept) = accept {
            request = request.header(header::ACCEPT, accept);
        }
        let (exporter, _fixed) = exporter();
        let response = exporter.answer(&request.body(()).unwrap()).await;
        let kind = response.headers()[header::CONTENT_TYPE].to_str().unwrap().to_owned();
        (response.status(), kind, response.into_body())
    }

    /// What never happened is there as 0; a counter's type has the name of its samples.
    #[tokio::test]
    async fn without_a_wish_it_is_the_older_format() {
        let (status, kind, text) = ask(Method::GET, "/metrics?x=1", Some("text/html, */*")).await;
        assert_eq!((status, kind.as_str()), (StatusCode::OK, "text/plain; version=0.0.4; charset=utf-8"));
        let expected = "# HELP makima_commit_seconds How long.\n\
             # HELP makima_messages_total Worry when.\n\
             # TYPE makima_commit_seconds histogram\n\
             # TYPE makima_messages_total counter\n\
             makima_commit_seconds_bucket{le=\"+Inf\"} 1\n\
             makima_commit_seconds_bucket{le=\"0.5\"} 0\n\
             makima_commit_seconds_bucket{le=\"1.0\"} 1\n\
             makima_commit_seconds_count 1\n\
             makima_commit_seconds_sum 0.7\n\
             makima_messages_total{outcome=\"applied\"} 3\n\
             makima_messages_total{outcome=\"fenced\"} 0";
        assert_eq!(sorted(&text).join("\n"), expected);
    }

    #[tokio::test]
    async fn who_takes_openmetrics_gets_it() {
        let wish = "application/openmetrics-text;version=1.0.0;q=0.5,text/plain;version=0.0.4;q=0.3";
        let (status, kind, text) = ask(Method::GET, "/metrics", Some(wish)).await;
        assert_eq!((status, kind.split(';').next()), (StatusCode::OK, Some(OPENMETRICS)));
        assert!(text.contains("# TYPE makima_messages counter\n"), "{text}");
        assert!(text.contains("# UNIT makima_commit_seconds seconds\n"), "{text}");
        assert!(text.ends_with("\n# EOF\n"), "{text}");
    }

    #[tokio::test]
    async fn nothing_else_is_there() {
        for path in ["/", "/metrics/", "/metricsx"] {
            let (status, _, text) = ask(Method::GET, path, None).await;
            assert_eq!(status, StatusCode::NOT_FOUND, "{path}");
            assert!(text.contains("the metrics are at /metrics"), "{text}");
        }
        assert_eq!(ask(Method::POST, "/metrics", None).await.0, StatusCode::METHOD_NOT_ALLOWED);
        let (exporter, fixed) = exporter();
        drop(fixed);
        let empty = exporter.answer(&Request::get("/metrics").body(()).unwrap()).await;
        assert_eq!(empty.status(), StatusCode::SERVICE_UNAVAILABLE);
    }

    /// Asked once while the answer is fresh, and not again for twenty times as long as it took; a failure is not asked again
    /// at once either.
    #[tokio::test(start_paused = true)]
    async fn a_costly_question_is_asked_seldom() {
        let asked = Asked::<u32>::default();
        let count = std::cell::Cell::new(0);
        let count = &count;
        let ask = |cost: Duration| async move {
            tokio::time::sleep(cost).await;
            count.set(count.get() + 1);
            Ok::<u32, &str>(count.get())
        };
        let answer = async |cost| asked.get(ask(cost)).await.map(|answer| *answer);
        assert_eq!(answer(Duration::ZERO).await, Some(1));
        tokio::time::advance(FRESH / 2).await;
        assert_eq!(answer(Duration::ZERO).await, Some(1));
        tokio::time::advance(FRESH).await;
        assert_eq!(answer(Duration::from_millis(500)).await, Some(2));
        tokio::time::advance(Duration::from_secs(9)).await;
        assert_eq!(answer(Duration::ZERO).await, Some(2));
        tokio::time::advance(Duration::from_secs(2)).await;
        assert_eq!(answer(ASK_WITHIN * 2).await, None);
        tokio::time::advance(FRESH * 2).await;
        assert_eq!(answer(Duration::ZERO).await, None);
        tokio::time::advance(REST_LIMIT).await;
        assert_eq!(answer(Duration::ZERO).await, Some(3));
    }
}
