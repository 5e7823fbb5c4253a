package command

import (
	"slices"

	"github.com/countersign-iot/countersign"
)

// method is one row of the matrix in docs/enrollment.md.
type method struct {
	name     countersign.Method
	trust    string // what has to hold
	secret   string // who holds what
	leak     string // what a thief of that can do, and what stops it
	recovery string // the way back
	effort   string // for each device, on the line
	givesUp  string // in the advisor's words
}

// methods are all ways to a certificate, in the order of the matrix.
var methods = []method{
	{
		countersign.MethodToken,
		"the operator gives the token to the right device", "device and its installer: a token, until it is used",
		"one device id that is not in use can be taken, once, until it expires; stop it", "revoke the device, then a token bound to it",
		"a line of text", "nothing tells who used the token: whoever comes first with it is the device",
	},
	{
		countersign.MethodFactory,
		"the line and its operator token", "line: an operator token of role factory; device: none",
		"certificates for any id that is not in use; revoke the operator token, then what it vouched for", "revoke the device, then a token bound to it",
		"one request and its answer", "the line is believed: its operator token can name any device that is not in use",
	},
	{
		countersign.MethodClaim,
		"the claim's bounds", "all devices of a batch: one certificate and key",
		"ids within the bounds that are not in use; the first use outside of them stops the claim", "revoke the device, then a token bound to it; for the batch another claim",
		"none, one image", "the secret is the same in many devices, so one that is opened gives all that the bounds allow",
	},
	{
		countersign.MethodIDevID,
		"the maker's CA and its lists", "device: a key of its own, from the maker; maker: the CA's key",
		"one device; who has the CA's key, all that are not in use; crl-set, or take the CA out of the fleet", "revoke the device, then a token bound to it: the maker's certificate alone does not bring it back",
		"none", "the maker's CA is believed for every name below it, and its lists are as fresh as you load them",
	},
	{
		countersign.MethodThumbprint,
		"the list of fingerprints is of the right devices", "device: a key of its own",
		"one device; stop the credential", "revoke the device, then a token bound to it", "read out a fingerprint",
		"a fingerprint has to be read out of each device and registered before it comes",
	},
	{
		countersign.MethodKey,
		"whoever writes the key into the device", "device, server (sealed): a symmetric key",
		"one device that is not in use; stop the credential", "revoke the device, then a token bound to it", "write a key",
		"the secret lies in two places, the device and this server's database (sealed), and passed through a third",
	},
	{
		countersign.MethodGroup,
		"the line keeps the group key", "line, server (sealed): the group key; device: the key derived for its id",
		"derived key: one device; group key: all ids of the fleet that are not in use; stop the credential", "revoke the device, then a token bound to it; for the line the secondary key",
		"compute and write a key", "one secret on the line makes any device of the group",
	},
	{
		countersign.MethodTPM,
		"the chip's maker, or who read out the endorsement key", "chip: its endorsement key, which nobody can read",
		"nothing to leak; a chip taken out is one device: revoke it", "revoke the device, then a token bound to it", "none, or read out a fingerprint",
		"devices need a TPM 2.0 and two round trips over REST; the maker of the chip is believed",
	},
	{
		countersign.MethodCertificate,
		"the certificate before", "device: the key in use",
		"a second holder, who is found out at the next renewal or connection: both stop", "recovery, or revoke and enroll again", "none",
		"nothing: this is how every device goes on",
	},
	{
		countersign.MethodRecovery,
		"the certificate that expired, not too long ago", "device: the key last in use",
		"as before its expiry, within the rule's age, times and networks; suspend the device", "revoke the device, then a token bound to it", "none",
		"a key that lay unused is still believed for as long as the rule says",
	},
}

func methodOf(m countersign.Method) method {
	return methods[slices.IndexFunc(methods, func(row method) bool { return row.name == m })]
}
