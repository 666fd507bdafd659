use AgreementType::{MicrosoftCloudAgreement, MicrosoftCustomerAgreement};

use super::super::policy::{self, Period};
use super::*;

const PAYER: Uuid = Uuid::from_u128(1);
const RESELLER: Uuid = Uuid::from_u128(2);
const TEMPLATE: Uuid = Uuid::from_u128(3);

fn blocked() -> Answer {
    Answer {
        decision: Decision::Blocked,
        rule: Rule::NoSatisfyingAcceptance,
        reasons: vec![Reason::NoAcceptance],
        evidence: None,
        satisfying: vec![MicrosoftCustomerAgreement],
        valid_until: None,
    }
}

#[test]
fn the_remedies_are_those_open_to_the_acting_partner() {
    let attest = Remedy::Attest { template_id: TEMPLATE };
    let ask = Remedy::AskProvider { provider_id: PAYER };
    let invite = Remedy::InviteCustomer { template_id: TEMPLATE };
    // acting partner, may act, may sign directly -> remedies
    for (partner_id, may_act, may_sign, expected) in [
        (PAYER, true, true, vec![attest, invite]),
        (PAYER, true, false, vec![attest]),
        (PAYER, false, true, vec![]),
        (RESELLER, true, true, vec![ask, invite]),
        (RESELLER, true, false, vec![ask]),
        (RESELLER, false, true, vec![ask]),
    ] {
        let acting = Acting { partner_id, may_act, may_invite: true };
        let open = remedies(&blocked(), PAYER, acting, Some(TEMPLATE), may_sign);
        assert_eq!(open, expected, "{partner_id} {may_act} {may_sign}");

        // A server that makes no acceptance links offers no invitation.
        let acting = Acting { may_invite: false, ..acting };
        let open = remedies(&blocked(), PAYER, acting, Some(TEMPLATE), may_sign);
        let but_invite: Vec<_> = expected.into_iter().filter(|remedy| *remedy != invite).collect();
        assert_eq!(open, but_invite, "{partner_id} {may_act} {may_sign}");
    }
}

/// GATE-0, every case of a partner that sees the customer.
#[test]
fn the_field_that_names_the_wrong_partner_is_found() {
    const OTHER: Uuid = Uuid::from_u128(4);
    let alone = Relationship { payer_id: PAYER, reseller_id: None };
    let resold = Relationship { payer_id: PAYER, reseller_id: Some(RESELLER) };
    let payer = |payer_id| Misnamed::Payer { payer_id, use_payer_id: PAYER };
    let reseller = |use_reseller_id| Misnamed::Reseller { use_reseller_id };
    // payer named, acting partner, relationship of its own, one with that payer -> what is named wrongly
    for (named, acting, own, is_with_payer, expected) in [
        (PAYER, PAYER, alone, true, reseller(None)),
        (PAYER, PAYER, resold, true, reseller(None)),
        (PAYER, RESELLER, resold, true, reseller(Some(RESELLER))),
        (OTHER, RESELLER, resold, true, reseller(Some(RESELLER))),
        (OTHER, RESELLER, resold, false, payer(OTHER)),
        (OTHER, PAYER, alone, false, payer(OTHER)),
    ] {
        assert_eq!(misnamed(named, acting, own, is_with_payer), expected, "{named} {acting} {is_with_payer}");
    }
}

fn at(seconds: i64) -> Time {
    Time::from_timestamp(seconds, 0).unwrap()
}

/// Its versions take effect, and make earlier acceptances insufficient, at these times.
fn template(of: AgreementType, retired_at: Option<i64>, versions: &[(i64, Option<i64>)]) -> Template {
    let version = |(number, (effective_from, reaccept_by)): (u32, &(i64, Option<i64>))| Version {
        number,
        effective_from: at(*effective_from),
        reaccept_by: reaccept_by.map(at),
        published_at: at(0),
        document_count: 1,
    };
    Template {
        id: TEMPLATE,
        name: "Agreement".into(),
        agreement_type: of,
        retired_at: retired_at.map(at),
        revision: 1,
        versions: (1..).zip(versions).map(version).collect(),
    }
}

#[test]
fn a_version_replaces_earlier_ones_from_its_reaccept_by_on() {
    // retired at, reaccept by -> whether it does; the version takes effect at 100
    for (retired_at, reaccept_by, does) in [
        (None, Some(100), true),
        (None, Some(150), true),
        (None, None, false),
        (Some(99), Some(150), false),
        (Some(100), Some(150), false),
        (Some(101), Some(150), true),
    ] {
        let template = template(MicrosoftCustomerAgreement, retired_at, &[(100, reaccept_by)]);
        let found = reacceptance(&template, &template.versions[0]).map(|r| r.reaccept_by);
        assert_eq!(found, reaccept_by.map(at).filter(|_| does), "{retired_at:?} {reaccept_by:?}");
    }
}

fn accepted(agreement_type: AgreementType, effective_from: i64) -> Acceptance {
    Acceptance {
        id: Uuid::from_u128(9),
        kind: AcceptanceKind::Attestation,
        agreement_type,
        template_id: TEMPLATE,
        template_version: 1,
        effective_from: at(effective_from),
        agreed_at: at(0),
    }
}

/// The Customer Agreement satisfies; at the dashboard it is mandatory until 600.
fn policy() -> Policy {
    let period = |from, dashboard| Period {
        from: at(from),
        dashboard,
        api: Requirement::Optional,
        agreement_types: vec![MicrosoftCustomerAgreement],
    };
    let periods = vec![period(0, Requirement::Mandatory), period(600, Requirement::Optional)];
    policy::tests::policy(periods).unwrap()
}

#[test]
fn a_planned_version_blocks_only_customers_it_newly_blocks() {
    let policy = policy();
    let planned = |agreement_type, reaccept_by| Reacceptance {
        agreement_type,
        template_id: TEMPLATE,
        template_version: 2,
        effective_from: at(200),
        reaccept_by: at(reaccept_by),
    };
    let customer = MicrosoftCustomerAgreement;
    let earlier = accepted(customer, 100);
    let due = planned(customer, 300);
    let published = |reaccept_by| Reacceptance { effective_from: at(150), ..planned(customer, reaccept_by) };
    // cloud, acceptances, versions published, version planned -> whether it closes the gate
    for (n, (cloud, acceptances, reacceptances, planned, closes)) in [
        (Cloud::Public, vec![earlier], vec![], due, true),
        // Of the planned version's own date, or a later one, there is nothing to accept again.
        (Cloud::Public, vec![accepted(customer, 200)], vec![], due, false),
        (Cloud::Public, vec![earlier, accepted(customer, 201)], vec![], due, false),
        // A customer that is blocked already is not blocked by it.
        (Cloud::Public, vec![], vec![], due, false),
        (Cloud::Public, vec![accepted(MicrosoftCloudAgreement, 100)], vec![], due, false),
        (Cloud::Public, vec![earlier], vec![published(300)], due, false),
        // A published version that is due later leaves it to the planned one.
        (Cloud::Public, vec![earlier], vec![published(301)], due, true),
        (Cloud::Public, vec![earlier], vec![], planned(MicrosoftCloudAgreement, 300), false),
        (Cloud::Germany, vec![earlier], vec![], due, false),
        // Once nothing is mandatory any more, nothing is missing.
        (Cloud::Public, vec![earlier], vec![], planned(customer, 600), false),
    ]
    .into_iter()
    .enumerate()
    {
        let signed = Acceptance { kind: AcceptanceKind::Signature, ..earlier };
        let withdrawn = vec![(signed, at(150))];
        let facts = Facts { cloud, acceptances, withdrawn, reacceptances };
        assert_eq!(would_close(&policy, &facts, planned), closes, "row {n}");
    }
}

/// ATT-8: an attestation that is only supposed takes the place that it would take.
#[test]
fn a_supposed_attestation_replaces_the_current_one_of_its_type_alone() {
    let (cloud, customer) = (MicrosoftCloudAgreement, MicrosoftCustomerAgreement);
    let replaced_by = |agreement_type, effective_from| Reacceptance {
        agreement_type,
        template_id: TEMPLATE,
        template_version: 2,
        effective_from: at(effective_from),
        reaccept_by: at(500),
    };
    let signature = Acceptance { kind: AcceptanceKind::Signature, ..accepted(customer, 100) };
    let new = Acceptance { id: Uuid::from_u128(10), ..accepted(customer, 200) };
    // current acceptances, later versions known for them, those of the new one's type -> what there would be
    #[rustfmt::skip]
    let cases = [
        (vec![], vec![], vec![], vec![new], vec![]),
        (vec![accepted(customer, 100)], vec![], vec![], vec![new], vec![]),
        (vec![accepted(cloud, 100)], vec![], vec![], vec![accepted(cloud, 100), new], vec![]),
        (vec![signature], vec![], vec![], vec![signature, new], vec![]),
        // What replaced only the attestation of before counts no longer.
        (vec![accepted(customer, 100)], vec![replaced_by(customer, 200)], vec![], vec![new], vec![]),
        (vec![signature], vec![replaced_by(customer, 200)], vec![],
         vec![signature, new], vec![replaced_by(customer, 200)]),
        (vec![accepted(cloud, 100)], vec![replaced_by(cloud, 150)], vec![],
         vec![accepted(cloud, 100), new], vec![replaced_by(cloud, 150)]),
        // What replaces the new one counts.
        (vec![], vec![], vec![replaced_by(customer, 200), replaced_by(customer, 201)],
         vec![new], vec![replaced_by(customer, 201)]),
    ];
    for (n, (acceptances, reacceptances, later, expected, outdating)) in cases.into_iter().enumerate() {
        let withdrawn = vec![(accepted(customer, 100), at(150))];
        let facts = Facts { cloud: Cloud::Public, acceptances, withdrawn, reacceptances };
        let withdrawn = facts.withdrawn.clone();
        let expected =
            Facts { cloud: Cloud::Public, acceptances: expected, withdrawn, reacceptances: outdating };
        assert_eq!(facts.with_attestation(new, later), expected, "row {n}");
    }
}

#[test]
fn the_later_versions_of_a_type_are_those_that_one_day_replace() {
    let templates = [
        template(MicrosoftCustomerAgreement, Some(350), &[(100, Some(110)), (200, Some(210)), (300, None)]),
        template(MicrosoftCustomerAgreement, None, &[(300, Some(300)), (400, Some(450))]),
    ];
    for (after, expected) in
        [(0, vec![110, 210, 300, 450]), (100, vec![210, 300, 450]), (299, vec![300, 450]), (300, vec![450])]
    {
        let found = reacceptances(&templates, at(after)).into_iter();
        let found: Vec<_> = found.map(|later| later.reaccept_by.timestamp()).collect();
        assert_eq!(found, expected, "after {after}");
    }
}

/// DIR-3.
#[test]
fn a_signature_counts_while_its_type_satisfies_and_no_later_version_is_due() {
    let signature = |agreement_type| Signature {
        id: Uuid::from_u128(9),
        customer_id: Uuid::from_u128(7),
        agreement_type,
        template_id: TEMPLATE,
        template_version: 1,
        signed_at: at(150),
        signed_by: Uuid::from_u128(6),
        superseded_at: None,
        withdrawn: None,
        revision: 1,
        shown_text: None,
    };
    let due = |agreement_type, effective_from| Reacceptance {
        agreement_type,
        template_id: TEMPLATE,
        template_version: 2,
        effective_from: at(effective_from),
        reaccept_by: at(400),
    };
    let (cloud, customer) = (MicrosoftCloudAgreement, MicrosoftCustomerAgreement);
    // type, later versions, at -> whether it counts
    for (of, later, time, counts) in [
        (customer, vec![], 999, true),
        (cloud, vec![], 999, false),
        (customer, vec![due(customer, 200)], 399, true),
        (customer, vec![due(customer, 200)], 400, false),
        (customer, vec![due(customer, 100)], 400, true),
        (customer, vec![due(cloud, 200)], 400, true),
        // Before the first period no type satisfies.
        (customer, vec![], -1, false),
    ] {
        for channel in [Channel::Dashboard, Channel::Api] {
            let counted = satisfies(&policy(), channel, &signature(of), at(100), later.clone(), at(time));
            assert_eq!(counted, counts, "{of:?} {later:?} at {time}");
        }
    }
}

#[test]
fn without_a_reason_or_a_template_there_is_no_remedy() {
    let acting = Acting { partner_id: PAYER, may_act: true, may_invite: true };
    assert_eq!(remedies(&blocked(), PAYER, acting, None, true), []);
    let allowed = Answer { reasons: vec![], ..blocked() };
    assert_eq!(remedies(&allowed, PAYER, acting, Some(TEMPLATE), true), []);
}
