//! The details of a refusal, read as a tool does that knows the services by reflection only.

#![expect(clippy::unwrap_used, reason = "an unexpected answer fails the test")]

use prost::Message;
use prost_reflect::{DescriptorPool, DynamicMessage};
use prost_types::FileDescriptorProto;
use tests::clients::{Identity, caller};
use tests::fixtures::DIRECT;
use tests::{Backend, Cluster};
use tonic::transport::Channel;
use tonic_reflection::pb::v1::ServerReflectionRequest;
use tonic_reflection::pb::v1::server_reflection_client::ServerReflectionClient;
use tonic_reflection::pb::v1::server_reflection_request::MessageRequest;
use tonic_reflection::pb::v1::server_reflection_response::MessageResponse;

use super::access::{FOR_EVERYONE, call, wire};

/// The descriptor of a type, with the files that its own file needs, as the server gives them.
async fn described(server: &Channel, pool: &mut DescriptorPool, symbol: &str) {
    let mut wanted = vec![MessageRequest::FileContainingSymbol(symbol.to_owned())];
    let mut files: Vec<FileDescriptorProto> = vec![];
    while let Some(question) = wanted.pop() {
        let question = ServerReflectionRequest { host: String::new(), message_request: Some(question) };
        let mut client = ServerReflectionClient::new(server.clone());
        let answers = client.server_reflection_info(tokio_stream::once(question)).await.unwrap();
        let answer = answers.into_inner().message().await.unwrap().unwrap();
        let Some(MessageResponse::FileDescriptorResponse(found)) = answer.message_response else {
            panic!("{symbol}: {answer:?}")
        };
        for file in found.file_descriptor_proto {
            let file = FileDescriptorProto::decode(file.as_slice()).unwrap();
            wanted.extend(file.dependency.iter().cloned().map(MessageRequest::FileByFilename));
            files.push(file);
        }
    }
    // A file comes after those that it needs.
    for file in files.into_iter().rev() {
        if pool.get_file_by_name(file.name()).is_none() {
            pool.add_file_descriptor_proto(file).unwrap();
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn reflection_is_enough_to_read_a_refusal() {
    let cluster = Cluster::on(Backend::Sqlite).await;
    let services = cluster.as_unidentified();
    let agent = caller(proto::identity::TenantKind::Partner, DIRECT, &[]);
    for path in FOR_EVERYONE {
        let server = wire(&services, path);
        let identity: Identity = cluster.identity(agent.clone());
        let refused = call(server, identity, path, &[]).await.unwrap_err();
        let mut pool = DescriptorPool::new();
        described(server, &mut pool, "google.rpc.Status").await;
        let status = pool.get_message_by_name("google.rpc.Status").unwrap();
        let status = DynamicMessage::decode(status, refused.details()).unwrap();
        let mut read = vec![];
        for detail in status.get_field_by_name("details").unwrap().as_list().unwrap() {
            let detail = detail.as_message().unwrap();
            let url = detail.get_field_by_name("type_url").unwrap().as_str().unwrap().to_owned();
            let name = url.strip_prefix("type.googleapis.com/").unwrap();
            described(server, &mut pool, name).await;
            let message = pool.get_message_by_name(name).unwrap();
            let value = detail.get_field_by_name("value").unwrap();
            let message = DynamicMessage::decode(message, value.as_bytes().unwrap().clone()).unwrap();
            read.push((name.to_owned(), message.to_string()));
        }
        let says = |name: &str, text: &str| read.iter().any(|(of, all)| of == name && all.contains(text));
        assert!(says("google.rpc.ErrorInfo", "INVALID_FIELDS"), "{path}: {read:#?}");
        assert!(says("google.rpc.BadRequest", "_id"), "{path}: {read:#?}");
    }
}
