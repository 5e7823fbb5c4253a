package ra

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"strings"
	"time"

	"github.com/countersign-iot/countersign"
	"github.com/countersign-iot/countersign/ca"
	"github.com/countersign-iot/countersign/pkcs10"
	"github.com/countersign-iot/countersign/registry"
	"github.com/countersign-iot/countersign/store"
)

// request is an enrollment as far as it has been understood; what is in it
// goes into the event, also when it is refused.
type request struct {
	*Authority
	countersign.EnrollRequest
	arrived  time.Time
	position countersign.Position // of the log by then
	csr      *pkcs10.Request
	keyHash  string
	device   string // as the request claims it, unless the evidence says so
	fleet    string
	cert     countersign.CertRef // shown to renew
	by       countersign.Actor   // who asks, by what was shown; empty while nothing shown is known
	most     int                 // certificates an hour, once it wanted more
	late     error               // its evidence was good when it began to wait for approval, and is refused now for this
	dry      bool                // explain only: change nothing and record nothing
	blocked  error               // the block of its address for guessing; nil: none
}

// received notes where the log stood when the request arrived. Its beginning is
// rounded as the times on record are.
func (d *Authority) received(ctx context.Context, req countersign.EnrollRequest) *request {
	now := d.Now()
	if req.Began.IsZero() {
		req.Began = now
	}
	req.Began = store.Time(store.Micros(req.Began))
	return &request{Authority: d, EnrollRequest: req, fleet: req.Fleet, arrived: now, position: d.Events.Position(ctx)}
}

// overtaken reports whether an act took place since the request began. The position
// of the log decides, because the act may be another node's, whose clock differs. The
// time counts too for acts while the door still read the request. In doubt it was
// overtaken, because asking again costs little.
func (r *request) overtaken(at time.Time, pos countersign.Position) bool {
	return pos >= r.position || !at.Before(r.Began) && !at.After(r.arrived)
}

func errOvertaken() error {
	return countersign.Errorf(countersign.Conflict, "another request of the device was served meanwhile").
		WithNext("use the certificate that it gave, or ask again")
}

// parse reads the request and checks what needs no record: form, key, and the
// proof that the device holds it (RFC 2986, 4.2).
func (r *request) parse() error {
	csr, err := pkcs10.Parse(r.CSR)
	if err != nil {
		return err
	}
	r.csr = csr
	if countersign.IsDeviceID(csr.Subject.CommonName) {
		r.device = csr.Subject.CommonName
	}
	if _, err := csr.Key(); err != nil {
		return err
	}
	if _, err := r.CA.AcceptKey(csr.PublicKey); err != nil {
		return err
	}
	if err := csr.CheckSignature(); err != nil {
		return err
	}
	r.keyHash, err = ca.KeyHash(csr.PublicKey)
	return err
}

// lockFor makes the transaction the only one that works on the device and the key.
func (r *request) lockFor(ctx context.Context, tx *store.Tx) error {
	if err := registry.LockDevice(ctx, tx, r.device); err != nil {
		return err
	}
	return tx.Lock(ctx, "key:"+r.keyHash)
}

// serverKeys refuses a key that the door made where the profile wants it made on
// the device.
func (r *request) serverKeys(p *ca.Profile) error {
	if len(r.Asked) == 0 || p.ServerKeys {
		return nil
	}
	return countersign.Errorf(countersign.NotAllowed, "profile %s wants keys made on the device", p.Name).WithNext("make a key and use simpleenroll")
}

// keyIsFree refuses a public key that serves another device: who has the one
// key is both. Both devices' pages tell of it.
func (r *request) keyIsFree(ctx context.Context, rd store.Reader) error {
	other, taken, err := ca.KeyHolder(ctx, rd, r.keyHash, r.device)
	if err != nil || !taken {
		return err
	}
	if other == "" { // of a claim, whose key many have, or of the authority itself
		return countersign.Errorf(countersign.KeyReused, "the public key belongs to no device").WithNext("make a new key on the device, other than that of its claim")
	}
	if !r.dry {
		r.keyReused(other)
	}
	return countersign.Errorf(countersign.KeyReused, "the public key serves another device").WithNext("make a new key on each device")
}

// keyReused records that a key which is another device's was shown. The name in the
// request is a claim, unless the device showed its certificate; the other is a fact where
// the key itself signed that name, or TLS proved it: a request without a name, or of
// another session, could be a copy.
func (r *request) keyReused(other string) {
	signed := len(r.CSR) == 0 || r.Bound || r.csr.Subject.CommonName == r.device
	for dev, proven := range map[string]bool{r.device: !r.cert.IsZero(), other: signed} {
		e := r.event(countersign.FindingKeyReuse, "one public key was shown for "+r.device+" and "+other)
		e.Device = dev
		known := dev
		if !proven {
			e.Data = map[string]string{"claimed": "true"}
			known = ""
		}
		r.later(e, known)
	}
}

// replace revokes certificates that their device asks to have another for.
func (r *request) replace(ctx context.Context, tx *store.Tx, unused []countersign.Certificate) ([]countersign.Event, error) {
	var events []countersign.Event
	for i := range unused {
		if err := r.CA.Replace(ctx, tx, &unused[i]); err != nil {
			return nil, err
		}
		events = append(events, certEvent(countersign.CertReplaced, &unused[i], r.actor(), "never used; the device asked again with another key"))
	}
	return events, nil
}

// issue plans and signs a certificate, and records it. It signs outside of the
// transaction, on the caller's core. A closed block of serials costs another signature,
// not the request.
func (d *Authority) issue(ctx context.Context, o ca.Order, record func(context.Context, *ca.Issued) error) (*ca.Issued, error) {
	for again := false; ; again = true {
		plan, err := d.CA.Plan(ctx, o)
		if err != nil {
			return nil, err
		}
		issued, err := d.CA.Sign(plan)
		if err != nil {
			return nil, err
		}
		err = record(ctx, issued)
		if again || !errors.Is(err, ca.ErrBlockClosed) {
			return issued, err
		}
	}
}

const (
	// renewalWindow is the time of Budget.Renewals.
	renewalWindow = time.Hour
	// leastRetry keeps a device that is over its budget from coming back at once.
	leastRetry = time.Second
)

// withinRenewals refuses with OverBudget a device another certificate that had as many
// within the hour as its fleet allows, whatever became of them: each that it gives up
// stays on the CRL until it expires (RFC 5280, 3.3). The certificates on record are
// counted, so the bound holds over a restart and on all nodes; in the transaction that
// records the next one, with the device locked, it is exact.
func (r *request) withinRenewals(ctx context.Context, rd store.Reader, b countersign.Budget) error {
	most, now := b.WithDefaults().Renewals, r.Now()
	at, over, err := ca.IssuedWithin(ctx, rd, r.device, now.Add(-renewalWindow), most)
	if err != nil || !over {
		return err
	}
	r.most = most
	wait := min(max(at.Add(renewalWindow).Sub(now), leastRetry), renewalWindow)
	return countersign.Errorf(countersign.OverBudget, "device %s got %d certificates within an hour, as many as fleet %s allows", r.device, most, r.fleet).
		WithNext("keep the key and the certificate that the device has; the fleet's rules have budget.renewals").WithRetry(wait)
}

// The profile writes the subject and the alternative names of a certificate, so the names
// in a request are compared and never copied. What a device may have in its first request
// it may repeat in each renewal: names that say nothing of a device are ignored at both,
// the name of another device is refused at both.

// urnPrefix begins the URI of a device in a fleet without a trust domain; see
// countersign.DeviceURI.
const urnPrefix = "urn:countersign:device:"

// namesAnother refuses a request with a URI by which this authority names another device.
// Which fleet the URI has does not matter: a device keeps its id when its fleet changes.
func (r *request) namesAnother(fleet *countersign.Fleet) error {
	for _, uri := range r.csr.URIs {
		if id, ours := deviceOf(uri, fleet); ours && id != r.device {
			return countersign.Errorf(countersign.SubjectMismatch, "the request has the URI %.200q of another device than %s", uri, r.device).
				WithNext("leave that URI out, or put the device's own there")
		}
	}
	return nil
}

// deviceOf reads the id out of a URI that names a device of this authority.
func deviceOf(uri string, fleet *countersign.Fleet) (id string, ours bool) {
	if rest, ok := strings.CutPrefix(uri, urnPrefix); ok {
		_, id, ok = strings.Cut(rest, ":")
		return id, ok
	}
	if rest, ok := strings.CutPrefix(uri, "spiffe://"+fleet.TrustDomain+"/"); ok && fleet.TrustDomain != "" {
		_, id, ok = strings.Cut(rest, "/")
		return id, ok
	}
	return "", false
}

// waitingOn names what a request that waits was made with.
type waitingOn struct{ evidence, device string }

// inTime checks that evidence is good now or, where its time is over, that it was when
// the same request began to wait for approval: then it was appraised, and people take
// longer to decide than a token is good.
func (r *request) inTime(ctx context.Context, rd store.Reader, on waitingOn, check func(now time.Time) error) error {
	over := check(r.Now())
	if code := countersign.CodeOf(over); code != countersign.CredentialExpire && code != countersign.CertExpired {
		return over
	}
	w, err := r.Registry.WaitingOf(ctx, rd, on.device, r.waitsAs(), on.evidence)
	switch {
	case countersign.CodeOf(err) == countersign.NotFound:
		return over
	case err != nil:
		return err
	}
	if err := check(w.CreatedAt); err != nil {
		return err
	}
	r.late = over
	return nil
}

// waitsAs is what a request is known by while it waits: its key or, where the door
// makes a new key at each try, the request that the device sent.
func (r *request) waitsAs() string {
	if len(r.Asked) == 0 {
		return r.keyHash
	}
	sum := sha256.Sum256(r.Asked)
	return hex.EncodeToString(sum[:])
}

// grant puts together what the device gets.
func (d *Authority) grant(c *countersign.Certificate, again bool) (*countersign.Grant, error) {
	chain, err := d.CA.Chain(c.Issuer)
	if err != nil {
		return nil, err
	}
	return &countersign.Grant{
		Device: c.Device, Fleet: c.Fleet, Serial: c.Serial, Leaf: c.DER, Chain: chain, Again: again,
		RenewAt: renewAt(c), NotAfter: c.NotAfter,
	}, nil
}

// renewAt is two thirds into the certificate's life, moved by up to a twentieth
// either way by its serial, so that a fleet enrolled in one hour does not renew in
// one hour.
func renewAt(c *countersign.Certificate) time.Time {
	if c.NotAfter.Year() == 9999 { // no well-defined expiry: nothing to renew
		return time.Time{}
	}
	life := c.NotAfter.Sub(c.IssuedAt)
	var spread int64
	if n := c.Serial.Int(); n != nil {
		spread = int64(n.Uint64()%2001) - 1000
	}
	return c.IssuedAt.Add(life*2/3 + life/20*time.Duration(spread)/1000)
}

// actor is who asks, by what was shown and not by what is claimed.
func (r *request) actor() countersign.Actor {
	switch {
	case r.by != "":
		return r.by
	case !r.cert.IsZero():
		return countersign.DeviceActor(r.device)
	}
	return unknown
}

func (r *request) event(t countersign.EventType, why string) countersign.Event {
	e := countersign.Event{Type: t, Actor: r.actor(), Device: r.device, Fleet: r.fleet, Via: r.Door, Reason: why, Cert: r.cert}
	if r.Remote.IsValid() {
		e.Remote = r.Remote.String()
	}
	return e
}

// issuedEvent returns an event about a certificate that the request was granted.
func (r *request) issuedEvent(t countersign.EventType, why string, c *countersign.Certificate) countersign.Event {
	e := r.event(t, why)
	e.Cert = c.Ref()
	e.Data = map[string]string{
		"profile": c.Profile, "method": c.Method, "evidence": c.Evidence,
		"not_after": c.NotAfter.UTC().Format(time.RFC3339), "key_sha256": c.KeyHash,
	}
	return e
}
