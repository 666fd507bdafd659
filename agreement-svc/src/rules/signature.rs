//! Direct signatures: a customer's own acceptance.

use uuid::Uuid;

use super::party::{Cloud, Customer};
use super::template::{AgreementType, Template};
use super::withdrawal::Withdrawal;
use super::{Refusal, Time};

/// What a customer's administrator accepted, and when. It counts for every partner (DIR-2).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Signature {
    pub id: Uuid,
    pub customer_id: Uuid,
    pub agreement_type: AgreementType,
    pub template_id: Uuid,
    pub template_version: u32,
    pub signed_at: Time,
    /// The customer's user (ROLE-7).
    pub signed_by: Uuid,
    pub superseded_at: Option<Time>,
    pub withdrawn: Option<Withdrawal>,
    pub revision: i64,
}

/// What is known when a customer signs.
#[derive(Debug)]
pub struct Facts<'a> {
    pub customer: &'a Customer,
    pub template: &'a Template,
    /// The live template to name when this one is retired.
    pub live_template_id: Option<Uuid>,
    /// The customer's current signature of the template's type.
    pub current: Option<&'a Signature>,
    /// When the customer first signed anything, whatever became of it.
    pub first_signed_at: Option<Time>,
}

/// What becomes of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Signing {
    /// The current signature is of this very version: nothing changes.
    Already,
    /// A new record, in the place of the one named.
    New { supersedes: Option<Uuid> },
}

/// Decides on a signature of the version that was shown (DIR-1, DIR-4, DIR-5).
pub fn sign(facts: &Facts<'_>, shown: u32, now: Time) -> Result<Signing, Refusal> {
    check_signable(facts.customer.cloud, facts.template, facts.live_template_id, now)?;
    let template_id = facts.template.id;
    let in_force = facts.template.in_force_at(now).map(|version| version.number);
    let in_force = in_force.ok_or(Refusal::NotFound { resource: "template", id: template_id })?;
    if shown != in_force {
        return Err(Refusal::VersionChanged { template_id, shown, in_force });
    }
    if let Some(current) = facts.current
        && (current.template_id, current.template_version) == (template_id, shown)
    {
        return Ok(Signing::Already);
    }
    if !may_sign_directly(facts.customer.first_purchase_at, facts.first_signed_at) {
        return Err(Refusal::ContactPartner);
    }
    Ok(Signing::New { supersedes: facts.current.map(|current| current.id) })
}

/// Whether a template can be signed at all in a cloud (DIR-5, TPL-4).
pub fn check_signable(
    cloud: Cloud,
    template: &Template,
    live_template_id: Option<Uuid>,
    now: Time,
) -> Result<(), Refusal> {
    if cloud != Cloud::Public {
        return Err(Refusal::CloudNotSupported { cloud });
    }
    if template.is_retired(now) {
        return Err(Refusal::TemplateRetired { template_id: template.id, use_template_id: live_template_id });
    }
    Ok(())
}

/// Whether a customer may sign directly (DIR-4): it never bought, or signed before it first did.
pub fn may_sign_directly(first_purchase_at: Option<Time>, first_signed_at: Option<Time>) -> bool {
    first_purchase_at.is_none_or(|purchase| first_signed_at.is_some_and(|signed| signed < purchase))
}

#[cfg(test)]
mod tests {
    use super::super::party::Contact;
    use super::super::template::Version;
    use super::*;

    const LIVE: Uuid = Uuid::from_u128(2);

    fn at(seconds: i64) -> Time {
        Time::from_timestamp(seconds, 0).unwrap()
    }

    /// Its only version is in force, and it retires at 500.
    fn template() -> Template {
        let version = Version {
            number: 1,
            effective_from: at(100),
            reaccept_by: None,
            published_at: at(0),
            document_count: 1,
        };
        Template {
            id: Uuid::from_u128(1),
            name: "Agreement".into(),
            agreement_type: AgreementType::MicrosoftCustomerAgreement,
            retired_at: Some(at(500)),
            revision: 1,
            versions: vec![version],
        }
    }

    fn customer(cloud: Cloud) -> Customer {
        Customer {
            id: Uuid::from_u128(7),
            company_name: "Contoso".into(),
            domain: "contoso.example".into(),
            country: "FR".into(),
            cloud,
            primary_contact: Contact::default(),
            contact_salt: String::new(),
            created_at: at(0),
            first_purchase_at: None,
            acceptance_revision: 1,
            revision: 1,
        }
    }

    /// DIR-5, TPL-4.
    #[test]
    fn a_live_template_can_be_signed_in_the_public_cloud_only() {
        let template = template();
        let unsupported = |cloud| Err(Refusal::CloudNotSupported { cloud });
        let retired = Err(Refusal::TemplateRetired { template_id: template.id, use_template_id: Some(LIVE) });
        for (cloud, now, expected) in [
            (Cloud::Public, 499, Ok(())),
            (Cloud::Public, 500, retired),
            (Cloud::UsGovernment, 499, unsupported(Cloud::UsGovernment)),
            (Cloud::Germany, 499, unsupported(Cloud::Germany)),
            (Cloud::China21vianet, 500, unsupported(Cloud::China21vianet)),
        ] {
            let signable = check_signable(cloud, &template, Some(LIVE), at(now));
            assert_eq!(signable, expected, "{cloud:?} at {now}");
            let customer = customer(cloud);
            let facts = Facts {
                customer: &customer,
                template: &template,
                live_template_id: Some(LIVE),
                current: None,
                first_signed_at: None,
            };
            let signed = expected.map(|()| Signing::New { supersedes: None });
            assert_eq!(sign(&facts, 1, at(now)), signed, "{cloud:?} at {now}");
        }
    }

    /// DIR-4.
    #[test]
    fn who_never_bought_or_signed_before_it_did_may_sign_directly() {
        // first purchase, first signature -> whether it may
        for (bought, signed, may) in [
            (None, None, true),
            (None, Some(100), true),
            (Some(100), None, false),
            (Some(100), Some(99), true),
            (Some(100), Some(100), false),
            (Some(100), Some(101), false),
        ] {
            assert_eq!(may_sign_directly(bought.map(at), signed.map(at)), may, "{bought:?} {signed:?}");
        }
    }

    /// DIR-1: a signature of the same number, of another template, is another one.
    #[test]
    fn only_a_signature_of_the_very_version_is_the_same_again() {
        let template = template();
        let signature = |template_id, template_version| Signature {
            id: Uuid::from_u128(9),
            customer_id: Uuid::from_u128(7),
            agreement_type: AgreementType::MicrosoftCustomerAgreement,
            template_id,
            template_version,
            signed_at: at(150),
            signed_by: Uuid::from_u128(6),
            superseded_at: None,
            withdrawn: None,
            revision: 1,
        };
        let customer = customer(Cloud::Public);
        let again = Signing::New { supersedes: Some(Uuid::from_u128(9)) };
        for (current, expected) in [
            (signature(template.id, 1), Signing::Already),
            (signature(LIVE, 1), again),
            (signature(template.id, 2), again),
        ] {
            let facts = Facts {
                customer: &customer,
                template: &template,
                live_template_id: None,
                current: Some(&current),
                first_signed_at: Some(at(150)),
            };
            assert_eq!(sign(&facts, 1, at(200)), Ok(expected), "{current:?}");
        }
    }
}
