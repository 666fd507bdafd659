//! Direct signatures: a customer's own acceptance.

use uuid::Uuid;

use super::party::{Cloud, Customer};
use super::shown::ShownText;
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
    /// The text that the user was shown (TPL-5); absent from signatures of earlier versions.
    pub shown_text: Option<ShownText>,
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
        return Err(contact_partner(facts.customer));
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
    check_cloud(cloud)?;
    if template.is_retired(now) {
        return Err(Refusal::TemplateRetired { template_id: template.id, use_template_id: live_template_id });
    }
    Ok(())
}

/// Whether a customer may sign anything at all (DIR-4, DIR-5).
pub fn check_signer(customer: &Customer, first_signed_at: Option<Time>) -> Result<(), Refusal> {
    check_cloud(customer.cloud)?;
    if may_sign_directly(customer.first_purchase_at, first_signed_at) {
        Ok(())
    } else {
        Err(contact_partner(customer))
    }
}

fn contact_partner(customer: &Customer) -> Refusal {
    Refusal::ContactPartner { partner: None, language: customer.language().to_owned() }
}

fn check_cloud(cloud: Cloud) -> Result<(), Refusal> {
    if cloud == Cloud::Public { Ok(()) } else { Err(Refusal::CloudNotSupported { cloud }) }
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

    fn at(seconds: i64) -> Time {
        Time::from_timestamp(seconds, 0).unwrap()
    }

    fn customer(cloud: Cloud, first_purchase_at: Option<Time>) -> Customer {
        Customer {
            id: Uuid::from_u128(1),
            company_name: "Contoso".into(),
            domain: "contoso.example".into(),
            country: "FR".into(),
            given_language: String::new(),
            cloud,
            primary_contact: Contact::default(),
            contact_salt: String::new(),
            created_at: at(0),
            first_purchase_at,
            acceptance_revision: 1,
            revision: 1,
        }
    }

    /// Its second version is in force from second 100 on.
    fn template(retired_at: Option<i64>) -> Template {
        let version = |number, effective| Version {
            number,
            effective_from: at(effective),
            reaccept_by: None,
            published_at: at(0),
            document_count: 1,
        };
        Template {
            id: Uuid::from_u128(2),
            name: "Agreement".into(),
            agreement_type: AgreementType::MicrosoftCustomerAgreement,
            retired_at: retired_at.map(at),
            revision: 1,
            versions: vec![version(1, 0), version(2, 100)],
        }
    }

    fn signature(template_id: u128, template_version: u32) -> Signature {
        Signature {
            id: Uuid::from_u128(3),
            customer_id: Uuid::from_u128(1),
            agreement_type: AgreementType::MicrosoftCustomerAgreement,
            template_id: Uuid::from_u128(template_id),
            template_version,
            signed_at: at(50),
            signed_by: Uuid::from_u128(4),
            superseded_at: None,
            withdrawn: None,
            revision: 1,
            shown_text: None,
        }
    }

    /// DIR-1, DIR-4: what a signature of the version that was shown becomes at second 200.
    #[test]
    fn a_signature_is_new_or_the_same_or_refused() {
        let (public, bought) = (customer(Cloud::Public, None), customer(Cloud::Public, Some(at(60))));
        let template = template(None);
        let (older, same, foreign) = (signature(2, 1), signature(2, 2), signature(8, 2));
        let new =
            |supersedes: Option<&Signature>| Ok(Signing::New { supersedes: supersedes.map(|of| of.id) });
        let changed = Err(Refusal::VersionChanged { template_id: template.id, shown: 1, in_force: 2 });
        for (about, customer, current, first_signed_at, shown, expected) in [
            ("the first", &public, None, None, 2, new(None)),
            ("an older version was shown", &public, None, None, 1, changed),
            ("a later version", &public, Some(&older), Some(at(50)), 2, new(Some(&older))),
            ("the same again", &public, Some(&same), Some(at(50)), 2, Ok(Signing::Already)),
            ("another template of the number", &public, Some(&foreign), Some(at(50)), 2, new(Some(&foreign))),
            (
                "after a purchase",
                &bought,
                None,
                None,
                2,
                Err(Refusal::ContactPartner { partner: None, language: "fr".into() }),
            ),
            ("the same after a purchase", &bought, Some(&same), None, 2, Ok(Signing::Already)),
            ("signed before it bought", &bought, Some(&older), Some(at(59)), 2, new(Some(&older))),
            (
                "signed when it bought",
                &bought,
                Some(&older),
                Some(at(60)),
                2,
                Err(Refusal::ContactPartner { partner: None, language: "fr".into() }),
            ),
        ] {
            let facts =
                Facts { customer, template: &template, live_template_id: None, current, first_signed_at };
            assert_eq!(sign(&facts, shown, at(200)), expected, "{about}");
        }
    }

    /// DIR-5, TPL-4.
    #[test]
    fn only_a_live_template_is_signed_in_the_public_cloud() {
        let live = Some(Uuid::from_u128(7));
        let retired =
            Err(Refusal::TemplateRetired { template_id: Uuid::from_u128(2), use_template_id: live });
        let elsewhere = Err(Refusal::CloudNotSupported { cloud: Cloud::Germany });
        for (cloud, retired_at, expected) in [
            (Cloud::Public, None, Ok(())),
            (Cloud::Public, Some(201), Ok(())),
            (Cloud::Public, Some(200), retired),
            (Cloud::Germany, None, elsewhere),
        ] {
            let template = template(retired_at);
            assert_eq!(check_signable(cloud, &template, live, at(200)), expected, "{cloud:?} {retired_at:?}");
            let customer = customer(cloud, None);
            let facts = Facts {
                customer: &customer,
                template: &template,
                live_template_id: live,
                current: None,
                first_signed_at: None,
            };
            assert_eq!(sign(&facts, 2, at(200)).map(drop), expected);
        }
    }

    /// DIR-4.
    #[test]
    fn a_customer_signs_directly_until_it_has_bought() {
        for (bought, signed, may) in [
            (None, None, true),
            (None, Some(5), true),
            (Some(10), None, false),
            (Some(10), Some(9), true),
            (Some(10), Some(10), false),
            (Some(10), Some(11), false),
        ] {
            assert_eq!(may_sign_directly(bought.map(at), signed.map(at)), may, "{bought:?} {signed:?}");
        }
    }
}
