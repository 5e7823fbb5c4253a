// Package ca is the only package that signs: certificates, CRLs and OCSP
// responses (RFC 5280, RFC 6960). It keeps the authorities, the profiles and the
// record of every certificate. It decides nothing about who may have one; package
// ra does.
//
// A certificate takes three steps. [CA.Plan] draws a serial that is already on
// durable record, builds the certificate from the profile and checks it.
// [CA.Sign] spends the plan. [CA.Record] writes the result in the caller's
// transaction, and refuses where the serial has been voided meanwhile. What is
// signed and never recorded was never answered either.
package ca
