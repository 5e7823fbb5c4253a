package policies

import (
	"context"
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
	// most: the oldest go first.
	maxVersions = 500
	// maxNote bounds the note on a version.
	maxNote = 400
)

// The aliases are for doors, which may not know the language.
type (
	// Warning is what is unwise in a document.
	Warning = policy.Warning
	// Decision is the answer to one question.
	Decision = policy.Decision
)

// Version is a policy as it was applied to a fleet. Version 0 is the built-in one.
type Version struct {
	Fleet   string
	Version int64
	Source  string // empty in lists
	Note    string
	By      countersign.Actor
	At      time.Time // zero for the built-in one
}

// Draft is a policy that is to be applied.
type Draft struct {
	Fleet  string
	Source string
	Note   string
	// Expect is the version that it is to replace; nil: whichever is in force.
	Expect *int64
}

// Apply puts a draft in force as the next version, from the moment that it
// returns. changed is false if the very same source is in force already. It
// refuses with BadRequest what Read does, and with Conflict if another version than
// the expected one is in force.
func (s *Store) Apply(ctx context.Context, d Draft, by countersign.Actor, via string) (v Version, changed bool, err error) {
	if _, err := Read(d.Source); err != nil {
		return Version{}, false, err
	}
	return s.apply(ctx, d, by, via, func(context.Context, *store.Tx) (string, error) { return d.Source, nil })
}

// Rollback applies the source of an older version, as a new one. Version 0 is the
// built-in policy.
func (s *Store) Rollback(ctx context.Context, d Draft, to int64, by countersign.Actor, via string) (v Version, changed bool, err error) {
	if d.Note == "" {
		d.Note = fmt.Sprintf("back to version %d", to)
	}
	return s.apply(ctx, d, by, via, func(ctx context.Context, tx *store.Tx) (string, error) {
		old, err := readVersion(ctx, tx, d.Fleet, to)
		if err == nil {
			_, err = Read(old.Source)
		}
		return old.Source, err
	})
}

func (s *Store) apply(ctx context.Context, d Draft, by countersign.Actor, via string,
	source func(context.Context, *store.Tx) (string, error),
) (v Version, changed bool, err error) {
	if len(d.Note) > maxNote {
		return v, false, countersign.Errorf(countersign.BadRequest, "the note has more than %d octets", maxNote).WithNext("shorten it")
	}
	err = s.DB.Write(ctx, func(ctx context.Context, tx *store.Tx) error {
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
		v = Version{Fleet: d.Fleet, Version: old.Version + 1, Source: text, Note: d.Note, By: by, At: s.Now().UTC().Truncate(time.Microsecond)}
		return s.record(ctx, tx, v, via)
	})
	if err != nil && countersign.CodeOf(err) == countersign.Internal {
		err = fmt.Errorf("couldn't apply a policy to fleet %s: %w", d.Fleet, err)
	}
	return v, changed, err
}

func (s *Store) record(ctx context.Context, tx *store.Tx, v Version, via string) error {
	_, err := tx.Exec(ctx, `INSERT INTO policy_version (fleet, version, source, note, created_by, created_at) VALUES ($1, $2, $3, $4, $5, $6)`,
		v.Fleet, v.Version, v.Source, v.Note, string(v.By), store.Micros(v.At))
	if err != nil {
		return err
	}
	_, err = tx.Exec(ctx, `DELETE FROM policy_version WHERE fleet = $1 AND version <= $2`, v.Fleet, v.Version-maxVersions)
	if err != nil {
		return err
	}
	tx.AfterCommit(func() { s.Forget(v.Fleet) }) // before a subscriber of the event, or the caller, asks again
	return s.Events.Append(ctx, tx, countersign.Event{
		Type: countersign.PolicyApplied, Actor: v.By, Fleet: v.Fleet, Via: via, Reason: v.Note,
		Data: map[string]string{"version": strconv.FormatInt(v.Version, 10)},
	})
}

func overtaken(now Version, expected int64) error {
	if now.Version == 0 {
		return countersign.Errorf(countersign.Conflict, "fleet %s has the built-in policy, not version %d", now.Fleet, expected).
			WithNext("expect 0")
	}
	return countersign.Errorf(countersign.Conflict, "version %d of the policy of fleet %s is in force, by %s, not version %d",
		now.Version, now.Fleet, now.By, expected).
		WithNext(fmt.Sprintf("read the policy in force, and apply with the expectation of version %d", now.Version))
}

// Version reads one version: NotFound if there is none, Version 0 is built in.
func (s *Store) Version(ctx context.Context, fleet string, version int64) (Version, error) {
	return readVersion(ctx, s.DB, fleet, version)
}

func readVersion(ctx context.Context, rd store.Reader, fleet string, version int64) (Version, error) {
	if version == 0 {
		return Version{Fleet: fleet, Source: string(policy.Starter()), Note: "built in"}, nil
	}
	v := Version{Fleet: fleet, Version: version}
	var at int64
	err := rd.QueryRow(ctx, `SELECT source, note, created_by, created_at FROM policy_version WHERE fleet = $1 AND version = $2`, fleet, version).
		Scan(&v.Source, &v.Note, &v.By, &at)
	v.At = store.Time(at)
	missing := countersign.Errorf(countersign.NotFound, "there is no version %d of the policy of fleet %.80q", version, fleet).
		WithNext("list the versions of the policy")
	return v, store.RowError(err, missing, fmt.Sprintf("couldn't read version %d of the policy of fleet %s", version, fleet))
}

// Present reads the version in force: NotFound if there is no such fleet.
func (s *Store) Present(ctx context.Context, fleet string) (Version, error) {
	return present(ctx, s.DB, fleet)
}

func present(ctx context.Context, rd store.Reader, fleet string) (Version, error) {
	var version int64
	err := rd.QueryRow(ctx, `SELECT COALESCE((SELECT MAX(version) FROM policy_version WHERE fleet = f.name), 0) FROM fleet f WHERE f.name = $1`, fleet).
		Scan(&version)
	if err != nil {
		missing := countersign.Errorf(countersign.NotFound, "there is no fleet %.80q", fleet).WithNext("list the fleets")
		return Version{}, store.RowError(err, missing, "couldn't read the policy of fleet "+fleet)
	}
	return readVersion(ctx, rd, fleet, version)
}

// Versions lists the versions of a fleet, newest first, those before the version
// before; next is empty on the last page. Sources are left out.
func (s *Store) Versions(ctx context.Context, fleet, before string, limit int) (list []Version, next string, err error) {
	limit = store.PageSize(limit)
	below := int64(1) << 62
	if before != "" {
		if below, err = strconv.ParseInt(before, 10, 64); err != nil {
			return nil, "", countersign.Errorf(countersign.BadRequest, "%.40q is no version", before).WithNext("use the next of the page before")
		}
	}
	list, err = store.List(ctx, s.DB, func(row store.Row) (Version, error) {
		v := Version{Fleet: fleet}
		var at int64
		err := row.Scan(&v.Version, &v.Note, &v.By, &at)
		v.At = store.Time(at)
		return v, err
	}, `SELECT version, note, created_by, created_at FROM policy_version
		WHERE fleet = $1 AND version < $2 ORDER BY version DESC LIMIT $3`, fleet, below, limit+1)
	if err != nil {
		return nil, "", fmt.Errorf("couldn't list the policies of fleet %s: %w", fleet, err)
	}
	list, next = store.Page(list, limit, func(v *Version) string { return strconv.FormatInt(v.Version, 10) })
	return list, next, nil
}

// Report is what Check finds in a source.
type Report struct {
	Policy   *policy.Policy // nil if there are problems
	Problems []policy.Problem
	Warnings []Warning
	Failures []policy.Failure // of its own tests
}

// Check reads a source, finds what is unwise in it, and runs its tests.
func Check(source string) Report {
	p, err := policy.Parse([]byte(source))
	if pe, ok := errors.AsType[*policy.ParseError](err); ok {
		return Report{Problems: pe.Problems}
	}
	return Report{Policy: p, Warnings: p.Lint(), Failures: p.RunTests()}
}

// Read reads a source that may be applied: one without problems, whose tests pass. It
// refuses others with BadRequest.
func Read(source string) (*policy.Policy, error) {
	p, err := parse(source)
	if err != nil {
		return nil, err
	}
	failures := p.RunTests()
	if len(failures) == 0 {
		return p, nil
	}
	f := failures[0]
	e := countersign.Errorf(countersign.BadRequest, "the policy fails its own test %q, line %d: it must %s %q, but %s", f.Test, f.Line, f.Want, f.Act, f.Decision.Why)
	if n := len(failures); n > 1 {
		e.Message += fmt.Sprintf(" (and %d more)", n-1)
	}
	return nil, e.WithNext("run the policy's tests to see all")
}

// parse reads a source; its tests need not pass.
func parse(source string) (*policy.Policy, error) {
	p, err := policy.Parse([]byte(source))
	if err != nil {
		return nil, countersign.Errorf(countersign.BadRequest, "the policy cannot be read: %s", err).WithNext("check the policy to see all problems")
	}
	return p, nil
}
