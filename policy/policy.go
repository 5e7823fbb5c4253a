// Package policy implements the language of a fleet's policy for its devices, guests
// and operators' browsers: statements that allow or deny actions on topic filters,
// with variables for properties of the client. It parses, checks, tests, compares,
// explains and expands such documents. It uses neither database nor network, so the
// command line uses it as the server does.
//
// What no statement allows is denied, and a deny takes precedence over every allow.
package policy

import (
	"bytes"
	_ "embed"
	"strings"
	"sync"

	"github.com/countersign-iot/countersign"
)

// Kind is a kind of client.
type Kind string

// The kinds.
const (
	Devices Kind = "devices"
	Guests  Kind = "guests" // clients without any credential
	Apps    Kind = "apps"   // operators' browsers and web applications
)

var kinds = []Kind{Devices, Guests, Apps}

// KindOf returns the kind of client by the device name of its session.
func KindOf(device string) Kind {
	switch prefix, _, other := strings.Cut(device, "/"); {
	case !other:
		return Devices
	case prefix == "operator":
		return Apps
	default:
		return Guests
	}
}

// Action is what a client tries to do.
type Action string

// The actions.
const (
	Connect   Action = "connect"
	Publish   Action = "publish"
	Subscribe Action = "subscribe"
	Receive   Action = "receive"
	Retain    Action = "retain" // a publication that the broker stores; it needs publish too
)

// topical are the actions on topics.
var topical = [...]Action{Publish, Retain, Subscribe, Receive}

// Effect of a statement.
type Effect string

// The effects.
const (
	Allow Effect = "allow"
	Deny  Effect = "deny"
)

// Policy is a document that was parsed without an error. It is immutable and safe for
// concurrent use.
type Policy struct {
	Statements []Statement
	Tests      []Test

	plans map[Kind]*plan
}

// Statement allows or denies actions.
type Statement struct {
	ID      string
	Effect  Effect
	For     []Kind
	Actions []Action
	Topics  []Pattern // filters, for all actions but connect
	Clients []Pattern // client identifiers, for connect; none: any
	Line    int
}

// Pattern is a topic filter or a pattern of client identifiers as written.
type Pattern struct {
	Text         string
	Line, Column int

	lits []string   // the text around the variables: one more than there are of them
	vars []variable // none: Text is all of it
	wide string     // the filter of all that it can match
}

// Subject is a client as a policy sees it. A field that is not known is empty, and a
// variable then has no value.
type Subject struct {
	Kind     Kind
	Device   string // its id; of other kinds the device name of the session
	Fleet    string
	Tags     map[string]string
	CN       string // common name of the certificate that it presents
	ClientID string
	Scope    []string // devices that an app's session is for
}

//go:embed default.yaml
var starter []byte

// Starter returns a policy to begin with: the built-in one, with comments and tests.
func Starter() []byte { return bytes.Clone(starter) }

// Builtin returns the policy of a fleet that has none of its own: a device publishes
// below devices/<id>/up, subscribes below devices/<id>/down and answers apps; an
// app does the reverse for the devices of its scope; a guest does nothing.
func Builtin() *Policy { return builtin() }

var builtin = sync.OnceValue(func() *Policy {
	p, err := Parse(starter)
	if err != nil {
		panic("the built-in policy: " + err.Error()) // a bug, which every test would find
	}
	return p
})

// filtersOf returns the field of the permissions for an action.
func filtersOf(p *countersign.Permissions, a Action) *countersign.Filters {
	switch a {
	case Publish:
		return &p.Publish
	case Retain:
		return &p.Retain
	case Subscribe:
		return &p.Subscribe
	default:
		return &p.Receive
	}
}
