//! Many customers, while others attest.

use super::*;

const MANY: usize = 10_000;

/// Ten thousand customers of the direct-bill partner without acceptance, in key order. They are written
/// into the tables: by call it would take longer than everything that is tested here.
fn populate(cluster: &Cluster) -> Vec<Uuid> {
    let mut ids: Vec<_> = (0..MANY).map(|n| Uuid::new_v5(&DIRECT, &n.to_be_bytes())).collect();
    ids.sort_unstable();
    let at = "'2026-01-01 00:00:00.000000'";
    for (chunk, ids) in ids.chunks(500).enumerate() {
        let customers = ids.iter().map(|id| {
            format!("('{id}', 'Many', '{id}.example', 'FR', 'PUBLIC', 'A', 'B', 'a@b.example', '', '', {at}, 1, 1)")
        });
        let customers = customers.collect::<Vec<_>>().join(", ");
        let revision = |n: usize| 1_000_000 + chunk * 500 + n;
        let relationships = ids.iter().enumerate();
        let relationships =
            relationships.map(|(n, id)| format!("('{DIRECT}', '{id}', '', {at}, {})", revision(n)));
        let relationships = relationships.collect::<Vec<_>>().join(", ");
        cluster
            .agreements_sql(&format!(
                "INSERT INTO customer (id, company_name, domain, country, cloud, first_name, last_name, email,
                 phone, contact_salt, created_at, acceptance_revision, revision) VALUES {customers};
                 INSERT INTO relationship (partner_id, customer_id, reseller_id, established_at, revision)
                 VALUES {relationships};"
            ))
            .unwrap();
    }
    ids
}

fn ids_of(pages: &[ListBlockedCustomersResponse]) -> Vec<Uuid> {
    pages.iter().flat_map(|page| &page.customers).map(|row| row.customer_id.parse().unwrap()).collect()
}

/// Of ten thousand customers none is listed twice or lost while partners attest for others.
#[apply(each_backend)]
async fn ten_thousand_customers_are_each_listed_once(#[case] backend: Backend) {
    tests::needs_own!("databases that it writes to");
    tests::needs!(backend);
    /// Attested at a time, and how far apart the customers are.
    const AT_ONCE: usize = 8;
    const EVERY: usize = 20;
    let cluster = Cluster::on(backend).await;
    actions::register_partners(&cluster).await.unwrap();
    let direct = cluster.as_caller(fixtures::sales(DIRECT));
    let all = populate(&cluster);
    let attested: Vec<Uuid> = all.iter().copied().step_by(EVERY).collect();
    let throughout: BTreeSet<Uuid> = all.iter().copied().filter(|id| !attested.contains(id)).collect();

    let done = Cell::new(false);
    let write = async {
        // Spread over the keys, so that some lie before the page being read and some behind it.
        let mut order: Vec<_> = attested.iter().collect();
        order.sort_by_key(|id| Uuid::new_v5(&PROVIDER, id.as_bytes()));
        for together in order.chunks(AT_ONCE) {
            let now = Clock::system().now();
            let attested =
                together.iter().map(async |id| actions::attest(&direct, &id.to_string(), now).await);
            join_all(attested).await.into_iter().for_each(|answer| drop(answer.unwrap()));
        }
        done.set(true);
    };
    let read = async {
        let (mut lists, mut between) = (0, 0);
        while !done.get() || lists == 0 {
            let pages = pages(&direct, None, 500).await;
            let listed = ids_of(&pages);
            assert!(listed.is_sorted_by(|a, b| a < b), "{backend:?}: twice, or out of order");
            let listed: BTreeSet<_> = listed.into_iter().collect();
            let lost = throughout.difference(&listed).count();
            assert_eq!(lost, 0, "{backend:?}: blocked throughout and not listed");
            let still = attested.iter().filter(|id| listed.contains(id)).count();
            between += usize::from(0 < still && still < attested.len());
            lists += 1;
        }
        assert!(between > 0, "{backend:?}: of {lists} lists none was read while others attested");
    };
    tokio::join!(read, write);
    let after = pages(&direct, None, 500).await;
    assert!(ids_of(&after).iter().eq(&throughout), "{backend:?}: those that attested are gone, no others");
    assert_eq!(after.len(), throughout.len().div_ceil(500));

    // With few blocked among many a page ends before it is full, and the list still goes on.
    let columns = "id, kind, partner_id, customer_id, agreement_type, template_id, template_version, \
                   first_name, last_name, email, phone, contact_salt, agreed_at, recorded_at, \
                   recorded_by, revision";
    let last: Vec<_> = all.iter().copied().filter(|id| throughout.contains(id)).rev().take(3).collect();
    cluster
        .agreements_sql(&format!(
            "INSERT INTO acceptance ({columns}) SELECT id, 'ATTESTATION', '{DIRECT}', id,
             'MICROSOFT_CUSTOMER_AGREEMENT', '{CUSTOMER_AGREEMENT}', 2, 'A', 'B', 'a@b.example', '', '',
             created_at, created_at, id, 1 FROM customer WHERE id < '{}'
             AND id NOT IN (SELECT customer_id FROM acceptance)",
            last[2]
        ))
        .unwrap();
    let few = pages(&direct, None, 2).await;
    assert!(ids_of(&few).iter().eq(last.iter().rev()));
    let sizes: Vec<_> = few.iter().map(|page| page.customers.len()).collect();
    assert_eq!(sizes, [0, 0, 0, 0, 2, 1], "{backend:?}");
}
