// Package countersign holds the nouns of the identity authority: devices, fleets,
// certificates, enrollments, connections, events and errors, and the few
// interfaces through which the doors reach the decisions. It imports the
// standard library only and decides nothing.
//
// The system in one page. A device proves itself at a door (est, rest, …). The
// door decodes bytes into an [EnrollRequest] and calls an [Enroller]; package ra
// is the only one. The desk appraises the evidence, asks package ca to plan and
// sign, and writes certificate, device, spent evidence and event in one
// transaction before it answers. A connecting device is described as a
// [Connection] and decided by a [Gatekeeper], which asks access.Decide; the
// gateway then keeps the live [Session] and cuts it as soon as an [Event] says
// that the device or its certificate is no longer good.
package countersign
