// Package attest appraises the evidence that a device presents (RFC 9334: evidence in,
// attestation result out). It keeps no state: its caller knows what is registered for
// which device, and which one-time evidence was used.
//
//	anchor.go      whether a CA can be registered at all
//	path.go        a factory's certificate chain up to a registered CA (RFC 5280, section 6)
//	pathcert.go    what each certificate of the path must be
//	pathname.go    names: comparison and constraints
//	crl.go         certificate revocation lists
//	revocation.go  which list covers which certificate, and the status in it
//	idevid.go      the device id in a manufacturer's certificate (802.1AR)
//	sas.go         shared access signatures with device and group keys
//	thumbprint.go  self-signed certificates that were registered beforehand
//
// The path validation uses crypto/x509, which checks signatures, policies,
// nested extended key usage, and constraints on DNS names and addresses. The
// rest is here, because crypto/x509 leaves it out or differs from RFC
// 5280: revocation of every link, path length with self-issued certificates,
// constraints on directory names, mailboxes and URIs, comparison of names
// (section 7.1), key usage, key identifiers and the size of all of it.
//
// Where RFC 5280 leaves a choice, or this package is stricter:
//
//   - An anchor is a certificate whose validity, key usage, path length and name
//     constraints are checked like those of any other CA; its policies are ignored.
//   - An end entity must not be a CA: it is refused for cA or keyCertSign, and also
//     for name constraints or if it is self-signed.
//   - A dNSName constraint with a leading period is refused: only URIs have that form.
//   - A constraint on a form of name that is not processed (otherName,
//     x400Address, ediPartyName, registeredID) refuses the path, whether or not such a name occurs.
//   - Signatures are SHA-256 or stronger, keys RSA 2048 to 8192, P-256, P-384,
//     P-521 or Ed25519, and none that package weakkey knows to be weak. An anchor's
//     signature over itself is not checked.
//   - A keyUsage without any bit is refused; crypto/x509 treats it as absent.
//   - A mailbox with a second @ outside of a quoted local part matches no constraint.
//   - The initial policy set is the caller's; policy mapping and anyPolicy are
//     inhibited by certificates only.
//   - A distribution point named relative to the issuer of its list cannot be
//     read: crypto/x509 parses no certificate that has one.
//   - If a list is present but unusable the path is refused, also without RequireCRL:
//     an attacker who can corrupt a list must gain nothing.
package attest
