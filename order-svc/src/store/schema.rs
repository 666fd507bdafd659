//! The tables, as the migrations make them.

diesel::table! {
    fence (customer_id) {
        customer_id -> Text,
        fence_revision -> BigInt,
    }
}

diesel::table! {
    orders (id) {
        id -> Text,
        payer_id -> Text,
        reseller_id -> Text,
        customer_id -> Text,
        placed_at -> Timestamp,
        placed_by_tenant -> Text,
        placed_by -> Text,
        gate_decision -> Text,
        gate_rule -> Text,
        gate_evidence -> Text,
        gate_revision -> BigInt,
        gate_evaluated_at -> Timestamp,
        in_history -> Bool,
        external_reference -> Nullable<Text>,
    }
}

diesel::table! {
    order_line (order_id, number) {
        order_id -> Text,
        number -> Integer,
        offer_id -> Text,
        quantity -> BigInt,
        friendly_name -> Text,
        subscription_id -> Text,
    }
}

diesel::table! {
    subscription (id) {
        id -> Text,
        order_id -> Text,
        payer_id -> Text,
        reseller_id -> Text,
        customer_id -> Text,
        offer_id -> Text,
        quantity -> BigInt,
        friendly_name -> Text,
        state -> Text,
        auto_renew -> Bool,
        started_at -> Timestamp,
        term -> Text,
        term_number -> Integer,
        term_end -> Nullable<Timestamp>,
        answer_revision -> BigInt,
        version -> BigInt,
        due_at -> Nullable<Timestamp>,
        reseller_revision -> BigInt,
    }
}

diesel::table! {
    subscription_change (subscription_id, number) {
        subscription_id -> Text,
        number -> Integer,
        kind -> Text,
        changed_at -> Timestamp,
        actor_tenant -> Text,
        actor -> Text,
        quantity_before -> BigInt,
        quantity_after -> BigInt,
        gate_decision -> Text,
        gate_rule -> Text,
        gate_evidence -> Text,
        gate_revision -> BigInt,
        gate_evaluated_at -> Timestamp,
        reason -> Text,
        event_revision -> BigInt,
        term_number -> Integer,
        reseller_id -> Text,
        in_history -> Bool,
        acceptance_outdated -> Nullable<Bool>,
    }
}

diesel::table! {
    follower (id) {
        id -> Integer,
        revision -> BigInt,
        head -> Nullable<Text>,
        relationships_revision -> BigInt,
        relationships_complete_at -> BigInt,
        restores -> Integer,
    }
}

diesel::table! {
    relationship (customer_id, payer_id, reseller_id) {
        customer_id -> Text,
        payer_id -> Text,
        reseller_id -> Text,
        is_active -> Bool,
        revision -> BigInt,
        restores -> Integer,
    }
}

diesel::table! {
    withdrawal (revision) {
        revision -> BigInt,
        customer_id -> Text,
        kind -> Text,
        acceptance_id -> Text,
        partner_id -> Text,
        withdrawn_at -> Timestamp,
        applied_at -> Timestamp,
        cancelled -> Integer,
        stayed -> Integer,
        is_complete -> Bool,
        newer_answer -> Integer,
    }
}

diesel::table! {
    withdrawal_partner (partner_id, revision) {
        partner_id -> Text,
        revision -> BigInt,
        is_uncovered -> Bool,
        cancelled -> Integer,
        stayed -> Integer,
        newer_answer -> Integer,
    }
}

diesel::table! {
    withdrawal_effect (revision, subscription_id) {
        revision -> BigInt,
        subscription_id -> Text,
        payer_id -> Text,
        reseller_id -> Text,
        outcome -> Text,
    }
}

diesel::table! {
    purchase_report (customer_id) {
        customer_id -> Text,
        payer_id -> Text,
        order_id -> Text,
        purchased_at -> Timestamp,
        attempts -> Integer,
        due_at -> Timestamp,
        reported_at -> Nullable<Timestamp>,
    }
}

diesel::table! {
    event (revision) {
        revision -> BigInt,
        recorded_at -> Timestamp,
        customer_id -> Text,
        order_id -> Text,
        subscription_id -> Text,
        change_number -> Integer,
    }
}

diesel::table! {
    event_head (id) {
        id -> Integer,
        revision -> BigInt,
    }
}

// On SQLite the rowid stands for the entry.
diesel::table! {
    event_pending (entry) {
        entry -> BigInt,
        order_id -> Text,
        subscription_id -> Text,
        change_number -> Integer,
    }
}

diesel::joinable!(withdrawal_partner -> withdrawal (revision));
diesel::allow_tables_to_appear_in_same_query!(withdrawal_partner, withdrawal);
diesel::allow_tables_to_appear_in_same_query!(order_line, orders);
diesel::allow_tables_to_appear_in_same_query!(subscription_change, withdrawal_effect);
diesel::allow_tables_to_appear_in_same_query!(event, orders, subscription, subscription_change);
