//! The tables, as the migrations make them.

diesel::table! {
    revision (id) {
        id -> Integer,
        value -> BigInt,
        head -> Text,
    }
}

diesel::table! {
    event (revision) {
        revision -> BigInt,
        customer_id -> Nullable<Text>,
        partner_id -> Nullable<Text>,
        recorded_at -> Timestamp,
        body -> Text,
        hash -> Text,
    }
}

diesel::table! {
    partner (id) {
        id -> Text,
        name -> Text,
        kind -> Text,
        cloud -> Text,
        registered_at -> Timestamp,
        revision -> BigInt,
        support_email -> Text,
        support_phone -> Text,
        support_url -> Text,
    }
}

diesel::table! {
    reseller_link (provider_id, reseller_id) {
        provider_id -> Text,
        reseller_id -> Text,
    }
}

diesel::table! {
    customer (id) {
        id -> Text,
        company_name -> Text,
        domain -> Text,
        country -> Text,
        cloud -> Text,
        first_name -> Text,
        last_name -> Text,
        email -> Text,
        phone -> Text,
        contact_salt -> Text,
        created_at -> Timestamp,
        first_purchase_at -> Nullable<Timestamp>,
        acceptance_revision -> BigInt,
        revision -> BigInt,
        name_key -> Nullable<Binary>,
        name_revision -> BigInt,
        language -> Text,
    }
}

diesel::table! {
    customer_reference (partner_id, customer_id) {
        partner_id -> Text,
        customer_id -> Text,
        external_reference -> Text,
    }
}

diesel::table! {
    relationship (revision) {
        partner_id -> Text,
        customer_id -> Text,
        reseller_id -> Text,
        established_at -> Timestamp,
        ended_at -> Nullable<Timestamp>,
        revision -> BigInt,
    }
}

diesel::table! {
    template (id) {
        id -> Text,
        name -> Text,
        agreement_type -> Text,
        retired_at -> Nullable<Timestamp>,
        revision -> BigInt,
    }
}

diesel::table! {
    template_version (template_id, number) {
        template_id -> Text,
        number -> Integer,
        agreement_type -> Text,
        effective_from -> Timestamp,
        reaccept_by -> Nullable<Timestamp>,
        published_at -> Timestamp,
        document_count -> Integer,
    }
}

diesel::table! {
    template_document (template_id, number, country, language) {
        template_id -> Text,
        number -> Integer,
        country -> Text,
        language -> Text,
        link -> Text,
        sha256 -> Text,
    }
}

diesel::table! {
    acceptance (id) {
        id -> Text,
        kind -> Text,
        partner_id -> Text,
        customer_id -> Text,
        agreement_type -> Text,
        template_id -> Text,
        template_version -> Integer,
        first_name -> Text,
        last_name -> Text,
        email -> Text,
        phone -> Text,
        contact_salt -> Text,
        agreed_at -> Timestamp,
        recorded_at -> Timestamp,
        recorded_by -> Text,
        superseded_at -> Nullable<Timestamp>,
        withdrawn_at -> Nullable<Timestamp>,
        revision -> BigInt,
        withdrawal_reason -> Text,
        withdrawn_by -> Text,
        title -> Text,
        evidence_reference -> Text,
        evidence_sha256 -> Text,
        on_behalf_of -> Text,
        recorded_client -> Text,
        external_reference -> Nullable<Text>,
        proposal_id -> Text,
        proposed_by_partner -> Text,
        proposed_by_user -> Text,
        shown_country -> Text,
        shown_language -> Text,
        shown_sha256 -> Text,
    }
}

diesel::table! {
    proposal (id) {
        id -> Text,
        reseller_id -> Text,
        provider_id -> Text,
        customer_id -> Text,
        template_id -> Text,
        first_name -> Text,
        last_name -> Text,
        email -> Text,
        phone -> Text,
        contact_salt -> Text,
        title -> Text,
        evidence_reference -> Text,
        evidence_sha256 -> Text,
        on_behalf_of -> Text,
        external_reference -> Text,
        agreed_at -> Timestamp,
        proposed_at -> Timestamp,
        proposed_by -> Text,
        expires_at -> Timestamp,
        approved_at -> Nullable<Timestamp>,
        attestation_id -> Nullable<Text>,
        rejected_at -> Nullable<Timestamp>,
        rejection_reason -> Nullable<Text>,
        revision -> BigInt,
        shown_country -> Text,
        shown_language -> Text,
        shown_sha256 -> Text,
        withdrawn_at -> Nullable<Timestamp>,
    }
}

diesel::table! {
    invitation (id) {
        id -> Text,
        kind -> Text,
        partner_id -> Text,
        reseller_id -> Text,
        customer_id -> Text,
        template_id -> Text,
        first_name -> Text,
        last_name -> Text,
        email -> Text,
        phone -> Text,
        contact_salt -> Text,
        created_at -> Timestamp,
        created_by -> Text,
        expires_at -> Timestamp,
        accepted_at -> Nullable<Timestamp>,
        revoked_at -> Nullable<Timestamp>,
        revision -> BigInt,
        declined_at -> Nullable<Timestamp>,
        decline_reason -> Nullable<Text>,
        language -> Text,
    }
}

diesel::table! {
    notification (attestation_id) {
        attestation_id -> Text,
        state -> Text,
        attempts -> Integer,
        due_at -> Timestamp,
        sent_at -> Nullable<Timestamp>,
        last_failure -> Text,
        partner_id -> Text,
        customer_id -> Text,
        mail_id -> Text,
    }
}

diesel::table! {
    contact (id) {
        id -> Text,
        customer_id -> Text,
        partner_id -> Text,
        first_name -> Text,
        last_name -> Text,
        email -> Text,
        phone -> Text,
        contact_salt -> Text,
    }
}

diesel::table! {
    contact_notice (id) {
        id -> Text,
        sender_id -> Text,
        customer_id -> Text,
        email -> Text,
        state -> Text,
        attempts -> Integer,
        due_at -> Timestamp,
        sent_at -> Nullable<Timestamp>,
        last_failure -> Text,
    }
}

diesel::allow_tables_to_appear_in_same_query!(
    acceptance,
    contact,
    contact_notice,
    customer,
    customer_reference,
    event,
    invitation,
    notification,
    partner,
    proposal,
    relationship,
    reseller_link,
    revision,
    template,
    template_document,
    template_version,
);
