package policies

import (
	"context"
	"fmt"
	"hash/maphash"
	"log/slog"
	"strings"
	"sync"
	"sync/atomic"
	"time"
	"unicode/utf8"

	"github.com/countersign-iot/countersign"
	"github.com/countersign-iot/countersign/policy"
	"github.com/countersign-iot/countersign/store"
)

const (
	// thinFor is how long the same act of a device is not written again: a device
	// that reports each second is one row in ten minutes.
	thinFor = 10 * time.Minute
	// maxThinned bounds the acts that are distinguished, about 4 MB. When it is full, all
	// are forgotten, and each may be written once more.
	maxThinned = 100_000
	// maxPerClient bounds the acts of one device in that time, and those of all guests
	// of a fleet together: no client may displace the acts of others in the sample.
	maxPerClient = 50
	// maxSampled bounds the rows that wait for the database; more are left out, since
	// this is a sample.
	maxSampled = 4096
	// sampleBatch bounds one transaction of them.
	sampleBatch = 256
	// maxDecisions bounds the rows that are kept of a fleet; the oldest go first.
	maxDecisions = 10_000
	// flushEvery is what a crash may lose of the sample.
	flushEvery = 2 * time.Second
	// sweepEvery is how often the record and memory are held to their bounds.
	sweepEvery = time.Minute
	// writeTime bounds the last transaction when the server stops.
	writeTime = 5 * time.Second
	// maxSampledTopic bounds a topic on record. Longer ones are left out.
	maxSampledTopic = 1024
)

// Sample keeps a bounded, thinned sample of what was decided, by which a draft of
// a policy can be tried on what devices really do. It is written behind: a crash
// loses flushEvery of it.
type Sample struct {
	DB  *store.DB
	Now func() time.Time
	Log *slog.Logger

	mu      sync.Mutex
	seed    maphash.Seed
	seen    map[uint64]time.Time
	spent   map[uint64]spent // by client
	waiting []sampled
	grown   map[string]bool // fleets with new rows since the last sweep
	left    atomic.Int64    // rows that there was no room for
}

// spent is how many acts of a client were added, and since when.
type spent struct {
	acts  int
	since time.Time
}

// sampled is one decision.
type sampled struct {
	fleet, device, client, cn string
	cert                      countersign.CertRef // whose name is looked up when it is written
	scope                     string              // devices, with blanks between them
	action, topic             string
	allowed                   bool
	at                        time.Time
}

// Act adds what a session did or was refused.
func (s *Sample) Act(in countersign.Session, a countersign.Act) {
	action := a.Action
	if action == "will" { // its last publication
		action = string(policy.Publish)
	}
	s.add(sampled{
		fleet: in.Fleet, device: in.Device, client: in.ClientID, cert: in.Cert, scope: strings.Join(in.Scope, " "),
		action: action, topic: a.Topic, allowed: a.Allowed,
	})
}

// Connect adds what a policy decided about a connection.
func (s *Sample) Connect(as policy.Subject, allowed bool) {
	s.add(sampled{
		fleet: as.Fleet, device: as.Device, client: as.ClientID, cn: as.CN, scope: strings.Join(as.Scope, " "),
		action: string(policy.Connect), topic: as.ClientID, allowed: allowed,
	})
}

func (s *Sample) add(row sampled) {
	if row.fleet == "" || row.device == "" || len(row.topic) > maxSampledTopic || !plain(row.topic) || !plain(row.client) || !plain(row.cn) {
		return
	}
	row.at = s.Now()
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.seen == nil || len(s.seen) >= maxThinned {
		s.seen, s.spent, s.seed = map[uint64]time.Time{}, map[uint64]spent{}, maphash.MakeSeed()
	}
	client, key := row.keys(s.seed)
	if last, again := s.seen[key]; again && row.at.Sub(last) < thinFor {
		return
	}
	budget := s.spent[client]
	if row.at.Sub(budget.since) >= thinFor {
		budget = spent{since: row.at}
	}
	if budget.acts >= maxPerClient {
		return
	}
	if len(s.waiting) >= maxSampled {
		s.left.Add(1)
		return
	}
	budget.acts++
	s.spent[client] = budget
	s.seen[key] = row.at
	s.waiting = append(s.waiting, row)
}

// plain reports whether both databases accept the text.
func plain(s string) bool { return utf8.ValidString(s) && strings.IndexByte(s, 0) < 0 }

// keys returns what makes two rows of the same client, and of the same act. Guests count
// as one client: each has a new name.
func (r *sampled) keys(seed maphash.Seed) (client, act uint64) {
	device := r.device
	if policy.KindOf(device) == policy.Guests {
		device = "guest"
	}
	var h maphash.Hash
	h.SetSeed(seed)
	write := func(part string) {
		_, _ = h.WriteString(part) // never fails
		_ = h.WriteByte(0)
	}
	write(r.fleet)
	write(device)
	client = h.Sum64()
	write(r.action)
	write(r.topic)
	if r.allowed {
		_ = h.WriteByte(1)
	}
	return client, h.Sum64()
}

// Run writes the sample, some time behind, until ctx ends.
func (s *Sample) Run(ctx context.Context) error {
	flush, sweep := time.NewTicker(flushEvery), time.NewTicker(sweepEvery)
	defer flush.Stop()
	defer sweep.Stop()
	for {
		var err error
		select {
		case <-ctx.Done():
			last, cancel := context.WithTimeout(context.WithoutCancel(ctx), writeTime)
			defer cancel()
			if err := s.Flush(last); err != nil {
				s.Log.WarnContext(last, "sample of decisions not written", "error", err)
			}
			return nil
		case <-flush.C:
			err = s.Flush(ctx)
		case <-sweep.C:
			err = s.Sweep(ctx)
		}
		if err != nil && ctx.Err() == nil {
			s.Log.WarnContext(ctx, "sample of decisions not written", "error", err)
		}
	}
}

// Flush writes what waits. What cannot be written is left out.
func (s *Sample) Flush(ctx context.Context) error {
	s.mu.Lock()
	rows := s.waiting
	s.waiting = nil
	if s.grown == nil {
		s.grown = map[string]bool{}
	}
	for _, r := range rows {
		s.grown[r.fleet] = true
	}
	s.mu.Unlock()
	if n := s.left.Swap(0); n > 0 {
		s.Log.InfoContext(ctx, "decisions left out of the sample", "count", n)
	}
	for len(rows) > 0 {
		n := min(len(rows), sampleBatch)
		if err := s.write(ctx, rows[:n]); err != nil {
			return fmt.Errorf("couldn't write %d decisions: %w", len(rows), err)
		}
		rows = rows[n:]
	}
	return nil
}

func (s *Sample) write(ctx context.Context, rows []sampled) error {
	var certs []countersign.CertRef
	for _, r := range rows {
		if !r.cert.IsZero() {
			certs = append(certs, r.cert)
		}
	}
	named, err := readFacts(ctx, s.DB, nil, certs)
	if err != nil {
		return err
	}
	return s.DB.Write(ctx, func(ctx context.Context, tx *store.Tx) error {
		for _, r := range rows {
			if !r.cert.IsZero() {
				r.cn = named.names[r.cert]
			}
			_, err := tx.Exec(ctx, `INSERT INTO policy_decision (fleet, device, client_id, cn, scope, action, topic, allowed, at)
				VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9)`,
				r.fleet, r.device, r.client, r.cn, r.scope, r.action, r.topic, r.allowed, store.Micros(r.at))
			if err != nil {
				return err
			}
		}
		return nil
	})
}

// Sweep forgets acts that may be written again, and holds the rows of each fleet to
// their bound.
func (s *Sample) Sweep(ctx context.Context) error {
	now := s.Now()
	s.mu.Lock()
	for key, at := range s.seen {
		if now.Sub(at) >= thinFor {
			delete(s.seen, key)
		}
	}
	for client, b := range s.spent {
		if now.Sub(b.since) >= thinFor {
			delete(s.spent, client)
		}
	}
	grown := s.grown
	s.grown = nil
	s.mu.Unlock()
	for fleet := range grown {
		err := s.DB.Write(ctx, func(ctx context.Context, tx *store.Tx) error {
			_, err := tx.Exec(ctx, `DELETE FROM policy_decision WHERE fleet = $1
				AND id <= (SELECT id FROM policy_decision WHERE fleet = $1 ORDER BY id DESC LIMIT 1 OFFSET $2)`, fleet, maxDecisions)
			return err
		})
		if err != nil {
			return fmt.Errorf("couldn't clear the sample of decisions: %w", err)
		}
	}
	return nil
}
