package access

import (
	"encoding/json"
	"fmt"
	"slices"
	"sync"

	"github.com/countersign-iot/countersign"
)

// maxRules bounds the fleets whose rules are kept read. A server with more reads
// some of them at each connection.
const maxRules = 1024

// rules keeps what fleets accept, so that a connection costs no reading of JSON. The
// text comes with each decision's own query, so a change counts at once.
type rules struct {
	mu sync.Mutex
	by map[string]readRules
}

type readRules struct {
	text   string
	access countersign.Access
}

// accessOf reads what a fleet accepts out of its rules.
func (r *rules) accessOf(fleet, text string) (countersign.Access, error) {
	r.mu.Lock()
	known, ok := r.by[fleet]
	r.mu.Unlock()
	if ok && known.text == text {
		return known.access, nil
	}
	var read struct {
		Access countersign.Access `json:"access"`
	}
	if err := json.Unmarshal([]byte(text), &read); err != nil {
		return countersign.Access{}, fmt.Errorf("couldn't read the rules of fleet %s: %w", fleet, err)
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.by == nil || len(r.by) >= maxRules {
		r.by = map[string]readRules{}
	}
	r.by[fleet] = readRules{text, read.Access}
	return read.Access, nil
}

// accepts says why a fleet does not take a kind of credential; empty if it does.
// It is asked once the credential has proved right: who has none learns nothing of
// the fleet.
func (d *Desk) accepts(fleet, rules string, kind countersign.AccessKind) (countersign.Code, string) {
	a, err := d.rules.accessOf(fleet, rules)
	if err != nil {
		return countersign.Unavailable, "the rules of the fleet cannot be read now"
	}
	if Accepts(a, kind) {
		return "", ""
	}
	return countersign.NotAllowed, fmt.Sprintf("fleet %s does not accept a %s", fleet, kind)
}

// Accepts says whether a fleet takes a kind of credential.
func Accepts(a countersign.Access, kind countersign.AccessKind) bool {
	if len(a.Kinds) == 0 {
		return kind == countersign.AccessCertificate
	}
	return slices.Contains(a.Kinds, kind)
}
