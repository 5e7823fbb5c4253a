package registry

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"time"

	"github.com/countersign-iot/countersign"
	"github.com/countersign-iot/countersign/api"
	"github.com/countersign-iot/countersign/store"
)

// The states of an approval. Rejected and done are the end.
const (
	Awaits   api.WaitingState = "waiting"
	Approved api.WaitingState = "approved"
	Rejected api.WaitingState = "rejected"
	Done     api.WaitingState = "done" // the certificate was issued
)

// maxWaitingPerEvidence bounds how many requests one shared credential can have
// waiting, so that a leaked one cannot fill the queue.
const maxWaitingPerEvidence = 10_000

// ApprovedFor is how long a device has at least to come for what was approved: one that
// wakes once a day does.
const ApprovedFor = 25 * time.Hour

const waitingColumns = `id, state, device, fleet, method, evidence, key_hash, facts, remote, via, decided_by, note, created_at, expires_at, decided_at`

func scanWaiting(row store.Row) (w api.Waiting, err error) {
	var facts string
	var created, expires, decided int64
	err = row.Scan(&w.ID, &w.State, &w.Device, &w.Fleet, &w.Method, &w.Evidence, &w.KeyHash, &facts, &w.Remote, &w.Via, &w.DecidedBy, &w.Note,
		&created, &expires, &decided)
	if err != nil {
		return w, store.Wrap(err)
	}
	w.CreatedAt, w.ExpiresAt, w.DecidedAt = store.Time(created), store.Time(expires), store.Time(decided)
	err = json.Unmarshal([]byte(facts), &w.Facts)
	return w, err
}

// Await puts a request into the queue.
func (r *Registry) Await(ctx context.Context, tx *store.Tx, w api.Waiting, ttl time.Duration) (api.Waiting, error) {
	var n int
	err := tx.QueryRow(ctx, `SELECT count(*) FROM waiting_enrollment WHERE evidence = $1 AND state = 'waiting' AND expires_at > $2`, w.Evidence, store.Micros(r.Now())).Scan(&n)
	if err != nil {
		return w, fmt.Errorf("count waiting enrollments: %w", err)
	}
	if n >= maxWaitingPerEvidence {
		return w, countersign.Errorf(countersign.RateLimited, "%d requests of %s wait for approval already", n, w.Evidence).WithNext("ask the operator to decide them").WithRetry(time.Hour)
	}
	var id [8]byte
	if _, err := rand.Read(id[:]); err != nil {
		return w, fmt.Errorf("draw an id: %w", err)
	}
	w.ID, w.State, w.CreatedAt = hex.EncodeToString(id[:]), Awaits, r.Now().UTC()
	w.ExpiresAt = w.CreatedAt.Add(ttl)
	facts, err := json.Marshal(w.Facts)
	if err != nil {
		return w, fmt.Errorf("encode facts: %w", err)
	}
	_, err = tx.Exec(ctx, `INSERT INTO waiting_enrollment (id, state, device, fleet, method, evidence, key_hash, facts, remote, via, decided_by, note,
			created_at, expires_at, decided_at) VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, '', '', $11, $12, 0)`,
		w.ID, string(w.State), w.Device, w.Fleet, string(w.Method), w.Evidence, w.KeyHash, string(facts), w.Remote, w.Via,
		store.Micros(w.CreatedAt), store.Micros(w.ExpiresAt))
	if err != nil {
		return w, fmt.Errorf("record a waiting enrollment of %s: %w", w.Device, err)
	}
	return w, nil
}

// WaitingOf finds the newest request of a device with a key by the same evidence
// that has not come to its end: NotFound if there is none.
func (r *Registry) WaitingOf(ctx context.Context, rd store.Reader, device, keyHash, evidence string) (api.Waiting, error) {
	w, err := scanWaiting(rd.QueryRow(ctx, `SELECT `+waitingColumns+` FROM waiting_enrollment
		WHERE device = $1 AND key_hash = $2 AND evidence = $3 AND state <> 'done' AND expires_at > $4 ORDER BY created_at DESC LIMIT 1`,
		device, keyHash, evidence, store.Micros(r.Now())))
	return w, store.RowError(err, countersign.Errorf(countersign.NotFound, "no enrollment of %s waits", device), "read a waiting enrollment of "+device)
}

// Waiting reads one request by id.
func (r *Registry) Waiting(ctx context.Context, rd store.Reader, id string) (api.Waiting, error) {
	w, err := scanWaiting(rd.QueryRow(ctx, `SELECT `+waitingColumns+` FROM waiting_enrollment WHERE id = $1`, id))
	missing := countersign.Errorf(countersign.NotFound, "there is no waiting enrollment %.80q", id).WithNext("look for it in the list of waiting enrollments")
	return w, store.RowError(err, missing, "read waiting enrollment "+id)
}

// Ruling is an operator's decision on a request that waits.
type Ruling struct {
	State api.WaitingState // Approved or Rejected
	By    countersign.Actor
	Note  string
}

// Decide approves or rejects a request that waits.
func (r *Registry) Decide(ctx context.Context, tx *store.Tx, id string, v Ruling) (api.Waiting, error) {
	w, err := r.Waiting(ctx, tx, id)
	if err != nil {
		return w, err
	}
	now := r.Now().UTC()
	if now.After(w.ExpiresAt) {
		return w, countersign.Errorf(countersign.Conflict, "the request of %s expired at %s", w.Device, w.ExpiresAt.UTC().Format(time.RFC3339)).WithNext("the device asks again by itself")
	}
	if until := now.Add(ApprovedFor); v.State == Approved && until.After(w.ExpiresAt) {
		w.ExpiresAt = until
	}
	n, err := tx.Exec(ctx, `UPDATE waiting_enrollment SET state = $2, decided_by = $3, note = $4, decided_at = $5, expires_at = $6
		WHERE id = $1 AND state = 'waiting'`, id, string(v.State), string(v.By), clip(v.Note), store.Micros(now), store.Micros(w.ExpiresAt))
	if err != nil {
		return w, fmt.Errorf("decide enrollment %s: %w", id, err)
	}
	if n != 1 {
		return w, countersign.Errorf(countersign.Conflict, "the request of %s is %s already", w.Device, w.State)
	}
	w.State, w.DecidedBy, w.Note, w.DecidedAt = v.State, v.By, clip(v.Note), now
	return w, nil
}

// Finish marks an approved request as served. Of two that race one gets Conflict.
func (r *Registry) Finish(ctx context.Context, tx *store.Tx, id string) error {
	n, err := tx.Exec(ctx, `UPDATE waiting_enrollment SET state = 'done' WHERE id = $1 AND state = 'approved'`, id)
	if err != nil {
		return fmt.Errorf("finish enrollment %s: %w", id, err)
	}
	if n != 1 {
		return countersign.Errorf(countersign.Conflict, "the approval has been used meanwhile").WithNext("ask again")
	}
	return nil
}

// Queue lists requests in a state, oldest first; next is the After of the
// following page, empty at the end. An empty state is all.
func (r *Registry) Queue(ctx context.Context, state api.WaitingState, after string, limit int) (list []api.Waiting, next string, err error) {
	limit = store.PageSize(limit)
	var q store.Query
	q.And("(state <> 'waiting' OR expires_at > ?)", store.Micros(r.Now()))
	q.If(after != "", "(created_at, id) > (SELECT created_at, id FROM waiting_enrollment WHERE id = ?)", after)
	states := []api.WaitingState{Awaits, Approved, Rejected, Done}
	if state != "" {
		states = []api.WaitingState{state}
	}
	parts := store.Parts[api.WaitingState]{
		Columns: waitingColumns, Table: "waiting_enrollment", Column: "state", Values: states, Order: "created_at, id", Limit: limit + 1,
	}
	text := parts.Text(&q)
	list, err = store.List(ctx, r.DB, scanWaiting, text, q.Args...)
	if err != nil {
		return nil, "", fmt.Errorf("list waiting enrollments: %w", err)
	}
	list, next = store.Page(list, limit, func(w *api.Waiting) string { return w.ID })
	return list, next, nil
}
