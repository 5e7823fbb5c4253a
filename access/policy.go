package access

import (
	"context"
	"crypto/x509"
	"database/sql"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/countersign-iot/countersign"
	"github.com/countersign-iot/countersign/policy"
	"github.com/countersign-iot/countersign/store"
)

// Policies keeps what the clients of each fleet may do: every version there was,
// the one in force, and that one read and at hand.
type Policies struct {
	DB  *store.DB
	Now func() time.Time
	// Append writes policy.applied in the transaction of the version. Nil writes none.
	Append func(ctx context.Context, tx *store.Tx, events ...countersign.Event) error
	// Live reports whether this process hears at once of what other nodes apply.
	// Whoever says yes after a no has called Forget for what was missed. Nil: it does.
	Live func() bool

	mu      sync.Mutex
	by      map[string]InForce
	changes uint64 // how often something was forgotten
}

// InForce is the policy that decides for a fleet.
type InForce struct {
	Policy  *policy.Policy
	Version int64 // 0: the built-in one
}

// maxInForce bounds the fleets whose policies are at hand, each some 50 KiB at the
// most. A server with more reads some at each connection.
const maxInForce = 1024

// Of gives the policy in force for a fleet. What is at hand is given without
// asking the database only while nothing can have been missed.
func (p *Policies) Of(ctx context.Context, fleet string) (InForce, error) {
	live := p.Live == nil || p.Live()
	p.mu.Lock()
	known, ok := p.by[fleet]
	since := p.changes
	p.mu.Unlock()
	if ok && live {
		return known, nil
	}
	now, err := p.read(ctx, fleet, known)
	if err != nil || !live {
		return now, err
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	if since != p.changes { // the next one reads what made it change
		return now, nil
	}
	if p.by == nil || len(p.by) >= maxInForce {
		p.by = map[string]InForce{}
	}
	p.by[fleet] = now
	return now, nil
}

// read asks the database. known is spared the parsing if it is still in force: a
// version never changes.
func (p *Policies) read(ctx context.Context, fleet string, known InForce) (InForce, error) {
	var version int64
	err := p.DB.QueryRow(ctx, `SELECT version FROM policy_version WHERE fleet = $1 ORDER BY version DESC LIMIT 1`, fleet).Scan(&version)
	switch {
	case errors.Is(err, sql.ErrNoRows):
		return InForce{Policy: policy.Builtin()}, nil
	case err != nil:
		return InForce{}, fmt.Errorf("couldn't read the policy of fleet %s: %w", fleet, store.Wrap(err))
	case known.Policy != nil && known.Version == version:
		return known, nil
	}
	v, err := p.Version(ctx, fleet, version)
	if err != nil {
		return InForce{}, err
	}
	read, err := policy.Parse([]byte(v.Source))
	if err != nil {
		return InForce{}, fmt.Errorf("couldn't read version %d of the policy of fleet %s: %w", version, fleet, err)
	}
	return InForce{Policy: read, Version: version}, nil
}

// Forget has the next decision on the fleet read its policy again.
func (p *Policies) Forget(fleet string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.changes++
	delete(p.by, fleet)
}

// ForgetAll has the next decision on each fleet read its policy again.
func (p *Policies) ForgetAll() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.changes++
	p.by = nil
}

// permit says what the identified client may do.
func (d *Decider) permit(ctx context.Context, c countersign.Connection, dec *Decision) {
	in := InForce{Policy: policy.Builtin()}
	if d.Policies != nil {
		var err error
		if in, err = d.Policies.Of(ctx, dec.Fleet); err != nil {
			dec.Allow, dec.Code, dec.Reason = false, countersign.Unavailable, "the policy of the fleet cannot be read now"
			return
		}
	}
	dec.Judged = true
	subject := policy.Subject{
		Kind: policy.KindOf(dec.Device), Device: dec.Device, Fleet: dec.Fleet, Tags: dec.Tags, CN: dec.CN, Scope: dec.Scope,
		ClientID: clientOr(c.ClientID, dec.Device),
	}
	perms, connect, why := in.Policy.Permissions(subject)
	if !connect {
		dec.Allow, dec.Code = false, countersign.NotAllowed
		dec.Reason = fmt.Sprintf("the %s of fleet %s: %s", in.name(), dec.Fleet, why)
		return
	}
	dec.Permissions = perms
}

// clientOr is the client identifier that a policy sees: who leaves it to the
// server counts as one with its own name.
func clientOr(id, device string) string {
	if id != "" {
		return id
	}
	return device[strings.IndexByte(device, '/')+1:]
}

func (in InForce) name() string {
	if in.Version == 0 {
		return "built-in policy"
	}
	return fmt.Sprintf("policy (version %d)", in.Version)
}

// facts are what is on record of devices and certificates, as far as a policy may
// speak of it. What is not there has no value, and so gets nothing by it.
type facts struct {
	tags  map[string]map[string]string
	names map[countersign.CertRef]string // common names
}

// batch bounds the names in one query.
const batch = 200

// facts reads what is on record now of devices, and of certificates.
func (p *Policies) facts(ctx context.Context, devices []string, certs []countersign.CertRef) (facts, error) {
	f := facts{tags: map[string]map[string]string{}, names: map[countersign.CertRef]string{}}
	err := inBatches(ctx, p.DB, `SELECT id, tags FROM device WHERE id IN (`, devices, func(rows *sql.Rows) error {
		var id, text string
		if err := rows.Scan(&id, &text); err != nil || text == "" {
			return err
		}
		var tags map[string]string
		err := json.Unmarshal([]byte(text), &tags)
		f.tags[id] = tags
		return err
	})
	if err != nil {
		return f, fmt.Errorf("couldn't read the tags of devices: %w", err)
	}
	wanted := map[countersign.CertRef]bool{}
	var serials []countersign.Serial
	for _, ref := range certs {
		if !wanted[ref] {
			wanted[ref], serials = true, append(serials, ref.Serial)
		}
	}
	err = inBatches(ctx, p.DB, `SELECT issuer, serial, der FROM certificate WHERE serial IN (`, serials, func(rows *sql.Rows) error {
		var ref countersign.CertRef
		var der []byte
		if err := rows.Scan(&ref.Issuer, &ref.Serial, &der); err != nil || !wanted[ref] {
			return err
		}
		if cert, err := x509.ParseCertificate(der); err == nil { // else it has no name that anybody knows
			f.names[ref] = cert.Subject.CommonName
		}
		return nil
	})
	if err != nil {
		return f, fmt.Errorf("couldn't read the names in certificates: %w", err)
	}
	return f, nil
}

// inBatches runs a query that ends in IN ( over names, some at a time.
func inBatches[T ~string](ctx context.Context, db store.Reader, query string, names []T, scan func(*sql.Rows) error) error {
	for len(names) > 0 {
		n := min(len(names), batch)
		places, args := make([]string, n), make([]any, n)
		for i, name := range names[:n] {
			places[i], args[i] = fmt.Sprintf("$%d", i+1), string(name)
		}
		if err := scanAll(ctx, db, query+strings.Join(places, ", ")+")", args, scan); err != nil {
			return store.Wrap(err)
		}
		names = names[n:]
	}
	return nil
}

func scanAll(ctx context.Context, db store.Reader, query string, args []any, scan func(*sql.Rows) error) (err error) {
	rows, err := db.Query(ctx, query, args...)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, rows.Close()) }()
	for rows.Next() {
		if err := scan(rows); err != nil {
			return err
		}
	}
	return rows.Err()
}

// subject is a session as a policy sees it now.
func (f facts) subject(s countersign.Session) policy.Subject {
	return policy.Subject{
		Kind: policy.KindOf(s.Device), Device: s.Device, Fleet: s.Fleet, ClientID: s.ClientID, Scope: s.Scope,
		Tags: f.tags[s.Device], CN: f.names[s.Cert],
	}
}

// Losers are those of the sessions of a fleet that would lose something under a
// policy, or would not have come in. It reads the records only where the policy
// speaks of what stands there.
func (p *Policies) Losers(ctx context.Context, now *policy.Policy, sessions []countersign.Session) ([]countersign.Session, error) {
	var devices []string
	var certs []countersign.CertRef
	for _, s := range sessions {
		if policy.KindOf(s.Device) != policy.Devices {
			continue
		}
		if now.SpeaksOf("device.tags.") {
			devices = append(devices, s.Device)
		}
		if now.SpeaksOf("cert.subject.cn") && !s.Cert.IsZero() {
			certs = append(certs, s.Cert)
		}
	}
	f, err := p.facts(ctx, devices, certs)
	if err != nil {
		return nil, err
	}
	var losers []countersign.Session
	for _, s := range sessions {
		subject := f.subject(s)
		given := subject
		given.ClientID = clientOr("", s.Device)
		if loses(now, s, subject) && (!perhapsGiven(s) || loses(now, s, given)) {
			losers = append(losers, s)
		}
	}
	return losers, nil
}

// givenText is how long the text is that the gateway puts behind the name of a session
// whose client leaves the client identifier to it.
const givenText = 12

// perhapsGiven says whether the gateway may have chosen a session's client
// identifier: the policy judged its client by its own name then.
func perhapsGiven(s countersign.Session) bool {
	text, ok := strings.CutPrefix(s.ClientID, s.Device+":")
	return s.ClientID == "" || ok && len(text) == givenText
}

func loses(now *policy.Policy, s countersign.Session, as policy.Subject) bool {
	perms, connect, _ := now.Permissions(as)
	return !connect || policy.Loses(s.Permissions, perms)
}

// Subject is a device as a policy sees it: with its active certificate, under its
// own client identifier. NotFound if there is none.
func (p *Policies) Subject(ctx context.Context, device string) (policy.Subject, error) {
	s := policy.Subject{Kind: policy.Devices, Device: device, ClientID: device}
	var name string
	err := p.DB.QueryRow(ctx, `SELECT d.fleet, COALESCE((SELECT c.issuer || '/' || c.serial FROM certificate c WHERE c.device = d.id AND c.state IN ('active', 'pending')
		ORDER BY c.issued_at DESC LIMIT 1), '') FROM device d WHERE d.id = $1`, device).Scan(&s.Fleet, &name)
	switch {
	case errors.Is(err, sql.ErrNoRows):
		return s, countersign.Errorf(countersign.NotFound, "there is no device %.140q", device).WithNext("list them with: countersign device list")
	case err != nil:
		return s, fmt.Errorf("couldn't read device %s: %w", device, store.Wrap(err))
	}
	var certs []countersign.CertRef
	if ref, err := countersign.ParseCertRef(name); err == nil { // else it has none
		certs = append(certs, ref)
	}
	f, err := p.facts(ctx, []string{device}, certs)
	s.Tags = f.tags[device]
	for _, cn := range f.names {
		s.CN = cn
	}
	return s, err
}

// OfFleet are those sessions that a fleet's policy is about.
func OfFleet(sessions []countersign.Session, fleet string) []countersign.Session {
	return slices.DeleteFunc(sessions, func(s countersign.Session) bool { return s.Fleet != fleet })
}
