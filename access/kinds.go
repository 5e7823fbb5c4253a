package access

import (
	"encoding/json"
	"fmt"
	"slices"
	"sync"

	"github.com/countersign-iot/countersign"
)

// maxRules bounds the fleets whose parsed rules are cached. A server with more fleets
// parses some of them again at each connection.
const maxRules = 1024

// rules caches the parsed rules of fleets, so that a connection does not parse JSON. Each
// decision reads the text in its own query, so a change takes effect at once.
type rules struct {
	mu sync.Mutex
	by map[string]readRules
}

// readRules are the rules of a fleet, as far as decisions about connections need them.
type readRules struct {
	text        string
	Access      countersign.Access `json:"access"`
	Authorities []string           `json:"authorities"`
	Connect     bool               `json:"connect"`
	Recovery    *json.RawMessage   `json:"recovery"`
	Budget      countersign.Budget `json:"budget"`
}

// budgetOf returns the budget of a fleet whose rules have been read, or the defaults.
func (r *rules) budgetOf(fleet string) countersign.Budget {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.by[fleet].Budget.WithDefaults()
}

// of parses the rules of a fleet, or returns them from the cache. The caller must not
// change them.
func (r *rules) of(fleet, text string) (readRules, error) {
	r.mu.Lock()
	known, ok := r.by[fleet]
	r.mu.Unlock()
	if ok && known.text == text {
		return known, nil
	}
	read := readRules{text: text}
	if err := json.Unmarshal([]byte(text), &read); err != nil {
		return readRules{}, fmt.Errorf("couldn't read the rules of fleet %s: %w", fleet, err)
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.by == nil || len(r.by) >= maxRules {
		r.by = map[string]readRules{}
	}
	r.by[fleet] = read
	return read, nil
}

// Accepts reports whether a fleet accepts a kind of credential; by default only
// certificates.
func Accepts(a countersign.Access, kind countersign.AccessKind) bool {
	if len(a.Kinds) == 0 {
		return kind == countersign.AccessCertificate
	}
	return slices.Contains(a.Kinds, kind)
}
