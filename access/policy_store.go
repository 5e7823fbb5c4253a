package access

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"strconv"
	"time"

	"github.com/countersign-iot/countersign"
	"github.com/countersign-iot/countersign/policy"
	"github.com/countersign-iot/countersign/store"
)

const (
	// maxVersions bounds the versions that are kept of one fleet's policy, 32 MB at
	// the most: the oldest go first.
	maxVersions = 500
	// maxPage bounds a page of versions.
	maxPage = 1000
	// maxNote bounds what is said of a version.
	maxNote = 400
)

// PolicyProblem is why a document cannot be read. It and the next are what package
// policy finds, for those who may know keepers only.
type PolicyProblem = policy.Problem

// PolicyWarning is what is unwise in a document.
type PolicyWarning = policy.Warning

// PolicyFailure is a test of a document that does not hold.
type PolicyFailure = policy.Failure

// PolicyDecision is the answer to one question.
type PolicyDecision = policy.Decision

// PolicyChange is how a statement differs from that of another document.
type PolicyChange = policy.Change

// PolicyVersion is a policy as it was applied to a fleet. Version 0 is the
// built-in one.
type PolicyVersion struct {
	Fleet   string
	Version int64
	Source  string // empty in lists
	Note    string
	By      countersign.Actor
	At      time.Time // zero for the built-in one
}

// PolicyDraft is a policy that is to be applied.
type PolicyDraft struct {
	Fleet  string
	Source string
	Note   string
	// Expect is the version that it is to replace; nil: whichever is in force.
	Expect *int64
}

// PolicyReport is what there is to say of a source before it is applied.
type PolicyReport struct {
	Policy   *policy.Policy // nil where there are problems
	Problems []PolicyProblem
	Warnings []PolicyWarning
	Failures []PolicyFailure // of its own tests
}

// CheckPolicy reads a source, tells what is unwise in it, and runs its tests.
func CheckPolicy(source string) PolicyReport {
	p, err := policy.Parse([]byte(source))
	if pe, ok := errors.AsType[*policy.ParseError](err); ok {
		return PolicyReport{Problems: pe.Problems}
	}
	return PolicyReport{Policy: p, Warnings: p.Lint(), Failures: p.RunTests()}
}

// ReadPolicy reads a source that may be applied: one without problems, whose tests
// hold. It refuses others with BadRequest.
func ReadPolicy(source string) (*policy.Policy, error) {
	r := CheckPolicy(source)
	if len(r.Problems) > 0 {
		return nil, unreadablePolicy(r.Problems)
	}
	if n := len(r.Failures); n > 0 {
		f := r.Failures[0]
		e := countersign.Errorf(countersign.BadRequest, "the policy fails its own test %q, line %d: %q is to be %s, but %s",
			f.Test, f.Line, f.Act, past[f.Want], f.Decision.Why)
		if n > 1 {
			e.Message += fmt.Sprintf(" (and %d more)", n-1)
		}
		return nil, e.WithNext("see all with: countersign policy test FILE")
	}
	return r.Policy, nil
}

func unreadablePolicy(problems []PolicyProblem) error {
	e := countersign.Errorf(countersign.BadRequest, "the policy cannot be read: %s", problems[0])
	if n := len(problems); n > 1 {
		e.Message += fmt.Sprintf(" (and %d more)", n-1)
	}
	return e.WithNext("see all with: countersign policy check FILE")
}

var past = map[policy.Effect]string{policy.Allow: "allowed", policy.Deny: "denied"}

// Version reads one version: NotFound if there is none, Version 0 is built in.
func (p *Policies) Version(ctx context.Context, fleet string, version int64) (PolicyVersion, error) {
	return readVersion(ctx, p.DB, fleet, version)
}

func readVersion(ctx context.Context, rd store.Reader, fleet string, version int64) (PolicyVersion, error) {
	if version == 0 {
		return PolicyVersion{Fleet: fleet, Source: string(policy.Starter()), Note: "built in"}, nil
	}
	v := PolicyVersion{Fleet: fleet, Version: version}
	var at int64
	err := rd.QueryRow(ctx, `SELECT source, note, created_by, created_at FROM policy_version WHERE fleet = $1 AND version = $2`, fleet, version).
		Scan(&v.Source, &v.Note, &v.By, &at)
	v.At = store.Time(at)
	switch {
	case errors.Is(err, sql.ErrNoRows):
		return v, countersign.Errorf(countersign.NotFound, "there is no version %d of the policy of fleet %.80q", version, fleet).
			WithNext("list them with: countersign policy history FLEET")
	case err != nil:
		return v, fmt.Errorf("couldn't read version %d of the policy of fleet %s: %w", version, fleet, store.Wrap(err))
	}
	return v, nil
}

// Present reads the version in force: NotFound if there is no such fleet.
func (p *Policies) Present(ctx context.Context, fleet string) (PolicyVersion, error) {
	return present(ctx, p.DB, fleet)
}

func present(ctx context.Context, rd store.Reader, fleet string) (PolicyVersion, error) {
	var version int64
	err := rd.QueryRow(ctx, `SELECT COALESCE((SELECT MAX(version) FROM policy_version WHERE fleet = f.name), 0) FROM fleet f WHERE f.name = $1`, fleet).
		Scan(&version)
	switch {
	case errors.Is(err, sql.ErrNoRows):
		return PolicyVersion{}, countersign.Errorf(countersign.NotFound, "there is no fleet %.80q", fleet).WithNext("list them with: countersign fleet list")
	case err != nil:
		return PolicyVersion{}, fmt.Errorf("couldn't read the policy of fleet %s: %w", fleet, store.Wrap(err))
	}
	return readVersion(ctx, rd, fleet, version)
}

// Versions lists the versions of a fleet, newest first, those before the version
// before; next is empty on the last page. Sources are left out.
func (p *Policies) Versions(ctx context.Context, fleet, before string, limit int) (list []PolicyVersion, next string, err error) {
	limit = min(max(limit, 1), maxPage)
	below := int64(1) << 62
	if before != "" {
		if below, err = strconv.ParseInt(before, 10, 64); err != nil {
			return nil, "", countersign.Errorf(countersign.BadRequest, "%.40q is no version", before).WithNext("use the next of the page before")
		}
	}
	rows, err := p.DB.Query(ctx, `SELECT version, note, created_by, created_at FROM policy_version
		WHERE fleet = $1 AND version < $2 ORDER BY version DESC LIMIT $3`, fleet, below, limit+1)
	if err != nil {
		return nil, "", fmt.Errorf("couldn't list the policies of fleet %s: %w", fleet, err)
	}
	defer func() { err = errors.Join(err, rows.Close()) }()
	for rows.Next() {
		v := PolicyVersion{Fleet: fleet}
		var at int64
		if err := rows.Scan(&v.Version, &v.Note, &v.By, &at); err != nil {
			return nil, "", fmt.Errorf("couldn't list the policies of fleet %s: %w", fleet, store.Wrap(err))
		}
		v.At = store.Time(at)
		list = append(list, v)
	}
	if len(list) > limit {
		list = list[:limit]
		next = strconv.FormatInt(list[limit-1].Version, 10)
	}
	return list, next, store.Wrap(rows.Err())
}

// Apply puts a draft in force as the next version, from the moment that it
// returns. changed is false where the very same source is in force already. It
// refuses with BadRequest what ReadPolicy does, and with Conflict where another version than
// the expected one is in force.
func (p *Policies) Apply(ctx context.Context, d PolicyDraft, by countersign.Actor, via string) (v PolicyVersion, changed bool, err error) {
	if _, err := ReadPolicy(d.Source); err != nil {
		return PolicyVersion{}, false, err
	}
	return p.apply(ctx, d, by, via, func(context.Context, *store.Tx) (string, error) { return d.Source, nil })
}

// Rollback applies the source of an older version, as a new one. Version 0 is the
// built-in policy.
func (p *Policies) Rollback(ctx context.Context, d PolicyDraft, to int64, by countersign.Actor, via string) (v PolicyVersion, changed bool, err error) {
	if d.Note == "" {
		d.Note = fmt.Sprintf("back to version %d", to)
	}
	return p.apply(ctx, d, by, via, func(ctx context.Context, tx *store.Tx) (string, error) {
		old, err := readVersion(ctx, tx, d.Fleet, to)
		if err == nil {
			_, err = ReadPolicy(old.Source)
		}
		return old.Source, err
	})
}

func (p *Policies) apply(ctx context.Context, d PolicyDraft, by countersign.Actor, via string,
	source func(context.Context, *store.Tx) (string, error),
) (v PolicyVersion, changed bool, err error) {
	if len(d.Note) > maxNote {
		return v, false, countersign.Errorf(countersign.BadRequest, "the note has more than %d octets", maxNote).WithNext("say less")
	}
	err = p.DB.Write(ctx, func(ctx context.Context, tx *store.Tx) error {
		changed = false
		if err := tx.Lock(ctx, "policy of "+d.Fleet); err != nil {
			return err
		}
		old, err := present(ctx, tx, d.Fleet)
		if err != nil {
			return err
		}
		if d.Expect != nil && *d.Expect != old.Version {
			return overtaken(old, *d.Expect)
		}
		text, err := source(ctx, tx)
		if err != nil {
			return err
		}
		if v = old; text == old.Source {
			return nil
		}
		changed = true
		v = PolicyVersion{Fleet: d.Fleet, Version: old.Version + 1, Source: text, Note: d.Note, By: by, At: p.Now().UTC().Truncate(time.Microsecond)}
		return p.record(ctx, tx, v, via)
	})
	if err != nil && countersign.CodeOf(err) == countersign.Internal {
		err = fmt.Errorf("couldn't apply a policy to fleet %s: %w", d.Fleet, err)
	}
	return v, changed, err
}

func (p *Policies) record(ctx context.Context, tx *store.Tx, v PolicyVersion, via string) error {
	_, err := tx.Exec(ctx, `INSERT INTO policy_version (fleet, version, source, note, created_by, created_at) VALUES ($1, $2, $3, $4, $5, $6)`,
		v.Fleet, v.Version, v.Source, v.Note, string(v.By), store.Micros(v.At))
	if err != nil {
		return err
	}
	_, err = tx.Exec(ctx, `DELETE FROM policy_version WHERE fleet = $1 AND version <= $2`, v.Fleet, v.Version-maxVersions)
	if err != nil {
		return err
	}
	tx.AfterCommit(func() { p.Forget(v.Fleet) }) // before whoever hears of it, and whoever is answered, asks anew
	if p.Append == nil {
		return nil
	}
	return p.Append(ctx, tx, countersign.Event{
		Type: countersign.PolicyApplied, Actor: v.By, Fleet: v.Fleet, Via: via, Reason: v.Note,
		Data: map[string]string{"version": strconv.FormatInt(v.Version, 10)},
	})
}

func overtaken(now PolicyVersion, expected int64) error {
	if now.Version == 0 {
		return countersign.Errorf(countersign.Conflict, "fleet %s has the built-in policy, not version %d", now.Fleet, expected).
			WithNext("expect 0")
	}
	return countersign.Errorf(countersign.Conflict, "version %d of the policy of fleet %s is in force, by %s, not version %d",
		now.Version, now.Fleet, now.By, expected).
		WithNext(fmt.Sprintf("look at it with: countersign policy get %s, and apply with --expect %d", now.Fleet, now.Version))
}
