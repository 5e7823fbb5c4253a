// Package operator knows the people and programs that administer: their roles,
// what each role may do, and the tokens that let them in over the network. It
// knows no device and no certificate.
package operator

import (
	"slices"
	"strings"

	"github.com/countersign-iot/countersign"
)

// Role is what an operator is trusted with.
type Role string

// The roles.
const (
	Viewer   Role = "viewer"   // looks
	Operator Role = "operator" // runs the fleet day by day
	Approver Role = "approver" // says yes to what needs two people
	Auditor  Role = "auditor"  // reads everything, changes nothing
	Factory  Role = "factory"  // brings new devices in, sees nothing else
	Admin    Role = "admin"    // everything
)

// Act is a kind of thing that an operator does. Each route of the API is one.
type Act string

// The acts.
const (
	Anyone    Act = "anyone"    // needs no sign-in: health
	Read      Act = "read"      // devices, certificates, sessions, authorities, fleets, profiles, tokens
	ReadLog   Act = "read_log"  // the whole event log, and its verification
	Register  Act = "register"  // new devices and enrollment tokens
	Vouch     Act = "vouch"     // certificates for new devices, on the operator's word
	Suspend   Act = "suspend"   // suspend and reactivate: can be undone
	Revoke    Act = "revoke"    // revoke and retire: cannot
	Approve   Act = "approve"   // requests that wait for a second person
	Configure Act = "configure" // fleets, profiles, authorities
	Control   Act = "control"   // devices, live: publish to them
	Operators Act = "operators" // other operators and their tokens
)

// may is the whole table. Admin is not in it: it may do everything.
var may = map[Role][]Act{
	Viewer:   {Read},
	Auditor:  {Read, ReadLog},
	Factory:  {Register, Vouch},
	Operator: {Read, ReadLog, Register, Suspend, Revoke, Control},
	Approver: {Read, ReadLog, Suspend, Approve},
}

// Roles lists the roles from the least trusted to the most.
func Roles() []Role { return []Role{Viewer, Auditor, Factory, Approver, Operator, Admin} }

// May reports whether the role may do the act. An unknown role may do nothing
// but what anyone may.
func (r Role) May(a Act) bool {
	return a == Anyone || r == Admin || slices.Contains(may[r], a)
}

// CheckRole reports whether r is a role.
func CheckRole(r Role) error {
	if slices.Contains(Roles(), r) {
		return nil
	}
	names := make([]string, 0, len(Roles()))
	for _, known := range Roles() {
		names = append(names, string(known))
	}
	return countersign.Errorf(countersign.BadRequest, "%.40q is no role", r).
		WithNext("use one of " + strings.Join(names, ", "))
}
