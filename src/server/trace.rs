//! Every call has a span, and whatever is logged on its way carries it: which method, with which key, for which owner.
//!
//! The key is named by its kind and id, never by its text; both are known once `auth` has looked, so they are filled in then.

use std::task::{Context, Poll};

use tonic::{
    body::Body,
    codegen::{Service, http},
};
use tracing::{Instrument as _, Span, field::Empty, instrument::Instrumented};

use super::auth::Caller;

/// Puts a span around every call; to be outside of everything that may log.
#[derive(Clone, Copy, Debug, Default)]
pub struct Layer;

impl<S> tower::Layer<S> for Layer {
    type Service = Traced<S>;

    fn layer(&self, inner: S) -> Traced<S> {
        Traced(inner)
    }
}

/// A service whose calls have spans.
#[derive(Clone, Debug)]
pub struct Traced<S>(S);

impl<S> Service<http::Request<Body>> for Traced<S>
where
    S: Service<http::Request<Body>>,
{
    type Response = S::Response;
    type Error = S::Error;
    type Future = Instrumented<S::Future>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Self::Error>> {
        self.0.poll_ready(cx)
    }

    fn call(&mut self, request: http::Request<Body>) -> Self::Future {
        let method = request.uri().path().trim_start_matches("/makima.v1.");
        let span = tracing::info_span!("rpc", method, key = Empty, owner = Empty);
        span.in_scope(|| self.0.call(request)).instrument(span)
    }
}

/// Says in the call's span who calls.
pub fn caller(caller: &Caller) {
    let span = Span::current();
    if span.is_disabled() {
        return;
    }
    match caller {
        Caller::Admin { key, acting_for } => {
            span.record("key", tracing::field::display(format_args!("admin:{key}")));
            if let Some(owner) = acting_for {
                span.record("owner", tracing::field::display(owner));
            }
        }
        Caller::Owner { key, owner } => {
            span.record("key", tracing::field::display(format_args!("owner:{key}")));
            span.record("owner", tracing::field::display(owner));
        }
        Caller::Daemon { key, owner } => {
            span.record("key", tracing::field::display(format_args!("daemon:{key}")));
            span.record("owner", tracing::field::display(owner));
        }
        Caller::Task { attempt, owner, .. } => {
            span.record("key", tracing::field::display(format_args!("task:{attempt}")));
            span.record("owner", tracing::field::display(owner));
        }
    }
}
