//! What calls state of a customer's relationship with a partner.

use chassis::form::Form;
use uuid::Uuid;

/// Reads the other partner of a relationship that the caller names: its provider or its reseller.
pub(in crate::api) fn read_named(
    form: &mut Form,
    provider_id: &str,
    reseller_id: &str,
) -> (Option<Uuid>, Option<Uuid>) {
    let provider_id = form.optional_id("provider_id", provider_id);
    let reseller_id = form.optional_id("reseller_id", reseller_id);
    if provider_id.is_some() && reseller_id.is_some() {
        form.violation("reseller_id", "must be empty when provider_id is given");
    }
    (provider_id, reseller_id)
}

/// Reads a partner's external reference for a customer (CUS-6).
pub(in crate::api) fn read_reference(form: &mut Form, reference: &str) -> String {
    form.text("external_reference", reference, 0, 80)
}
