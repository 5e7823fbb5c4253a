package registry

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"

	"github.com/countersign-iot/countersign"
	"github.com/countersign-iot/countersign/store"
)

//nolint:gosec // names of columns
const credentialColumns = `id, kind, lookup, second, sealed, fleet, device, label, not_before, expires_at, uses_max, uses, per_minute, networks, devices,
	state, reason, created_by, created_at, created_pos`

func scanCredential(row store.Row) (c Credential, err error) {
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
	// Two parts and no OR, for which SQLite would read all credentials of the kind.
	const from = `SELECT ` + credentialColumns + ` FROM credential WHERE kind = $1 AND `
	c, err := scanCredential(rd.QueryRow(ctx, from+`lookup = $2 UNION ALL `+from+`second = $2 AND second <> ''
		ORDER BY state, created_pos DESC, created_at DESC LIMIT 1`, string(kind), fingerprint))
	return c, store.RowError(err, noCredential(kind), "look up a "+string(kind))
}

func noCredential(kind countersign.Method) error {
	return countersign.Errorf(countersign.NotFound, "there is no such %s", kind).WithNext("look for it in the list of credentials")
}

// Credential reads one credential by id.
func (r *Registry) Credential(ctx context.Context, rd store.Reader, id string) (Credential, error) {
	c, err := scanCredential(rd.QueryRow(ctx, `SELECT `+credentialColumns+` FROM credential WHERE id = $1`, id))
	missing := countersign.Errorf(countersign.NotFound, "there is no credential %.80q", id).WithNext("look for it in the list of credentials")
	return c, store.RowError(err, missing, "read credential "+id)
}

// atOnce is how many credentials are read by one query.
const atOnce = 200

// CredentialsByID reads those of the credentials that are on record.
func CredentialsByID(ctx context.Context, rd store.Reader, ids []string) (map[string]Credential, error) {
	found := map[string]Credential{}
	for some := range slices.Chunk(ids, atOnce) {
		var q store.Query
		for c, err := range store.Rows(ctx, rd, scanCredential, `SELECT `+credentialColumns+` FROM credential WHERE id IN `+store.In(&q, some), q.Args...) {
			if err != nil {
				return nil, fmt.Errorf("read credentials: %w", err)
			}
			found[c.ID] = c
		}
	}
	return found, nil
}

// Holders returns those of the devices that have an active credential made for them.
func Holders(ctx context.Context, rd store.Reader, devices []string) ([]string, error) {
	var q store.Query
	list, err := store.List(ctx, rd, store.Scan[string],
		`SELECT DISTINCT device FROM credential WHERE state = 'active' AND device IN `+store.In(&q, devices), q.Args...)
	if err != nil {
		return nil, fmt.Errorf("read which devices have credentials: %w", err)
	}
	return list, nil
}

// Fingerprints are what evidence finds the credential by; second may be empty.
func (c *Credential) Fingerprints() (first, second string) { return c.lookup, c.second }

// CredentialFilter chooses credentials for a list.
type CredentialFilter struct {
	Kind   countersign.Method
	Fleet  string
	Device string
	After  string // keyset: the id of the last of the page before
	Limit  int    // at most 1000; 0 is that
}

// query returns the query of a list, by the index that begins with what is asked for.
func (f *CredentialFilter) query(q *store.Query, limit int) string {
	const order = `created_at DESC, id DESC`
	if f.Device != "" {
		q.And("device = ? AND device <> ''", f.Device) // the second lets the partial index serve
		// In expressions, because SQLite would take the index of the kind or the fleet otherwise.
		q.If(f.Kind != "", "kind || '' = ?", string(f.Kind))
		q.If(f.Fleet != "", "fleet || '' = ?", f.Fleet)
		return `SELECT ` + credentialColumns + ` FROM credential` + q.Where() + ` ORDER BY ` + order + ` LIMIT ` + q.Arg(limit)
	}
	q.If(f.Fleet != "", "fleet = ?", f.Fleet)
	if f.Kind == "" && f.Fleet == "" {
		return `SELECT ` + credentialColumns + ` FROM credential` + q.Where() + ` ORDER BY ` + order + ` LIMIT ` + q.Arg(limit)
	}
	kinds := methods
	if f.Kind != "" {
		kinds = []countersign.Method{f.Kind}
	}
	parts := store.Parts[countersign.Method]{Columns: credentialColumns, Table: "credential", Column: "kind", Values: kinds, Order: order, Limit: limit}
	return parts.Text(q)
}

// Credentials lists credentials, newest first; next is the After of the following
// page, empty at the end.
func (r *Registry) Credentials(ctx context.Context, f CredentialFilter) (list []Credential, next string, err error) {
	var q store.Query
	q.If(f.After != "", "(created_at, id) < (SELECT created_at, id FROM credential WHERE id = ?)", f.After)
	limit := store.PageSize(f.Limit)
	list, err = store.List(ctx, r.DB, scanCredential, f.query(&q, limit+1), q.Args...)
	if err != nil {
		return nil, "", fmt.Errorf("list credentials: %w", err)
	}
	list, next = store.Page(list, limit, func(c *Credential) string { return c.ID })
	return list, next, nil
}
