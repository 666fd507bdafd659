//! The gate, as one table: operation × channel × cloud × date × acceptance. What is expected stands
//! here, written from the rules; nothing of it is computed by the code under test.

use AgreementType::{MicrosoftCloudAgreement, MicrosoftCustomerAgreement};
use proptest::prelude::*;

use super::*;
use crate::data::read_policy;

/// Each boundary of the timeline with a microsecond either side, and the period it lies in.
const DATES: [(&str, usize); 15] = [
    ("2018-08-06T23:59:59.999999Z", 0),
    ("2018-08-07T00:00:00.000000Z", 1),
    ("2018-08-07T00:00:00.000001Z", 1),
    ("2018-11-06T23:59:59.999999Z", 1),
    ("2018-11-07T00:00:00.000000Z", 2),
    ("2018-11-07T00:00:00.000001Z", 2),
    ("2019-03-21T23:59:59.999999Z", 2),
    ("2019-03-22T00:00:00.000000Z", 3),
    ("2019-03-22T00:00:00.000001Z", 3),
    ("2019-09-30T23:59:59.999999Z", 3),
    ("2019-10-01T00:00:00.000000Z", 4),
    ("2019-10-01T00:00:00.000001Z", 4),
    ("2020-01-31T23:59:59.999999Z", 4),
    ("2020-02-01T00:00:00.000000Z", 5),
    ("2020-02-01T00:00:00.000001Z", 5),
];

/// What each period asks: `-` nothing, `o` optional, `m` mandatory.
const DASHBOARD: [char; 6] = ['-', 'o', 'm', 'm', 'm', 'm'];
const API: [char; 6] = ['-', 'o', 'o', 'm', 'm', 'm'];

/// What is known of a customer, and what the gate makes of it in each period that requires
/// something: `A` the payer's attestation satisfies, `S` the customer's signature does; otherwise
/// the reasons: `n` no acceptance, `w` withdrawn, `v` version superseded, `t` wrong type.
///
/// An acceptance is written `kind type standing`: `a`ttestation or `s`ignature, `L` cLoud or `C`ustomer,
/// `=` current, `-` withdrawn, `<` current but of a version that a later one has replaced.
#[rustfmt::skip]
const TABLE: [(&str, [&str; 5]); 20] = [
    // acceptances                            2018-08 2018-11 2019-03 2019-10 2020-02
    ("",                                     ["n",    "n",    "n",    "n",    "n" ]),
    ("aL=",                                  ["A",    "A",    "A",    "A",    "t" ]),
    ("aC=",                                  ["t",    "t",    "t",    "A",    "A" ]),
    ("sL=",                                  ["S",    "S",    "S",    "S",    "t" ]),
    ("sC=",                                  ["t",    "t",    "t",    "S",    "S" ]),
    ("aL-",                                  ["w",    "w",    "w",    "w",    "n" ]),
    ("aC-",                                  ["n",    "n",    "n",    "w",    "w" ]),
    ("sL-",                                  ["w",    "w",    "w",    "w",    "n" ]),
    ("sC-",                                  ["n",    "n",    "n",    "w",    "w" ]),
    ("aL<",                                  ["v",    "v",    "v",    "v",    "t" ]),
    ("aC<",                                  ["t",    "t",    "t",    "v",    "v" ]),
    ("sL<",                                  ["v",    "v",    "v",    "v",    "t" ]),
    ("sC<",                                  ["t",    "t",    "t",    "v",    "v" ]),
    ("aL= aC=",                              ["A",    "A",    "A",    "A",    "A" ]),
    ("aL= sC=",                              ["A",    "A",    "A",    "S",    "S" ]),
    ("aC= sC=",                              ["t",    "t",    "t",    "S",    "S" ]),
    // What was withdrawn and given again is not held against the customer.
    ("aC- aC=",                              ["t",    "t",    "t",    "A",    "A" ]),
    ("aC- aC<",                              ["t",    "t",    "t",    "v",    "v" ]),
    // All reasons that hold.
    ("sC- aC<",                              ["t",    "t",    "t",    "wv",   "wv"]),
    ("aC- aL<",                              ["v",    "v",    "v",    "wv",   "wt"]),
];

/// The same for offers that demand one type: the Azure plan, and the old Azure offer.
#[rustfmt::skip]
const DEMANDING: [(AgreementType, &str, [&str; 5]); 10] = [
    (MicrosoftCustomerAgreement, "",         ["t",    "t",    "t",    "n",    "n" ]),
    (MicrosoftCustomerAgreement, "aL=",      ["t",    "t",    "t",    "t",    "t" ]),
    (MicrosoftCustomerAgreement, "aC=",      ["t",    "t",    "t",    "A",    "A" ]),
    (MicrosoftCustomerAgreement, "sC=",      ["t",    "t",    "t",    "S",    "S" ]),
    (MicrosoftCustomerAgreement, "aL= aC<",  ["t",    "t",    "t",    "vt",   "vt"]),
    (MicrosoftCloudAgreement,    "",         ["n",    "n",    "n",    "n",    "t" ]),
    (MicrosoftCloudAgreement,    "aL=",      ["A",    "A",    "A",    "A",    "t" ]),
    (MicrosoftCloudAgreement,    "aC=",      ["t",    "t",    "t",    "t",    "t" ]),
    (MicrosoftCloudAgreement,    "sL=",      ["S",    "S",    "S",    "S",    "t" ]),
    (MicrosoftCloudAgreement,    "aL= aC=",  ["A",    "A",    "A",    "A",    "t" ]),
];

const OPERATIONS: [Operation; 4] =
    [Operation::NewPurchase, Operation::SeatChange, Operation::ManualRenewal, Operation::AutoRenewal];

fn time(text: &str) -> Time {
    text.parse().unwrap()
}

fn policy() -> Policy {
    read_policy(None).unwrap()
}

/// Two versions of each type took effect long before the timeline; the second replaced the first.
fn facts(cloud: Cloud, acceptances: &str) -> Facts {
    let (first, second) = (time("2016-01-01T00:00:00Z"), time("2017-01-01T00:00:00Z"));
    let read = |text: &str| {
        let [kind, of, standing] = text.as_bytes() else { panic!("{text} is no acceptance") };
        let kind = if *kind == b's' { AcceptanceKind::Signature } else { AcceptanceKind::Attestation };
        (kind, if *of == b'L' { MicrosoftCloudAgreement } else { MicrosoftCustomerAgreement }, *standing)
    };
    let known: Vec<_> = acceptances.split_whitespace().map(read).collect();
    let acceptance = |(n, (kind, agreement_type, standing)): (usize, _)| Acceptance {
        id: Uuid::from_u128(n as u128 + 1),
        kind,
        agreement_type,
        template_id: Uuid::nil(),
        template_version: if standing == b'<' { 1 } else { 2 },
        effective_from: if standing == b'<' { first } else { second },
        agreed_at: second,
    };
    let replaced = |agreement_type| Reacceptance {
        agreement_type,
        template_id: Uuid::nil(),
        template_version: 2,
        effective_from: second,
        reaccept_by: second,
    };
    let (withdrawn, current): (Vec<_>, Vec<_>) =
        known.into_iter().partition(|(.., standing)| *standing == b'-');
    Facts {
        cloud,
        acceptances: current.into_iter().enumerate().map(acceptance).collect(),
        withdrawn: withdrawn.into_iter().enumerate().map(|one| (acceptance(one), second)).collect(),
        reacceptances: vec![replaced(MicrosoftCloudAgreement), replaced(MicrosoftCustomerAgreement)],
    }
}

fn reasons(letters: &str) -> Vec<Reason> {
    let reason = |letter| match letter {
        'n' => Reason::NoAcceptance,
        'w' => Reason::Withdrawn,
        'v' => Reason::VersionSuperseded,
        't' => Reason::WrongAgreementType,
        other => panic!("{other} is no reason"),
    };
    letters.chars().map(reason).collect()
}

/// The outcome in the words of the rules: decision, rule, reasons.
fn outcome(answer: &Answer) -> (Decision, Rule, Vec<Reason>) {
    (answer.decision, answer.rule, answer.reasons.clone())
}

fn expected(operation: Operation, cloud: Cloud, required: char, cell: &str) -> (Decision, Rule, Vec<Reason>) {
    match (operation, cloud, required, cell) {
        (Operation::AutoRenewal, ..) => (Decision::Exempt, Rule::AutoRenewal, vec![]),
        (_, Cloud::UsGovernment | Cloud::Germany | Cloud::China21vianet, ..) => {
            (Decision::Exempt, Rule::OutsidePublicCloud, vec![])
        }
        (_, _, '-', _) | (_, _, 'o', "A" | "S") => (Decision::Allowed, Rule::NotYetMandatory, vec![]),
        (_, _, 'o', warning) => (Decision::Allowed, Rule::NotYetMandatory, reasons(warning)),
        (_, _, 'm', "A") => (Decision::Allowed, Rule::Attestation, vec![]),
        (_, _, 'm', "S") => (Decision::Allowed, Rule::DirectSignature, vec![]),
        (_, _, 'm', missing) => (Decision::Blocked, Rule::NoSatisfyingAcceptance, reasons(missing)),
        (_, _, other, _) => panic!("{other} is no requirement"),
    }
}

fn check(demands: &[Vec<AgreementType>], acceptances: &str, cells: &[&str; 5]) -> usize {
    let policy = policy();
    let mut checked = 0;
    for operation in OPERATIONS {
        for (channel, requirements) in [(Channel::Dashboard, DASHBOARD), (Channel::Api, API)] {
            for cloud in Cloud::VARIANTS {
                for (date, period) in DATES {
                    let facts = facts(*cloud, acceptances);
                    let question = Question { operation, channel, demands: demands.to_vec(), at: time(date) };
                    let answer = decide(&policy, &question, &facts);
                    let cell = if period == 0 { "n" } else { cells[period - 1] };
                    assert_eq!(
                        outcome(&answer),
                        expected(operation, *cloud, requirements[period], cell),
                        "{operation:?} {channel:?} {cloud:?} {date} with {acceptances:?} demanding {demands:?}"
                    );
                    // A yes by acceptance names the acceptance, of the kind the rule says.
                    let kind = answer.evidence.map(|evidence| evidence.kind);
                    match answer.rule {
                        Rule::Attestation => assert_eq!(kind, Some(AcceptanceKind::Attestation)),
                        Rule::DirectSignature => assert_eq!(kind, Some(AcceptanceKind::Signature)),
                        Rule::NoSatisfyingAcceptance | Rule::AutoRenewal | Rule::OutsidePublicCloud => {
                            assert_eq!(kind, None);
                        }
                        Rule::NotYetMandatory => {}
                    }
                    checked += 1;
                }
            }
        }
    }
    checked
}

/// GATE-1, GATE-2, GATE-3, GATE-4, GATE-5, GATE-6.
#[test]
fn the_gate_answers_each_combination_by_the_rules() {
    let checked: usize = TABLE.iter().map(|(acceptances, cells)| check(&[], acceptances, cells)).sum();
    assert_eq!(checked, 20 * 4 * 2 * 4 * 15);
}

#[test]
fn an_offer_that_demands_a_type_narrows_what_satisfies() {
    for (demanded, acceptances, cells) in &DEMANDING {
        check(&[vec![*demanded]], acceptances, cells);
        // Demanding either type demands nothing beyond it.
        check(
            &[vec![*demanded], vec![MicrosoftCloudAgreement, MicrosoftCustomerAgreement]],
            acceptances,
            cells,
        );
    }
}

#[test]
fn demands_that_no_type_meets_block_even_with_both_acceptances() {
    let demands = [vec![MicrosoftCloudAgreement], vec![MicrosoftCustomerAgreement]];
    check(&demands, "aL= sC=", &["t", "t", "t", "t", "t"]);
}

#[test]
fn reacceptance_deadlines_are_applied_and_reported() {
    let policy = policy();
    let mut facts = facts(Cloud::Public, "aC=");
    let due = time("2026-06-01T00:00:00Z");
    facts.reacceptances.push(Reacceptance {
        agreement_type: MicrosoftCustomerAgreement,
        template_id: Uuid::nil(),
        template_version: 3,
        effective_from: time("2026-01-01T00:00:00Z"),
        reaccept_by: due,
    });
    let at = |date: &str| {
        let question = Question {
            operation: Operation::NewPurchase,
            channel: Channel::Dashboard,
            demands: vec![],
            at: time(date),
        };
        let answer = decide(&policy, &question, &facts);
        (answer.decision, answer.reasons, answer.valid_until)
    };
    let allowed = |until| (Decision::Allowed, vec![], until);
    assert_eq!(at("2026-05-31T23:59:59.999999Z"), allowed(Some(due)));
    let blocked = (Decision::Blocked, vec![Reason::VersionSuperseded], None);
    assert_eq!(at("2026-06-01T00:00:00.000000Z"), blocked);
    assert_eq!(at("2026-06-01T00:00:00.000001Z"), blocked);
    // The policy changes an answer too, whichever comes first.
    assert_eq!(at("2020-01-31T23:59:59.999999Z"), allowed(Some(time("2020-02-01T00:00:00Z"))));
}

#[test]
fn a_later_version_of_the_other_type_replaces_nothing() {
    let mut facts = facts(Cloud::Public, "aC=");
    facts.reacceptances.push(Reacceptance {
        agreement_type: MicrosoftCloudAgreement,
        template_id: Uuid::nil(),
        template_version: 3,
        effective_from: time("2026-01-01T00:00:00Z"),
        reaccept_by: time("2026-01-01T00:00:00Z"),
    });
    let question = Question {
        operation: Operation::SeatChange,
        channel: Channel::Api,
        demands: vec![],
        at: time("2026-11-01T00:00:00Z"),
    };
    assert_eq!(decide(&policy(), &question, &facts).decision, Decision::Allowed);
}

/// Any mixture of acceptances, in the notation of the table.
fn mixtures() -> impl Strategy<Value = Vec<&'static str>> {
    let one = prop::sample::select(vec![
        "aL=", "aC=", "sL=", "sC=", "aL-", "aC-", "sL-", "sC-", "aL<", "aC<", "sL<", "sC<",
    ]);
    prop::collection::vec(one, 0..6)
}

proptest! {
    /// Taking acceptances away never opens the gate, and an open gate names what it rests on.
    #[test]
    fn less_acceptance_never_opens_the_gate(
        mixture in mixtures(),
        kept in 0..6_usize,
        day in 17_700_i64..18_500,
        demanded in prop::option::of(prop::sample::select(AgreementType::VARIANTS)),
    ) {
        let question = Question {
            operation: Operation::NewPurchase,
            channel: Channel::Dashboard,
            demands: demanded.into_iter().map(|of| vec![of]).collect(),
            at: Time::from_timestamp(day * 86_400, 0).unwrap(),
        };
        let all = facts(Cloud::Public, &mixture.join(" "));
        let mut fewer = all.clone();
        fewer.acceptances.truncate(kept);
        let (with_all, with_fewer) =
            (decide(&policy(), &question, &all), decide(&policy(), &question, &fewer));
        prop_assert!(with_fewer.decision != Decision::Allowed || with_all.decision == Decision::Allowed);
        for (answer, facts) in [(&with_all, &all), (&with_fewer, &fewer)] {
            prop_assert_eq!(answer.decision == Decision::Blocked, answer.rule == Rule::NoSatisfyingAcceptance);
            prop_assert!(answer.decision != Decision::Blocked || !answer.reasons.is_empty());
            if let Some(evidence) = answer.evidence {
                prop_assert!(facts.acceptances.contains(&evidence));
                prop_assert!(demanded.is_none_or(|of| of == evidence.agreement_type));
            }
            prop_assert!(answer.valid_until.is_none_or(|until| until > question.at));
        }
    }
}
