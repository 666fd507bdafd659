//! Customers as they change: who receives the mails about them (ATT-9, CUS-1), and what the operator corrects (ROLE-4).

use std::fs;

use chassis::auth::Caller;
use proto::agreement::event::Change;
use proto::agreement::{
    Customer, EndRelationshipRequest, GetAttestationRequest, GetCustomerRequest, GetPartnerRequest,
    ListEventsRequest, NotificationState, Partner, RetryNotificationRequest, UpdateCustomerRequest,
    UpdatePartnerRequest,
};
use proto::types::Contact;
use rstest_reuse::apply;
use tests::assert::{eventually, refusal};
use tests::clients::bad_fields_of;
use tests::fixtures::{self, DIRECT, PROVIDER, new_attestation_by, person};
use tests::{Backend, Cluster, actions};
use tonic::{Code, Status};
use uuid::Uuid;

use super::mail::smtp_server::header;
use crate::each_backend;

/// A person at an address of its own.
fn at(name: &str) -> Contact {
    Contact { email: format!("{}@contoso.example", name.to_lowercase()), ..person(name) }
}

struct World {
    cluster: Cluster,
    customer_id: String,
}

impl World {
    /// The direct-bill partner's customer, which accepts an invitation of the provider's.
    async fn of_two_partners(backend: Backend) -> Self {
        let (cluster, direct) = actions::start_with_partners(backend).await;
        let customer_id = actions::create_customer(&direct, "Contoso", "FR", None).await.unwrap();
        let world = Self { cluster, customer_id };
        let provider = world.cluster.as_caller(fixtures::sales(PROVIDER));
        let invited = actions::invite(&provider, None, None).await.unwrap();
        let admin = world.cluster.as_caller(world.admin());
        admin.signatures().accept_invitation(fixtures::acceptance(&invited, None)).await.unwrap();
        world
    }

    fn admin(&self) -> Caller {
        fixtures::admin(self.customer_id.parse().unwrap())
    }

    async fn seen_by(&self, caller: Caller) -> Customer {
        let request = GetCustomerRequest { customer_id: self.customer_id.clone() };
        let seen = self.cluster.as_caller(caller).customers().get_customer(request).await.unwrap();
        seen.into_inner().customer.unwrap()
    }

    async fn update(&self, caller: Caller, change: UpdateCustomerRequest) -> Result<Customer, Status> {
        let seen = self.seen_by(caller.clone()).await;
        let request = UpdateCustomerRequest {
            request_id: fixtures::request_id(),
            customer_id: self.customer_id.clone(),
            etag: seen.etag,
            ..change
        };
        let updated = self.cluster.as_caller(caller).customers().update_customer(request).await?;
        Ok(updated.into_inner().customer.unwrap())
    }

    async fn name_contact(&self, caller: Caller, contact: &Contact) -> Customer {
        let is_customer = caller.tenant_id.to_string() == self.customer_id;
        let company_name = if is_customer { String::new() } else { "Contoso".into() };
        let primary_contact = Some(contact.clone());
        let change = UpdateCustomerRequest { company_name, primary_contact, ..Default::default() };
        self.update(caller, change).await.unwrap()
    }

    /// Attests and waits until the mail has been written or given up.
    async fn attest(&self, partner: Uuid, agreed: &str) -> String {
        let as_partner = self.cluster.as_caller(fixtures::sales(partner));
        let request = new_attestation_by(&self.customer_id, person(agreed));
        let attested = as_partner.attestations().create_attestation(request).await.unwrap();
        let id = attested.into_inner().attestation.unwrap().attestation_id;
        self.settled(partner, &id).await;
        id
    }

    async fn settled(&self, partner: Uuid, id: &str) -> (NotificationState, String) {
        let as_partner = self.cluster.as_caller(fixtures::sales(partner));
        eventually("the mail is sent or given up", async || {
            let request = GetAttestationRequest { attestation_id: id.to_owned() };
            let read = as_partner.attestations().get_attestation(request).await.unwrap().into_inner();
            let known = read.attestation.unwrap().notification.unwrap();
            let is_settled = known.state() != NotificationState::Queued;
            is_settled.then(|| (known.state(), known.last_failure))
        })
        .await
    }

    /// To whom the mail about an attestation went.
    fn addressee(&self, id: &str) -> String {
        let mail = fs::read_to_string(self.cluster.mail_folder().join(format!("{id}.eml"))).unwrap();
        header(&mail, "To").to_owned()
    }

    /// The mails to an address that announce no attestation.
    async fn notices_to(&self, contact: &Contact, count: usize) -> Vec<String> {
        let written = || {
            // There is no folder before the first mail.
            let files = fs::read_dir(self.cluster.mail_folder()).into_iter().flatten();
            let files = files.map(|file| file.unwrap().path());
            let mails = files.filter(|path| path.extension().is_some_and(|end| end == "eml"));
            let mails = mails.map(|path| fs::read_to_string(path).unwrap());
            let notice =
                mails.filter(|mail| header(mail, "To") == contact.email && !mail.contains("Version"));
            notice.collect::<Vec<_>>()
        };
        eventually("the replaced contact gets a notice", async || {
            let found = written();
            (found.len() >= count).then_some(())
        })
        .await;
        written()
    }
}

/// ATT-9. No partner decides, or sees, where the announcements of another one go; the customer's administrator decides
/// for all of them. An address that is replaced gets a notice.
#[apply(each_backend)]
async fn mails_go_to_the_contact_of_the_attesting_partner_or_the_customers_own(#[case] backend: Backend) {
    tests::needs_own!("mails in a folder");
    tests::needs!(backend);
    let world = World::of_two_partners(backend).await;
    let (tania, quentin, olivia) = (fixtures::contact(), at("Quentin"), at("Olivia"));

    // The provider has named no contact, and that of the other partner is not its own.
    assert_eq!(world.seen_by(fixtures::sales(PROVIDER)).await.primary_contact, None);
    let of_provider = world.attest(PROVIDER, "Ada").await;
    let given_up = world.settled(PROVIDER, &of_provider).await;
    assert_eq!(given_up, (NotificationState::DeadLetter, "NO_CONTACT".into()));
    let named = world.name_contact(fixtures::sales(PROVIDER), &quentin).await;
    assert_eq!((named.primary_contact, named.partner_contacts), (Some(quentin.clone()), vec![]));
    let retry = RetryNotificationRequest {
        request_id: fixtures::request_id(),
        attestation_id: of_provider.clone(),
        validate_only: false,
    };
    let provider = world.cluster.as_caller(fixtures::sales(PROVIDER));
    provider.attestations().retry_notification(retry).await.unwrap();
    assert_eq!(world.settled(PROVIDER, &of_provider).await.0, NotificationState::Sent);
    assert_eq!(world.addressee(&of_provider), quentin.email);

    let of_direct = world.attest(DIRECT, "Ada").await;
    assert_eq!(world.addressee(&of_direct), tania.email);
    assert_eq!(world.seen_by(fixtures::sales(DIRECT)).await.primary_contact, Some(tania.clone()));

    // The customer sees both, and decides for both.
    for viewer in [world.admin(), fixtures::operator()] {
        let seen = world.seen_by(viewer).await;
        let contacts: Vec<_> =
            seen.partner_contacts.into_iter().map(|of| (of.partner_id, of.contact)).collect();
        let expected = [(DIRECT, &tania), (PROVIDER, &quentin)];
        assert_eq!(contacts, expected.map(|(id, contact)| (id.to_string(), Some(contact.clone()))));
        assert_eq!(seen.primary_contact, None);
    }
    let named = world.name_contact(world.admin(), &olivia).await;
    assert_eq!(named.primary_contact, Some(olivia.clone()));
    for partner in [DIRECT, PROVIDER] {
        let id = world.attest(partner, "Grace").await;
        assert_eq!(world.addressee(&id), olivia.email, "{partner}");
    }
    for replaced in [&tania, &quentin] {
        let [notice] = &world.notices_to(replaced, 1).await[..] else {
            panic!("not one notice: {replaced:?}")
        };
        assert!(
            notice.contains("Un administrateur de Contoso") && !notice.contains(&olivia.email),
            "{notice}"
        );
    }
    assert_eq!(world.seen_by(fixtures::sales(DIRECT)).await.primary_contact, Some(tania.clone()));

    // A partner that changes its contact takes nothing from one that receives nothing through it.
    world.name_contact(fixtures::sales(DIRECT), &at("Dora")).await;
    let id = world.attest(DIRECT, "Ada").await;
    assert_eq!(world.addressee(&id), olivia.email);
    world.name_contact(world.admin(), &at("Oscar")).await;
    assert_eq!(world.notices_to(&olivia, 1).await.len(), 1);
    assert_eq!(world.notices_to(&tania, 1).await.len(), 1);
}

/// ATT-9. A partner that names another contact gives notice to the one before, and the other partners do not learn of it.
#[apply(each_backend)]
async fn a_partners_change_of_its_contact_is_announced_and_recorded_for_itself(#[case] backend: Backend) {
    tests::needs_own!("mails in a folder");
    tests::needs!(backend);
    let world = World::of_two_partners(backend).await;
    world.name_contact(fixtures::sales(DIRECT), &at("Dora")).await;
    let [notice] = &world.notices_to(&fixtures::contact(), 1).await[..] else { panic!("not one notice") };
    assert!(notice.contains("Northwind Direct a d=C3=A9sign=C3=A9 un autre contact"), "{notice}");
    let changes = async |viewer: Caller| {
        let request = ListEventsRequest { customer_id: world.customer_id.clone(), ..Default::default() };
        let events =
            world.cluster.as_caller(viewer).events().list_events(request).await.unwrap().into_inner();
        let updated = events.events.into_iter().filter_map(|event| match event.change {
            Some(Change::CustomerUpdated(change)) => Some((event.partner_id, change.contact_changed)),
            _ => None,
        });
        updated.collect::<Vec<_>>()
    };
    for viewer in [fixtures::sales(DIRECT), world.admin(), fixtures::operator()] {
        assert_eq!(changes(viewer).await, [(DIRECT.to_string(), true)]);
    }
    assert_eq!(changes(fixtures::sales(PROVIDER)).await, []);
    // The same again is no change.
    let before = world.seen_by(fixtures::sales(DIRECT)).await;
    assert_eq!(world.name_contact(fixtures::sales(DIRECT), &at("Dora")).await, before);
    assert_eq!(world.notices_to(&fixtures::contact(), 1).await.len(), 1);
}

/// Each caller changes what is its own: contacts are for the customer and its partners, corrections for the operator.
#[apply(each_backend)]
async fn a_caller_changes_of_a_customer_only_what_is_its_own(#[case] backend: Backend) {
    tests::needs!(backend);
    let world = World::of_two_partners(backend).await;
    let everything = UpdateCustomerRequest {
        company_name: "Contoso".into(),
        domain: "another.example".into(),
        country: "DE".into(),
        primary_contact: Some(at("Dora")),
        ..Default::default()
    };
    let malformed = UpdateCustomerRequest {
        company_name: String::new(),
        domain: "-another".into(),
        country: "de".into(),
        primary_contact: None,
        ..Default::default()
    };
    for (caller, change, bad) in [
        (fixtures::sales(DIRECT), &everything, &["domain", "country"][..]),
        (world.admin(), &everything, &["company_name", "domain", "country"]),
        (fixtures::operator(), &everything, &["primary_contact"]),
        (fixtures::operator(), &malformed, &["company_name", "domain", "country"]),
    ] {
        let refused = world.update(caller, change.clone()).await.unwrap_err();
        assert_eq!(bad_fields_of(&refused), bad);
    }
}

/// A database of a version that kept one contact for all partners: it goes on, and each partner parts with it by itself.
#[apply(each_backend)]
async fn the_contact_of_an_older_version_counts_until_a_partner_sets_its_own(#[case] backend: Backend) {
    tests::needs_own!("databases that it writes to");
    tests::needs!(backend);
    let world = World::of_two_partners(backend).await;
    world.cluster.agreements_sql("DELETE FROM contact").unwrap();
    let tania = fixtures::contact();
    for partner in [DIRECT, PROVIDER] {
        assert_eq!(world.seen_by(fixtures::sales(partner)).await.primary_contact, Some(tania.clone()));
        assert_eq!(world.addressee(&world.attest(partner, "Ada").await), tania.email);
    }
    world.name_contact(fixtures::sales(PROVIDER), &at("Quentin")).await;
    assert_eq!(world.addressee(&world.attest(PROVIDER, "Grace").await), at("Quentin").email);
    assert_eq!(world.addressee(&world.attest(DIRECT, "Grace").await), tania.email);
}

/// ROLE-4. The operator corrects what was entered wrongly, under the etag, with an event, once for a request id; so a
/// domain that a former customer holds becomes free.
#[apply(each_backend)]
async fn the_operator_corrects_customers_and_partners(#[case] backend: Backend) {
    tests::needs!(backend);
    let (cluster, direct) = actions::start_with_partners(backend).await;
    let customer_id = actions::create_customer(&direct, "Contoso", "FR", None).await.unwrap();
    let world = World { cluster, customer_id };
    let correction = UpdateCustomerRequest {
        company_name: "Contoso SA".into(),
        domain: "Former.Contoso.example".into(),
        country: "DE".into(),
        ..Default::default()
    };
    // The former customer holds its domain.
    let end = EndRelationshipRequest {
        request_id: fixtures::request_id(),
        customer_id: world.customer_id.clone(),
        ..Default::default()
    };
    let direct = world.cluster.as_caller(fixtures::sales(DIRECT));
    direct.customers().end_relationship(end).await.unwrap();
    let taken = actions::create_customer(&direct, "Contoso", "FR", None).await.unwrap_err();
    assert_eq!(refusal(&taken), (Code::AlreadyExists, "DOMAIN_TAKEN".into()));

    let etag = world.seen_by(fixtures::operator()).await.etag;
    let corrected = world.update(fixtures::operator(), correction.clone()).await.unwrap();
    let particulars = (&*corrected.company_name, &*corrected.domain, &*corrected.country);
    assert_eq!(particulars, ("Contoso SA", "former.contoso.example", "DE"));
    assert_eq!(world.update(fixtures::operator(), correction.clone()).await.unwrap(), corrected);
    let operator = world.cluster.as_caller(fixtures::operator());
    let stale = UpdateCustomerRequest {
        request_id: fixtures::request_id(),
        customer_id: world.customer_id.clone(),
        etag,
        ..correction
    };
    let stale = operator.customers().update_customer(stale).await.unwrap_err();
    assert_eq!(refusal(&stale), (Code::Aborted, "ETAG_STALE".into()));
    let request = ListEventsRequest { customer_id: world.customer_id.clone(), ..Default::default() };
    let events = operator.events().list_events(request).await.unwrap().into_inner().events;
    let Some(Change::CustomerUpdated(change)) = events.last().unwrap().change.clone() else {
        panic!("{events:?}")
    };
    assert_eq!(
        (&*change.domain, &*change.country, change.contact_changed),
        ("former.contoso.example", "DE", false)
    );
    assert_eq!(
        events.iter().filter(|event| matches!(event.change, Some(Change::CustomerUpdated(_)))).count(),
        1
    );

    // The domain is free, and taken again.
    let customer_id = actions::create_customer(&direct, "Contoso", "FR", None).await.unwrap();
    let back = UpdateCustomerRequest {
        company_name: "Contoso SA".into(),
        domain: "contoso.example".into(),
        ..Default::default()
    };
    let taken = world.update(fixtures::operator(), back).await.unwrap_err();
    assert_eq!(refusal(&taken), (Code::AlreadyExists, "DOMAIN_TAKEN".into()));
    assert_ne!(customer_id, world.customer_id);

    let partner = async || {
        let request = GetPartnerRequest { partner_id: DIRECT.to_string() };
        let read = operator.partners().get_partner(request).await.unwrap();
        read.into_inner().partner.unwrap()
    };
    let before = partner().await;
    let request = UpdatePartnerRequest {
        request_id: fixtures::request_id(),
        partner_id: DIRECT.to_string(),
        etag: before.etag.clone(),
        name: "Northwind Direct Ltd".into(),
        validate_only: false,
        support: None,
    };
    let first = operator.partners().update_partner(request.clone()).await.unwrap().into_inner();
    let renamed = first.partner.clone().unwrap();
    assert_eq!(renamed, Partner { name: request.name.clone(), etag: renamed.etag.clone(), ..before.clone() });
    assert_ne!(renamed.etag, before.etag);
    assert_eq!(partner().await, renamed);
    assert_eq!(operator.partners().update_partner(request.clone()).await.unwrap().into_inner(), first);
    let stale = UpdatePartnerRequest { request_id: fixtures::request_id(), ..request.clone() };
    let stale = operator.partners().update_partner(stale).await.unwrap_err();
    assert_eq!(refusal(&stale), (Code::Aborted, "ETAG_STALE".into()));
    let unknown = Uuid::from_u128(0xdead).to_string();
    let unknown = UpdatePartnerRequest { request_id: fixtures::request_id(), partner_id: unknown, ..request };
    let unknown = operator.partners().update_partner(unknown).await.unwrap_err();
    assert_eq!(refusal(&unknown), (Code::NotFound, "RESOURCE_NOT_FOUND".into()));
}
