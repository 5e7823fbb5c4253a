package enroll

import (
	"bytes"
	"encoding/json"
	"errors"
	"io"
	"net/http"
	"net/netip"

	"github.com/countersign-iot/countersign"
)

// maxBody bounds a request: the largest CSR in PEM, and room for a token and a fleet.
const maxBody = 128 << 10

// remoteOf returns the address of the client; zero where it has none.
func remoteOf(r *http.Request) netip.AddrPort {
	remote, _ := netip.ParseAddrPort(r.RemoteAddr)
	return remote
}

// readAll reads a body within its bound.
func readAll(w http.ResponseWriter, r *http.Request) ([]byte, error) {
	body, err := io.ReadAll(http.MaxBytesReader(w, r.Body, maxBody))
	if err == nil {
		return body, nil
	}
	if _, tooLarge := errors.AsType[*http.MaxBytesError](err); tooLarge {
		return nil, countersign.Errorf(countersign.TooLarge, "the request is over %d bytes", maxBody)
	}
	return nil, countersign.Errorf(countersign.BadRequest, "the request broke off").WithCause(err)
}

// readJSON reads a body of JSON; next is the next step in the error for one that does
// not fit.
func readJSON(w http.ResponseWriter, r *http.Request, into any, next string) error {
	body, err := readAll(w, r)
	if err != nil {
		return err
	}
	return decode(body, into, next)
}

// readOptionalJSON is readJSON for a body that may be empty.
func readOptionalJSON(w http.ResponseWriter, r *http.Request, into any, next string) error {
	body, err := readAll(w, r)
	if err != nil || len(body) == 0 {
		return err
	}
	return decode(body, into, next)
}

// decode reads one JSON value that has no other fields than into.
func decode(body []byte, into any, next string) error {
	dec := json.NewDecoder(bytes.NewReader(body))
	dec.DisallowUnknownFields()
	if err := dec.Decode(into); err != nil { // its text may repeat the token
		return countersign.Errorf(countersign.BadRequest, "the body is not the JSON that is wanted here").WithNext(next)
	}
	if dec.More() {
		return countersign.Errorf(countersign.BadRequest, "the body holds more than one JSON value").WithNext("send one object")
	}
	return nil
}

func writeJSON(w http.ResponseWriter, v any) {
	w.Header().Set("Content-Type", "application/json")
	_ = json.NewEncoder(w).Encode(v) // a client that is gone needs no answer
}
