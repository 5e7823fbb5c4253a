package registry

import (
	"context"
	"database/sql"
	"encoding/json"
	"errors"
	"fmt"
	"regexp"
	"slices"
	"time"

	"github.com/countersign-iot/countersign"
	"github.com/countersign-iot/countersign/store"
)

// maxOverlap bounds how long two certificates of a device may be good side by side.
const maxOverlap = 90 * 24 * time.Hour

// trustDomain is what the SPIFFE ID standard allows (section 2.1).
var trustDomain = regexp.MustCompile(`^[a-z0-9._-]{1,255}$`)

var methods = []string{string(countersign.MethodToken)}

const fleetColumns = `name, issuer, profile, methods, overlap, trust_domain, created_at, updated_at`

func scanFleet(row interface{ Scan(dest ...any) error }) (f countersign.Fleet, err error) {
	var m string
	var overlap, created, updated int64
	if err := row.Scan(&f.Name, &f.Issuer, &f.Profile, &m, &overlap, &f.TrustDomain, &created, &updated); err != nil {
		return f, store.Wrap(err)
	}
	f.Overlap, f.CreatedAt, f.UpdatedAt = time.Duration(overlap)*time.Microsecond, store.Time(created), store.Time(updated)
	return f, json.Unmarshal([]byte(m), &f.Methods)
}

// Fleet reads one fleet: NotFound if there is none.
func (r *Registry) Fleet(ctx context.Context, rd store.Reader, name string) (countersign.Fleet, error) {
	f, err := scanFleet(rd.QueryRow(ctx, `SELECT `+fleetColumns+` FROM fleet WHERE name = $1`, name))
	if errors.Is(err, sql.ErrNoRows) {
		return f, countersign.Errorf(countersign.NotFound, "there is no fleet %.80q", name).WithNext("list them with: countersign fleet list")
	}
	if err != nil {
		return f, fmt.Errorf("read fleet %s: %w", name, err)
	}
	return f, nil
}

// Fleets lists all fleets by name. They are few: an operator makes each by hand.
func (r *Registry) Fleets(ctx context.Context) (list []countersign.Fleet, err error) {
	rows, err := r.DB.Query(ctx, `SELECT `+fleetColumns+` FROM fleet ORDER BY name`)
	if err != nil {
		return nil, fmt.Errorf("list fleets: %w", err)
	}
	defer func() { err = errors.Join(err, rows.Close()) }()
	for rows.Next() {
		f, err := scanFleet(rows)
		if err != nil {
			return nil, fmt.Errorf("list fleets: %w", err)
		}
		list = append(list, f)
	}
	return list, store.Wrap(rows.Err())
}

// SaveFleet creates or changes a fleet. Its issuer and profile must exist.
func (r *Registry) SaveFleet(ctx context.Context, tx *store.Tx, f countersign.Fleet) error {
	if err := checkFleet(f); err != nil {
		return err
	}
	for _, ref := range []struct{ query, what, name string }{
		{`SELECT 1 FROM authority WHERE id = $1 AND kind = 'issuing' AND state = 'active'`, "active issuing authority", f.Issuer},
		{`SELECT 1 FROM profile WHERE name = $1`, "profile", f.Profile},
	} {
		var one int
		err := tx.QueryRow(ctx, ref.query, ref.name).Scan(&one)
		if errors.Is(err, sql.ErrNoRows) {
			return countersign.Errorf(countersign.BadRequest, "fleet %s: there is no %s %.80q", f.Name, ref.what, ref.name)
		}
		if err != nil {
			return fmt.Errorf("check fleet %s: %w", f.Name, err)
		}
	}
	m, err := json.Marshal(f.Methods)
	if err != nil {
		return fmt.Errorf("encode methods: %w", err)
	}
	_, err = tx.Exec(ctx, `INSERT INTO fleet (name, issuer, profile, methods, overlap, trust_domain, created_at, updated_at)
		VALUES ($1, $2, $3, $4, $5, $6, $7, $7)
		ON CONFLICT (name) DO UPDATE SET issuer = excluded.issuer, profile = excluded.profile, methods = excluded.methods,
			overlap = excluded.overlap, trust_domain = excluded.trust_domain, updated_at = excluded.updated_at`,
		f.Name, f.Issuer, f.Profile, string(m), f.Overlap.Microseconds(), f.TrustDomain, store.Micros(r.Now()))
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
	return nil
}
