//! What a customer answers to an invitation besides yes, and what it learns before it answers.

use std::collections::HashMap;

use chassis::clock::Clock;
use proto::agreement::event::Change;
use proto::agreement::{
    AcceptInvitationRequest, CreateInvitationRequest, DeclineInvitationRequest, DeclineReason,
    GetCustomerRequest, GetInvitationRequest, Invitation, InvitationState, ListBlockedCustomersRequest,
    ListCustomerPartnersRequest, ListEventsRequest, PartnerKind, RegisterPartnerRequest, SupportContact,
    UpdateCustomerRequest, UpdatePartnerRequest,
};
use proto::types::{Cloud, ErrorReason};
use rstest_reuse::apply;
use tests::actions::{self, invite, sign};
use tests::assert::refusal;
use tests::fixtures::{self, DIRECT, acceptance};
use tests::{As, Backend, metadata_of, reason_of};
use tonic_types::StatusExt;
use uuid::Uuid;

use super::direct_sign::{
    admin_of, assert_ended, assert_nothing_since, invitation, invitations, not_found, status_of,
};
use crate::each_backend;

/// INV-5.
#[apply(each_backend)]
async fn a_customer_declines_with_a_reason(#[case] backend: Backend) {
    tests::needs!(backend);
    let (cluster, direct) = actions::start_with_partners(backend).await;
    let customer = actions::create_customer(&direct, "Contoso", "FR", None).await.unwrap();
    let admin = admin_of(&cluster, &customer);
    let invited = invite(&direct, Some(&customer), None).await.unwrap();
    let open = invite(&direct, None, None).await.unwrap();
    let decline = |invited: &Invitation, reason: DeclineReason| {
        let AcceptInvitationRequest { request_id, invitation_id, token, .. } = acceptance(invited, None);
        DeclineInvitationRequest {
            request_id,
            invitation_id,
            token,
            reason: reason.into(),
            validate_only: false,
        }
    };

    // Neither another customer nor one without the token declines it.
    let stranger = cluster.as_caller(fixtures::admin(Uuid::from_u128(0x4000_8000_0000_0bad_0000)));
    let wrong = DeclineInvitationRequest { token: "x".into(), ..decline(&invited, DeclineReason::Terms) };
    for (by, request) in [(&stranger, decline(&invited, DeclineReason::Terms)), (&admin, wrong)] {
        let unseen = by.signatures().decline_invitation(request).await.unwrap_err();
        assert_eq!(refusal(&unseen), not_found());
    }

    let declined = decline(&invited, DeclineReason::Terms);
    let declined = admin.signatures().decline_invitation(declined).await.unwrap().into_inner();
    let shown = declined.invitation.clone().unwrap();
    assert_eq!((shown.state(), shown.decline_reason()), (InvitationState::Declined, DeclineReason::Terms));
    assert_eq!(shown.recipient, None);
    // Again, the first reason stays.
    let again = decline(&invited, DeclineReason::Other);
    let again = admin.signatures().decline_invitation(again).await.unwrap().into_inner();
    assert_eq!(again.invitation, declined.invitation);
    assert_nothing_since(&cluster, declined.revision, again.revision).await;
    assert_ended(&admin, &invited, "DECLINED").await;
    assert_eq!(
        invitations(&direct, InvitationState::Declined).await,
        std::slice::from_ref(&invited.invitation_id)
    );
    let seen = invitation(&direct, &invited.invitation_id).await.unwrap();
    assert_eq!((seen.decline_reason(), seen.declined_at), (DeclineReason::Terms, shown.declined_at));

    // The partner sees it with the customers that it cannot buy for.
    let list = ListBlockedCustomersRequest { page_size: 500, ..Default::default() };
    let blocked = direct.gate().list_blocked_customers(list).await.unwrap().into_inner().customers;
    let blocked = blocked.into_iter().find(|blocked| blocked.customer_id == customer).unwrap();
    let seen = blocked.declined_invitation.unwrap();
    assert_eq!((seen.invitation_id, seen.reason), (invited.invitation_id, DeclineReason::Terms.into()));

    // Any company with the link may decline an open one. It does not become a customer.
    let request = decline(&open, DeclineReason::UnknownPartner);
    let declined = stranger.signatures().decline_invitation(request).await.unwrap().into_inner();
    assert_eq!(declined.invitation.unwrap().customer_id, "");
    assert_ended(&admin, &open, "DECLINED").await;
}

/// DIR-4, before it hurts: a page knows that the customer cannot sign before it asks.
#[apply(each_backend)]
async fn a_customer_learns_beforehand_that_it_cannot_sign(#[case] backend: Backend) {
    tests::needs!(backend);
    let (cluster, direct) = actions::start_with_partners(backend).await;
    let customer = actions::create_customer(&direct, "Contoso", "FR", None).await.unwrap();
    let admin = admin_of(&cluster, &customer);
    let invited = invite(&direct, Some(&customer), None).await.unwrap();
    let open = invite(&direct, None, None).await.unwrap();
    let shown = async |by: &As, invited: &Invitation| {
        let AcceptInvitationRequest { invitation_id, token, .. } = acceptance(invited, None);
        let request = GetInvitationRequest { invitation_id, token };
        by.signatures().get_invitation(request).await.unwrap().into_inner().sign_refusal
    };
    assert_eq!(shown(&admin, &invited).await, None);
    assert_eq!(status_of(&admin, &customer).await.sign_refusal, None);

    actions::attest(&direct, &customer, Clock::system().now()).await.unwrap();
    actions::report_purchase(&cluster, &customer, DIRECT, fixtures::now()).await.unwrap();
    // What is said beforehand is what signing is answered.
    let refused = sign(&admin, 2).await.unwrap_err();
    for refusal in [shown(&admin, &invited).await, shown(&admin, &open).await] {
        let refusal = refusal.unwrap();
        assert_eq!(refusal.reason(), ErrorReason::ContactPartner);
        assert_eq!((refusal.code, refusal.message.as_str()), (i32::from(refused.code()), refused.message()));
    }
    let status = status_of(&direct, &customer).await;
    assert_eq!(status.sign_refusal.unwrap().reason(), ErrorReason::ContactPartner);
    // A company that is no customer yet has bought nothing.
    let stranger = cluster.as_caller(fixtures::admin(Uuid::from_u128(0x4000_8000_0000_0bad_0001)));
    assert_eq!(shown(&stranger, &open).await, None);
}

/// INV-6: a partner's customers learn whom to ask, wherever they are sent to their partner.
#[apply(each_backend)]
async fn customers_learn_where_to_ask_their_partner(#[case] backend: Backend) {
    tests::needs!(backend);
    let (cluster, _) = actions::start_with_partners(backend).await;
    let operator = cluster.as_caller(fixtures::operator());
    let id = Uuid::from_u128(0x4000_8000_0000_0a5c_0000);
    let support = SupportContact { email: "help@asked.example".into(), ..SupportContact::default() };
    let request = RegisterPartnerRequest {
        request_id: fixtures::request_id(),
        partner_id: id.to_string(),
        name: "Asked Direct".into(),
        kind: PartnerKind::DirectBill.into(),
        cloud: Cloud::Public.into(),
        validate_only: false,
        support: Some(support.clone()),
    };
    let register = async |support: Option<SupportContact>| {
        let request =
            RegisterPartnerRequest { request_id: fixtures::request_id(), support, ..request.clone() };
        operator.partners().register_partner(request).await.map(|answer| answer.into_inner().partner.unwrap())
    };
    let registered = register(Some(support.clone())).await.unwrap();
    assert_eq!(registered.support, Some(support));
    assert_eq!(register(None).await.unwrap(), registered);
    let other = SupportContact { email: "else@asked.example".into(), ..SupportContact::default() };
    assert_eq!(reason_of(&register(Some(other)).await.unwrap_err()), "PARTNER_EXISTS");

    // A new contact takes the place of the whole; without one it stays; an empty one removes it.
    let update = async |etag: &str, name: &str, support: Option<SupportContact>| {
        let (request_id, partner_id) = (fixtures::request_id(), id.to_string());
        let (etag, name) = (etag.into(), name.into());
        let request =
            UpdatePartnerRequest { request_id, partner_id, etag, name, validate_only: false, support };
        operator.partners().update_partner(request).await.unwrap().into_inner()
    };
    let support = SupportContact {
        email: String::new(),
        phone: "+44 20 7946 0000".into(),
        url: "https://asked.example/help".into(),
    };
    let updated = update(&registered.etag, "Asked Direct", Some(support.clone())).await;
    let partner = updated.partner.unwrap();
    assert_eq!(partner.support, Some(support.clone()));
    assert_ne!(partner.etag, registered.etag);
    let renamed = update(&partner.etag, "Asked Directly", None).await.partner.unwrap();
    assert_eq!(renamed.support, Some(support.clone()));
    let same = update(&renamed.etag, "Asked Directly", Some(support.clone())).await;
    assert_eq!(same.partner.unwrap().etag, renamed.etag);

    let asked = cluster.as_caller(fixtures::sales(id));
    let customer = actions::create_customer(&asked, "Contoso", "FR", None).await.unwrap();
    let admin = admin_of(&cluster, &customer);
    let invited = invite(&asked, Some(&customer), None).await.unwrap();
    let whom = "Asked Directly (+44 20 7946 0000, https://asked.example/help)";
    assert!(invited.mail_text.contains(whom), "{}", invited.mail_text);
    let partners = ListCustomerPartnersRequest::default();
    let partners = admin.customers().list_customer_partners(partners).await.unwrap().into_inner();
    let shown = partners.relationships.into_iter().next().unwrap();
    assert_eq!((shown.partner_support, shown.reseller_support), (Some(support.clone()), None));

    actions::report_purchase(&cluster, &customer, id, fixtures::now()).await.unwrap();
    let AcceptInvitationRequest { invitation_id, token, .. } = acceptance(&invited, None);
    let page = GetInvitationRequest { invitation_id, token };
    let page = admin.signatures().get_invitation(page).await.unwrap().into_inner();
    assert_eq!((page.partner_support, page.reseller_support), (Some(support), None));
    let accepted = admin.signatures().accept_invitation(acceptance(&invited, None)).await.unwrap_err();
    assert_eq!(reason_of(&accepted), "CONTACT_PARTNER");
    let expected = [
        ("partner_id", id.to_string()),
        ("support_phone", "+44 20 7946 0000".into()),
        ("support_url", "https://asked.example/help".into()),
    ];
    let expected: HashMap<String, String> = expected.map(|(key, value)| (key.into(), value)).into();
    for metadata in [page.sign_refusal.unwrap().metadata, metadata_of(&accepted)] {
        assert_eq!(metadata, expected);
    }
    // Outside an invitation it is not known which of its partners the customer asks.
    assert_eq!(metadata_of(&sign(&admin, 2).await.unwrap_err()), HashMap::new());

    let removed = update(&renamed.etag, "Asked Directly", Some(SupportContact::default())).await;
    assert_eq!(removed.partner.unwrap().support, None);
}

/// CUS-5, DIR-4: texts are in the customer's language, which is that of its country until it names one.
#[apply(each_backend)]
async fn texts_are_in_the_language_of_the_customer(#[case] backend: Backend) {
    tests::needs!(backend);
    let (cluster, direct) = actions::start_with_partners(backend).await;
    let customer = actions::create_customer(&direct, "Contoso", "FR", None).await.unwrap();
    let admin = admin_of(&cluster, &customer);
    let read = async || {
        let request = GetCustomerRequest { customer_id: customer.clone() };
        admin.customers().get_customer(request).await.unwrap().into_inner().customer.unwrap()
    };
    assert_eq!(read().await.language, "fr");
    let french = invite(&direct, Some(&customer), None).await.unwrap();
    assert!(french.language == "fr" && french.mail_text.contains("Un administrateur"), "{french:?}");

    let language = async |language: Option<&str>| {
        let request = UpdateCustomerRequest {
            request_id: fixtures::request_id(),
            customer_id: customer.clone(),
            etag: read().await.etag,
            primary_contact: Some(fixtures::contact()),
            language: language.map(str::to_owned),
            ..UpdateCustomerRequest::default()
        };
        let updated = admin.customers().update_customer(request).await.unwrap().into_inner();
        let list = ListEventsRequest { customer_id: customer.clone(), page_size: 500, ..Default::default() };
        let events = admin.events().list_events(list).await.unwrap().into_inner().events;
        let said = events.into_iter().rev().find_map(|event| match event.change? {
            Change::CustomerUpdated(updated) => updated.language,
            _ => None,
        });
        (updated.customer.unwrap().language, said)
    };
    // Once removed, the country's counts again.
    for (set, counts, said) in [
        (None, "fr", None),
        (Some("pt"), "pt", Some("pt")),
        (Some(""), "fr", Some("")),
        (Some("DE-at"), "de-AT", Some("de-AT")),
        (None, "de-AT", Some("de-AT")),
    ] {
        assert_eq!(language(set).await, (counts.to_owned(), said.map(str::to_owned)), "{set:?}");
    }
    let german = invite(&direct, Some(&customer), None).await.unwrap();
    assert!(german.language == "de-AT" && german.mail_subject.contains("bittet Sie"), "{german:?}");
    let asked = CreateInvitationRequest {
        language: "fr-BE".into(),
        ..fixtures::new_invitation(Some(&customer), None)
    };
    let asked = direct.signatures().create_invitation(asked).await.unwrap().into_inner().invitation.unwrap();
    let again = invitation(&direct, &asked.invitation_id).await.unwrap();
    assert_eq!(again, asked);
    assert!(asked.language == "fr-BE" && asked.mail_text.contains("Un administrateur"), "{asked:?}");
    assert_eq!(invite(&direct, None, None).await.unwrap().language, "en");

    actions::report_purchase(&cluster, &customer, DIRECT, fixtures::now()).await.unwrap();
    let refused = sign(&admin, 2).await.unwrap_err();
    assert!(refused.message().contains("Contact your partner"), "{refused}");
    let localized = refused.get_details_localized_message().unwrap();
    assert_eq!(localized.locale, "de");
    assert!(localized.message.starts_with("Wenden Sie sich an Ihren Partner"), "{}", localized.message);
    let AcceptInvitationRequest { invitation_id, token, .. } = acceptance(&french, None);
    let page =
        admin.signatures().get_invitation(GetInvitationRequest { invitation_id, token }).await.unwrap();
    let page = page.into_inner().sign_refusal.unwrap();
    assert_eq!((page.locale, page.localized_message), (localized.locale, localized.message));
}
