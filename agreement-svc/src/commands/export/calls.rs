//! Calls by their names: what they ask and answer is known by the contract's descriptors only. So a list is read, and a
//! record shown, without code of its own.

use anyhow::{Context, anyhow};
use chassis::auth::Credentials;
use prost::Message;
use prost_reflect::{
    DescriptorPool, DynamicMessage, FieldDescriptor, MessageDescriptor, MethodDescriptor, Value,
};
use tonic::client::Grpc;
use tonic::codec::{Codec, DecodeBuf, Decoder, EncodeBuf, Encoder};
use tonic::transport::Channel;
use tonic::{Request, Status};

use crate::commands::client::said;

/// Rows of a page: few enough that the answer is never too large.
const PAGE: i32 = 100;

/// A server, and as whom it is asked.
pub(super) struct Calls {
    channel: Channel,
    credentials: Credentials,
    contract: DescriptorPool,
}

/// The fields of a request.
pub(super) type Fields<'a> = &'a [(&'a str, Value)];

impl Calls {
    pub(super) fn new(channel: Channel, credentials: Credentials) -> anyhow::Result<Self> {
        let contract = DescriptorPool::decode(proto::FILE_DESCRIPTOR_SET)?;
        Ok(Self { channel, credentials, contract })
    }

    /// Makes a call, as in `csp.agreement.v1.CustomerService.GetCustomer`.
    pub(super) async fn call(&self, name: &str, fields: Fields<'_>) -> anyhow::Result<DynamicMessage> {
        let method = self.method(name)?;
        self.send(&method, request_of(&method, fields)).await
    }

    /// Reads all pages of a list.
    pub(super) async fn list(&self, name: &str, fields: Fields<'_>) -> anyhow::Result<Vec<DynamicMessage>> {
        let method = self.method(name)?;
        let rows = method.output().fields().find(FieldDescriptor::is_list);
        let rows = rows.with_context(|| format!("{name} is no list"))?;
        let mut request = request_of(&method, fields);
        request.set_field_by_name("page_size", Value::I32(PAGE));
        let mut found = vec![];
        loop {
            let mut page = self.send(&method, request.clone()).await?;
            if let Value::List(list) = page.get_field_mut(&rows) {
                let read = std::mem::take(list).into_iter();
                found.extend(read.filter_map(|row| row.as_message().cloned()));
            }
            let next = text(&page, "next_page_token");
            if next.is_empty() {
                return Ok(found);
            }
            request.set_field_by_name("page_token", Value::String(next));
        }
    }

    fn method(&self, name: &str) -> anyhow::Result<MethodDescriptor> {
        let mut methods = self.contract.services().flat_map(|service| service.methods().collect::<Vec<_>>());
        methods.find(|method| method.full_name() == name).with_context(|| format!("there is no call {name}"))
    }

    async fn send(
        &self,
        method: &MethodDescriptor,
        message: DynamicMessage,
    ) -> anyhow::Result<DynamicMessage> {
        let path = format!("/{}/{}", method.parent_service().full_name(), method.name());
        let mut client = Grpc::new(self.channel.clone());
        client.ready().await?;
        let mut request = Request::new(message);
        self.credentials.present(request.metadata_mut());
        let answer = client.unary(request, path.parse()?, Dynamic(method.output())).await;
        let answer = answer.map_err(|status| anyhow!("{}: {}", method.name(), said(&status)))?;
        Ok(answer.into_inner())
    }
}

fn request_of(method: &MethodDescriptor, fields: Fields<'_>) -> DynamicMessage {
    let mut request = DynamicMessage::new(method.input());
    for (field, value) in fields {
        request.set_field_by_name(field, value.clone());
    }
    request
}

/// The text of a field; empty where there is none.
pub(super) fn text(message: &DynamicMessage, field: &str) -> String {
    let value = message.get_field_by_name(field);
    value.and_then(|value| value.as_str().map(str::to_owned)).unwrap_or_default()
}

/// The message of a field.
pub(super) fn part(message: &DynamicMessage, field: &str) -> Option<DynamicMessage> {
    if !message.has_field_by_name(field) {
        return None;
    }
    message.get_field_by_name(field)?.as_message().cloned()
}

/// Answers of one type.
struct Dynamic(MessageDescriptor);

impl Codec for Dynamic {
    type Encode = DynamicMessage;
    type Decode = DynamicMessage;
    type Encoder = Self;
    type Decoder = Self;

    fn encoder(&mut self) -> Self {
        Self(self.0.clone())
    }

    fn decoder(&mut self) -> Self {
        Self(self.0.clone())
    }
}

impl Encoder for Dynamic {
    type Item = DynamicMessage;
    type Error = Status;

    fn encode(&mut self, message: DynamicMessage, buffer: &mut EncodeBuf<'_>) -> Result<(), Status> {
        message.encode(buffer).map_err(|error| Status::internal(error.to_string()))
    }
}

impl Decoder for Dynamic {
    type Item = DynamicMessage;
    type Error = Status;

    fn decode(&mut self, buffer: &mut DecodeBuf<'_>) -> Result<Option<DynamicMessage>, Status> {
        let message = DynamicMessage::decode(self.0.clone(), buffer);
        message.map(Some).map_err(|error| Status::internal(error.to_string()))
    }
}
