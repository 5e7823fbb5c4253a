// Package status serves the revocation status of certificates to relying parties: OCSP
// (RFC 6960, in the profile of RFC 5019, with the nonce of RFC 9654), CRLs and issuing
// certificates over HTTP (RFC 5280, 4.2.1.13 and 4.2.2.1; RFC 2585). It decodes requests
// and sets cache headers; an [Authority] answers and signs. [Client] requests the same
// objects and verifies them.
//
// Paths:
//
//	GET      /ocsp/{request in base64}
//	POST     /ocsp
//	GET      /crl/{authority}/{shard}.crl
//	GET      /ca/{authority}.cer
//
// All answers are signed, so they are served over plain HTTP: with TLS, a client would need
// the status of the server's certificate first (RFC 5280, 8).
//
// [Server] must receive the path as it was sent. http.ServeMux removes "//", which base64
// may contain, so use the server itself as the handler of the listener.
package status
