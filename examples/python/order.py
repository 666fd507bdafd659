"""Orders for a new customer, is refused, does what the refusal says, and orders again under the same request id."""

import os
import pathlib
import uuid

import grpc
import protovalidate
from google.protobuf.timestamp_pb2 import Timestamp
from google.rpc.error_details_pb2 import BadRequest, ErrorInfo
from grpc_status import rpc_status

from csp.agreement.v1 import attestation_service_pb2, attestation_service_pb2_grpc
from csp.agreement.v1 import customer_service_pb2, customer_service_pb2_grpc
from csp.order.v1 import order_service_pb2, order_service_pb2_grpc
from csp.type.v1.agreement_pb2 import Contact

PARTNER = "00000000-0000-4000-8000-0000000000d1"
OFFER = "031C9E47-4802-4248-838E-778FB1D2CC05"
# `cargo demo --serve` takes such headers for an identity.
HEADERS = [("x-tenant-kind", "PARTNER"), ("x-tenant-id", PARTNER), ("x-roles", "SALES_AGENT"), ("x-user-id", PARTNER)]
CONFIG = (pathlib.Path(__file__).parent.parent / "service-config.json").read_text()


def content(variable):
    """The content of the file that an environment variable names, if it is set."""
    path = os.environ.get(variable)
    return path and pathlib.Path(path).read_bytes()


def connect(address):
    """With TLS if there is `GATE_CA`; with the client's certificate, too, if there are `GATE_CERT` and `GATE_KEY`."""
    options = [("grpc.service_config", CONFIG)]
    ca_certificates = content("GATE_CA")
    if ca_certificates is None:
        return grpc.insecure_channel(address, options)
    credentials = grpc.ssl_channel_credentials(ca_certificates, content("GATE_KEY"), content("GATE_CERT"))
    return grpc.secure_channel(address, credentials, options)


def identity():
    """The token alone, read for each call so that it can be renewed."""
    token = content("GATE_TOKEN")
    return HEADERS if token is None else [("authorization", f"Bearer {token.decode().strip()}")]


def call(method, request):
    """Checks the request here first. The deadline holds for all attempts together."""
    protovalidate.validate(request)
    return method(request, timeout=10, metadata=identity())


def details(error):
    """The details of a refusal by their type."""
    known = {}
    for detail in rpc_status.from_call(error).details:
        for kind in (ErrorInfo, BadRequest):
            if detail.Is(kind.DESCRIPTOR):
                detail.Unpack(known.setdefault(kind, kind()))
    return known


agreements = connect(os.environ.get("AGREEMENTS", "127.0.0.1:50051"))
orders = connect(os.environ.get("ORDERS", "127.0.0.1:50052"))
create_customer = customer_service_pb2_grpc.CustomerServiceStub(agreements).CreateCustomer
attest = attestation_service_pb2_grpc.AttestationServiceStub(agreements).CreateAttestation
order = order_service_pb2_grpc.OrderServiceStub(orders).CreateOrder

contact = Contact(first_name="Tania", last_name="Carr", email="tania.carr@adventure-works.example")
customer = call(create_customer, customer_service_pb2.CreateCustomerRequest(
    request_id=str(uuid.uuid4()), company_name="Adventure Works", domain=f"python-{uuid.uuid4()}.example",
    country="FR", primary_contact=contact)).customer
lines = [order_service_pb2.NewOrderLine(offer_id=OFFER, quantity=5)]
request = order_service_pb2.CreateOrderRequest(
    request_id=str(uuid.uuid4()), customer_id=customer.customer_id, lines=lines)

try:
    call(order, order_service_pb2.CreateOrderRequest(request_id="ORDER-7", customer_id="", lines=[]))
except protovalidate.ValidationError as error:
    fields = [violation.proto.field.elements[0].field_name for violation in error.violations]
    print("not sent, because of", ", ".join(fields))

try:
    call(order, request)
    raise SystemExit("the order was accepted without an agreement")
except grpc.RpcError as error:
    why = details(error)[ErrorInfo]
    print(f"refused: {error.code().name} {why.reason}: {why.metadata['reasons']}; remedies: {why.metadata['remedies']}")
    assert (why.reason, "ATTEST" in why.metadata["remedies"].split(",")) == ("AGREEMENT_REQUIRED", True)

now = Timestamp()
now.GetCurrentTime()
now.nanos -= now.nanos % 1000  # The services take whole microseconds.
attestation = attestation_service_pb2.CreateAttestationRequest(
    request_id=str(uuid.uuid4()), customer_id=customer.customer_id, template_id=why.metadata["template_id"],
    contact=contact)
try:
    attest(attestation, timeout=10, metadata=identity())
except grpc.RpcError as error:
    for bad in details(error)[BadRequest].field_violations:
        print(f"refused: {bad.field} {bad.description}")
attestation.agreed_at.CopyFrom(now)
attested = call(attest, attestation).attestation
print(f"attested version {attested.template_version} of template {attested.template_id}")

placed = call(order, request)
print(f"accepted: order {placed.order.order_id} rests on attestation {placed.order.gate.evidence.acceptance_id}")
