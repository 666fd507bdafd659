//! A sample of the gate's table over gRPC, with the clock moved along the timeline. The whole table
//! is held against the pure function; here it is shown that the facts reach it.

use chassis::auth::{Caller, Channel};
use chassis::clock::Clock;
use chassis::form::timestamp;
use chrono::Duration;
use proto::agreement::publish_template_version_request::Reacceptance;
use proto::agreement::{
    AssumedAttestation, CheckEligibilityRequest, CheckEligibilityResponse, CreateAttestationRequest,
    PartnerKind, PublishTemplateVersionRequest, WithdrawAttestationRequest, WithdrawalReason,
};
use proto::types::{self, Cloud, Decision, GateRule};
use rstest_reuse::apply;
use tests::actions::{self, check};
use tests::assert::refusal;
use tests::clients::bad_fields_of;
use tests::fixtures::{
    self, CLOUD_AGREEMENT, CUSTOMER_AGREEMENT, DIRECT, PROVIDER, RESELLER, new_check, time,
};
use tests::{Backend, Cluster, Setup, metadata_of};

use crate::each_backend;
use tonic::Code;
use uuid::{Uuid, uuid};

const GERMAN: Uuid = uuid!("00000000-0000-4000-8000-0000000000de");

/// Decision, rule and reasons in short, as in `BLOCKED NO_SATISFYING_ACCEPTANCE [NO_ACCEPTANCE]`.
fn short(answer: &CheckEligibilityResponse) -> String {
    let decision = answer.decision().as_str_name().trim_start_matches("DECISION_");
    let rule = answer.rule().as_str_name().trim_start_matches("GATE_RULE_");
    let reasons: Vec<_> =
        answer.reasons().map(|r| r.as_str_name().trim_start_matches("BLOCK_REASON_").to_owned()).collect();
    format!("{decision} {rule} [{}]", reasons.join(","))
}

fn over_api(caller: Caller) -> Caller {
    Caller { channel: Channel::Api, ..caller }
}

#[apply(each_backend)]
async fn a_sample_of_the_table_holds_over_grpc(#[case] backend: Backend) {
    tests::needs_own!("a clock that it sets");
    tests::needs!(backend);
    use Channel::{Api, Dashboard};

    let start = time("2018-08-01T00:00:00Z");
    let clock = Clock::manual(start);
    let setup = Setup { backend, clock: clock.clone(), ..Setup::default() };
    let cluster = Cluster::start(setup).await.unwrap();
    actions::register_partners(&cluster).await.unwrap();
    let operator = cluster.as_caller(fixtures::operator());
    actions::register_partner(&operator, GERMAN, "Nordwind", PartnerKind::DirectBill, Cloud::Germany)
        .await
        .unwrap();
    let direct = cluster.as_caller(fixtures::sales(DIRECT));
    let provider = cluster.as_caller(fixtures::sales(PROVIDER));
    let reseller = cluster.as_caller(fixtures::sales(RESELLER));
    let german = cluster.as_caller(fixtures::sales(GERMAN));

    let none = actions::create_customer(&direct, "None", "FR", None).await.unwrap();
    let cloud = actions::create_customer(&direct, "Cloud", "FR", None).await.unwrap();
    let customer = actions::create_customer(&direct, "Customer", "FR", None).await.unwrap();
    let withdrawn = actions::create_customer(&direct, "Withdrawn", "FR", None).await.unwrap();
    let signed = actions::create_customer(&direct, "Signed", "FR", None).await.unwrap();
    let shared = actions::create_customer(&direct, "Shared", "FR", None).await.unwrap();
    let resold = actions::create_customer(&reseller, "Resold", "DE", Some(PROVIDER)).await.unwrap();
    let national = actions::create_customer(&german, "National", "DE", None).await.unwrap();
    for id in [&cloud, &withdrawn, &signed, &shared] {
        actions::attest_to(&direct, id, CLOUD_AGREEMENT, start).await.unwrap();
    }
    actions::attest_to(&direct, &customer, CUSTOMER_AGREEMENT, start).await.unwrap();
    actions::attest_to(&provider, &resold, CLOUD_AGREEMENT, start).await.unwrap();
    // What no call makes yet: a withdrawal, a signature, a second partner of one customer.
    cluster
        .agreements_sql(&format!(
            "UPDATE acceptance SET withdrawn_at = recorded_at WHERE customer_id = '{withdrawn}';
             UPDATE acceptance SET kind = 'SIGNATURE', partner_id = '' WHERE customer_id = '{signed}';
             INSERT INTO relationship (partner_id, customer_id, reseller_id, established_at, revision)
             SELECT '{PROVIDER}', customer_id, '', established_at, 1000000 FROM relationship
             WHERE customer_id = '{shared}';"
        ))
        .unwrap();

    let ask = async |partner: &Uuid, customer: &str, reseller: Option<Uuid>, channel: Channel| {
        let caller = match channel {
            Dashboard => fixtures::sales(*partner),
            Api => over_api(fixtures::sales(*partner)),
        };
        let reseller_id = reseller.map(|id| id.to_string()).unwrap_or_default();
        let asked = CheckEligibilityRequest { reseller_id, ..new_check(*partner, customer) };
        short(&check(&cluster.as_caller(caller), asked).await.unwrap())
    };
    let yes = "ALLOWED ATTESTATION []";
    let early = "ALLOWED NOT_YET_MANDATORY";
    let no = "BLOCKED NO_SATISFYING_ACCEPTANCE";
    for (date, payer, of, reseller, channel, expected) in [
        ("2018-08-06T23:59:59.999999Z", DIRECT, &none, None, Dashboard, format!("{early} []")),
        ("2018-08-07T00:00:00.000000Z", DIRECT, &none, None, Dashboard, format!("{early} [NO_ACCEPTANCE]")),
        ("2018-11-06T23:59:59.999999Z", DIRECT, &none, None, Dashboard, format!("{early} [NO_ACCEPTANCE]")),
        ("2018-11-07T00:00:00.000000Z", DIRECT, &none, None, Dashboard, format!("{no} [NO_ACCEPTANCE]")),
        ("2018-11-07T00:00:00.000000Z", DIRECT, &none, None, Api, format!("{early} [NO_ACCEPTANCE]")),
        ("2019-03-21T23:59:59.999999Z", DIRECT, &none, None, Api, format!("{early} [NO_ACCEPTANCE]")),
        ("2019-03-22T00:00:00.000000Z", DIRECT, &none, None, Api, format!("{no} [NO_ACCEPTANCE]")),
        ("2019-03-22T00:00:00.000001Z", DIRECT, &cloud, None, Api, yes.into()),
        ("2019-09-30T23:59:59.999999Z", DIRECT, &customer, None, Api, format!("{no} [WRONG_AGREEMENT_TYPE]")),
        ("2019-10-01T00:00:00.000000Z", DIRECT, &customer, None, Api, yes.into()),
        ("2020-01-31T23:59:59.999999Z", DIRECT, &cloud, None, Dashboard, yes.into()),
        ("2020-01-31T23:59:59.999999Z", DIRECT, &withdrawn, None, Dashboard, format!("{no} [WITHDRAWN]")),
        (
            "2020-01-31T23:59:59.999999Z",
            DIRECT,
            &signed,
            None,
            Dashboard,
            "ALLOWED DIRECT_SIGNATURE []".into(),
        ),
        // What one partner attested neither helps another nor shows in its answer.
        ("2020-01-31T23:59:59.999999Z", DIRECT, &shared, None, Dashboard, yes.into()),
        ("2020-01-31T23:59:59.999999Z", PROVIDER, &shared, None, Dashboard, format!("{no} [NO_ACCEPTANCE]")),
        // A provider's attestation covers orders through its reseller.
        ("2020-01-31T23:59:59.999999Z", PROVIDER, &resold, Some(RESELLER), Dashboard, yes.into()),
        (
            "2020-02-01T00:00:00.000000Z",
            DIRECT,
            &cloud,
            None,
            Dashboard,
            format!("{no} [WRONG_AGREEMENT_TYPE]"),
        ),
        ("2020-02-01T00:00:00.000000Z", DIRECT, &customer, None, Dashboard, yes.into()),
        (
            "2020-02-01T00:00:00.000000Z",
            GERMAN,
            &national,
            None,
            Dashboard,
            "EXEMPT OUTSIDE_PUBLIC_CLOUD []".into(),
        ),
        // The version of 2023 is due at once.
        ("2023-03-31T23:59:59.999999Z", DIRECT, &customer, None, Dashboard, yes.into()),
        (
            "2023-04-01T00:00:00.000000Z",
            DIRECT,
            &customer,
            None,
            Dashboard,
            format!("{no} [VERSION_SUPERSEDED]"),
        ),
    ] {
        clock.set(time(date));
        assert_eq!(ask(&payer, of, reseller, channel).await, expected, "{date} {of} on {backend:?}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn a_partner_asks_for_a_date_and_a_service_may_not() {
    let cluster = Cluster::on(Backend::Sqlite).await;
    actions::register_partners(&cluster).await.unwrap();
    let (template, _turn) = actions::publish_cloud_agreement(&cluster).await.unwrap();
    let direct = cluster.as_caller(fixtures::sales(DIRECT));
    let customer = actions::create_customer(&direct, "Contoso", "FR", None).await.unwrap();
    actions::attest_to(&direct, &customer, &template.template_id, time("2019-11-01T00:00:00Z"))
        .await
        .unwrap();

    let mut on = new_check(DIRECT, &customer);
    let now = check(&direct, on.clone()).await.unwrap();
    assert_eq!(short(&now), "BLOCKED NO_SATISFYING_ACCEPTANCE [WRONG_AGREEMENT_TYPE]");
    on.as_of = Some(timestamp(time("2019-11-01T00:00:00Z")));
    let earlier = check(&direct, on.clone()).await.unwrap();
    assert_eq!(short(&earlier), "ALLOWED ATTESTATION []");
    assert_eq!(earlier.evaluated_at, on.as_of);
    assert_eq!(earlier.valid_until, Some(timestamp(time("2020-02-01T00:00:00Z"))));
    on.as_of = Some(timestamp(time("2020-02-01T00:00:00Z")));
    let later = check(&direct, on.clone()).await.unwrap();
    assert_eq!(short(&later), "BLOCKED NO_SATISFYING_ACCEPTANCE [WRONG_AGREEMENT_TYPE]");
    assert_eq!(later.remedies[0].template_id, CUSTOMER_AGREEMENT);

    on.channel = types::Channel::Dashboard.into();
    let refused = check(&cluster.as_caller(fixtures::service()), on).await.unwrap_err();
    assert_eq!(bad_fields_of(&refused), ["as_of"]);
}

/// I5. No request of a partner can choose its channel or the partner that it acts for.
#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn a_partner_cannot_choose_its_channel_or_acting_partner() {
    let cluster = Cluster::on(Backend::Sqlite).await;
    actions::register_partners(&cluster).await.unwrap();
    let direct = cluster.as_caller(fixtures::sales(DIRECT));
    let customer = actions::create_customer(&direct, "Contoso", "FR", None).await.unwrap();

    // On this day acceptance was mandatory at the dashboard and optional over the API.
    let that_day = Some(timestamp(time("2019-01-01T00:00:00Z")));
    let plain = CheckEligibilityRequest { as_of: that_day, ..new_check(DIRECT, &customer) };
    assert_eq!(check(&direct, plain.clone()).await.unwrap().decision(), Decision::Blocked);
    let over_api = cluster.as_caller(over_api(fixtures::sales(DIRECT)));
    assert_eq!(check(&over_api, plain.clone()).await.unwrap().rule(), GateRule::NotYetMandatory);

    let claimed = CheckEligibilityRequest {
        channel: types::Channel::Api.into(),
        acting_partner_id: PROVIDER.to_string(),
        acting_roles: vec![1],
        ..plain
    };
    let refused = check(&direct, claimed).await.unwrap_err();
    assert_eq!(bad_fields_of(&refused), ["channel", "acting_partner_id", "acting_roles"]);
}

/// GATE-0.
#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn payer_customer_and_reseller_must_belong_together() {
    let cluster = Cluster::on(Backend::Sqlite).await;
    actions::register_partners(&cluster).await.unwrap();
    let direct = cluster.as_caller(fixtures::sales(DIRECT));
    let reseller = cluster.as_caller(fixtures::sales(RESELLER));
    let own = actions::create_customer(&direct, "Contoso", "FR", None).await.unwrap();
    let resold = actions::create_customer(&reseller, "Fourth Coffee", "DE", Some(PROVIDER)).await.unwrap();
    let service = cluster.as_caller(fixtures::service());
    let ask = async |payer: Uuid, customer: &str, on_record: Option<Uuid>| {
        let asked = CheckEligibilityRequest {
            channel: types::Channel::Dashboard.into(),
            reseller_id: on_record.map(|id| id.to_string()).unwrap_or_default(),
            ..new_check(payer, customer)
        };
        check(&service, asked).await.map_err(|refused| refusal(&refused))
    };
    let not_found = || Err((Code::NotFound, "RESOURCE_NOT_FOUND".to_owned()));
    let stranger = Uuid::from_u128(0x999);

    assert!(ask(DIRECT, &own, None).await.is_ok());
    assert!(ask(PROVIDER, &resold, None).await.is_ok());
    assert!(ask(PROVIDER, &resold, Some(RESELLER)).await.is_ok());
    assert_eq!(ask(PROVIDER, &own, None).await, not_found());
    assert_eq!(ask(DIRECT, &resold, None).await, not_found());
    assert_eq!(ask(DIRECT, &own, Some(RESELLER)).await, not_found());
    assert_eq!(ask(PROVIDER, &resold, Some(stranger)).await, not_found());
    assert_eq!(ask(stranger, &own, None).await, not_found());
    let pays = Err((Code::InvalidArgument, "PAYER_IS_RESELLER".to_owned()));
    assert_eq!(ask(RESELLER, &resold, None).await, pays);

    // A partner that sees the customer learns which field is wrong, and what to name instead; all others learn that there
    // is no such customer, in the very words for one that does not exist.
    let provider = cluster.as_caller(fixtures::sales(PROVIDER));
    let id = |partner: Uuid| partner.to_string();
    for (n, (caller, payer, customer, on_record, wrong)) in [
        (&direct, PROVIDER, &own, Some(DIRECT), Some(("payer_id", "use_payer_id", id(DIRECT)))),
        (&direct, PROVIDER, &own, None, Some(("payer_id", "use_payer_id", id(DIRECT)))),
        (&direct, stranger, &own, Some(RESELLER), Some(("payer_id", "use_payer_id", id(DIRECT)))),
        (&direct, DIRECT, &own, Some(RESELLER), Some(("reseller_id", "use_reseller_id", String::new()))),
        (
            &provider,
            PROVIDER,
            &resold,
            Some(stranger),
            Some(("reseller_id", "use_reseller_id", String::new())),
        ),
        (&reseller, DIRECT, &resold, Some(RESELLER), Some(("payer_id", "use_payer_id", id(PROVIDER)))),
        (&reseller, stranger, &resold, None, Some(("payer_id", "use_payer_id", id(PROVIDER)))),
        (&reseller, PROVIDER, &resold, None, Some(("reseller_id", "use_reseller_id", id(RESELLER)))),
        (&reseller, PROVIDER, &own, Some(RESELLER), None),
        (&reseller, DIRECT, &own, Some(RESELLER), None),
        (&direct, PROVIDER, &resold, Some(RESELLER), None),
        (&provider, PROVIDER, &own, None, None),
    ]
    .into_iter()
    .enumerate()
    {
        let on_record = on_record.map(|id| id.to_string()).unwrap_or_default();
        let asked = |customer: &str| CheckEligibilityRequest {
            reseller_id: on_record.clone(),
            ..new_check(payer, customer)
        };
        let refused = check(caller, asked(customer)).await.unwrap_err();
        assert_eq!(refusal(&refused), not_found().unwrap_err(), "row {n}");
        let metadata = metadata_of(&refused);
        let said = |key: &str| metadata.get(key).cloned().unwrap_or_default();
        if let Some((field, key, instead)) = wrong {
            assert_eq!((said("field").as_str(), said(key)), (field, instead), "row {n}: {refused}");
            assert!(refused.message().contains(field), "row {n}: {refused}");
        } else {
            let none = check(caller, asked(&id(stranger))).await.unwrap_err();
            assert_eq!(
                refused.message().replace(customer.as_str(), &id(stranger)),
                none.message(),
                "row {n}"
            );
            assert_eq!(metadata, metadata_of(&none), "row {n}");
        }
    }

    // The gate answers a partner about itself only, and a stranger's customer looks like none at all.
    let through_reseller =
        CheckEligibilityRequest { reseller_id: RESELLER.to_string(), ..new_check(PROVIDER, &resold) };
    let nosy = check(&direct, through_reseller).await.unwrap_err();
    assert_eq!(nosy.code(), Code::NotFound);
    let invented = check(&direct, new_check(DIRECT, &stranger.to_string())).await.unwrap_err();
    let of_another = check(&direct, new_check(DIRECT, &resold)).await.unwrap_err();
    assert_eq!(
        invented.message().replace(&stranger.to_string(), "ID"),
        of_another.message().replace(&resold, "ID")
    );
}

/// A question at a revision that does not exist yet is refused; no older revision answers it.
#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn the_gate_refuses_a_revision_that_does_not_exist_yet() {
    let cluster = Cluster::on(Backend::Sqlite).await;
    actions::register_partners(&cluster).await.unwrap();
    let direct = cluster.as_caller(fixtures::sales(DIRECT));
    let customer = actions::create_customer(&direct, "Contoso", "FR", None).await.unwrap();
    let attested = actions::attest(&direct, &customer, Clock::system().now()).await.unwrap();
    let mut asked = new_check(DIRECT, &customer);
    asked.at_least_revision = attested.revision;
    assert_eq!(check(&direct, asked.clone()).await.unwrap().revision, attested.revision);
    // On a stack others add to the history: what was not there yet may be there when it is asked for.
    let refused = loop {
        asked.at_least_revision = cluster.head().await.unwrap() + 1;
        match check(&direct, asked.clone()).await {
            Ok(_) => assert!(cluster.head().await.unwrap() >= asked.at_least_revision),
            Err(refused) => break refused,
        }
    };
    assert_eq!(refusal(&refused), (Code::Unavailable, "REVISION_BEHIND".into()));
}

/// What happens to a customer's acceptances before it is asked about.
#[derive(Clone, Copy, Debug)]
enum Before {
    /// Attested as of a date.
    Attested(&'static str),
    Withdrawn,
    Signed,
}

#[apply(each_backend)]
async fn an_assumed_attestation_is_answered_as_the_real_one_is(#[case] backend: Backend) {
    tests::needs_own!("a clock that it sets");
    tests::needs!(backend);
    use Before::{Attested, Signed, Withdrawn};
    const FIRST: &str = "2021-01-01T00:00:00Z";
    const SECOND: &str = "2024-01-01T00:00:00Z";
    const THIRD: &str = "2026-03-06T00:00:00Z";
    let start = time("2026-03-04T05:06:07Z");
    let clock = Clock::manual(start);
    let setup = Setup { backend, clock: clock.clone(), ..Setup::default() };
    let cluster = Cluster::start(setup).await.unwrap();
    actions::register_partners(&cluster).await.unwrap();
    let direct = cluster.as_caller(fixtures::sales(DIRECT));
    let service = cluster.as_caller(fixtures::service());
    // A third version is in force, and some day the second will not do.
    let next = PublishTemplateVersionRequest {
        effective_from: Some(timestamp(start + Duration::days(1))),
        reacceptance: Some(Reacceptance::ReacceptBy(timestamp(start + Duration::days(30)))),
        ..fixtures::new_version(CUSTOMER_AGREEMENT)
    };
    actions::publish(&cluster.as_caller(fixtures::operator()), next).await.unwrap();
    clock.set(start + Duration::days(2));

    for (n, (before, agreed_at)) in [
        (vec![], FIRST),
        (vec![], SECOND),
        (vec![], THIRD),
        (vec![Attested(FIRST)], SECOND),
        (vec![Attested(SECOND)], SECOND),
        (vec![Attested(SECOND)], THIRD),
        (vec![Attested(FIRST), Withdrawn], FIRST),
        (vec![Attested(SECOND), Withdrawn], FIRST),
        (vec![Attested(SECOND), Withdrawn], SECOND),
        (vec![Attested(SECOND), Withdrawn], THIRD),
        (vec![Signed], FIRST),
        (vec![Signed, Attested(FIRST)], SECOND),
    ]
    .into_iter()
    .enumerate()
    {
        let about = format!("{before:?}, then {agreed_at}");
        let customer = actions::create_customer(&direct, &format!("Contoso {n}"), "FR", None).await.unwrap();
        let mut last = String::new();
        for step in before {
            match step {
                Attested(agreed_at) => {
                    let attested = actions::attest(&direct, &customer, time(agreed_at)).await.unwrap();
                    last = attested.attestation.unwrap().attestation_id;
                }
                Withdrawn => {
                    let withdrawal = WithdrawAttestationRequest {
                        reason: WithdrawalReason::Other.into(),
                        ..fixtures::new_withdrawal(&last)
                    };
                    direct.attestations().withdraw_attestation(withdrawal).await.unwrap();
                }
                Signed => {
                    let admin = cluster.as_caller(fixtures::admin(customer.parse().unwrap()));
                    actions::sign(&admin, 3).await.unwrap();
                }
            }
        }
        let new = CreateAttestationRequest {
            agreed_at: Some(timestamp(time(agreed_at))),
            validate_only: true,
            ..fixtures::new_attestation_by(&customer, fixtures::person("Tomas"))
        };
        let would_be = direct.attestations().create_attestation(new.clone()).await.unwrap().into_inner();
        let would_be = would_be.attestation.unwrap();
        let plain = CheckEligibilityRequest {
            channel: types::Channel::Dashboard.into(),
            ..new_check(DIRECT, &customer)
        };
        let assumed_attestation = Some(AssumedAttestation {
            attestation_id: would_be.attestation_id.clone(),
            template_id: would_be.template_id,
            template_version: would_be.template_version,
            agreed_at: would_be.agreed_at,
        });
        let assuming = CheckEligibilityRequest { assumed_attestation, ..plain.clone() };
        let plainly = check(&service, plain.clone()).await.unwrap();
        let mut assumed = check(&service, assuming).await.unwrap();
        // Assuming leaves nothing behind.
        assert_eq!(check(&service, plain.clone()).await.unwrap(), plainly, "{about}");

        let new = CreateAttestationRequest { validate_only: false, ..new };
        let stored = direct.attestations().create_attestation(new).await.unwrap().into_inner();
        let mut real = check(&service, plain).await.unwrap();
        assert!(real.revision == stored.revision && assumed.revision < stored.revision, "{about}");
        (real.revision, assumed.revision) = (0, 0);
        let stored = stored.attestation.unwrap();
        let considered = assumed.considered.iter_mut().filter_map(|one| one.acceptance.as_mut());
        for evidence in considered.chain(assumed.evidence.as_mut()) {
            if evidence.acceptance_id == would_be.attestation_id {
                evidence.acceptance_id.clone_from(&stored.attestation_id);
            }
        }
        assert_eq!(assumed, real, "{about}");
    }
}
