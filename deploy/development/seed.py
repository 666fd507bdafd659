"""Fills the development stack: one partner with two customers, of which one has accepted. A second run changes nothing."""

import pathlib
import signal

from google.protobuf.timestamp_pb2 import Timestamp

from client import AGREEMENTS, call
from csp.agreement.v1 import attestation_service_pb2, attestation_service_pb2_grpc
from csp.agreement.v1 import customer_service_pb2, customer_service_pb2_grpc
from csp.agreement.v1 import partner_service_pb2, partner_service_pb2_grpc
from csp.type.v1.agreement_pb2 import CLOUD_PUBLIC, Contact

PARTNER = "00000000-0000-4000-8000-0000000000d1"
ATTESTED = "00000000-0000-4000-8000-0000000000b1"
BLOCKED = "00000000-0000-4000-8000-0000000000b2"
CUSTOMER_AGREEMENT = "117a77b0-9360-443b-8795-c6dedc750cf9"


def request_id(number):
    return f"00000000-0000-4000-8000-00000000{number:04}"


partners = partner_service_pb2_grpc.PartnerServiceStub(AGREEMENTS)
customers = customer_service_pb2_grpc.CustomerServiceStub(AGREEMENTS)
attestations = attestation_service_pb2_grpc.AttestationServiceStub(AGREEMENTS)
contact = Contact(first_name="Tania", last_name="Carr", email="tania.carr@adventure-works.example")

call("operator", partners.RegisterPartner, partner_service_pb2.RegisterPartnerRequest(
    request_id=request_id(1), partner_id=PARTNER, name="Development Partner",
    kind=partner_service_pb2.PARTNER_KIND_DIRECT_BILL, cloud=CLOUD_PUBLIC))
for number, customer_id, name in [(2, ATTESTED, "Adventure Works"), (3, BLOCKED, "Blocked Works")]:
    call("partner", customers.CreateCustomer, customer_service_pb2.CreateCustomerRequest(
        request_id=request_id(number), customer_id=customer_id, company_name=name,
        domain=f"{name.lower().replace(' ', '-')}.example", country="FR", primary_contact=contact))
call("partner", attestations.CreateAttestation, attestation_service_pb2.CreateAttestationRequest(
    request_id=request_id(4), customer_id=ATTESTED, template_id=CUSTOMER_AGREEMENT, contact=contact,
    agreed_at=Timestamp(seconds=1767225600)))  # 2026-01-01

pathlib.Path("/tmp/seeded").touch()
signal.pause()
