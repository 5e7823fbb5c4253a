// Package est is the door for Enrollment over Secure Transport (RFC 7030, as
// clarified by RFC 8951 and RFC 9908), and its client. The door decodes what HTTP
// and TLS carried, calls a [countersign.Enroller] and encodes the answer; it
// decides nothing.
//
// Operations, below /.well-known/est/ or /.well-known/est/{label}/, where the
// label names a fleet (/{label}/.well-known/est/ is the same; strongSwan sends it):
//
//	GET  cacerts         the path of the fleet's issuing authority
//	GET  csrattrs        what a request should contain, as a list or a template
//	POST simpleenroll    a first certificate, on a token or a client certificate
//	POST simplereenroll  the next certificate, on the current one
//	POST serverkeygen    either, with a key that the server makes
//
// A token comes as the password of HTTP Basic with any user name (RFC 7617), or
// as a Bearer token (RFC 6750); a shared access signature also as the whole
// Authorization header. Client certificates come from the TLS handshake, which
// must ask for one and verify none: the Enroller judges it, and a refusal there
// can say why where a TLS alert cannot. Both may come at once, and both are
// passed on.
//
// A request that awaits approval is answered with 202, and repeated by its client
// until it is granted or refused; see [Await]. A request may be linked to its TLS
// session; see [Binding].
//
// Serverkeygen is for devices that cannot make a key. It is offered only where
// [Server.Keys] is set, and the key is neither kept nor logged.
//
// Left out is fullcmc, optional in RFC 7030, because nothing in the field of
// devices speaks it. It answers 501. docs/protocols/est.md lists all departures by
// section.
package est
