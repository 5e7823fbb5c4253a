package api

import "time"

// FactoryType is the media type of the requests and results of a factory line:
// one JSON object a line.
const FactoryType = "application/jsonl"

// MaxFactoryLine bounds one line: the largest CSR in base64 or PEM, and room for the rest.
const MaxFactoryLine = 128 << 10

// FactoryRequest asks for the certificate of one new device, on the operator's word.
type FactoryRequest struct {
	Item string `json:"item" minLength:"1" maxLength:"128" doc:"Idempotency key: the same item with the same key gets the same certificate."`
	ID   string `json:"id,omitempty" maxLength:"128" doc:"Device id; if given, the request's common name must be the same."`
	CSR  string `json:"csr" minLength:"1" doc:"PKCS #10 in PEM, or base64 of its DER."`
}

// FactoryResult answers one FactoryRequest: with a certificate, or with an error.
type FactoryResult struct {
	Item        string        `json:"item"`
	Device      string        `json:"device,omitempty"`
	Serial      string        `json:"serial,omitempty"`
	Certificate string        `json:"certificate,omitempty" doc:"PEM, the device's certificate first, the root left out."`
	NotAfter    time.Time     `json:"not_after,omitzero"`
	Again       bool          `json:"again,omitempty" doc:"It was granted before."`
	Error       *FactoryError `json:"error,omitempty"`
}

// FactoryError says why an item got no certificate.
type FactoryError struct {
	Code    string `json:"code"`
	Message string `json:"message"`
	Next    string `json:"next,omitempty"`
}

// FactoryLine is one line of the answer: a result, or, as the last, the report.
// An answer without a report broke off; the same request may be sent again.
type FactoryLine struct {
	FactoryResult
	Report *FactoryReport `json:"report,omitempty"`
}

// FactoryReport counts what became of the items.
type FactoryReport struct {
	Granted    int64         `json:"granted" doc:"New certificates."`
	Again      int64         `json:"again" doc:"Granted before."`
	Refused    int64         `json:"refused"`
	TookMillis int64         `json:"took_ms"`
	Error      *FactoryError `json:"error,omitempty" doc:"Why the rest of the input was not read."`
}
