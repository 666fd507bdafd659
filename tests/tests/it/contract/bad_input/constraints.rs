//! The constraints that the contract states (`buf.validate`) are those of the services: a value just outside each of them is
//! refused for its field and no other, and one just inside is not refused for it. The services never read the
//! constraints.

use chassis::clock::Clock;
use chrono::Duration;
use prost_reflect::{
    DescriptorPool, DynamicMessage, EnumDescriptor, FieldDescriptor, Kind, MessageDescriptor,
    OneofDescriptor, ReflectMessage, Value,
};
use proto::agreement::{InvitationKind, WithdrawalReason};
use proto::types::{AgreementType, Channel};
use regex::Regex;
use tests::fixtures::{CUSTOMER_AGREEMENT, OFFICE, PROVIDER, RESELLER};

use super::*;

/// The first second that is taken for a time that was set.
const YEAR_2010: i64 = 1_262_304_000;

/// Bad fields of the tables that have no constraint, and why.
const UNCONSTRAINED: [(&str, &str); 8] = [
    ("page_token", "only the service can tell its own"),
    ("after_hash", "it depends on after_revision"),
    ("include_ended", "it depends on the caller"),
    ("GetInvitation token", "it depends on the caller"),
    ("assumed_attestation", "it depends on the caller"),
    ("replacement", "it depends on the reason"),
    ("attestation", "it depends on auto_renew"),
    ("invitation", "it depends on the attestation"),
];

/// Fields of which no value suits, or not every one, because it depends on more than the field.
const DEPENDENT: [(&str, &str); 11] = [
    ("ListAttestations customer_id", "an operator gives it or partner_id"),
    ("CreateInvitation customer_id", "it depends on the kind"),
    ("CreateInvitation provider_id", "it depends on the caller"),
    ("ListSignatures customer_id", "it depends on the caller"),
    ("CreateCustomer provider_id", "it depends on the caller"),
    ("ImportCustomers provider_id", "it depends on the caller"),
    ("GetRelationship partner_id", "it depends on the caller"),
    ("ListRelationships partner_id", "it depends on the caller"),
    ("ListBlockedCustomers partner_id", "it depends on the caller"),
    ("AssignReseller reseller_id", "it depends on the relationships"),
    ("PublishTemplateVersion documents", "one is for US and en-US"),
];

/// Texts that some patterns take and others do not. None is good but for blanks around it, which the services take off.
const TEXTS: [&str; 18] = [
    "garbage",
    "abcdef00-0000-4000-8000-00000000abc",
    "ABCDEF00-0000-4000-8000-00000000ABCD",
    "{abcdef00-0000-4000-8000-00000000abcd}",
    "abcdef000000400080000000000000ab",
    "fr",
    "F",
    "FRA",
    "ＦＲ",
    "fr_FR",
    "fr--FR",
    "tania@contoso",
    "tania@carr@contoso.example",
    "t\u{e4}nia@contoso.example",
    "contoso..example",
    "http://contoso.example",
    "E3B0C44298FC1C149AFBF4C8996FB92427AE41E4649B934CA495991B7852B855",
    "\0",
];

fn pool() -> DescriptorPool {
    DescriptorPool::decode(proto::FILE_DESCRIPTOR_SET).unwrap()
}

/// The rules of a field or of a oneof, if it has some.
fn rules(options: &DynamicMessage, extension: &str) -> Option<DynamicMessage> {
    let extension = options.descriptor().parent_pool().get_extension_by_name(extension).unwrap();
    let rules = options.has_extension(&extension).then(|| options.get_extension(&extension))?;
    Some(rules.as_message().unwrap().clone())
}

fn field_rules(field: &FieldDescriptor) -> Option<DynamicMessage> {
    rules(&field.options(), "buf.validate.field")
}

fn is_required(oneof: &OneofDescriptor) -> bool {
    let rules = rules(&oneof.options(), "buf.validate.oneof");
    rules.is_some_and(|rules| rules.get_field_by_name("required").unwrap().as_bool() == Some(true))
}

/// Each rule by its path, as in `string.max_len`.
fn flat(rules: &DynamicMessage) -> BTreeMap<String, Value> {
    let mut flat = BTreeMap::new();
    for (field, value) in rules.fields() {
        match value.as_message().filter(|_| field.name() != "gte") {
            Some(inner) => {
                let inner = self::flat(inner).into_iter();
                flat.extend(inner.map(|(name, value)| (format!("{}.{name}", field.name()), value)));
            }
            None => drop(flat.insert(field.name().to_owned(), value.clone())),
        }
    }
    flat
}

/// A value of a field, or its absence, and on which side of a rule it is.
struct Try {
    rule: String,
    value: Option<Value>,
    is_inside: bool,
}

/// The fields on the way from a request down to one.
type Place = [FieldDescriptor];

/// What requests are made of.
struct Requests<'a> {
    existing: &'a Existing,
}

impl Requests<'_> {
    /// A good value of a text.
    fn text(&self, field: &FieldDescriptor) -> String {
        let subscription = &self.existing.subscription;
        match field.name() {
            "customer_id" => self.existing.customer.customer_id.clone(),
            "subscription_id" => subscription.subscription_id.clone(),
            "etag" => subscription.etag.clone(),
            "template_id" => CUSTOMER_AGREEMENT.into(),
            "offer_id" => OFFICE.into(),
            "payer_id" | "partner_id" => DIRECT.to_string(),
            "provider_id" => PROVIDER.to_string(),
            "reseller_id" => RESELLER.to_string(),
            "country" => "FR".into(),
            "language" => "fr-FR".into(),
            "email" => "tania.carr@contoso.example".into(),
            "domain" => "constraints.example".into(),
            "link" | "url" => "https://contoso.example/agreement".into(),
            "sha256" | "evidence_sha256" => "0".repeat(64),
            "phone" => "+33 1".into(),
            name if name.ends_with("_id") => fixtures::request_id(),
            _ => "x".into(),
        }
    }

    /// A good value of a field, of a list's entry.
    fn good(&self, field: &FieldDescriptor, rules: &BTreeMap<String, Value>) -> Value {
        match field.kind() {
            Kind::String => Value::String(self.text(field)),
            Kind::Enum(of) => Value::EnumNumber(allowed_numbers(&of, rules)[0]),
            Kind::Message(of) if of.full_name() == "google.protobuf.Timestamp" => time(&of, YEAR_2010),
            Kind::Message(of) => Value::Message(self.least(&of)),
            Kind::Int32 => Value::I32(1),
            Kind::Int64 => Value::I64(1),
            Kind::Uint32 => Value::U32(1),
            kind => panic!("{}: {kind:?}", field.full_name()),
        }
    }

    /// A message with what it must have.
    fn least(&self, of: &MessageDescriptor) -> DynamicMessage {
        let mut message = DynamicMessage::new(of.clone());
        for field in of.fields() {
            let Some(rules) = field_rules(&field).map(|rules| flat(&rules)) else { continue };
            if is_needed(&rules) {
                let good = self.good(&field, &rules);
                let good = if field.is_list() { Value::List(vec![good]) } else { good };
                message.set_field(&field, good);
            }
        }
        for oneof in of.oneofs().filter(is_required) {
            let first = oneof.fields().next().unwrap();
            message.set_field(&first, self.good(&first, &BTreeMap::new()));
        }
        message
    }

    /// A request that is good but for a value at a place, with the path of the place.
    fn with(
        &self,
        call: &str,
        request: &MessageDescriptor,
        place: &Place,
        value: Option<Value>,
    ) -> (DynamicMessage, String) {
        let mut message = self.least(request);
        self.adapt(call, &mut message, place);
        let path = self.put(&mut message, place, value);
        (message, path)
    }

    fn put(&self, message: &mut DynamicMessage, place: &Place, value: Option<Value>) -> String {
        let (field, rest) = place.split_first().unwrap();
        if rest.is_empty() {
            match value {
                Some(value) => message.set_field(field, value),
                None => message.clear_field(field),
            }
            return field.name().to_owned();
        }
        if field.is_list() {
            // Behind the good ones.
            let mut list = message.get_field(field).as_list().unwrap().to_vec();
            let mut entry = self.good(field, &BTreeMap::new());
            let path = self.put(entry.as_message_mut().unwrap(), rest, value);
            let path = format!("{}[{}].{path}", field.name(), list.len());
            list.push(entry);
            message.set_field(field, Value::List(list));
            return path;
        }
        if !message.has_field(field) {
            message.set_field(field, self.good(field, &BTreeMap::new()));
        }
        let inner = message.get_field_mut(field).as_message_mut().unwrap();
        format!("{}.{}", field.name(), self.put(inner, rest, value))
    }

    /// What the services ask of a call beyond its constraints, which hold for every caller and every field alone.
    fn adapt(&self, call: &str, message: &mut DynamicMessage, place: &Place) {
        let id = |id: Uuid| Value::String(id.to_string());
        let customer = || Value::String(self.existing.customer.customer_id.clone());
        let mut set = |name: &str, value: Value| message.set_field_by_name(name, value);
        let name = place[0].name();
        match call {
            "WithdrawAttestation" if name == "replacement" => {
                set("reason", Value::EnumNumber(WithdrawalReason::RecordedInError.into()));
            }
            "SetAutoRenew" => set("auto_renew", Value::Bool(true)),
            "CreateInvitation" if ["provider_id", "reseller_id"].contains(&name) => {
                set("kind", Value::EnumNumber(InvitationKind::RelationshipAndAgreement.into()));
            }
            "CreateInvitation" => set("customer_id", customer()),
            "UpdateCustomer" => {
                set("company_name", Value::String("Contoso".into()));
                if !["domain", "country"].contains(&name) {
                    let contact = place[0].parent_message().get_field_by_name("primary_contact").unwrap();
                    set("primary_contact", self.good(&contact, &BTreeMap::new()));
                }
            }
            "ListAttestations" | "ListSignatures" => set("customer_id", customer()),
            "ListRelationships" | "ListBlockedCustomers" | "GetRelationship" => set("partner_id", id(DIRECT)),
            "CheckEligibility" if name != "as_of" => {
                set("channel", Value::EnumNumber(Channel::Api.into()));
            }
            "PublishTemplateVersion" => {
                let documents = place[0].parent_message().get_field_by_name("documents").unwrap();
                let mut document = self.good(&documents, &BTreeMap::new());
                let us = document.as_message_mut().unwrap();
                us.set_field_by_name("country", Value::String("US".into()));
                us.set_field_by_name("language", Value::String("en-US".into()));
                set("documents", Value::List(vec![document]));
                if ["name", "agreement_type"].contains(&name) {
                    // Of a new template.
                    let of = AgreementType::MicrosoftCloudAgreement.into();
                    set("template_id", Value::String(fixtures::request_id()));
                    set("agreement_type", Value::EnumNumber(of));
                    set("name", Value::String("x".into()));
                }
            }
            _ => {}
        }
        // Nothing is stored.
        if let Some(dry_run) = message.descriptor().get_field_by_name("validate_only") {
            message.set_field(&dry_run, Value::Bool(true));
        }
    }

    /// Values on both sides of each rule of a field.
    fn tries(&self, field: &FieldDescriptor, rules: &BTreeMap<String, Value>) -> Vec<Try> {
        let mut tries = vec![];
        let pattern = rules.get("string.pattern").map(|of| Regex::new(of.as_str().unwrap()).unwrap());
        for (rule, bound) in rules {
            let mut add = |value: Value, is_inside: bool| {
                tries.push(Try { rule: rule.clone(), value: Some(value), is_inside });
            };
            let length = |bound: &Value| usize::try_from(bound.as_u64().unwrap()).unwrap();
            let entries = |entry: &Value, count: usize| Value::List(vec![entry.clone(); count]);
            match rule.as_str() {
                "required" => tries.push(Try { rule: rule.clone(), value: None, is_inside: false }),
                "string.min_len" => {
                    assert_eq!(length(bound), 1);
                    add(Value::String(String::new()), false);
                    add(Value::String(self.text(field)), true);
                }
                "string.max_len" if pattern.is_some() => {
                    let long = self.text(field) + &"x".repeat(length(bound));
                    add(Value::String(long), false);
                }
                // Characters count, not bytes. An offer must exist, so no other id is good.
                "string.max_len" => {
                    for letter in ["x", "😀"] {
                        add(Value::String(letter.repeat(length(bound) + 1)), false);
                        if field.full_name() != "csp.order.v1.NewOrderLine.offer_id" {
                            add(Value::String(letter.repeat(length(bound))), true);
                        }
                    }
                }
                "string.pattern" => {
                    let pattern = pattern.as_ref().unwrap();
                    let bad: Vec<_> = TEXTS.into_iter().filter(|text| !pattern.is_match(text)).collect();
                    assert!(bad.len() > 5, "{} allows nearly all", field.full_name());
                    // Of ids and digests, the pattern says all; of others, only what is never right.
                    if ["_id", "sha256"].iter().any(|ending| field.name().ends_with(ending)) {
                        assert_eq!(bad.len(), TEXTS.len(), "{}", field.full_name());
                    }
                    bad.into_iter().for_each(|text| add(Value::String(text.into()), false));
                    assert!(pattern.is_match(&self.text(field)), "{}", field.full_name());
                    add(Value::String(self.text(field)), true);
                    if pattern.is_match("") {
                        add(Value::String(String::new()), true);
                    }
                }
                "int32.gte" | "int64.gte" | "uint32.gte" => {
                    let below = match bound {
                        Value::I32(bound) => Value::I32(bound - 1),
                        Value::I64(bound) => Value::I64(bound - 1),
                        Value::U32(bound) => Value::U32(bound - 1),
                        other => panic!("{other:?}"),
                    };
                    add(below, false);
                    add(bound.clone(), true);
                }
                "timestamp.gte" => {
                    let seconds =
                        bound.as_message().unwrap().get_field_by_name("seconds").unwrap().into_owned();
                    assert_eq!(seconds, Value::I64(YEAR_2010));
                    let of = bound.as_message().unwrap().descriptor();
                    add(time(&of, YEAR_2010 - 1), false);
                    // The end of a period is also compared with now.
                    let in_a_month = (Clock::system().now() + Duration::days(30)).timestamp();
                    let is_end = ["expires_at", "reaccept_by"].contains(&field.name());
                    add(time(&of, if is_end { in_a_month } else { YEAR_2010 }), true);
                }
                "enum.defined_only" | "enum.not_in" | "enum.in" => {
                    let Kind::Enum(of) = field.kind() else { panic!("{}", field.full_name()) };
                    let good = allowed_numbers(&of, rules);
                    let given: Vec<_> = match rule.as_str() {
                        "enum.defined_only" => vec![99, -1],
                        "enum.not_in" => vec![0],
                        _ => (0..10).filter(|number| !good.contains(number)).collect(),
                    };
                    given.into_iter().for_each(|number| add(Value::EnumNumber(number), false));
                    let suits = if rule == "enum.in" { good.len() } else { 1 };
                    good[..suits].iter().for_each(|number| add(Value::EnumNumber(*number), true));
                }
                "repeated.min_items" => {
                    assert_eq!(length(bound), 1);
                    add(Value::List(vec![]), false);
                    add(entries(&self.good(field, rules), 1), true);
                }
                "repeated.max_items" => {
                    add(entries(&self.good(field, rules), length(bound) + 1), false);
                    add(entries(&self.good(field, rules), length(bound)), true);
                }
                // Tried below, as the entry of a list.
                "repeated.items.enum.defined_only" | "repeated.items.enum.not_in" => {}
                other => panic!("{}: {other} is tried by no value", field.full_name()),
            }
        }
        tries
    }
}

/// Whether a field must have a value.
fn is_needed(rules: &BTreeMap<String, Value>) -> bool {
    let refuses_nothing = |of: &Value| !Regex::new(of.as_str().unwrap()).unwrap().is_match("");
    rules.contains_key("required")
        || rules.contains_key("string.min_len")
        || rules.contains_key("repeated.min_items")
        || rules.contains_key("enum.not_in")
        || rules.contains_key("enum.in")
        || rules.get("string.pattern").is_some_and(refuses_nothing)
        || ["int64.gte", "uint32.gte"]
            .into_iter()
            .any(|rule| matches!(rules.get(rule), Some(Value::I64(1) | Value::U32(1))))
}

/// The numbers of an enum that its rules allow, but for the one that stands for none.
fn allowed_numbers(of: &EnumDescriptor, rules: &BTreeMap<String, Value>) -> Vec<i32> {
    match rules.get("enum.in") {
        Some(numbers) => numbers.as_list().unwrap().iter().map(|number| number.as_i32().unwrap()).collect(),
        None => of.values().map(|value| value.number()).filter(|number| *number != 0).collect(),
    }
}

fn time(of: &MessageDescriptor, seconds: i64) -> Value {
    let mut time = DynamicMessage::new(of.clone());
    time.set_field_by_name("seconds", Value::I64(seconds));
    Value::Message(time)
}

/// Every field with rules below a message, with the way to it.
fn places(of: &MessageDescriptor, above: &[FieldDescriptor]) -> Vec<Vec<FieldDescriptor>> {
    let mut places = vec![];
    for field in of.fields() {
        let place = [above, std::slice::from_ref(&field)].concat();
        if field_rules(&field).is_some() {
            places.push(place.clone());
        }
        match field.kind() {
            Kind::Message(of) if of.package_name().starts_with("csp.") => {
                places.extend(self::places(&of, &place));
            }
            _ => {}
        }
    }
    places
}

/// A caller for whom a field may have a value.
fn caller_of(call: &str, place: &Place) -> Caller {
    match (call.rsplit('/').next().unwrap(), place[0].name()) {
        ("ListAttestations" | "ListRelationships" | "ListBlockedCustomers" | "GetRelationship", _) => {
            fixtures::operator()
        }
        ("CheckEligibility", "as_of") | ("UpdateCustomer", "domain" | "country") => fixtures::operator(),
        ("CheckEligibility", _) => fixtures::service(),
        ("ProposeAttestation", _)
        | ("CreateCustomer" | "ImportCustomers" | "CreateInvitation" | "EndRelationship", "provider_id") => {
            fixtures::sales(RESELLER)
        }
        ("CreateCustomer" | "ImportCustomers" | "CreateInvitation" | "EndRelationship", "reseller_id") => {
            fixtures::sales(PROVIDER)
        }
        _ => allowed(call),
    }
}

/// Whether a field that a refusal names is at a path or below it.
fn is_at(named: &str, path: &str) -> bool {
    named.strip_prefix(path).is_some_and(|rest| rest.is_empty() || rest.starts_with(['.', '[']))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn a_value_outside_a_constraint_is_refused_for_its_field_and_one_inside_is_not() {
    let existing = Existing::new().await;
    let requests = Requests { existing: &existing };
    let (mut wrong, mut outside, mut inside) = (vec![], 0, 0);
    let mut unused: BTreeSet<&str> = DEPENDENT.iter().map(|(field, _)| *field).collect();
    let services = pool().services().filter(|of| of.full_name().starts_with("csp.")).collect::<Vec<_>>();
    for method in services.iter().flat_map(|service| service.methods().collect::<Vec<_>>()) {
        let call = path(&format!("{}/{}", method.parent_service().full_name(), method.name()));
        let of = method.input();
        let mut rows: Vec<(Vec<FieldDescriptor>, Try)> = vec![];
        for place in places(&of, &[]) {
            // Items are answered one by one; another test is about their fields.
            if method.name() == "BatchCheckEligibility" && place.len() > 1 {
                continue;
            }
            let field = place.last().unwrap();
            let rules = flat(&field_rules(field).unwrap());
            rows.extend(requests.tries(field, &rules).into_iter().map(|row| (place.clone(), row)));
            if rules.contains_key("repeated.items.enum.not_in") {
                let good = requests.good(field, &rules);
                let bad = [0, 99].map(Value::EnumNumber);
                rows.extend(bad.map(|bad| {
                    let value = Some(Value::List(vec![good.clone(), bad]));
                    (place.clone(), Try { rule: "repeated.items".into(), value, is_inside: false })
                }));
            }
        }
        for oneof in of.oneofs().filter(is_required) {
            let first = oneof.fields().next().unwrap();
            rows.push((vec![first], Try { rule: "oneof.required".into(), value: None, is_inside: false }));
        }
        for (place, row) in rows {
            let (message, at) = requests.with(method.name(), &of, &place, row.value);
            let about = format!("{} {at} {} inside: {}", method.name(), row.rule, row.is_inside);
            let request = message.encode_to_vec();
            let by = caller_of(call, &place);
            let row_of = Row { call, about: about.clone(), by, request, bad: BTreeSet::new() };
            let refusal = existing.refusal_of(&row_of).await;
            let named = match &refusal {
                Some((Code::InvalidArgument, reason, named)) if reason == "INVALID_FIELDS" => named.clone(),
                _ => BTreeSet::new(),
            };
            let is_right = match row.is_inside {
                true => !named.iter().any(|named| is_at(named, &at) && !named[at.len()..].starts_with('[')),
                false => !named.is_empty() && named.iter().all(|named| is_at(named, &at)),
            };
            if row.is_inside {
                inside += 1;
            } else {
                outside += 1;
            }
            let field = format!("{} {at}", method.name());
            if !is_right && row.is_inside && DEPENDENT.iter().any(|(listed, _)| *listed == field) {
                unused.remove(field.as_str());
            } else if !is_right {
                wrong.push(format!("{about}: {refusal:?}"));
            }
        }
    }
    assert!(
        wrong.is_empty(),
        "{} of {outside} outside and {inside} inside\n{}",
        wrong.len(),
        wrong.join("\n")
    );
    assert!(unused.is_empty(), "listed, and never refused inside: {unused:?}");
    assert!(outside > 2000 && inside > 500, "{outside} outside, {inside} inside");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn every_field_that_can_be_bad_has_a_constraint_or_a_reason() {
    let pool = pool();
    let mut missing = BTreeSet::new();
    let mut unused: BTreeSet<&str> = UNCONSTRAINED.iter().map(|(field, _)| *field).collect();
    for row in Existing::new().await.table() {
        let (service, name) = row.call[1..].split_once('/').unwrap();
        let service = pool.get_service_by_name(service).unwrap();
        let request = service.methods().find(|method| method.name() == name).unwrap().input();
        for bad in row.bad.iter().map(|bad| without_places(bad)) {
            let mut of = Some(request.clone());
            let mut last = None;
            for name in bad.split('.') {
                let field = of.unwrap().get_field_by_name(name).unwrap();
                of = field.kind().as_message().cloned();
                last = Some(field);
            }
            let field = last.unwrap();
            if field_rules(&field).is_some() {
                continue;
            }
            let of_the_call = format!("{name} {bad}");
            match UNCONSTRAINED.iter().find(|(listed, _)| [bad.as_str(), &of_the_call].contains(listed)) {
                Some((listed, _)) => drop(unused.remove(listed)),
                None => drop(missing.insert(format!("{name}: {bad}"))),
            }
        }
    }
    assert!(missing.is_empty(), "\n{missing:#?}");
    assert!(unused.is_empty(), "listed, and constrained or never bad: {unused:?}");
}
