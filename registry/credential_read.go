package registry

import (
	"context"
	"database/sql"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/countersign-iot/countersign"
	"github.com/countersign-iot/countersign/store"
)

//nolint:gosec // names of columns
const credentialColumns = `id, kind, lookup, second, sealed, fleet, device, label, not_before, expires_at, uses_max, uses, per_minute, networks, devices,
	state, reason, created_by, created_at, created_pos`

func scanCredential(row interface{ Scan(dest ...any) error }) (c Credential, err error) {
	var from, to, created int64
	var networks, devices string
	err = row.Scan(&c.ID, &c.Kind, &c.lookup, &c.second, &c.sealed, &c.Fleet, &c.Device, &c.Label, &from, &to, &c.UsesMax, &c.Uses,
		&c.PerMinute, &networks, &devices, &c.State, &c.Reason, &c.CreatedBy, &created, &c.CreatedPos)
	if err != nil {
		return c, store.Wrap(err)
	}
	c.NotBefore, c.ExpiresAt, c.CreatedAt = store.Time(from), store.Time(to), store.Time(created)
	err = errors.Join(json.Unmarshal([]byte(networks), &c.Networks), json.Unmarshal([]byte(devices), &c.Devices))
	c.Networks = countersign.NormalNetworks(c.Networks)
	return c, err
}

// Find reads the active credential of a kind that evidence names by a fingerprint,
// or the stopped one if there is no other: NotFound if there is none.
func (r *Registry) Find(ctx context.Context, rd store.Reader, kind countersign.Method, fingerprint string) (Credential, error) {
	if fingerprint == "" {
		return Credential{}, noCredential(kind)
	}
	c, err := scanCredential(rd.QueryRow(ctx, `SELECT `+credentialColumns+` FROM credential
		WHERE kind = $1 AND (lookup = $2 OR (second <> '' AND second = $2)) ORDER BY state, created_pos DESC, created_at DESC LIMIT 1`, string(kind), fingerprint))
	if errors.Is(err, sql.ErrNoRows) {
		return c, noCredential(kind)
	}
	if err != nil {
		return c, fmt.Errorf("look up a %s: %w", kind, err)
	}
	return c, nil
}

func noCredential(kind countersign.Method) error {
	return countersign.Errorf(countersign.NotFound, "there is no such %s", kind).WithNext("list them with: countersign enroll list")
}

// Credential reads one credential by id.
func (r *Registry) Credential(ctx context.Context, rd store.Reader, id string) (Credential, error) {
	c, err := scanCredential(rd.QueryRow(ctx, `SELECT `+credentialColumns+` FROM credential WHERE id = $1`, id))
	if errors.Is(err, sql.ErrNoRows) {
		return c, countersign.Errorf(countersign.NotFound, "there is no credential %.80q", id).WithNext("list them with: countersign enroll list")
	}
	if err != nil {
		return c, fmt.Errorf("read credential %s: %w", id, err)
	}
	return c, nil
}

// AnySealed returns one credential with sealed keys; false where there is none.
func (r *Registry) AnySealed(ctx context.Context) (c Credential, found bool, err error) {
	c, err = scanCredential(r.DB.QueryRow(ctx, `SELECT `+credentialColumns+` FROM credential WHERE sealed IS NOT NULL LIMIT 1`))
	if errors.Is(err, sql.ErrNoRows) {
		return c, false, nil
	}
	if err != nil {
		return c, false, fmt.Errorf("look for a sealed credential: %w", err)
	}
	return c, true, nil
}

// atOnce is how many credentials are read by one query.
const atOnce = 200

// CredentialsByID reads those of the credentials that are on record.
func CredentialsByID(ctx context.Context, rd store.Reader, ids []string) (map[string]Credential, error) {
	found := map[string]Credential{}
	for some := range slices.Chunk(ids, atOnce) {
		if err := readCredentials(ctx, rd, some, found); err != nil {
			return nil, fmt.Errorf("read credentials: %w", err)
		}
	}
	return found, nil
}

func readCredentials(ctx context.Context, rd store.Reader, ids []string, into map[string]Credential) (err error) {
	places, args := make([]string, len(ids)), make([]any, len(ids))
	for i, id := range ids {
		places[i], args[i] = fmt.Sprintf("$%d", i+1), id
	}
	rows, err := rd.Query(ctx, `SELECT `+credentialColumns+` FROM credential WHERE id IN (`+strings.Join(places, ", ")+`)`, args...)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, rows.Close()) }()
	for rows.Next() {
		c, err := scanCredential(rows)
		if err != nil {
			return err
		}
		into[c.ID] = c
	}
	return store.Wrap(rows.Err())
}

// Fingerprints are what evidence finds the credential by; second may be empty.
func (c *Credential) Fingerprints() (first, second string) { return c.lookup, c.second }

// Sealed returns the sealed symmetric keys of a credential; see keystore.Sealer.
func (c *Credential) Sealed() []byte { return c.sealed }

// CredentialFilter chooses credentials for a list.
type CredentialFilter struct {
	Kind   countersign.Method
	Fleet  string
	Device string
	After  string // keyset: the id of the last of the page before
	Limit  int    // at most 1000; 0 is that
}

// Credentials lists credentials, newest first; next is the After of the following
// page, empty at the end.
func (r *Registry) Credentials(ctx context.Context, f CredentialFilter) (list []Credential, next string, err error) {
	f.Limit = pageOf(f.Limit)
	where, args := []string{"1 = 1"}, []any{}
	add := func(cond string, v any) {
		args = append(args, v)
		where = append(where, fmt.Sprintf(cond, len(args)))
	}
	if f.Kind != "" {
		add("kind = $%d", string(f.Kind))
	}
	if f.Fleet != "" {
		add("fleet = $%d", f.Fleet)
	}
	if f.Device != "" {
		add("device = $%d", f.Device)
	}
	if f.After != "" {
		add("(created_at, id) < (SELECT created_at, id FROM credential WHERE id = $%d)", f.After)
	}
	args = append(args, f.Limit+1)
	q := fmt.Sprintf(`SELECT %s FROM credential WHERE %s ORDER BY created_at DESC, id DESC LIMIT $%d`, credentialColumns, strings.Join(where, " AND "), len(args))
	rows, err := r.DB.Query(ctx, q, args...)
	if err != nil {
		return nil, "", fmt.Errorf("list credentials: %w", err)
	}
	defer func() { err = errors.Join(err, rows.Close()) }()
	for rows.Next() {
		c, err := scanCredential(rows)
		if err != nil {
			return nil, "", fmt.Errorf("list credentials: %w", err)
		}
		list = append(list, c)
	}
	if len(list) > f.Limit {
		list = list[:f.Limit]
		next = list[f.Limit-1].ID
	}
	return list, next, store.Wrap(rows.Err())
}
