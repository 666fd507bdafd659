//! A DNS server on loopback whose answers a test changes, and the files of `/etc` by which a process finds it.

use std::net::Ipv4Addr;
use std::path::Path;
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use hickory_server::Server;
use hickory_server::net::runtime::Time;
use hickory_server::proto::op::{Header, HeaderCounts, Metadata, ResponseCode};
use hickory_server::proto::rr::{RData, Record, RecordType};
use hickory_server::server::{Request, RequestHandler, ResponseHandler, ResponseInfo};
use hickory_server::zone_handler::MessageResponseBuilder;
use tempfile::TempDir;
use tokio::net::{TcpListener, UdpSocket};
use tokio::sync::watch;

/// What the server says about every name.
#[derive(Clone, Debug)]
pub(crate) enum Answer {
    /// It has these addresses.
    Addresses(Vec<Ipv4Addr>),
    /// An error.
    Error(ResponseCode),
    /// Nothing.
    Silence,
}

/// The server, which ends with the value.
pub(crate) struct DnsServer {
    /// The network of its address; the other addresses of it are free for the test.
    network: [u8; 3],
    etc: TempDir,
    answer: watch::Sender<Answer>,
    questions: Arc<AtomicUsize>,
    _server: Server<Handler>,
}

struct Handler {
    answer: watch::Receiver<Answer>,
    questions: Arc<AtomicUsize>,
}

impl DnsServer {
    /// Starts on port 53, the only one that the system's resolver asks. `None` where this process may not do that, or may not
    /// give another one files of its own: both need root.
    #[expect(clippy::print_stderr, reason = "what is skipped must be seen")]
    pub(crate) async fn start() -> Option<Self> {
        let network = [127, rand::random(), rand::random_range(1..=255)];
        let [a, b, c] = network;
        let address = Ipv4Addr::new(a, b, c, 1);
        let may_mount = Command::new("unshare").args(["--mount", "true"]).output();
        let udp = UdpSocket::bind((address, 53)).await;
        let (Ok(udp), true) = (udp, may_mount.is_ok_and(|tried| tried.status.success())) else {
            eprintln!("SKIPPED: port 53 and mount namespaces need root");
            return None;
        };
        let tcp = TcpListener::bind((address, 53)).await.unwrap();
        let etc = tempfile::tempdir().unwrap();
        let resolver = format!("nameserver {address}\noptions timeout:1 attempts:1\n");
        std::fs::write(etc.path().join("resolv.conf"), resolver).unwrap();
        std::fs::write(etc.path().join("nsswitch.conf"), "hosts: files dns\n").unwrap();
        let (answer, answers) = watch::channel(Answer::Silence);
        let questions = Arc::new(AtomicUsize::new(0));
        let mut server = Server::new(Handler { answer: answers, questions: questions.clone() });
        server.register_socket(udp);
        server.register_listener(tcp, Duration::from_secs(5), 64);
        Some(Self { network, etc, answer, questions, _server: server })
    }

    /// The files by which a process finds it.
    pub(crate) fn etc(&self) -> &Path {
        self.etc.path()
    }

    /// An address of this machine that is the test's alone.
    pub(crate) fn host(&self, number: u8) -> Ipv4Addr {
        let [a, b, c] = self.network;
        Ipv4Addr::new(a, b, c, number)
    }

    /// What it says from now on.
    pub(crate) fn says(&self, answer: Answer) {
        self.answer.send_replace(answer);
    }

    /// Questions so far.
    pub(crate) fn questions(&self) -> usize {
        self.questions.load(Ordering::SeqCst)
    }
}

#[tonic::async_trait]
impl RequestHandler for Handler {
    async fn handle_request<R: ResponseHandler, T: Time>(
        &self,
        request: &Request,
        mut response: R,
    ) -> ResponseInfo {
        let answer = self.answer.borrow().clone();
        self.questions.fetch_add(1, Ordering::SeqCst);
        let asked = request.request_info().unwrap().query;
        let mut metadata = Metadata::response_from_request(&request.metadata);
        let mut records = vec![];
        match answer {
            Answer::Silence => {
                return Header { metadata, counts: HeaderCounts::default() }.into();
            }
            Answer::Error(code) => metadata.response_code = code,
            // It has no IPv6 addresses.
            Answer::Addresses(addresses) if asked.query_type() == RecordType::A => {
                let record = |ip| Record::from_rdata(asked.name().into(), 0, RData::from(ip));
                records.extend(addresses.into_iter().map(record));
            }
            Answer::Addresses(_) => {}
        }
        let message = MessageResponseBuilder::from_message_request(request);
        response.send_response(message.build(metadata, &records, [], [], [])).await.unwrap()
    }
}
