// Package est is the door for Enrollment over Secure Transport (RFC 7030, as
// clarified by RFC 8951), and its client. The door decodes what HTTP and TLS
// carried, calls a [countersign.Enroller] and encodes the answer; it decides
// nothing.
//
// Operations, below /.well-known/est/ or /.well-known/est/{label}/, where the
// label names a fleet (/{label}/.well-known/est/ is the same; strongSwan sends it):
//
//	GET  cacerts         the path of the fleet's issuing authority
//	GET  csrattrs        what a request should contain
//	POST simpleenroll    a first certificate, on a token or a client certificate
//	POST simplereenroll  the next certificate, on the current one
//
// A token comes as the password of HTTP Basic with any user name (RFC 7617), or
// as a Bearer token (RFC 6750). Client certificates come from the TLS handshake,
// which must ask for one and verify none: the Enroller judges it, and a refusal
// there can say why where a TLS alert cannot.
//
// Left out, both optional in RFC 7030: fullcmc, because nothing in the field of
// devices speaks it, and serverkeygen, because private keys stay on the device.
// Both answer 501. docs/protocols/est.md lists all departures by section.
package est
