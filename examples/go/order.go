// Orders for a new customer, is refused, does what the refusal says, and orders again under the same request id.
package main

import (
	"context"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"log"
	"os"
	"strings"
	"time"

	agreement "agreement-gate.example/csp/agreement/v1"
	order "agreement-gate.example/csp/order/v1"
	types "agreement-gate.example/csp/type/v1"
	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/timestamppb"
)

const (
	partner = "00000000-0000-4000-8000-0000000000d1"
	offer   = "031C9E47-4802-4248-838E-778FB1D2CC05"
)

// newID makes a random UUID, in lower case.
func newID() string {
	b := make([]byte, 16)
	if _, err := rand.Read(b); err != nil {
		log.Fatal(err)
	}
	b[6], b[8] = b[6]&0x0f|0x40, b[8]&0x3f|0x80
	return fmt.Sprintf("%x-%x-%x-%x-%x", b[:4], b[4:6], b[6:8], b[8:10], b[10:])
}

// transport has TLS if there is GATE_CA; with the client's certificate, too, if there are GATE_CERT and GATE_KEY.
func transport() grpc.DialOption {
	caCertificates := os.Getenv("GATE_CA")
	if caCertificates == "" {
		return grpc.WithInsecure()
	}
	config := &tls.Config{RootCAs: x509.NewCertPool()}
	if !config.RootCAs.AppendCertsFromPEM(read(caCertificates)) {
		log.Fatalf("%s holds no certificate", caCertificates)
	}
	if file := os.Getenv("GATE_CERT"); file != "" {
		certificate, err := tls.LoadX509KeyPair(file, os.Getenv("GATE_KEY"))
		if err != nil {
			log.Fatal(err)
		}
		config.Certificates = []tls.Certificate{certificate}
	}
	return grpc.WithTransportCredentials(credentials.NewTLS(config))
}

// connect connects to the address that an environment variable has, or else to that of `cargo demo --serve`.
func connect(variable, demo, config string) *grpc.ClientConn {
	address := os.Getenv(variable)
	if address == "" {
		address = demo
	}
	connection, err := grpc.Dial(address, transport(), grpc.WithDefaultServiceConfig(config))
	if err != nil {
		log.Fatal(err)
	}
	return connection
}

func read(file string) []byte {
	content, err := os.ReadFile(file)
	if err != nil {
		log.Fatal(err)
	}
	return content
}

// within is a call's deadline, for all attempts together, with the identity of the caller: the token of GATE_TOKEN alone, or
// the headers that `cargo demo --serve` takes.
func within(limit time.Duration) (context.Context, context.CancelFunc) {
	identity := metadata.Pairs("x-tenant-kind", "PARTNER", "x-tenant-id", partner, "x-user-id", partner, "x-roles", "SALES_AGENT")
	if file := os.Getenv("GATE_TOKEN"); file != "" {
		identity = metadata.Pairs("authorization", "Bearer "+strings.TrimSpace(string(read(file))))
	}
	return context.WithTimeout(metadata.NewOutgoingContext(context.Background(), identity), limit)
}

// reasonOf is the ErrorInfo of a refusal. Bad fields are printed.
func reasonOf(err error) *errdetails.ErrorInfo {
	var reason *errdetails.ErrorInfo
	for _, detail := range status.Convert(err).Details() {
		switch detail := detail.(type) {
		case *errdetails.ErrorInfo:
			reason = detail
		case *errdetails.BadRequest:
			for _, bad := range detail.FieldViolations {
				fmt.Println("refused:", bad.Field, bad.Description)
			}
		}
	}
	return reason
}

func main() {
	// Go before grpc 1.40 retries with GRPC_GO_RETRY=on only.
	config := string(read(os.Args[1]))
	agreements, orders := connect("AGREEMENTS", "127.0.0.1:50051", config), connect("ORDERS", "127.0.0.1:50052", config)
	customers, attestations := agreement.NewCustomerServiceClient(agreements), agreement.NewAttestationServiceClient(agreements)
	ordering := order.NewOrderServiceClient(orders)
	contact := &types.Contact{FirstName: "Tania", LastName: "Carr", Email: "tania.carr@adventure-works.example"}

	ctx, cancel := within(30 * time.Second)
	defer cancel()
	created, err := customers.CreateCustomer(ctx, &agreement.CreateCustomerRequest{
		RequestId: newID(), CompanyName: "Adventure Works", Domain: "go-" + newID() + ".example", Country: "FR", PrimaryContact: contact,
	})
	if err != nil {
		log.Fatal(err)
	}
	request := &order.CreateOrderRequest{
		RequestId: newID(), CustomerId: created.Customer.CustomerId,
		Lines: []*order.NewOrderLine{{OfferId: offer, Quantity: 5}},
	}
	_, err = ordering.CreateOrder(ctx, request)
	why := reasonOf(err)
	if why == nil || why.Reason != "AGREEMENT_REQUIRED" || !strings.Contains(why.Metadata["remedies"], "ATTEST") {
		log.Fatalf("not refused for the agreement: %v", err)
	}
	fmt.Printf("refused: %s: %s; remedies: %s\n", why.Reason, why.Metadata["reasons"], why.Metadata["remedies"])

	// The services take whole microseconds.
	now := timestamppb.New(time.Now().Truncate(time.Microsecond))
	attested, err := attestations.CreateAttestation(ctx, &agreement.CreateAttestationRequest{
		RequestId: newID(), CustomerId: created.Customer.CustomerId, TemplateId: why.Metadata["template_id"],
		Contact: contact, AgreedAt: now,
	})
	if err != nil {
		reasonOf(err)
		log.Fatal(err)
	}
	fmt.Println("attested version", attested.Attestation.TemplateVersion, "of template", attested.Attestation.TemplateId)
	placed, err := ordering.CreateOrder(ctx, request)
	if err != nil {
		log.Fatal(err)
	}
	fmt.Println("accepted: order", placed.Order.OrderId, "rests on attestation", placed.Order.Gate.Evidence.AcceptanceId)
}
