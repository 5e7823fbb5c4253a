package access

import (
	"context"
	"database/sql"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"

	"github.com/countersign-iot/countersign"
	"github.com/countersign-iot/countersign/policy"
	"github.com/countersign-iot/countersign/store"
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
	budget countersign.Budget
}

// budgetOf returns the budget of a fleet whose rules accessOf has read; else the
// defaults.
func (r *rules) budgetOf(fleet string) countersign.Budget {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.by[fleet].budget.WithDefaults()
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
		Budget countersign.Budget `json:"budget"`
	}
	if err := json.Unmarshal([]byte(text), &read); err != nil {
		return countersign.Access{}, fmt.Errorf("couldn't read the rules of fleet %s: %w", fleet, err)
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.by == nil || len(r.by) >= maxRules {
		r.by = map[string]readRules{}
	}
	r.by[fleet] = readRules{text, read.Access, read.Budget}
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

// Unaccepted are those of a fleet's sessions that came in by what the fleet takes no
// more. Those of operators and of brokers' devices rest on nothing that a fleet chooses.
func (d *Desk) Unaccepted(ctx context.Context, fleet string, sessions []countersign.Session) ([]countersign.Session, error) {
	var text string
	err := d.DB.QueryRow(ctx, `SELECT rules FROM fleet WHERE name = $1`, fleet).Scan(&text)
	if errors.Is(err, sql.ErrNoRows) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("couldn't read the rules of fleet %s: %w", fleet, store.Wrap(err))
	}
	a, err := d.rules.accessOf(fleet, text)
	if err != nil {
		return nil, err
	}
	made, err := d.secretKinds(ctx, sessions)
	if err != nil {
		return nil, err
	}
	var out []countersign.Session
	for _, s := range sessions {
		kinds := kindsOf(s, made)
		guest := s.Credential == guestCredential && !a.Guests
		if guest || kinds != nil && !slices.ContainsFunc(kinds, func(k countersign.AccessKind) bool { return Accepts(a, k) }) {
			out = append(out, s)
		}
	}
	return out, nil
}

// kindsOf are the kinds of credential that a session may have come in by; nil: none
// that a fleet chooses.
func kindsOf(s countersign.Session, made map[string]countersign.AccessKind) []countersign.AccessKind {
	kind, id, _ := strings.Cut(s.Credential, ":")
	switch {
	case policy.KindOf(s.Device) != policy.Devices || kind == "vouched":
		return nil
	case s.Credential == "":
		return []countersign.AccessKind{countersign.AccessCertificate}
	case kind == "token":
		return []countersign.AccessKind{countersign.AccessToken}
	case kind != "secret":
		return []countersign.AccessKind{countersign.AccessSAS}
	case made[id] == countersign.AccessPassword:
		return []countersign.AccessKind{countersign.AccessPassword}
	}
	return []countersign.AccessKind{countersign.AccessSecret, countersign.AccessSCRAM}
}

// secretKinds reads of which kind the secrets are that sessions rest on.
func (d *Desk) secretKinds(ctx context.Context, sessions []countersign.Session) (map[string]countersign.AccessKind, error) {
	var ids []string
	for _, s := range sessions {
		if id, ok := strings.CutPrefix(s.Credential, "secret:"); ok {
			ids = append(ids, id)
		}
	}
	kinds := map[string]countersign.AccessKind{}
	err := inBatches(ctx, d.DB, `SELECT id, kind FROM device_secret WHERE id IN (`, ids, func(rows *sql.Rows) error {
		var id string
		var kind countersign.AccessKind
		err := rows.Scan(&id, &kind)
		kinds[id] = kind
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("couldn't read the kinds of secrets: %w", err)
	}
	return kinds, nil
}
