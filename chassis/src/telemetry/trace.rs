//! Distributed tracing: the trace that a call belongs to (W3C Trace Context), and the spans for a collector.
//!
//! OpenTelemetry's context of a call is current while the call is handled, and calls to other services carry it. Without
//! an exporter there are no spans, and the caller's context is passed on unchanged, so that a trace is not cut here. A
//! span has the name and the outcome of a call, never its content.

use std::env;
use std::future::Future;
use std::pin::Pin;
use std::sync::OnceLock;
use std::task::{Context as TaskContext, Poll};
use std::time::Duration;

use anyhow::{anyhow, bail, ensure};
use http::{HeaderMap, HeaderName, HeaderValue};
use opentelemetry::context::FutureExt;
use opentelemetry::propagation::{Extractor, Injector, TextMapPropagator};
use opentelemetry::trace::{SpanKind, Status as SpanStatus, TraceContextExt, Tracer, TracerProvider};
use opentelemetry::{Context, KeyValue};
use opentelemetry_otlp::SpanExporter;
use opentelemetry_sdk::Resource;
use opentelemetry_sdk::propagation::TraceContextPropagator;
use opentelemetry_sdk::trace::{SdkTracer, SdkTracerProvider};
use tonic::{Code, Status};
use tower::Service;
use tracing::Instrument;

/// How long the last spans may take to reach the collector when the process ends.
const FLUSH_MAX: Duration = Duration::from_secs(3);

/// Set once, if a collector is configured; without it nothing is recorded.
static TRACER: OnceLock<SdkTracer> = OnceLock::new();

/// Sends spans to a collector until it is dropped; then it sends the remaining ones, for a few seconds at most.
///
/// Ended spans wait in a bounded queue and are sent from threads of their own. While the collector is away or slow, the
/// queue fills, and spans that find it full are dropped; no call waits.
#[derive(Debug)]
pub struct Export {
    provider: SdkTracerProvider,
    /// Carries the connection to the collector, so that calls do not have to.
    runtime: Option<tokio::runtime::Runtime>,
}

/// Starts to export, if the standard environment variables ask for it: `OTEL_EXPORTER_OTLP_ENDPOINT` or
/// `OTEL_EXPORTER_OTLP_TRACES_ENDPOINT` names a collector, and neither `OTEL_SDK_DISABLED` nor
/// `OTEL_TRACES_EXPORTER=none` says otherwise. Sampler, limits, headers and resource come from their
/// variables, too; `service` is the name where `OTEL_SERVICE_NAME` does not say.
///
/// # Errors
/// A variable that asks for what is not there, with its name.
pub fn export(service: &'static str, version: &'static str) -> anyhow::Result<Option<Export>> {
    const ENDPOINTS: [&str; 2] = ["OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "OTEL_EXPORTER_OTLP_ENDPOINT"];
    const PROTOCOLS: [&str; 2] = ["OTEL_EXPORTER_OTLP_TRACES_PROTOCOL", "OTEL_EXPORTER_OTLP_PROTOCOL"];
    let said = |name: &&str| env::var(name).ok().filter(|value| !value.is_empty());
    let is_off = said(&"OTEL_SDK_DISABLED").is_some_and(|value| value.eq_ignore_ascii_case("true"));
    let exporter = said(&"OTEL_TRACES_EXPORTER").unwrap_or_else(|| "otlp".into());
    let Some(endpoint) = ENDPOINTS.iter().find(|name| said(name).is_some()) else { return Ok(None) };
    if is_off || exporter == "none" {
        return Ok(None);
    }
    ensure!(exporter == "otlp", "OTEL_TRACES_EXPORTER must be otlp or none");
    if let Some(protocol) = PROTOCOLS.iter().find(|name| said(name).is_some())
        && said(protocol).as_deref() != Some("grpc")
    {
        bail!("{protocol} must be grpc: OTLP over HTTP is not supported");
    }

    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build();
    let runtime = runtime.map_err(|error| anyhow!("no thread for the exporter of traces: {error}"))?;
    let exporter = {
        let _entered = runtime.enter();
        SpanExporter::builder().with_tonic().build()
    };
    let exporter = exporter.map_err(|error| {
        anyhow!("{endpoint} must be http://HOST:PORT, without TLS, of a collector: {error}")
    })?;
    let detected = Resource::builder().with_attribute(KeyValue::new("service.version", version));
    let is_named = said(&"OTEL_SERVICE_NAME").is_some()
        || said(&"OTEL_RESOURCE_ATTRIBUTES").is_some_and(|all| all.contains("service.name="));
    let resource = if is_named { detected } else { detected.with_service_name(service) };
    let provider =
        SdkTracerProvider::builder().with_batch_exporter(exporter).with_resource(resource.build()).build();
    // There is only one exporter in a process.
    drop(TRACER.set(provider.tracer(env!("CARGO_PKG_NAME"))));
    Ok(Some(Export { provider, runtime: Some(runtime) }))
}

impl Drop for Export {
    fn drop(&mut self) {
        if let Err(error) = self.provider.shutdown_with_timeout(FLUSH_MAX) {
            tracing::warn!(%error, "the last spans did not reach the collector");
        }
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
    }
}

/// The span of a call. If it is dropped before [`Span::end`], the call was cancelled.
#[derive(Debug)]
pub(crate) struct Span {
    context: Context,
    kind: SpanKind,
    is_open: bool,
}

impl Span {
    /// The span of a call that arrived, with the caller's as its parent.
    pub(crate) fn of_server(headers: &HeaderMap, path: &str, call_id: &str) -> Self {
        let caller = TraceContextPropagator::new().extract_with_context(&Context::new(), &Headers(headers));
        Self::start(SpanKind::Server, caller, path, Some(KeyValue::new("call.id", call_id.to_owned())))
    }

    /// The span of a call to another service, made in the current context.
    fn of_client(path: &str) -> Self {
        Self::start(SpanKind::Client, Context::current(), path, None)
    }

    fn start(kind: SpanKind, parent: Context, path: &str, more: Option<KeyValue>) -> Self {
        let Some(tracer) = TRACER.get() else { return Self { context: parent, kind, is_open: false } };
        let name = path.trim_start_matches('/').to_owned();
        let (service, method) = name.rsplit_once('/').unwrap_or(("", &name));
        let attributes = [
            KeyValue::new("rpc.system", "grpc"),
            KeyValue::new("rpc.service", service.to_owned()),
            KeyValue::new("rpc.method", method.to_owned()),
        ];
        let attributes = attributes.into_iter().chain(more).collect::<Vec<_>>();
        let span = tracer.span_builder(name).with_kind(kind.clone()).with_attributes(attributes);
        let context = parent.with_span(span.start_with_context(tracer, &parent));
        Self { context, kind, is_open: true }
    }

    /// The trace it belongs to, if any.
    pub(crate) fn trace_id(&self) -> Option<String> {
        trace_id(&self.context)
    }

    /// Runs the work for the call in its context, so that calls to other services are part of the trace.
    pub(crate) fn around<F: Future>(&self, work: F) -> impl Future<Output = F::Output> + use<F> {
        work.with_context(self.context.clone())
    }

    /// How it ended.
    pub(crate) fn end(&mut self, code: Code) {
        if std::mem::take(&mut self.is_open) {
            let span = self.context.span();
            span.set_attribute(KeyValue::new("rpc.grpc.status_code", i64::from(i32::from(code))));
            if is_failure(&self.kind, code) {
                span.set_status(SpanStatus::error(""));
            }
            span.end();
        }
    }

    /// Adds the context to what is sent.
    fn inject(&self, headers: &mut HeaderMap) {
        TraceContextPropagator::new().inject_context(&self.context, &mut HeadersMut(headers));
    }
}

impl Drop for Span {
    fn drop(&mut self) {
        self.end(Code::Cancelled);
    }
}

/// Errors of the caller are no failures of a server; to a client every code but OK is a failure.
fn is_failure(kind: &SpanKind, code: Code) -> bool {
    match (kind, code) {
        (_, Code::Ok) => false,
        (SpanKind::Server, code) => matches!(
            code,
            Code::Unknown
                | Code::DeadlineExceeded
                | Code::Unimplemented
                | Code::Internal
                | Code::Unavailable
                | Code::DataLoss
        ),
        _ => true,
    }
}

fn trace_id(context: &Context) -> Option<String> {
    let span = context.span();
    let known = span.span_context();
    known.is_valid().then(|| known.trace_id().to_string())
}

/// Runs background work in a trace of its own, under a name; its log lines carry the trace id. Without an exporter it only
/// runs the work.
pub async fn background_span<F: Future>(name: &'static str, work: F) -> F::Output {
    let Some(tracer) = TRACER.get() else { return work.await };
    let nothing = Context::new();
    let span = tracer.span_builder(name).with_kind(SpanKind::Internal).start_with_context(tracer, &nothing);
    let context = nothing.with_span(span);
    let lines = tracing::info_span!("background", name, trace_id = trace_id(&context));
    work.with_context(context).instrument(lines).await
}

/// A channel to another service on which each attempt of a call is a span and carries its context.
#[derive(Clone, Debug)]
pub struct Traced<C>(pub C);

impl<C, A, B> Service<http::Request<A>> for Traced<C>
where
    C: Service<http::Request<A>, Response = http::Response<B>>,
    C::Future: Send + 'static,
{
    type Response = C::Response;
    type Error = C::Error;
    type Future = Pin<Box<dyn Future<Output = Result<C::Response, C::Error>> + Send>>;

    fn poll_ready(&mut self, context: &mut TaskContext<'_>) -> Poll<Result<(), C::Error>> {
        self.0.poll_ready(context)
    }

    fn call(&mut self, mut request: http::Request<A>) -> Self::Future {
        let mut span = Span::of_client(request.uri().path());
        span.inject(request.headers_mut());
        let answer = self.0.call(request);
        Box::pin(async move {
            let answer = answer.await;
            span.end(match &answer {
                Ok(response) => code_of(response.headers()),
                // There is no connection.
                Err(_) => Code::Unavailable,
            });
            answer
        })
    }
}

/// How a call ended, as far as the head of the response says: there our servers put every failure, and
/// nothing if there is none.
pub(crate) fn code_of(headers: &HeaderMap) -> Code {
    headers.get(Status::GRPC_STATUS).map_or(Code::Ok, |code| Code::from_bytes(code.as_bytes()))
}

struct Headers<'h>(&'h HeaderMap);

impl Extractor for Headers<'_> {
    fn get(&self, key: &str) -> Option<&str> {
        self.0.get(key).and_then(|value| value.to_str().ok())
    }

    fn keys(&self) -> Vec<&str> {
        self.0.keys().map(HeaderName::as_str).collect()
    }
}

struct HeadersMut<'h>(&'h mut HeaderMap);

impl Injector for HeadersMut<'_> {
    fn set(&mut self, key: &str, value: String) {
        // An empty `tracestate` says nothing.
        if let (Ok(name), Ok(value)) = (HeaderName::try_from(key), HeaderValue::try_from(value))
            && !value.is_empty()
        {
            self.0.insert(name, value);
        }
    }
}
