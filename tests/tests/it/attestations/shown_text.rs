//! TPL-5: an acceptance records the text that was shown, in the country and language of the customer.

use chassis::clock::Clock;
use chassis::form::timestamp;
use chrono::TimeDelta;
use proto::agreement::{
    AcceptInvitationRequest, ApproveProposalRequest, CreateAttestationRequest, CreateCustomerRequest,
    CreateInvitationRequest, GetSignatureRequest, ImportAttestationsRequest, InlineAttestation,
    ProposeAttestationRequest, PublishTemplateVersionRequest, Replacement, SignAgreementRequest, Signature,
    TemplateDocument, WithdrawAttestationRequest, WithdrawalReason,
};
use proto::order::{self, CreateOrderRequest};
use proto::types::{AgreementType, AttestationDetails, ShownText};
use rstest_reuse::apply;
use tests::actions;
use tests::assert::refused;
use tests::clients::bad_fields_of;
use tests::fixtures::{self, OFFICE, PROVIDER, RESELLER};
use tests::imports::with_room;
use tests::{As, Backend, Cluster, Setup};
use tokio_stream::iter;
use tonic::{Code, Status};

use crate::each_backend;

/// The digits of the digests that the publisher gave, and of another one.
const FRENCH: &str = "f";
const AMERICAN: &str = "a";
const OTHER: &str = "0";

fn digest(digit: &str) -> String {
    digit.repeat(64)
}

/// A text by country, language and the digit of its digest.
fn text(country: &str, language: &str, digit: &str) -> ShownText {
    ShownText { country: country.into(), language: language.into(), sha256: digest(digit) }
}

fn details(text: ShownText) -> Option<AttestationDetails> {
    Some(AttestationDetails { shown_text: Some(text), ..AttestationDetails::default() })
}

/// Publishes an agreement with three texts, one of them without a digest.
async fn publish(cluster: &Cluster) -> (String, actions::Turn) {
    let turn = actions::cloud_agreements_turn(cluster).await.unwrap();
    let document = |country: &str, language: &str, digit: &str| TemplateDocument {
        country: country.into(),
        language: language.into(),
        link: format!("https://publisher.example/{country}/{language}"),
        sha256: digest(digit),
    };
    let request = PublishTemplateVersionRequest {
        agreement_type: AgreementType::MicrosoftCloudAgreement.into(),
        name: "Cloud Agreement with digests".into(),
        documents: vec![
            document("FR", "fr-FR", FRENCH),
            document("FR", "en-US", ""),
            document("US", "en-US", AMERICAN),
        ],
        ..fixtures::new_version(&fixtures::request_id())
    };
    let operator = cluster.as_caller(fixtures::operator());
    (actions::publish(&operator, request).await.unwrap().template.unwrap().template_id, turn)
}

async fn attest(partner: &As, request: CreateAttestationRequest) -> Result<Option<ShownText>, Status> {
    let made = partner.attestations().create_attestation(request).await?.into_inner().attestation.unwrap();
    Ok(made.details.and_then(|details| details.shown_text))
}

async fn sign(admin: &As, template: &str, shown_text: Option<ShownText>) -> Result<Signature, Status> {
    let request = SignAgreementRequest {
        request_id: fixtures::request_id(),
        template_id: template.into(),
        template_version: 1,
        validate_only: false,
        shown_text,
    };
    Ok(admin.signatures().sign_agreement(request).await?.into_inner().signature.unwrap())
}

#[apply(each_backend)]
async fn an_attestation_records_the_text_that_was_shown(#[case] backend: Backend) {
    tests::needs!(backend);
    let (cluster, direct) = actions::start_with_partners(backend).await;
    let (template, _turn) = publish(&cluster).await;
    let customer = actions::create_customer(&direct, "Contoso", "FR", None).await.unwrap();
    let request = |customer: &str, text: ShownText| CreateAttestationRequest {
        template_id: template.clone(),
        details: details(text),
        ..fixtures::new_attestation(customer)
    };

    // What is wrong is named where it stands.
    let wrong = text("FR", "fr-FR", OTHER);
    let refused_digest = attest(&direct, request(&customer, wrong.clone())).await.unwrap_err();
    assert_eq!(bad_fields_of(&refused_digest), ["details.shown_text.sha256"]);
    assert!(refused_digest.message().contains(&digest(FRENCH)), "{refused_digest:?}");
    let inline = InlineAttestation {
        template_id: template.clone(),
        contact: Some(fixtures::contact()),
        agreed_at: Some(timestamp(fixtures::now())),
        details: details(wrong.clone()),
    };
    let creation = CreateCustomerRequest {
        attestation: Some(inline.clone()),
        ..fixtures::new_customer("Tailwind", "FR", None)
    };
    let refused_creation = direct.customers().create_customer(creation).await.unwrap_err();
    assert_eq!(bad_fields_of(&refused_creation), ["attestation.details.shown_text.sha256"]);
    let InlineAttestation { template_id, contact, agreed_at, details: of } = inline;
    let order = CreateOrderRequest {
        attestation: Some(order::InlineAttestation { template_id, contact, agreed_at, details: of }),
        ..fixtures::new_order(&customer, None, OFFICE, 1)
    };
    let refused_order = actions::place(&direct, order).await.unwrap_err();
    assert_eq!(bad_fields_of(&refused_order), ["attestation.details.shown_text.sha256"]);

    // What was found is recorded, and does not make another attestation (ATT-8).
    let french = text("FR", "fr-FR", FRENCH);
    let first = request(&customer, text("FR", "fr", ""));
    assert_eq!(attest(&direct, first.clone()).await.unwrap(), Some(french.clone()));
    let again = CreateAttestationRequest {
        request_id: fixtures::request_id(),
        details: details(text("US", "en-US", "")),
        ..first.clone()
    };
    assert_eq!(refused(attest(&direct, again).await), (Code::AlreadyExists, "ALREADY_ATTESTED".into()));
    let german = actions::create_customer(&direct, "Fabrikam", "DE", None).await.unwrap();
    let fallback = attest(&direct, request(&german, text("DE", "de-DE", ""))).await.unwrap();
    assert_eq!(fallback, Some(text("US", "en-US", AMERICAN)));
    let english = actions::create_customer(&direct, "Litware", "FR", None).await.unwrap();
    let without_digest = text("FR", "en-US", OTHER);
    let shown = attest(&direct, request(&english, without_digest.clone())).await.unwrap();
    assert_eq!(shown, Some(without_digest));
    let silent = CreateAttestationRequest { details: None, ..request(&german, french.clone()) };
    assert_eq!(attest(&direct, silent).await.unwrap(), None);

    // WD-5: with a corrected date it is the same text.
    let known = actions::attestations_of(&direct, &customer).await.unwrap();
    let id = known.iter().find(|known| known.template_id == template).unwrap().attestation_id.clone();
    let replacing = |of: Option<AttestationDetails>| WithdrawAttestationRequest {
        reason: WithdrawalReason::RecordedInError.into(),
        replacement: Some(Replacement {
            agreed_at: Some(timestamp(fixtures::now() - TimeDelta::days(2))),
            details: of,
            ..Replacement::default()
        }),
        ..fixtures::new_withdrawal(&id)
    };
    let refused_text = direct.attestations().withdraw_attestation(replacing(details(wrong.clone()))).await;
    assert_eq!(bad_fields_of(&refused_text.unwrap_err()), ["replacement.details.shown_text.sha256"]);
    let replaced = direct.attestations().withdraw_attestation(replacing(None)).await.unwrap().into_inner();
    assert_eq!(replaced.replacement.unwrap().details, details(french.clone()));

    // Rows of an import are decided together.
    let row = |customer: &str, text: ShownText| ImportAttestationsRequest {
        request_id: fixtures::request_id(),
        customer_id: customer.into(),
        template_id: template.clone(),
        contact: Some(fixtures::person("Grace")),
        agreed_at: Some(timestamp(fixtures::now())),
        details: details(text),
    };
    let rows =
        [row(&german, text("US", "en", AMERICAN)), row(&english, wrong), row(&customer, french.clone())];
    let answers =
        with_room(async || direct.attestations().import_attestations(iter(rows.clone())).await).await;
    let mut answers = answers.unwrap().into_inner();
    let mut refusals = vec![];
    while let Some(answer) = answers.message().await.unwrap() {
        refusals.push(answer.refusal.map(|refusal| refusal.message));
    }
    assert_eq!((&refusals[0], &refusals[2]), (&None, &None));
    assert!(refusals[1].as_ref().unwrap().contains("details.shown_text.sha256 must be"), "{refusals:?}");
    for (customer, shown) in [(&german, text("US", "en-US", AMERICAN)), (&customer, french)] {
        let known = actions::attestations_of(&direct, customer).await.unwrap();
        let current = known.into_iter().rfind(|known| known.template_id == template).unwrap();
        assert_eq!(current.details, details(shown));
    }
}

#[apply(each_backend)]
async fn a_proposal_keeps_the_text_through_its_approval(#[case] backend: Backend) {
    tests::needs!(backend);
    let (cluster, _) = actions::start_with_partners(backend).await;
    let (template, _turn) = publish(&cluster).await;
    let [reseller, provider] = [RESELLER, PROVIDER].map(|id| cluster.as_caller(fixtures::sales(id)));
    let customer = actions::create_customer(&reseller, "Contoso", "FR", Some(PROVIDER)).await.unwrap();
    let request = |text: ShownText| ProposeAttestationRequest {
        template_id: template.clone(),
        details: details(text),
        ..fixtures::new_proposal(PROVIDER, &customer)
    };
    let wrong = reseller.proposals().propose_attestation(request(text("FR", "fr-FR", OTHER))).await;
    assert_eq!(bad_fields_of(&wrong.unwrap_err()), ["details.shown_text.sha256"]);
    let french = details(text("FR", "fr-FR", FRENCH));
    let proposed = reseller.proposals().propose_attestation(request(text("FR", "fr", ""))).await;
    let proposed = proposed.unwrap().into_inner().proposal.unwrap();
    assert_eq!(proposed.details, french);
    let approval = ApproveProposalRequest {
        request_id: fixtures::request_id(),
        proposal_id: proposed.proposal_id,
        validate_only: false,
    };
    let approved = provider.proposals().approve_proposal(approval).await.unwrap().into_inner();
    assert_eq!(approved.attestation.unwrap().details, french);
}

#[apply(each_backend)]
async fn a_signature_records_the_text_of_the_customers_country_and_language(#[case] backend: Backend) {
    tests::needs!(backend);
    let (cluster, direct) = actions::start_with_partners(backend).await;
    let (template, _turn) = publish(&cluster).await;
    let french = text("FR", "fr-FR", FRENCH);
    let american = text("US", "en-US", AMERICAN);
    for (name, country, shown, expected) in [
        ("Contoso", "FR", None, french.clone()),
        ("Fabrikam", "DE", None, american.clone()),
        ("Litware", "FR", Some(text("FR", "en-US", OTHER)), text("FR", "en-US", OTHER)),
        ("Tailwind", "DE", Some(text("FR", "fr-FR", FRENCH)), french.clone()),
    ] {
        let customer = actions::create_customer(&direct, name, country, None).await.unwrap();
        let admin = cluster.as_caller(fixtures::admin(customer.parse().unwrap()));
        let wrong = sign(&admin, &template, Some(text(country, "fr-FR", OTHER))).await.unwrap_err();
        assert_eq!(bad_fields_of(&wrong), ["shown_text.sha256"]);
        let signed = sign(&admin, &template, shown).await.unwrap();
        assert_eq!(signed.shown_text, Some(expected), "{name}");
        // The partner sees what it was shown, too.
        let of_customer = GetSignatureRequest { signature_id: signed.signature_id.clone() };
        let seen = direct.signatures().get_signature(of_customer).await.unwrap().into_inner().signature;
        assert_eq!(seen, Some(signed), "{name}");
    }
}

#[apply(each_backend)]
async fn an_accepted_invitation_records_the_text_of_the_companys_country(#[case] backend: Backend) {
    tests::needs!(backend);
    let (cluster, direct) = actions::start_with_partners(backend).await;
    let (template, _turn) = publish(&cluster).await;
    let customer = actions::create_customer(&direct, "Contoso", "FR", None).await.unwrap();
    for (tenant, known, company, shown, expected) in [
        (fixtures::TAILSPIN, None, Some("Tailspin Toys"), None, text("FR", "fr-FR", FRENCH)),
        (
            customer.parse().unwrap(),
            Some(customer.as_str()),
            None,
            Some(text("DE", "de", "")),
            text("US", "en-US", AMERICAN),
        ),
    ] {
        let request = CreateInvitationRequest {
            template_id: template.clone(),
            ..fixtures::new_invitation(known, None)
        };
        let invited = direct.signatures().create_invitation(request).await.unwrap().into_inner();
        let acceptance = AcceptInvitationRequest {
            template_version: 1,
            shown_text: shown,
            ..fixtures::acceptance(&invited.invitation.unwrap(), company)
        };
        let admin = cluster.as_caller(fixtures::admin(tenant));
        let wrong = AcceptInvitationRequest {
            request_id: fixtures::request_id(),
            shown_text: Some(text("FR", "fr-FR", OTHER)),
            ..acceptance.clone()
        };
        let wrong = admin.signatures().accept_invitation(wrong).await.unwrap_err();
        assert_eq!(bad_fields_of(&wrong), ["shown_text.sha256"]);
        let accepted = admin.signatures().accept_invitation(acceptance).await.unwrap().into_inner();
        assert_eq!(accepted.signature.unwrap().shown_text, Some(expected));
    }
}

/// The text is of the version: it does not stay with an attestation that turns out to be of another one.
#[apply(each_backend)]
async fn a_text_does_not_stay_with_another_version(#[case] backend: Backend) {
    tests::needs_own!("a clock that it sets");
    tests::needs!(backend);
    let clock = Clock::manual(fixtures::now());
    let setup = Setup { backend, clock: clock.clone(), ..Setup::default() };
    let cluster = Cluster::start(setup).await.unwrap();
    actions::register_partners(&cluster).await.unwrap();
    let [reseller, provider] = [RESELLER, PROVIDER].map(|id| cluster.as_caller(fixtures::sales(id)));
    let (template, _turn) = publish(&cluster).await;
    let customer = actions::create_customer(&reseller, "Contoso", "FR", Some(PROVIDER)).await.unwrap();
    let version = PublishTemplateVersionRequest {
        effective_from: Some(timestamp(clock.now() + TimeDelta::minutes(2))),
        ..fixtures::new_version(&template)
    };
    actions::publish(&cluster.as_caller(fixtures::operator()), version).await.unwrap();

    // Agreed within the tolerance, on a day on which the second version is in force.
    let agreed_at = clock.now() + TimeDelta::minutes(3);
    let proposal = ProposeAttestationRequest {
        template_id: template.clone(),
        agreed_at: Some(timestamp(agreed_at)),
        details: details(text("FR", "fr-FR", FRENCH)),
        ..fixtures::new_proposal(PROVIDER, &customer)
    };
    let proposed = reseller.proposals().propose_attestation(proposal).await.unwrap().into_inner();
    clock.set(clock.now() + TimeDelta::minutes(4));
    let approval = ApproveProposalRequest {
        request_id: fixtures::request_id(),
        proposal_id: proposed.proposal.unwrap().proposal_id,
        validate_only: false,
    };
    let approved = provider.proposals().approve_proposal(approval).await.unwrap().into_inner();
    let attestation = approved.attestation.unwrap();
    assert_eq!((attestation.template_version, attestation.details), (2, None));

    let shown = CreateAttestationRequest {
        template_id: template,
        agreed_at: Some(timestamp(agreed_at + TimeDelta::seconds(1))),
        details: details(text("FR", "fr-FR", OTHER)),
        ..fixtures::new_attestation(&customer)
    };
    // The second version has no other text, and no digest.
    assert_eq!(attest(&provider, shown).await.unwrap(), Some(text("US", "en-US", OTHER)));
    let known = actions::attestations_of(&provider, &customer).await.unwrap();
    let replacing = WithdrawAttestationRequest {
        reason: WithdrawalReason::RecordedInError.into(),
        replacement: Some(Replacement {
            agreed_at: Some(timestamp(agreed_at - TimeDelta::days(1))),
            ..Replacement::default()
        }),
        ..fixtures::new_withdrawal(&known.last().unwrap().attestation_id)
    };
    let replaced = provider.attestations().withdraw_attestation(replacing).await.unwrap().into_inner();
    let replacement = replaced.replacement.unwrap();
    assert_eq!((replacement.template_version, replacement.details), (1, None));
}
