package command

import (
	"slices"

	"github.com/countersign-iot/countersign"
)

// method is a way to a certificate. docs/enrollment.md has a matrix of what each rests on.
type method struct {
	name    countersign.Method
	givesUp string // in the advisor's words
}

// methods are all ways to a certificate, in the order of the matrix.
var methods = []method{
	{countersign.MethodToken, "nothing shows who used the token: the first that comes with it is the device"},
	{countersign.MethodFactory, "the line is believed: its operator token can name any device that is not in use"},
	{countersign.MethodClaim, "the secret is the same in many devices, so one that is opened allows all that its bounds do"},
	{countersign.MethodIDevID, "the maker's CA is believed for every name below it, and its lists are as fresh as you load them"},
	{countersign.MethodThumbprint, "a fingerprint has to be read out of each device and registered before it comes"},
	{countersign.MethodKey, "the secret is in two places, the device and this server's database (sealed), and passed through a third"},
	{countersign.MethodGroup, "one secret on the line makes any device of the group"},
	{countersign.MethodTPM, "devices need a TPM 2.0 and two round trips over REST; the maker of the chip is believed"},
	{countersign.MethodCertificate, "nothing: this is how every device goes on"},
	{countersign.MethodRecovery, "a key that lay unused is still believed for as long as the rule says"},
}

func methodOf(m countersign.Method) method {
	return methods[slices.IndexFunc(methods, func(row method) bool { return row.name == m })]
}
