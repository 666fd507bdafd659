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
