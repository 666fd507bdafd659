//! Changes by many partners at once form one history.

use super::*;

#[derive(QueryableByName)]
struct EventRow {
    #[diesel(sql_type = BigInt)]
    revision: i64,
    #[diesel(sql_type = Timestamp)]
    recorded_at: NaiveDateTime,
    #[diesel(sql_type = Text)]
    body: String,
    #[diesel(sql_type = Text)]
    hash: String,
}

#[derive(QueryableByName)]
struct RevisionRow {
    #[diesel(sql_type = BigInt)]
    value: i64,
    #[diesel(sql_type = Text)]
    head: String,
}

/// Changes by many partners at once form one history without gaps or names.
#[apply(each_backend)]
async fn concurrent_changes_form_one_history(#[case] backend: Backend) {
    tests::needs_own!("databases that it writes to");
    tests::needs!(backend);
    const PARTNERS: usize = 4;
    const CUSTOMERS: usize = 5;
    let cluster = start(backend).await;
    let operator = cluster.as_caller(fixtures::operator());
    let service = cluster.as_caller(fixtures::service());
    let mut partners = vec![];
    for n in 0..PARTNERS {
        let id = Uuid::from_u128(0xd100 + n as u128);
        let kind = PartnerKind::DirectBill;
        actions::register_partner(&operator, id, &format!("Partner {n}"), kind, Cloud::Public).await.unwrap();
        partners.push((id, cluster.as_caller(fixtures::sales(id))));
    }
    let (partners, service) = (&partners, &service);
    let histories = (0..PARTNERS * CUSTOMERS).map(|n| async move {
        let (partner_id, partner) = &partners[n % PARTNERS];
        let request = CreateCustomerRequest {
            primary_contact: Some(nameable("Primary", n)),
            ..new_customer_with_attestation(&format!("Customer {n}"))
        };
        let created = partner.customers().create_customer(request).await.unwrap().into_inner();
        let customer = created.customer.unwrap();
        let update = UpdateCustomerRequest {
            request_id: fixtures::request_id(),
            customer_id: customer.customer_id.clone(),
            etag: customer.etag,
            company_name: format!("Renamed {n}"),
            primary_contact: Some(nameable("Updated", n)),
            ..UpdateCustomerRequest::default()
        };
        let first = new_attestation_by(&customer.customer_id, nameable("First", n));
        // A refusal burns no number, and what was only tried leaves none.
        let tried = CreateAttestationRequest { validate_only: true, ..first.clone() };
        let unknown = CreateAttestationRequest {
            template_id: Uuid::from_u128(7).to_string(),
            ..new_attestation_by(&customer.customer_id, nameable("Refused", n))
        };
        let bought = ReportPurchaseRequest {
            request_id: fixtures::request_id(),
            customer_id: customer.customer_id.clone(),
            payer_id: partner_id.to_string(),
            purchased_at: Some(timestamp(Clock::system().now())),
            validate_only: false,
        };
        let (mut a, mut b, mut c) = (partner.attestations(), partner.attestations(), partner.attestations());
        let (mut customers, mut gate) = (partner.customers(), service.gate());
        let (tried, attested, refused, updated, reported) = tokio::join!(
            a.create_attestation(tried),
            b.create_attestation(first),
            c.create_attestation(unknown),
            customers.update_customer(update),
            gate.report_purchase(bought),
        );
        tried.ok();
        attested.unwrap();
        assert_eq!(refused.unwrap_err().code(), Code::NotFound);
        updated.unwrap();
        reported.unwrap();
        let second = new_attestation_by(&customer.customer_id, nameable("Second", n));
        partner.attestations().create_attestation(second).await.unwrap();
    });
    let publishing = async {
        for _ in 0..3 {
            operator
                .templates()
                .publish_template_version(fixtures::new_version(CUSTOMER_AGREEMENT))
                .await
                .unwrap();
        }
    };
    tokio::join!(join_all(histories), publishing);
    check_history(&mut behind(cluster.agreements_database()), PARTNERS * CUSTOMERS);
}

/// A person whose particulars cannot occur anywhere by chance.
fn nameable(first_name: &str, n: usize) -> Contact {
    Contact {
        first_name: format!("Xq{first_name}{n}x"),
        last_name: format!("Zyzzyva{n}x"),
        email: format!("someone.{n}@mailbox.example"),
        phone: format!("+33 (0) 1-{n:04}"),
    }
}

fn check_history(connection: &mut Connection, customers: usize) {
    let events = "SELECT revision, recorded_at, body, hash FROM event ORDER BY revision";
    let events: Vec<EventRow> = query!(&mut *connection, c => sql_query(events).load(c)).unwrap();
    let last = "SELECT value, head FROM revision";
    let last: RevisionRow = query!(connection, c => sql_query(last).get_result(c)).unwrap();

    let mut previous = String::new();
    for (number, event) in (1..).zip(&events) {
        assert_eq!(event.revision, number, "from 1, without gaps");
        let micros = event.recorded_at.and_utc().timestamp_micros();
        let chained = format!("{previous}\n{}\n{micros}\n{}", event.revision, event.body);
        previous = Sha256::digest(chained).iter().map(|byte| format!("{byte:02x}")).collect();
        assert_eq!(event.hash, previous, "event {number} does not follow from the one before it");
        for personal in ["Xq", "Zyzzyva", "mailbox", "someone", "@", "+33"] {
            assert!(!event.body.contains(personal), "{personal} is in {}", event.body);
        }
    }
    assert_eq!((last.value, &last.head), (events.len() as i64, &previous));

    // For each customer: created, related, renamed, with another contact, first purchase, three times attested.
    let of_customers = events.iter().filter(|event| event.body.contains(r#""customer_id""#)).count();
    assert_eq!(of_customers, 8 * customers);
}
