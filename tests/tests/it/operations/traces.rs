//! One call is one trace, from the client through both services, as a collector sees it. The services are
//! processes of the real binaries, with the standard variables set.

use std::collections::HashMap;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use chassis::clock::Clock;
use opentelemetry_proto::tonic::collector::trace::v1::trace_service_server::{
    TraceService, TraceServiceServer,
};
use opentelemetry_proto::tonic::collector::trace::v1::{
    ExportTraceServiceRequest, ExportTraceServiceResponse,
};
use opentelemetry_proto::tonic::common::v1::any_value::Value;
use opentelemetry_proto::tonic::common::v1::{AnyValue, KeyValue};
use opentelemetry_proto::tonic::trace::v1::Span;
use opentelemetry_proto::tonic::trace::v1::span::SpanKind;
use tests::fixtures::{self, DIRECT, OFFICE};
use tests::processes::{Process, Processes, build_binaries};
use tests::{As, Backend, actions};
use tonic::transport::server::TcpIncoming;
use tonic::{Request, Response, Status};

/// Longer than anything here takes.
const LONG: Duration = Duration::from_secs(60);

const CREATE_ORDER: &str = "csp.order.v1.OrderService/CreateOrder";
const CHECK: &str = "csp.agreement.v1.EligibilityService/CheckEligibility";

/// The trace and the span that a client is in.
const TRACE: &str = "0af7651916cd43dd8448eb211c80319c";
const CLIENT: &str = "b7ad6b7169203331";

/// A collector: whatever it was sent, with the name of the service that sent it.
#[derive(Clone, Default)]
pub(crate) struct Collector(Arc<Mutex<Vec<(String, Span)>>>);

#[tonic::async_trait]
impl TraceService for Collector {
    async fn export(
        &self,
        request: Request<ExportTraceServiceRequest>,
    ) -> Result<Response<ExportTraceServiceResponse>, Status> {
        for sent in request.into_inner().resource_spans {
            let resource = sent.resource.unwrap_or_default();
            let service = attributes(&resource.attributes).remove("service.name").unwrap_or_default();
            let spans = sent.scope_spans.into_iter().flat_map(|scope| scope.spans);
            self.0.lock().unwrap().extend(spans.map(|span| (service.clone(), span)));
        }
        Ok(Response::new(ExportTraceServiceResponse::default()))
    }
}

impl Collector {
    /// Starts one and returns its address.
    pub(crate) async fn start() -> (Self, String) {
        let collector = Self::default();
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = format!("http://{}", listener.local_addr().unwrap());
        let server =
            tonic::transport::Server::builder().add_service(TraceServiceServer::new(collector.clone()));
        tokio::spawn(server.serve_with_incoming(TcpIncoming::from(listener)));
        (collector, address)
    }

    pub(crate) fn spans(&self) -> Vec<(String, Span)> {
        self.0.lock().unwrap().clone()
    }

    /// The spans of a trace by service, kind and name.
    fn of_trace(&self, trace: &str) -> HashMap<(String, SpanKind, String), Span> {
        let spans = self.spans().into_iter().filter(|(_, span)| hex(&span.trace_id) == trace);
        spans.map(|(service, span)| ((service, span.kind(), span.name.clone()), span)).collect()
    }
}

/// Has a service export, and only at its end, so that everything is there once it has stopped.
pub(crate) fn export_to(service: &mut Process, address: &str) {
    service.set_variable("OTEL_EXPORTER_OTLP_ENDPOINT", address);
    service.set_variable("OTEL_BSP_SCHEDULE_DELAY", "3600000");
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn attributes(of: &[KeyValue]) -> HashMap<String, String> {
    let text = |value: &Option<AnyValue>| match value.as_ref().and_then(|value| value.value.as_ref()) {
        Some(Value::StringValue(text)) => text.clone(),
        Some(Value::IntValue(number)) => number.to_string(),
        other => format!("{other:?}"),
    };
    of.iter().map(|attribute| (attribute.key.clone(), text(&attribute.value))).collect()
}

/// A partner with a customer that it has attested for.
async fn populated(processes: &Processes) -> (As, String) {
    actions::register_partners_as(&processes.as_caller(fixtures::operator())).await.unwrap();
    let direct = processes.as_caller(fixtures::sales(DIRECT));
    let customer = actions::create_customer(&direct, "Contoso", "FR", None).await.unwrap();
    actions::attest(&direct, &customer, Clock::system().now()).await.unwrap();
    (direct, customer)
}

/// Orders as part of the client's trace.
async fn order(direct: &As, customer: &str, flags: &str) {
    let mut request = Request::new(fixtures::new_order(customer, None, OFFICE, 1));
    let context = format!("00-{TRACE}-{CLIENT}-{flags}").parse().unwrap();
    request.metadata_mut().insert("traceparent", context);
    request.metadata_mut().insert("tracestate", "vendor=opaque".parse().unwrap());
    request.metadata_mut().insert("x-call-id", "the-call".parse().unwrap());
    direct.orders().create_order(request).await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn an_order_is_one_trace_from_the_client_to_the_gate() {
    tests::needs_own!("a collector that its services export to");
    build_binaries().unwrap();
    let (collector, address) = Collector::start().await;
    let mut processes = Processes::new(Backend::Sqlite).unwrap();
    export_to(&mut processes.agreements, &address);
    export_to(&mut processes.orders, &address);
    processes.orders.set_variable("OTEL_SERVICE_NAME", "orders-here");
    processes.start().await.unwrap();
    let (direct, customer) = populated(&processes).await;
    order(&direct, &customer, "01").await;
    let refused = direct.orders().create_order(fixtures::new_order("no id", None, OFFICE, 1)).await;
    assert!(refused.is_err());
    let delivered = async {
        while !processes.orders.metrics().await.unwrap().contains("purchase_reports_waiting 0\n")
            || !processes.agreements.metrics().await.unwrap().contains("mails_waiting 0\n")
        {}
    };
    tokio::time::timeout(LONG, delivered).await.unwrap();
    assert_eq!(collector.spans(), [], "nothing is sent before its time");
    processes.orders.stop().unwrap();
    processes.agreements.stop().unwrap();

    let trace = collector.of_trace(TRACE);
    let span = |service: &str, kind, name: &str| {
        let key = (service.to_owned(), kind, name.to_owned());
        trace.get(&key).unwrap_or_else(|| panic!("{key:?} is not in {:?}", trace.keys()))
    };
    let ordered = span("orders-here", SpanKind::Server, CREATE_ORDER);
    let asked = span("orders-here", SpanKind::Client, CHECK);
    let answered = span("agreement-svc", SpanKind::Server, CHECK);
    assert_eq!(trace.len(), 3, "{:?}", trace.keys());
    assert_eq!(hex(&ordered.parent_span_id), CLIENT);
    assert_eq!(asked.parent_span_id, ordered.span_id);
    assert_eq!(answered.parent_span_id, asked.span_id);
    for (span, service, method) in [
        (ordered, "csp.order.v1.OrderService", "CreateOrder"),
        (asked, "csp.agreement.v1.EligibilityService", "CheckEligibility"),
        (answered, "csp.agreement.v1.EligibilityService", "CheckEligibility"),
    ] {
        let mut said = attributes(&span.attributes);
        let id = said.remove("call.id");
        assert_eq!(id.as_deref(), Some("the-call").filter(|_| span.kind() == SpanKind::Server));
        let expected = [
            ("rpc.system", "grpc"),
            ("rpc.service", service),
            ("rpc.method", method),
            ("rpc.grpc.status_code", "0"),
        ];
        assert_eq!(said, expected.map(|(name, value)| (name.to_owned(), value.to_owned())).into());
        assert_eq!(span.trace_state, "vendor=opaque");
    }
    for said in [processes.agreements.said().unwrap(), processes.orders.said().unwrap()] {
        assert!(said.lines().any(|line| line.contains("the-call") && line.contains(TRACE)), "{said}");
    }

    // Background work is a trace of its own, and goes through both services as well.
    let spans = collector.spans();
    let reports: Vec<_> = spans.iter().filter(|(_, span)| span.name == "report a first purchase").collect();
    let [(_, report)] = reports[..] else { panic!("{reports:?}") };
    assert!(report.parent_span_id.is_empty());
    assert_ne!(hex(&report.trace_id), TRACE);
    assert_eq!(collector.of_trace(&hex(&report.trace_id)).len(), 3);
    assert!(spans.iter().any(|(_, span)| span.name == "send a mail"));
    // The span of a refusal has its code, and counts as the caller's fault.
    let refused = spans.iter().map(|(_, span)| span).find(|span| {
        span.name == CREATE_ORDER && attributes(&span.attributes)["rpc.grpc.status_code"] == "3"
    });
    assert_eq!(refused.unwrap().status.as_ref().map(|status| status.code), Some(0));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn a_trace_that_the_client_does_not_want_recorded_is_not() {
    tests::needs_own!("a collector that its services export to");
    build_binaries().unwrap();
    let (collector, address) = Collector::start().await;
    let mut processes = Processes::new(Backend::Sqlite).unwrap();
    export_to(&mut processes.agreements, &address);
    export_to(&mut processes.orders, &address);
    processes.start().await.unwrap();
    let (direct, customer) = populated(&processes).await;
    order(&direct, &customer, "00").await;
    processes.orders.stop().unwrap();
    processes.agreements.stop().unwrap();
    assert!(!collector.spans().is_empty(), "others were to be recorded");
    assert!(collector.of_trace(TRACE).is_empty());
    // Lines are found by it all the same.
    let said = processes.agreements.said().unwrap();
    assert!(said.lines().any(|line| line.contains("the-call") && line.contains(TRACE)), "{said}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn a_service_that_exports_nothing_passes_the_trace_on() {
    tests::needs_own!("a collector that its services export to");
    build_binaries().unwrap();
    let (collector, address) = Collector::start().await;
    let mut processes = Processes::new(Backend::Sqlite).unwrap();
    export_to(&mut processes.agreements, &address);
    processes.start().await.unwrap();
    let (direct, customer) = populated(&processes).await;
    order(&direct, &customer, "01").await;
    processes.agreements.stop().unwrap();
    let trace = collector.of_trace(TRACE);
    let answered = &trace[&("agreement-svc".to_owned(), SpanKind::Server, CHECK.to_owned())];
    assert_eq!(hex(&answered.parent_span_id), CLIENT);
    assert_eq!(answered.trace_state, "vendor=opaque");
    assert_eq!(trace.len(), 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn a_collector_that_is_away_stops_no_call() {
    tests::needs_own!("a collector that its services export to");
    build_binaries().unwrap();
    // One accepts connections and never says anything; at the other address there is no server.
    let silent = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let mut processes = Processes::new(Backend::Sqlite).unwrap();
    processes
        .agreements
        .set_variable("OTEL_EXPORTER_OTLP_ENDPOINT", &format!("http://{}", silent.local_addr().unwrap()));
    processes.orders.set_variable("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "http://127.0.0.1:1");
    for service in [&mut processes.agreements, &mut processes.orders] {
        // Few fit into the queue and all of them are sent at once, so that it is full and stuck soon.
        service.set_variable("OTEL_BSP_SCHEDULE_DELAY", "1");
        service.set_variable("OTEL_BSP_MAX_QUEUE_SIZE", "8");
        service.set_variable("OTEL_BSP_MAX_EXPORT_BATCH_SIZE", "8");
    }
    processes.start().await.unwrap();
    let (direct, customer) = populated(&processes).await;
    let calls = async {
        for _ in 0..50 {
            order(&direct, &customer, "01").await;
        }
    };
    tokio::time::timeout(LONG, calls).await.unwrap();
    let stop = tokio::task::spawn_blocking(move || {
        processes.orders.stop().unwrap();
        processes.agreements.stop().unwrap();
    });
    tokio::time::timeout(LONG, stop).await.unwrap().unwrap();
    drop(silent);
}
