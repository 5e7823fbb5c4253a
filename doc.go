// Package countersign defines the types that all packages share: devices, fleets,
// certificates, enrollments, connections, events and errors, and the few
// interfaces through which the protocol front ends, the doors, reach the decisions. It
// imports the standard library only and decides nothing.
//
// The system in one page. A device proves its identity at a door (est, rest, …). The
// door decodes bytes into an [EnrollRequest] and calls an [Enroller]; package ra
// has the only one. It appraises the evidence, calls package ca to plan and sign,
// and writes certificate, device, spent evidence and event in one transaction
// before it answers. A connecting device is described as a [Connection] and
// decided by a [Gatekeeper], which calls access.Decide; the gateway then keeps
// the live [Session] and cuts it as soon as an [Event] ends it because the device
// or its certificate is no longer valid.
package countersign
