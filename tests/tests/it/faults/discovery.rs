//! order-svc follows the addresses that the name of agreement-svc has in DNS.

use std::net::SocketAddr;

use hickory_server::proto::op::ResponseCode;
use tests::assert::{eventually, refused};
use tests::fixtures::{self, DIRECT};
use tests::processes::{Process, Processes, build_binaries};
use tests::{As, Backend, actions};
use tokio_util::sync::CancellationToken;
use tonic::Code;

use super::dns::{Answer, DnsServer};

/// The checks that a replica of agreement-svc has answered.
async fn checks(replica: &Process) -> f64 {
    let metrics = replica.metrics().await.unwrap();
    let ok = r#"agreement_svc_calls_total{code="Ok",path="/csp.agreement.v1.EligibilityService/CheckEligibility"} "#;
    let line = metrics.lines().find_map(|line| line.strip_prefix(ok));
    line.unwrap().parse().unwrap()
}

/// The open connections of a process to an address.
fn connections(process: &Process, to: SocketAddr) -> usize {
    let SocketAddr::V4(to) = to else { panic!("{to} is no IPv4 address") };
    let to = format!("{:08X}:{:04X}", u32::from_le_bytes(to.ip().octets()), to.port());
    let files = std::fs::read_dir(format!("/proc/{}/fd", process.id().unwrap())).unwrap();
    // A file may be closed meanwhile.
    let sockets: Vec<_> = files
        .filter_map(|file| std::fs::read_link(file.ok()?.path()).ok())
        .filter_map(|link| Some(link.to_str()?.strip_prefix("socket:[")?.strip_suffix(']')?.to_owned()))
        .collect();
    let table = std::fs::read_to_string("/proc/net/tcp").unwrap();
    let is_open = |row: &&str| {
        let columns: Vec<&str> = row.split_whitespace().collect();
        columns[2] == to && columns[3] == "01" && sockets.iter().any(|socket| socket == columns[9])
    };
    table.lines().skip(1).filter(is_open).count()
}

/// Orders until it is stopped; none may fail.
async fn keep_ordering(direct: As, customer: String, stop: CancellationToken) {
    while !stop.is_cancelled() {
        actions::order(&direct, &customer, None, 1).await.unwrap();
    }
}

/// The addresses of the name are the replicas: each has one connection, a new one gets calls, one that vanished gets none, and
/// no call fails meanwhile. While DNS has no addresses, the last ones stay.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn order_svc_follows_the_addresses_of_a_name() {
    tests::needs_own!("replicas on addresses of their own");
    tests::needs!(Backend::Postgres);
    let Some(dns) = DnsServer::start().await else { return };
    build_binaries().unwrap();
    let mut processes = Processes::replicated().unwrap();
    let (mut second, _) = processes.replicas.take().unwrap();
    let Processes { agreements: first, orders, .. } = &mut processes;
    let port = first.socket_address().port();
    let [one, two] = [dns.host(2), dns.host(3)];
    first.listen_on(one, port);
    second.listen_on(two, port);
    orders.set_anew("--agreements", format!("http://agreements.example:{port}"));
    orders.set_anew("--subscriptions-max", "1000000");
    orders.replace_etc(dns.etc());
    dns.says(Answer::Addresses(vec![one]));
    first.start().await.unwrap();
    second.start().await.unwrap();
    orders.start().await.unwrap();

    actions::register_partners_as(&first.as_caller(fixtures::operator())).await.unwrap();
    let direct = first.as_caller(fixtures::sales(DIRECT));
    let customer = actions::create_customer(&direct, "Contoso", "FR", None).await.unwrap();
    actions::attest_now(&direct, &customer).await.unwrap();
    let direct = orders.as_caller(fixtures::sales(DIRECT));
    let connected = |orders: &Process| [one, two].map(|ip| connections(orders, (ip, port).into()));
    let replicas = async |orders: &Process| {
        let metrics = orders.metrics().await.unwrap();
        let count = metrics.lines().find_map(|line| line.strip_prefix("order_svc_agreements_replicas "));
        count.unwrap().parse::<usize>().unwrap()
    };
    actions::order(&direct, &customer, None, 1).await.unwrap();
    assert_eq!((connected(orders), replicas(orders).await), ([1, 0], 1));

    let stop = CancellationToken::new();
    let ordering = tokio::spawn(keep_ordering(direct.clone(), customer.clone(), stop.clone()));
    dns.says(Answer::Addresses(vec![one, two]));
    eventually("a new replica gets calls", async || (checks(&second).await > 0.0).then_some(())).await;
    assert_eq!((connected(orders), replicas(orders).await), ([1, 1], 2));

    dns.says(Answer::Addresses(vec![two]));
    let is_closed = async || (connected(orders) == [0, 1]).then_some(());
    eventually("the connection to a replica that vanished is closed", is_closed).await;
    let before = checks(first).await;
    let more_orders = async |second: &Process| {
        let before = checks(second).await;
        eventually("more orders", async || (checks(second).await > before + 20.0).then_some(())).await;
    };
    more_orders(&second).await;
    assert_eq!(checks(first).await, before, "a replica that vanished gets no calls");
    let is_followed = async || {
        let metrics = orders.metrics().await.unwrap();
        let behind = metrics.lines().find_map(|line| line.strip_prefix("order_svc_history_behind_seconds "));
        behind.unwrap().parse::<f64>().is_ok_and(|behind| behind < 3.0).then_some(())
    };
    eventually("the history comes from the other replica", is_followed).await;

    for outage in [
        Answer::Error(ResponseCode::ServFail),
        Answer::Error(ResponseCode::NXDomain),
        Answer::Addresses(vec![]),
        Answer::Silence,
    ] {
        let before = dns.questions();
        dns.says(outage.clone());
        // Two for each lookup: one of a lookup that had begun, those of one that has ended, and one of the next.
        let is_asked = async || (dns.questions() >= before + 4).then_some(());
        eventually("DNS is asked during its outage", is_asked).await;
        more_orders(&second).await;
        assert_eq!((connected(orders), replicas(orders).await), ([0, 1], 1), "{outage:?}");
    }
    stop.cancel();
    ordering.await.unwrap();

    // Unknown is no. A call that fails has the name looked up at once.
    second.kill().unwrap();
    let refusal = refused(actions::order(&direct, &customer, None, 1).await);
    assert_eq!(refusal, (Code::Unavailable, "GATE_UNAVAILABLE".to_owned()));
    dns.says(Answer::Addresses(vec![one]));
    let is_placed = async || actions::order(&direct, &customer, None, 1).await.ok();
    eventually("the replica that is back gets calls", is_placed).await;
    assert_eq!((connected(orders), replicas(orders).await), ([1, 0], 1));
}
