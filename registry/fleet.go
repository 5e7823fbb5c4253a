package registry

import (
	"cmp"
	"context"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"regexp"
	"slices"
	"time"

	"github.com/countersign-iot/countersign"
	"github.com/countersign-iot/countersign/attest"
	"github.com/countersign-iot/countersign/store"
)

// maxOverlap bounds how long two certificates of a device may be good side by side.
const maxOverlap = 90 * 24 * time.Hour

// trustDomain is what the SPIFFE ID standard allows (section 2.1).
var trustDomain = regexp.MustCompile(`^[a-z0-9._-]{1,255}$`)

// usualHours are two full hours of UTC: 06-20, or 22-04 over midnight.
var usualHours = regexp.MustCompile(`^([01][0-9]|2[0-3])-([01][0-9]|2[0-4])$`)

// methods that a fleet may open. Renewal needs no opening, recovery has a rule of its own.
var methods = []countersign.Method{
	countersign.MethodToken, countersign.MethodFactory, countersign.MethodClaim, countersign.MethodIDevID,
	countersign.MethodThumbprint, countersign.MethodKey, countersign.MethodGroup, countersign.MethodTPM,
}

const fleetColumns = `name, issuer, profile, methods, overlap, trust_domain, rules, created_at, updated_at`

func scanFleet(row store.Row) (f countersign.Fleet, err error) {
	var m, rules string
	var overlap, created, updated int64
	if err := row.Scan(&f.Name, &f.Issuer, &f.Profile, &m, &overlap, &f.TrustDomain, &rules, &created, &updated); err != nil {
		return f, store.Wrap(err)
	}
	f.Overlap, f.CreatedAt, f.UpdatedAt = time.Duration(overlap)*time.Microsecond, store.Time(created), store.Time(updated)
	err = errors.Join(json.Unmarshal([]byte(m), &f.Methods), json.Unmarshal([]byte(rules), &f.Rules))
	f.Rules.Normalize()
	return f, err
}

// Fleet reads one fleet: NotFound if there is none.
func (r *Registry) Fleet(ctx context.Context, rd store.Reader, name string) (countersign.Fleet, error) {
	f, err := scanFleet(rd.QueryRow(ctx, `SELECT `+fleetColumns+` FROM fleet WHERE name = $1`, name))
	missing := countersign.Errorf(countersign.NotFound, "there is no fleet %.80q", name).WithNext("look for it in the list of fleets")
	return f, store.RowError(err, missing, "read fleet "+name)
}

// Fleets lists all fleets by name. They are few: an operator makes each by hand.
func (r *Registry) Fleets(ctx context.Context) (list []countersign.Fleet, err error) {
	list, err = store.List(ctx, r.DB, scanFleet, `SELECT `+fleetColumns+` FROM fleet ORDER BY name`)
	if err != nil {
		return nil, fmt.Errorf("list fleets: %w", err)
	}
	return list, nil
}

// SaveFleet creates or changes a fleet. Its issuer and profile must exist.
func (r *Registry) SaveFleet(ctx context.Context, tx *store.Tx, f countersign.Fleet) error {
	f.Rules.Normalize()
	if err := checkFleet(f); err != nil {
		return err
	}
	for _, ref := range []struct{ query, what, name string }{
		{`SELECT 1 FROM authority WHERE id = $1 AND kind = 'issuing' AND state = 'active'`, "active issuing authority", f.Issuer},
		{`SELECT 1 FROM profile WHERE name = $1`, "profile", f.Profile},
	} {
		var one int
		err := tx.QueryRow(ctx, ref.query, ref.name).Scan(&one)
		if err != nil {
			missing := countersign.Errorf(countersign.BadRequest, "fleet %s: there is no %s %.80q", f.Name, ref.what, ref.name)
			return store.RowError(err, missing, "check fleet "+f.Name)
		}
	}
	m, err := json.Marshal(f.Methods)
	if err != nil {
		return fmt.Errorf("encode methods: %w", err)
	}
	rules, err := json.Marshal(f.Rules)
	if err != nil {
		return fmt.Errorf("encode rules: %w", err)
	}
	_, err = tx.Exec(ctx, `INSERT INTO fleet (name, issuer, profile, methods, overlap, trust_domain, rules, created_at, updated_at)
		VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $8)
		ON CONFLICT (name) DO UPDATE SET issuer = excluded.issuer, profile = excluded.profile, methods = excluded.methods,
			overlap = excluded.overlap, trust_domain = excluded.trust_domain, rules = excluded.rules, updated_at = excluded.updated_at`,
		f.Name, f.Issuer, f.Profile, string(m), f.Overlap.Microseconds(), f.TrustDomain, string(rules), store.Micros(r.Now()))
	if err != nil {
		return fmt.Errorf("save fleet %s: %w", f.Name, err)
	}
	return nil
}

func checkFleet(f countersign.Fleet) error {
	if err := countersign.CheckName(f.Name); err != nil {
		return err
	}
	if f.Overlap < 0 || f.Overlap > maxOverlap {
		return countersign.Errorf(countersign.BadRequest, "fleet %s: overlap %v is not between 0 and %v", f.Name, f.Overlap, maxOverlap)
	}
	if f.TrustDomain != "" && !trustDomain.MatchString(f.TrustDomain) {
		return countersign.Errorf(countersign.BadRequest, "fleet %s: %.80q is no SPIFFE trust domain", f.Name, f.TrustDomain)
	}
	for _, m := range f.Methods {
		if !slices.Contains(methods, m) {
			return countersign.Errorf(countersign.BadRequest, "fleet %s: there is no enrollment method %.40q", f.Name, m).WithNext(fmt.Sprintf("use any of %v", methods))
		}
	}
	return checkRules(f)
}

const (
	// maxExpression bounds a CEL expression: what a person still reads.
	maxExpression = 4096
	// maxRecoveryAge and maxRecoveries bound what "a way back" can mean.
	maxRecoveryAge = 2 * 366 * 24 * time.Hour
	maxRecoveries  = 1000
	maxApprovalTTL = 90 * 24 * time.Hour
	// maxAuditSpan is as long as AWS IoT Device Defender lets a certificate age.
	maxAuditSpan = 3652 * 24 * time.Hour
	// The most that a budget may give one device. What is more is no bound.
	maxSessions  = 10_000
	maxPublishes = 1_000_000
	maxRenewals  = 10_000
	maxEvents    = 100_000
	maxUnread    = 1 << 30
)

var accessKinds = []countersign.AccessKind{
	countersign.AccessCertificate, countersign.AccessPassword, countersign.AccessSecret,
	countersign.AccessSCRAM, countersign.AccessSAS, countersign.AccessToken,
}

// checkRules checks the form of the rules. What an expression or an authority in
// them means is checked by those who know.
func checkRules(f countersign.Fleet) error {
	bad := func(format string, args ...any) error {
		return countersign.Errorf(countersign.BadRequest, "fleet "+f.Name+": "+format, args...)
	}
	u := &f.Rules
	switch {
	case len(u.Networks) > maxNetworks:
		return bad("%d networks are more than %d", len(u.Networks), maxNetworks)
	case (attest.IDRule{Field: attest.IDField(cmp.Or(u.ID.Field, string(attest.IDCommonName))), Prefix: u.ID.Prefix, Suffix: u.ID.Suffix}).Check() != nil:
		return bad("there is no id field %.40q in a certificate", u.ID.Field)
	case len(u.Expression) > maxExpression:
		return bad("the expression is longer than %d octets", maxExpression)
	case u.ApprovalTTL < 0 || time.Duration(u.ApprovalTTL) > maxApprovalTTL:
		return bad("approval_ttl %v is not between 0 and %v", time.Duration(u.ApprovalTTL), maxApprovalTTL)
	case len(u.Usual.Networks) > maxNetworks || u.Usual.Hours != "" && !usualHours.MatchString(u.Usual.Hours):
		return bad("usual needs at most %d networks and hours such as 06-20", maxNetworks)
	case len(u.Authorities) > maxNetworks:
		return bad("%d authorities are more than %d", len(u.Authorities), maxNetworks)
	}
	for name, d := range map[string]countersign.Span{
		"expiring": u.Audit.Expiring, "max_age": u.Audit.MaxAge, "secret_age": u.Audit.SecretAge, "unused": u.Audit.Unused, "inactive": u.Audit.Inactive,
	} {
		if d < 0 || time.Duration(d) > maxAuditSpan {
			return bad("audit.%s %v is not between 0 and %v", name, time.Duration(d), maxAuditSpan)
		}
	}
	for name, b := range map[string]struct{ v, most int64 }{
		"sessions": {int64(u.Budget.Sessions), maxSessions}, "publishes": {int64(u.Budget.Publishes), maxPublishes},
		"renewals": {int64(u.Budget.Renewals), maxRenewals}, "events": {int64(u.Budget.Events), maxEvents}, "unread": {u.Budget.Unread, maxUnread},
	} {
		if b.v < 0 || b.v > b.most {
			return bad("budget.%s %d is not between 1 and %d, nor 0 for the default", name, b.v, b.most)
		}
	}
	for _, list := range [][]countersign.Method{u.Approval, u.Registered} {
		for _, m := range list {
			if !slices.Contains(methods, m) {
				return bad("there is no enrollment method %.40q", m)
			}
		}
	}
	for i, k := range u.Access.Kinds {
		if !slices.Contains(accessKinds, k) {
			return bad("there is no kind of access %.40q", k)
		}
		if slices.Contains(u.Access.Kinds[:i], k) {
			return bad("the kind of access %s is named twice", k)
		}
	}
	for n, v := range u.PCRs {
		if b, err := hex.DecodeString(v); n < 0 || n > 23 || err != nil || len(b) != 32 {
			return bad("PCR %d is not between 0 and 23 with a SHA-256 in hex", n)
		}
	}
	if r := u.Recovery; r != nil {
		if r.MaxAge <= 0 || time.Duration(r.MaxAge) > maxRecoveryAge || r.MaxTimes < 1 || r.MaxTimes > maxRecoveries || len(r.Networks) > maxNetworks || r.ApproveAfter < 0 {
			return bad("recovery needs a max_age up to %v and max_times up to %d", maxRecoveryAge, maxRecoveries)
		}
	}
	return nil
}
