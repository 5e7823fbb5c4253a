// Package status is the door where relying parties learn what became of a
// certificate: OCSP (RFC 6960, in the profile of RFC 5019, with the nonce of RFC
// 9654), CRLs and issuing certificates over HTTP (RFC 5280, 4.2.1.13 and 4.2.2.1;
// RFC 2585). It decodes requests and sets cache headers; an [Authority] answers
// and signs. Client asks the same questions and checks the answers.
//
// Paths:
//
//	GET      /ocsp/{request in base64}
//	POST     /ocsp
//	GET      /crl/{authority}/{shard}.crl
//	GET      /ca/{authority}.cer
//
// All answers are signed by themselves, so plain HTTP is right: a client that
// checks the server's certificate must not need to check it first.
//
// [Server] must see the path as it was sent. http.ServeMux cleans "//" away,
// which base64 may well contain: mount the server as the listener's handler.
package status
