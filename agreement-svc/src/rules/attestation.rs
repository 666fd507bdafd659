//! Attestations: what a partner may state about a customer's acceptance.

use chrono::Duration;
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use super::party::{Cloud, Contact, Customer, Partner, PartnerKind, Relationship};
use super::shown::ShownText;
use super::template::{AgreementType, Template};
use super::withdrawal::Withdrawal;
use super::{Refusal, Time};

/// How far a partner's clock may be ahead of ours (ATT-3); partners complain of less.
pub const CLOCK_TOLERANCE: Duration = Duration::minutes(5);

/// The time in which changes of acceptances are counted (ATT-8).
pub const CHANGES_COUNTED: Duration = Duration::hours(1);

/// Checks that the acceptances of a customer, by one partner or by itself, do not change too often (ATT-8): each change is an
/// event for each watcher of the history. `recent` are the times of the last changes, at least `max` of them where
/// there are so many.
pub fn check_change_rate(mut recent: Vec<Time>, max: u32, now: Time) -> Result<(), Refusal> {
    recent.retain(|at| *at > now - CHANGES_COUNTED);
    recent.sort_unstable_by(|a, b| b.cmp(a));
    // When this one is too old to count there is room again.
    let last_to_count = usize::try_from(max).ok().and_then(|max| recent.get(max.checked_sub(1)?));
    match last_to_count {
        Some(last) => Err(Refusal::TooManyChanges { max, retry_after: *last + CHANGES_COUNTED - now }),
        None => Ok(()),
    }
}

/// How the complaint about a date in the future begins.
pub const IN_THE_FUTURE: &str = "must not be in the future";

/// What a partner stated: who at the customer agreed to which version, and when.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Attestation {
    pub id: Uuid,
    pub partner_id: Uuid,
    pub customer_id: Uuid,
    pub agreement_type: AgreementType,
    pub template_id: Uuid,
    pub template_version: u32,
    pub contact: Contact,
    /// Makes the commitment to the contact in the history impossible to guess.
    pub contact_salt: String,
    pub agreed_at: Time,
    pub recorded_at: Time,
    pub recorded_by: Uuid,
    /// The program that recorded it; empty where the identity named none.
    pub recorded_client: String,
    pub details: Details,
    /// Absent where it was not proposed.
    pub proposed_by: Option<ProposedBy>,
    pub superseded_at: Option<Time>,
    pub withdrawn: Option<Withdrawal>,
    pub revision: i64,
}

/// Who proposed what became an attestation.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ProposedBy {
    pub proposal_id: Uuid,
    /// The reseller.
    pub partner_id: Uuid,
    pub user_id: Uuid,
}

/// Whether an acceptance still stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AcceptanceState {
    Current,
    /// Another took its place.
    Superseded,
    /// It was taken back, superseded or not.
    Withdrawn,
}

impl Attestation {
    pub fn state(&self) -> AcceptanceState {
        match (self.withdrawn, self.superseded_at) {
            (Some(_), _) => AcceptanceState::Withdrawn,
            (None, Some(_)) => AcceptanceState::Superseded,
            (None, None) => AcceptanceState::Current,
        }
    }
}

/// What the partner states.
#[derive(Clone, Debug)]
pub struct Claim {
    pub contact: Contact,
    pub agreed_at: Time,
    /// Not compared with those of the current attestation (ATT-8).
    pub details: Details,
}

/// What a partner keeps with an attestation; each is empty where it was not given (ATT-11).
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Details {
    /// The job title of the person who accepted. Erased with the contact; so are the next two.
    pub title: String,
    /// Where the signed document is filed.
    pub evidence_reference: String,
    /// The partner's employee behind a shared account.
    pub on_behalf_of: String,
    /// In lower-case hexadecimal.
    pub evidence_sha256: String,
    pub external_reference: String,
    /// The text that the person was shown (TPL-5); absent where the partner does not say.
    pub shown_text: Option<ShownText>,
}

impl Details {
    /// Those of an attestation in the place of another one or of a proposal, where none are given (WD-5, PRO-1). Of another
    /// person only the external reference stays: the rest says something about the person who was named before. The
    /// text that was shown is one of the version.
    #[must_use]
    pub fn replaced(&self, is_of_another_person: bool, is_of_another_version: bool) -> Self {
        match (is_of_another_person, is_of_another_version) {
            (true, _) => Self { external_reference: self.external_reference.clone(), ..Self::default() },
            (false, true) => Self { shown_text: None, ..self.clone() },
            (false, false) => self.clone(),
        }
    }
}

/// What is known when it does.
#[derive(Debug)]
pub struct Facts<'a> {
    pub customer: &'a Customer,
    pub template: &'a Template,
    /// The live template to name when this one is retired.
    pub live_template_id: Option<Uuid>,
    /// The attester's current attestation of the template's type, and when the version it is of
    /// took effect.
    pub current: Option<(&'a Attestation, Time)>,
}

/// What will be stored: everything about the new record except its number and who stores it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Accepted {
    pub agreement_type: AgreementType,
    pub template_version: u32,
    /// When that version took effect.
    pub effective_from: Time,
    /// The record that is no longer current.
    pub supersedes: Option<Uuid>,
}

/// Checks a time that lies in the past against the server's clock (ATT-3), or says what is wrong.
pub fn check_not_in_the_future(time: Time, now: Time) -> Result<(), String> {
    if time > now + CLOCK_TOLERANCE {
        let now = now.to_rfc3339_opts(chrono::SecondsFormat::Micros, true);
        return Err(format!("{IN_THE_FUTURE}; the server's time is {now}"));
    }
    Ok(())
}

/// Whether the partner attests at all (ATT-1), given its active relationship with the customer.
pub fn check_attester(attester: &Partner, relationship: Relationship) -> Result<(), Refusal> {
    match attester.kind {
        PartnerKind::DirectBill | PartnerKind::IndirectProvider => Ok(()),
        PartnerKind::IndirectReseller => {
            Err(Refusal::ResellerCannotAttest { provider_id: relationship.payer_id })
        }
    }
}

/// Decides what a claim becomes (ATT-4 to ATT-8).
pub fn attest(facts: &Facts<'_>, claim: &Claim, now: Time) -> Result<Accepted, Refusal> {
    if facts.customer.cloud != Cloud::Public {
        return Err(Refusal::CloudNotSupported { cloud: facts.customer.cloud });
    }
    let template = facts.template;
    if template.is_retired(now) {
        let use_template_id = facts.live_template_id;
        return Err(Refusal::TemplateRetired { template_id: template.id, use_template_id });
    }
    let version = template.accepted_at(claim.agreed_at, now);
    let version = version.ok_or(Refusal::NotFound { resource: "template", id: template.id })?;
    if let Some((current, effective_from)) = facts.current {
        let is_same_version =
            (current.template_id, current.template_version) == (template.id, version.number);
        let is_same_claim = current.agreed_at == claim.agreed_at && current.contact.is_same(&claim.contact);
        if is_same_version && is_same_claim {
            return Err(Refusal::AlreadyAttested { attestation_id: current.id });
        }
        if !is_same_version && version.effective_from < effective_from {
            return Err(Refusal::OlderThanCurrent {
                attestation_id: current.id,
                offered: version.number,
                current: current.template_version,
            });
        }
    }
    Ok(Accepted {
        agreement_type: template.agreement_type,
        template_version: version.number,
        effective_from: version.effective_from,
        supersedes: facts.current.map(|(current, _)| current.id),
    })
}

#[cfg(test)]
mod tests {
    use super::super::template::Version;
    use super::*;

    /// ATT-8.
    #[test]
    fn acceptances_change_a_bounded_number_of_times_an_hour() {
        let now = at(10_000);
        let ago = |seconds: &[i64]| seconds.iter().map(|s| now - Duration::seconds(*s)).collect::<Vec<_>>();
        let wait =
            |max, seconds| Err(Refusal::TooManyChanges { max, retry_after: Duration::seconds(seconds) });
        for (recent, max, expected) in [
            (vec![], 1, Ok(())),
            (ago(&[0]), 1, wait(1, 3600)),
            (ago(&[3599]), 1, wait(1, 1)),
            (ago(&[3600]), 1, Ok(())),
            (ago(&[10, 20]), 3, Ok(())),
            (ago(&[30, 10, 20]), 3, wait(3, 3570)),
            // Only the newest of them have to become old.
            (ago(&[10, 20, 30, 40, 5000]), 3, wait(3, 3570)),
        ] {
            assert_eq!(check_change_rate(recent.clone(), max, now), expected, "{recent:?} {max}");
        }
    }

    fn at(seconds: i64) -> Time {
        Time::from_timestamp(seconds, 0).unwrap()
    }

    fn contact(email: &str) -> Contact {
        Contact {
            first_name: "Tania".into(),
            last_name: "Carr".into(),
            email: email.into(),
            phone: String::new(),
        }
    }

    fn customer(cloud: Cloud) -> Customer {
        Customer {
            id: Uuid::from_u128(7),
            company_name: "Contoso".into(),
            domain: "contoso.example".into(),
            country: "FR".into(),
            given_language: String::new(),
            cloud,
            primary_contact: contact("t@contoso.example"),
            contact_salt: String::new(),
            created_at: at(0),
            first_purchase_at: None,
            acceptance_revision: 1,
            revision: 1,
        }
    }

    /// Three versions, in force from 100, 200 and 300.
    fn template(retired_at: Option<Time>) -> Template {
        let version = |(number, effective): (u32, i64)| Version {
            number,
            effective_from: at(effective),
            reaccept_by: Some(at(effective)),
            published_at: at(0),
            document_count: 1,
        };
        Template {
            id: Uuid::from_u128(1),
            name: "Agreement".into(),
            agreement_type: AgreementType::MicrosoftCustomerAgreement,
            retired_at,
            revision: 1,
            versions: [(1, 100), (2, 200), (3, 300)].map(version).to_vec(),
        }
    }

    /// With the agreement on a date.
    fn attested(version: u32, agreed: i64, email: &str) -> Attestation {
        Attestation {
            id: Uuid::from_u128(9),
            partner_id: Uuid::from_u128(8),
            customer_id: Uuid::from_u128(7),
            agreement_type: AgreementType::MicrosoftCustomerAgreement,
            template_id: Uuid::from_u128(1),
            template_version: version,
            contact: contact(email),
            contact_salt: String::new(),
            agreed_at: at(agreed),
            recorded_at: at(0),
            recorded_by: Uuid::from_u128(6),
            recorded_client: String::new(),
            details: Details::default(),
            proposed_by: None,
            superseded_at: None,
            withdrawn: None,
            revision: 1,
        }
    }

    /// WD-5.
    #[test]
    fn details_stay_with_the_person_and_the_text_with_the_version() {
        let shown = ShownText { country: "FR".into(), language: "fr-FR".into(), sha256: String::new() };
        let details = |title: &str, shown_text: Option<&ShownText>| Details {
            title: title.into(),
            external_reference: "PO 1".into(),
            shown_text: shown_text.cloned(),
            ..Details::default()
        };
        let known = details("CFO", Some(&shown));
        for (other_person, other_version, expected) in [
            (false, false, known.clone()),
            (false, true, details("CFO", None)),
            (true, false, details("", None)),
            (true, true, details("", None)),
        ] {
            assert_eq!(
                known.replaced(other_person, other_version),
                expected,
                "{other_person} {other_version}"
            );
        }
    }

    /// At 1000, with an acceptance on a date and a current attestation of a version, date and e-mail.
    fn attest_on(
        agreed: i64,
        current: Option<(u32, i64, &str)>,
        email: &str,
    ) -> Result<(u32, Option<Uuid>), Refusal> {
        let (customer, template) = (customer(Cloud::Public), template(None));
        let current = current.map(|(version, agreed, email)| (attested(version, agreed, email), version));
        let facts = Facts {
            customer: &customer,
            template: &template,
            live_template_id: None,
            current: current.as_ref().map(|(known, version)| (known, at(i64::from(*version) * 100))),
        };
        let claim = Claim { contact: contact(email), agreed_at: at(agreed), details: Details::default() };
        attest(&facts, &claim, at(1000)).map(|accepted| (accepted.template_version, accepted.supersedes))
    }

    #[test]
    fn an_attestation_is_new_or_supersedes_or_is_refused() {
        let (same, other) = ("t@contoso.example", "x@contoso.example");
        let known = Some(Uuid::from_u128(9));
        let exists = Err(Refusal::AlreadyAttested { attestation_id: Uuid::from_u128(9) });
        let older = |offered, current| {
            Err(Refusal::OlderThanCurrent { attestation_id: Uuid::from_u128(9), offered, current })
        };
        // agreed, current (version, agreed, e-mail), e-mail -> (version, supersedes)
        for (agreed, current, email, expected) in [
            (50, None, same, Ok((1, None))),
            (100, None, same, Ok((1, None))),
            (199, None, same, Ok((1, None))),
            (200, None, same, Ok((2, None))),
            (999, None, same, Ok((3, None))),
            (250, Some((1, 150, same)), same, Ok((2, known))),
            (250, Some((2, 250, same)), same, exists.clone()),
            (250, Some((2, 250, "T@CONTOSO.example")), same, exists.clone()),
            // The date is corrected, in both directions.
            (201, Some((2, 250, same)), same, Ok((2, known))),
            (299, Some((2, 250, same)), same, Ok((2, known))),
            (250, Some((2, 250, other)), same, Ok((2, known))),
            (250, Some((3, 350, same)), same, older(2, 3)),
            (250, Some((3, 350, same)), other, older(2, 3)),
            (50, Some((2, 250, same)), same, older(1, 2)),
        ] {
            assert_eq!(attest_on(agreed, current, email), expected, "{agreed} {current:?} {email}");
        }
    }

    /// ATT-8: which version is the older one does not depend on the numbers, which each template counts for itself.
    #[test]
    fn versions_of_two_templates_compare_by_when_they_took_effect() {
        let (customer, template) = (customer(Cloud::Public), template(None));
        let current = Attestation { template_id: Uuid::from_u128(2), ..attested(7, 0, "t@contoso.example") };
        let replaces = Ok(Some(current.id));
        let older = Err(Refusal::OlderThanCurrent { attestation_id: current.id, offered: 2, current: 7 });
        for (took_effect, expected) in [(199, replaces.clone()), (200, replaces), (201, older)] {
            let facts = Facts {
                customer: &customer,
                template: &template,
                live_template_id: None,
                current: Some((&current, at(took_effect))),
            };
            // Of version 2, in force from 200.
            let claim = Claim {
                contact: contact("t@contoso.example"),
                agreed_at: at(250),
                details: Details::default(),
            };
            let accepted = attest(&facts, &claim, at(1000)).map(|accepted| accepted.supersedes);
            assert_eq!(accepted, expected, "{took_effect}");
        }
    }

    #[test]
    fn a_tolerated_date_does_not_reach_a_later_version() {
        let (customer, template) = (customer(Cloud::Public), template(None));
        let facts = Facts { customer: &customer, template: &template, live_template_id: None, current: None };
        let claim =
            Claim { contact: contact("t@contoso.example"), agreed_at: at(300), details: Details::default() };
        assert_eq!(attest(&facts, &claim, at(299)).map(|accepted| accepted.template_version), Ok(2));
    }

    /// ATT-6, DIR-5.
    #[test]
    fn acceptance_exists_in_the_public_cloud_only() {
        let template = template(None);
        for cloud in [Cloud::UsGovernment, Cloud::Germany, Cloud::China21vianet] {
            let customer = customer(cloud);
            let facts =
                Facts { customer: &customer, template: &template, live_template_id: None, current: None };
            let claim = Claim {
                contact: contact("t@contoso.example"),
                agreed_at: at(300),
                details: Details::default(),
            };
            assert_eq!(attest(&facts, &claim, at(999)), Err(Refusal::CloudNotSupported { cloud }));
        }
    }

    /// TPL-4.
    #[test]
    fn a_retired_template_names_the_one_to_use() {
        let (customer, template) = (customer(Cloud::Public), template(Some(at(500))));
        let live = Some(Uuid::from_u128(2));
        let facts = Facts { customer: &customer, template: &template, live_template_id: live, current: None };
        let claim =
            Claim { contact: contact("t@contoso.example"), agreed_at: at(300), details: Details::default() };
        let refused = Refusal::TemplateRetired { template_id: template.id, use_template_id: live };
        assert_eq!(attest(&facts, &claim, at(500)), Err(refused));
        assert!(attest(&facts, &claim, at(499)).is_ok());
    }

    /// ATT-3.
    #[test]
    fn the_date_agreed_is_at_most_five_minutes_in_the_future() {
        let now = at(1000);
        assert_eq!(check_not_in_the_future(now + CLOCK_TOLERANCE, now), Ok(()));
        let problem =
            check_not_in_the_future(now + CLOCK_TOLERANCE + Duration::microseconds(1), now).unwrap_err();
        assert!(problem.contains("1970-01-01T00:16:40.000000Z"), "{problem}");
    }

    #[test]
    fn a_reseller_is_sent_to_the_provider_of_that_customer() {
        let partner = |kind| Partner {
            id: Uuid::from_u128(3),
            name: String::new(),
            kind,
            cloud: Cloud::Public,
            registered_at: at(0),
            support: Default::default(),
            revision: 1,
        };
        let relationship =
            Relationship { payer_id: Uuid::from_u128(4), reseller_id: Some(Uuid::from_u128(3)) };
        let check = |kind| check_attester(&partner(kind), relationship);
        assert_eq!(check(PartnerKind::DirectBill), Ok(()));
        assert_eq!(check(PartnerKind::IndirectProvider), Ok(()));
        let refused = Refusal::ResellerCannotAttest { provider_id: Uuid::from_u128(4) };
        assert_eq!(check(PartnerKind::IndirectReseller), Err(refused));
    }
}
