// Package attest appraises what a device shows for itself (RFC 9334: evidence in,
// attestation result out) and has no memory: who is registered with what, and
// what was used up, is for its caller to know.
//
//	anchor.go      whether a CA can be registered at all
//	path.go        a factory's certificate chain up to a registered CA (RFC 5280, section 6)
//	pathcert.go    what each certificate of the path must be
//	pathname.go    names: comparison and constraints
//	crl.go         certificate revocation lists
//	revocation.go  which list speaks for which certificate, and what it says
//	idevid.go      the device id in a manufacturer's certificate (802.1AR)
//	sas.go         shared access signatures with device and group keys
//	thumbprint.go  self-signed certificates that were registered beforehand
//
// The path validation stands on crypto/x509, which checks signatures, policies,
// nested extended key usage, and constraints on DNS names and addresses. The
// rest is here, since crypto/x509 leaves it out or does it otherwise than RFC
// 5280: revocation of every link, path length with self-issued certificates,
// constraints on directory names, mailboxes and URIs, comparison of names
// (section 7.1), key usage, key identifiers and the size of all of it.
//
// Where RFC 5280 leaves a choice, or we are stricter:
//
//   - An anchor is a certificate, held to its own validity, key usage, path
//     length and name constraints like any other CA; its policies do not count.
//   - An end entity is no CA: cA or keyCertSign in it refuses it, and so do name
//     constraints and self-signature.
//   - A dNSName constraint with a leading period is refused: only URIs have that form.
//   - A constraint on a form of name that we don't process (otherName,
//     x400Address, ediPartyName, registeredID) refuses the path, whether or not such a name occurs.
//   - Signatures are SHA-256 or stronger, keys RSA 2048 to 8192, P-256, P-384,
//     P-521 or Ed25519, and none that package weakkey knows to be weak. An anchor's
//     signature over itself is not looked at.
//   - A keyUsage without a bit refuses, which crypto/x509 takes for no keyUsage.
//   - A mailbox with a second @ outside of a quoted local part is within no constraint.
//   - The initial policy set is the caller's; policy mapping and anyPolicy are
//     inhibited by certificates only.
//   - A distribution point named relative to the issuer of its list cannot be
//     read: crypto/x509 takes no certificate that has one.
//   - A list that is known and unusable refuses, whatever RequireCRL says: an
//     attacker who can spoil a list must gain nothing.
package attest
