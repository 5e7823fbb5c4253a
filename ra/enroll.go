package ra

import (
	"cmp"
	"context"
	"errors"
	"slices"
	"time"

	"github.com/countersign-iot/countersign"
	"github.com/countersign-iot/countersign/ca"
	"github.com/countersign-iot/countersign/pkcs10"
	"github.com/countersign-iot/countersign/registry"
	"github.com/countersign-iot/countersign/store"
)

// request is an enrollment as far as it has been understood; what stands in it
// goes into the event, also when it is refused.
type request struct {
	countersign.EnrollRequest
	arrived  time.Time            // at the desk
	position countersign.Position // of the log by then
	csr      *pkcs10.Request
	keyHash  string
	device   string // as the request claims it, unless the evidence says so
	fleet    string
	cert     countersign.CertRef // shown to renew
	by       countersign.Actor   // who asks, by what was shown; empty while nothing shown is known
	overlap  time.Duration       // of the fleet, for a renewal
	budget   countersign.Budget  // the same
	// approved is the approval of a recovery, spent with the certificate.
	approved string
	// maxRecoveries bounds how often the device may be recovered; 0: this is no recovery.
	maxRecoveries int
	method        countersign.Method // once appraised
	most          int                // certificates an hour, once it wanted more
	late          error              // its evidence was good when it began to wait for approval, and is refused now for this
	dry           bool               // explain only: change nothing, tell nobody
	blocked       error              // the block of its address for guessing; nil: none
}

// received notes where the log stood when the request arrived. Its beginning is
// rounded as the times on record are.
func (d *Authority) received(ctx context.Context, req countersign.EnrollRequest) *request {
	now := d.Now()
	if req.Began.IsZero() {
		req.Began = now
	}
	req.Began = store.Time(store.Micros(req.Began))
	return &request{EnrollRequest: req, fleet: req.Fleet, arrived: now, position: d.Events.Position(ctx)}
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

// Enroll grants a first certificate on the evidence.
func (d *Authority) Enroll(ctx context.Context, req countersign.EnrollRequest) (*countersign.Grant, error) {
	r := d.received(ctx, req)
	g, err := d.enroll(ctx, r)
	d.observe(Outcome{"enroll", r.method, r.Door, countersign.CodeOf(err)})
	if err != nil {
		return nil, d.refused(ctx, r, err)
	}
	d.Ledger.Succeed(r.device)
	return g, nil
}

func (d *Authority) enroll(ctx context.Context, r *request) (*countersign.Grant, error) {
	c, err := d.consider(ctx, r)
	if err != nil {
		return nil, err
	}
	if err := d.Holds.Refuse(r.device); err != nil {
		return nil, err
	}
	if c.again != nil {
		return d.grant(c.again, true)
	}
	if c.waits && c.waiting == "" {
		if err := d.await(ctx, r, c); err != nil {
			return nil, err
		}
		return d.grant(c.again, true)
	}
	o := ca.Order{
		Profile: c.profile, Fleet: c.fleet, Device: r.device, PublicKey: r.csr.PublicKey, Evidence: c.evidence, Method: c.method,
	}
	issued, err := d.issue(ctx, o)
	if err != nil {
		return nil, err
	}
	err = d.record(ctx, r, c, issued)
	if errors.Is(err, ca.ErrBlockClosed) { // costs another signature, not the request
		if issued, err = d.issue(ctx, o); err == nil {
			err = d.record(ctx, r, c, issued)
		}
	}
	if err != nil {
		return nil, err
	}
	if c.again != nil {
		return d.grant(c.again, true)
	}
	return d.grant(&issued.Certificate, false)
}

// record decides again with the device locked, and writes a first certificate.
func (d *Authority) record(ctx context.Context, r *request, c *consideration, issued *ca.Issued) error {
	return d.DB.Write(ctx, func(ctx context.Context, tx *store.Tx) error {
		if err := d.lockFor(ctx, tx, r); err != nil {
			return err
		}
		var err error
		if c.standing, err = d.admission(ctx, tx, r, c.appraisal); err != nil || c.again != nil {
			return err
		}
		if err := d.keyIsFree(ctx, tx, r); err != nil {
			return err
		}
		if err := d.anotherFirst(ctx, tx, r, c); err != nil {
			return err
		}
		return d.admit(ctx, tx, r, c, issued)
	})
}

// consideration is a first enrollment on its way to a decision.
type consideration struct {
	*appraisal
	standing
	fleet   countersign.Fleet
	profile ca.Profile
	waits   bool   // an operator must approve
	waiting string // the approval that it has
}

// consider takes a first enrollment as far as the decision, and changes nothing.
func (d *Authority) consider(ctx context.Context, r *request) (*consideration, error) {
	if err := d.mayGuess(r); err != nil {
		return nil, err
	}
	if err := d.parse(r); err != nil {
		return nil, err
	}
	c := &consideration{}
	var err error
	if c.appraisal, err = d.appraise(ctx, r); err != nil {
		return nil, err
	}
	r.method = c.method
	if err := r.bind(c.appraisal); err != nil {
		return nil, err
	}
	if c.fleet, err = d.Registry.Fleet(ctx, d.DB, r.fleet); err != nil {
		return nil, err
	}
	if c.profile, err = d.CA.Profile(ctx, d.DB, cmp.Or(c.appraisal.profile, c.fleet.Profile)); err != nil {
		return nil, err
	}
	if c.standing, err = d.admission(ctx, d.DB, r, c.appraisal); err != nil || c.again != nil { // before anything is signed in vain
		return c, err
	}
	if err := d.mayBegin(ctx, r, c); err != nil {
		return nil, err
	}
	if err := mayPick(c.appraisal, &c.fleet); err != nil {
		return nil, err
	}
	if err := d.anotherFirst(ctx, d.DB, r, c); err != nil {
		return nil, err
	}
	if err := serverKeys(r, &c.profile); err != nil {
		return nil, err
	}
	if err := within(r, c.appraisal, &c.fleet, c.known); err != nil {
		return nil, err
	}
	if err := d.keyIsFree(ctx, d.DB, r); err != nil {
		return nil, err
	}
	if c.waits = slices.Contains(c.fleet.Rules.Approval, c.method); c.waits {
		if c.waiting, err = d.approval(ctx, r, c); err != nil { // a poll is not another use
			return c, err
		}
	}
	if r.late != nil && c.waiting == "" { // nobody has to approve any more, and the time is over
		return nil, r.late
	}
	if err := d.atRate(r, c); err != nil {
		return nil, err
	}
	return c, d.policy.permit(ctx, d, r, c)
}

// mayBegin refuses first contact under an id that no new device can have. Ids are
// one name space over all fleets, and a device on record keeps the id it has.
func (d *Authority) mayBegin(ctx context.Context, r *request, c *consideration) error {
	if c.known {
		return nil
	}
	return d.Registry.CheckNew(ctx, d.DB, c.fleet, r.device)
}

// serverKeys refuses a key that the door made where the profile wants it made on
// the device.
func serverKeys(r *request, p *ca.Profile) error {
	if len(r.Asked) == 0 || p.ServerKeys {
		return nil
	}
	return countersign.Errorf(countersign.NotAllowed, "profile %s wants keys made on the device", p.Name).WithNext("make a key and use simpleenroll")
}

// lockFor makes the transaction the only one that works on the device and the key.
func (d *Authority) lockFor(ctx context.Context, tx *store.Tx, r *request) error {
	if err := registry.LockDevice(ctx, tx, r.device); err != nil {
		return err
	}
	return tx.Lock(ctx, "key:"+r.keyHash)
}

// keyIsFree refuses a public key that serves another device: whoever has the one
// key is both. Both devices' pages tell of it.
func (d *Authority) keyIsFree(ctx context.Context, rd store.Reader, r *request) error {
	other, taken, err := d.CA.KeyHolder(ctx, rd, r.keyHash, r.device)
	if err != nil || !taken {
		return err
	}
	if other == "" { // of a claim, whose key many have, or of the authority itself
		return countersign.Errorf(countersign.KeyReused, "the public key belongs to no device").WithNext("make a new key on the device, other than that of its claim")
	}
	if !r.dry {
		d.keyReused(r, other)
	}
	return countersign.Errorf(countersign.KeyReused, "the public key serves another device").WithNext("make a new key on each device")
}

// keyReused records that a key which is another device's was shown. The name in the
// request is a claim, unless the device showed its certificate; the other is a fact where
// the key itself signed that name, or TLS proved it: a request without a name, or of
// another session, could be a copy.
func (d *Authority) keyReused(r *request, other string) {
	signed := len(r.CSR) == 0 || r.Bound || r.csr.Subject.CommonName == r.device
	for dev, proven := range map[string]bool{r.device: !r.cert.IsZero(), other: signed} {
		e := r.event(countersign.FindingKeyReuse, "one public key was shown for "+r.device+" and "+other)
		e.Device = dev
		known := dev
		if !proven {
			e.Data = map[string]string{"claimed": "true"}
			known = ""
		}
		d.later(e, known)
	}
}

// parse reads the request and checks what needs no record: form, key, and the
// proof that the device holds it (RFC 2986, 4.2).
func (d *Authority) parse(r *request) error {
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
	if _, err := d.CA.AcceptKey(csr.PublicKey); err != nil {
		return err
	}
	if err := csr.CheckSignature(); err != nil {
		return err
	}
	r.keyHash, err = ca.KeyHash(csr.PublicKey)
	return err
}

// issue plans and signs. It runs outside of the transaction, on the caller's core.
func (d *Authority) issue(ctx context.Context, o ca.Order) (*ca.Issued, error) {
	plan, err := d.CA.Plan(ctx, o)
	if err != nil {
		return nil, err
	}
	return d.CA.Sign(plan)
}

// admit writes a first certificate with all that goes with it.
func (d *Authority) admit(ctx context.Context, tx *store.Tx, r *request, c *consideration, issued *ca.Issued) error {
	if err := d.spend(ctx, tx, r, c); err != nil {
		return err
	}
	if c.waiting != "" {
		if err := d.Registry.Finish(ctx, tx, c.waiting); err != nil {
			return err
		}
	}
	events, err := d.settle(ctx, tx, r, c)
	if err != nil {
		return err
	}
	replaced, err := d.replace(ctx, tx, r, c.unused)
	if err != nil {
		return err
	}
	if err := d.CA.Record(ctx, tx, issued); err != nil {
		return err
	}
	e := r.event(countersign.CertIssued, "first certificate")
	e.Cert = issued.Ref()
	e.Data = issuedData(&issued.Certificate)
	return d.Events.Append(ctx, tx, append(append(events, replaced...), e)...)
}

// spend uses the credentials of the evidence once. A device that lost the key of a
// certificate which it never used has spent its own on that.
func (d *Authority) spend(ctx context.Context, tx *store.Tx, r *request, c *consideration) error {
	for _, used := range c.credentials() {
		do := d.Registry.Spend
		if c.same && used.Evidence() == c.evidence {
			do = d.Registry.SpendAgain
		}
		if err := do(ctx, tx, *used); err != nil {
			return err
		}
		if used.Kind == countersign.MethodTPM {
			if err := d.Registry.Bind(ctx, tx, *used, r.device); err != nil {
				return err
			}
		}
	}
	return nil
}

// settle makes the device active: a new one is created, a known one completed.
func (d *Authority) settle(ctx context.Context, tx *store.Tx, r *request, c *consideration) ([]countersign.Event, error) {
	if c.known {
		if c.standing.device.State == countersign.DeviceActive {
			return nil, nil
		}
		return nil, d.Registry.Move(ctx, tx, &c.standing.device, countersign.DeviceActive, "")
	}
	dev := countersign.Device{ID: r.device, Fleet: r.fleet, State: countersign.DeviceActive}
	if err := d.Registry.Create(ctx, tx, dev); err != nil {
		return nil, err
	}
	return []countersign.Event{r.event(countersign.DeviceCreated, "first enrollment")}, nil
}

// replace revokes certificates that their device asks to have another for.
func (d *Authority) replace(ctx context.Context, tx *store.Tx, r *request, unused []countersign.Certificate) ([]countersign.Event, error) {
	var events []countersign.Event
	for i := range unused {
		if err := d.CA.Replace(ctx, tx, &unused[i]); err != nil {
			return nil, err
		}
		events = append(events, certEvent(countersign.CertReplaced, &unused[i], r.actor(), "never used; the device asked again with another key"))
	}
	return events, nil
}

// nobody acts where nothing that was shown is known here.
const nobody countersign.Actor = "unknown"

// actor is who asks, by what was shown and not by what is claimed.
func (r *request) actor() countersign.Actor {
	switch {
	case r.by != "":
		return r.by
	case !r.cert.IsZero():
		return countersign.DeviceActor(r.device)
	}
	return nobody
}

func issuedData(c *countersign.Certificate) map[string]string {
	return map[string]string{
		"profile": c.Profile, "method": c.Method, "evidence": c.Evidence,
		"not_after": c.NotAfter.UTC().Format(time.RFC3339), "key_sha256": c.KeyHash,
	}
}

func (r *request) event(t countersign.EventType, why string) countersign.Event {
	e := countersign.Event{Type: t, Actor: r.actor(), Device: r.device, Fleet: r.fleet, Via: r.Door, Reason: why, Cert: r.cert}
	if r.Remote.IsValid() {
		e.Remote = r.Remote.String()
	}
	return e
}

// refused writes down why, slows the guesser, and gives the error that the door may show.
func (d *Authority) refused(ctx context.Context, r *request, err error) error {
	err = r.unblocked(err)
	code := countersign.CodeOf(err)
	if code == countersign.Internal || code == countersign.Unavailable {
		d.Log.ErrorContext(ctx, "enrollment failed", "door", r.Door, "device", r.device, "error", countersign.Detail(err))
	}
	if errors.Is(err, context.Canceled) {
		return err
	}
	e := r.event(countersign.EnrollRefused, countersign.Public(err).Message)
	e.Code = code
	d.later(e, "")
	switch {
	case r.dry:
	case code == countersign.OverBudget:
		d.exceeded(r, e)
	default:
		d.guessed(ctx, r, code)
	}
	return d.wornOut(r, err)
}
