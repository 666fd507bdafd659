//! What a partner states of a customer's acceptance, as calls that attest, propose and import attestations read it.

use chassis::auth::Caller;
use chassis::form::Form;
use prost_types::Timestamp;
use proto::types;
use uuid::Uuid;

use super::{Timed, convert};
use crate::actions::attest::NewAttestation;
use crate::rules::attestation::{Claim, check_not_in_the_future};

/// What a partner states: who accepted, when, and what it keeps with that.
pub(super) type Stated<'m> =
    (Option<&'m types::Contact>, Option<&'m Timestamp>, Option<&'m types::AttestationDetails>);

/// Reads the customer and what is to be stored.
pub(super) fn read_statement(
    form: &mut Form,
    timed: &mut Vec<Timed>,
    caller: &Caller,
    (customer_id, template_id): (&str, &str),
    (contact, agreed_at, details): Stated<'_>,
) -> (Uuid, NewAttestation) {
    let customer_id = form.id("customer_id", customer_id);
    let template_id = form.id("template_id", template_id);
    let contact = convert::read_contact(form, "contact", contact);
    let agreed_at = form.time("agreed_at", agreed_at);
    timed.push(("agreed_at".into(), agreed_at, check_not_in_the_future));
    let details = convert::read_details(form, "details", details);
    let claim = Claim { contact, agreed_at, details };
    let client = caller.client.clone();
    (customer_id, NewAttestation { template_id, claim, by: caller.user_id, client, proposed_by: None })
}
