package ra_test

import (
	"crypto/ecdsa"
	"crypto/x509"
	"flag"
	"fmt"
	"slices"
	"strconv"
	"testing"
	"time"

	"pgregory.net/rapid"

	"github.com/countersign-iot/countersign"
	"github.com/countersign-iot/countersign/event"
	"github.com/countersign-iot/countersign/registry"
	"github.com/countersign-iot/countersign/store"
	"github.com/countersign-iot/countersign/store/storetest"
	"github.com/countersign-iot/countersign/test/kit"
)

// TestRotationTellsDevicesFromClones plays devices and clones against the rule of
// rotation, each run with a device of its own.
//
// The device keeps three promises, as package sdk does: it stores a new key and
// certificate before it uses them; from its first attempt to use them it never
// renews from the old certificate with another key; and what it lost it does not
// find again. Everything else may happen to it: answers, requests and keys get
// lost, requests arrive twice or late, time passes. It must never be suspended,
// and must get and use a certificate as soon as the world is quiet.
//
// A clone copies key and certificate at some moment and does what it likes. Once
// both have renewed for a key of their own and connected with what they got, all
// must be stopped.
func TestRotationTellsDevicesFromClones(t *testing.T) {
	for _, tt := range []struct {
		name   string
		open   func(*testing.T) *store.DB
		checks int
	}{
		{"sqlite", func(t *testing.T) *store.DB { return storetest.Open(t) }, 150},
		{"postgres", func(t *testing.T) *store.DB { return storetest.OpenURL(t, storetest.PostgresURL(t)) }, 30},
	} {
		t.Run(tt.name, func(t *testing.T) {
			w := newWorld(t, tt.open(t))
			start, runs := w.clock.Now(), 0
			play := func(rt *rapid.T, cloned bool) {
				w.clock.Set(start) // each run is short, all together outlive the authority
				runs++
				newPlay(t, rt, w, fmt.Sprintf("d%d", runs)).run(cloned)
			}
			atMostChecks(t, tt.checks)
			t.Run("honest", rapid.MakeCheck(func(rt *rapid.T) { play(rt, false) }))
			t.Run("cloned", rapid.MakeCheck(func(rt *rapid.T) { play(rt, true) }))
		})
	}
}

// atMostChecks bounds the runs of a property, unless the command line asks for more.
func atMostChecks(t *testing.T, n int) {
	t.Helper()
	f := flag.Lookup("rapid.checks")
	if f.Value.String() != f.DefValue {
		return
	}
	if testing.Short() {
		n /= 5
	}
	if err := f.Value.Set(strconv.Itoa(n)); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = f.Value.Set(f.DefValue) })
}

// play is one run.
type play struct {
	*rapid.T
	t     *testing.T
	w     *world
	id    string
	token string
	dev   honest
	clone *clone // nil until it copies
	late  []func()
}

// honest is the device: what it has stored, and what the test knows of it.
type honest struct {
	cur, next *x509.Certificate // in use; received for key, not yet in use
	key       *ecdsa.PrivateKey // stored before it is asked for
	tried     bool              // to use next
	old       []*x509.Certificate
	own       *x509.Certificate // received since the clone copied
	shown     bool              // own has connected
}

// clone is who copied.
type clone struct {
	copied, got []*x509.Certificate
	acted       bool
	shown       bool // something of got has connected
}

func newPlay(t *testing.T, rt *rapid.T, w *world, id string) *play {
	return &play{T: rt, t: t, w: w, id: id, token: w.token(t, registry.Credential{Device: id, UsesMax: 1000})}
}

func (p *play) run(cloned bool) {
	actions := map[string]func(*rapid.T){
		"ask":            func(*rapid.T) { p.ask() },
		"ask again":      func(*rapid.T) { p.ask() },
		"connect new":    func(*rapid.T) { p.connectNew() },
		"connect old":    func(*rapid.T) { p.connectOld() },
		"settle for new": func(*rapid.T) { p.settle() },
		"lose the key":   func(*rapid.T) { p.lose() },
		"arrive late":    func(*rapid.T) { p.arrive() },
		"time passes":    func(*rapid.T) { p.pass() },
		"sweep":          func(*rapid.T) { p.sweep() },
		"":               func(*rapid.T) { p.check() },
	}
	if cloned {
		actions["copy"] = func(*rapid.T) { p.copy() }
		actions["clone asks"] = func(*rapid.T) { p.cloneAsks() }
		actions["clone asks again"] = func(*rapid.T) { p.cloneAsks() }
		actions["clone connects"] = func(*rapid.T) { p.cloneConnects() }
	}
	p.Repeat(actions)
	p.w.clock.Advance(time.Second)
	if cloned {
		p.showdown()
	} else {
		p.quiet()
	}
}

// The fates of a message.
const (
	answered = "answered"
	mute     = "answer lost"
	lost     = "lost"
	delayed  = "delayed"
	doubled  = "answered, and once more later"
)

// send lets fate decide what becomes of a message; it reports whether the answer
// came back and whether the message arrived in time.
func (p *play) send(deliver func()) (back, there bool) {
	fate := rapid.SampledFrom([]string{answered, answered, mute, lost, delayed, doubled}).Draw(p.T, "fate")
	if fate == delayed || fate == doubled {
		p.late = append(p.late, deliver)
	}
	if fate == lost || fate == delayed {
		return false, false
	}
	deliver()
	return fate != mute, true
}

// ask asks for the next certificate: with the key that is stored, if there is one.
func (p *play) ask() {
	if p.dev.next != nil {
		return // it has one to use
	}
	if p.dev.key == nil {
		p.dev.key = kit.Key(p)
	}
	var g *countersign.Grant
	var err error
	call := p.request()
	if back, _ := p.send(func() { g, err = call() }); !back || err != nil {
		p.mayRefuse(err, back)
		return
	}
	p.received(g)
}

// request makes a request that has begun now, whenever it is delivered.
func (p *play) request() func() (*countersign.Grant, error) {
	began := p.w.clock.Now()
	if p.dev.cur == nil {
		req := enrollment(p, p.dev.key, p.id, p.token)
		req.Began = began
		return func() (*countersign.Grant, error) { return p.w.Enroll(p.t.Context(), req) }
	}
	req := renewal(p, p.dev.cur, p.dev.key)
	req.Began = began
	return func() (*countersign.Grant, error) { return p.w.Reenroll(p.t.Context(), req) }
}

// mayRefuse allows what an honest device may be told: that its certificate has
// expired, or that another request was served in the same microsecond.
func (p *play) mayRefuse(err error, back bool) {
	code := countersign.CodeOf(err)
	if !back || err == nil || p.clone != nil && p.clone.acted {
		return
	}
	if code != countersign.CertExpired && code != countersign.Conflict {
		p.Fatalf("the device asks: got %s (%v)", code, err)
	}
}

func (p *play) received(g *countersign.Grant) {
	p.dev.next, p.dev.tried = leaf(p, g), false
	if p.clone != nil {
		p.dev.own = p.dev.next
	}
}

func (p *play) connectNew() {
	if p.dev.next == nil {
		return
	}
	p.dev.tried = true
	cert := p.dev.next
	var v countersign.Verdict
	back, there := p.send(func() { v = p.admit(cert) })
	p.dev.shown = p.dev.shown || there && cert == p.dev.own
	switch {
	case back && v.Allow:
		p.settle()
	case back && (p.clone == nil || !p.clone.acted) && v.Code != countersign.CertExpired:
		p.Fatalf("the device connects: got %s (%s)", v.Code, v.Reason)
	}
}

func (p *play) admit(cert *x509.Certificate) countersign.Verdict {
	return p.w.Admit(p.t.Context(), countersign.Connection{Gateway: "test", Remote: remote, Peer: []*x509.Certificate{cert}})
}

// connectOld falls back to the certificate in use or to an earlier one.
func (p *play) connectOld() {
	certs := p.dev.old
	if p.dev.cur != nil {
		certs = append(slices.Clone(certs), p.dev.cur)
	}
	if len(certs) == 0 {
		return
	}
	cert := rapid.SampledFrom(certs).Draw(p.T, "certificate")
	_, there := p.send(func() { p.admit(cert) })
	p.dev.shown = p.dev.shown || there && cert == p.dev.own
}

// settle makes the new certificate the one in use, as a device may once it has
// tried to use it.
func (p *play) settle() {
	if !p.dev.tried {
		return
	}
	if p.dev.cur != nil {
		p.dev.old = append(p.dev.old, p.dev.cur)
	}
	p.dev.cur, p.dev.next, p.dev.key, p.dev.tried = p.dev.next, nil, nil, false
}

// lose loses the new key and what belongs to it, before any use.
func (p *play) lose() {
	if !p.dev.tried {
		p.dev.key, p.dev.next = nil, nil
	}
}

func (p *play) arrive() {
	if len(p.late) > 0 {
		rapid.SampledFrom(p.late).Draw(p.T, "message")() // it may arrive again
	}
}

func (p *play) pass() {
	p.w.clock.Advance(rapid.SampledFrom([]time.Duration{
		time.Microsecond, time.Second, time.Second, time.Hour, overlap / 2, overlap + time.Second, 10 * 24 * time.Hour,
	}).Draw(p.T, "time"))
}

func (p *play) sweep() {
	if _, err := p.w.Sweep(p.t.Context()); err != nil {
		p.Fatal(err)
	}
}

// check wants the device to be in good standing as long as no clone has acted.
func (p *play) check() {
	if p.clone != nil && p.clone.acted {
		return
	}
	dev, err := p.w.Registry.Device(p.t.Context(), p.w.DB, p.id)
	if countersign.CodeOf(err) == countersign.NotFound {
		return
	}
	if err != nil || dev.State != countersign.DeviceActive {
		p.Fatalf("an honest device: got %s (%s), %v, want active", dev.State, dev.Reason, err)
	}
}

// quiet lets everything arrive that the device sends. It must come to a new
// certificate and connect, unless all that it has expired.
func (p *play) quiet() {
	if p.dev.tried {
		p.settle()
	}
	if p.dev.next == nil {
		if p.dev.cur != nil && p.w.clock.Now().After(p.dev.cur.NotAfter) {
			return
		}
		if p.dev.key == nil {
			p.dev.key = kit.Key(p)
		}
		g, err := p.request()()
		if err != nil {
			p.Fatalf("the device asks in quiet: %v (%s)", err, countersign.CodeOf(err))
		}
		p.received(g)
	}
	p.w.clock.Advance(time.Second)
	if p.w.clock.Now().After(p.dev.next.NotAfter) {
		return
	}
	if v := p.admit(p.dev.next); !v.Allow {
		p.Fatalf("the device connects in quiet: got %s (%s)", v.Code, v.Reason)
	}
	p.check()
}

func (p *play) copy() {
	if p.clone != nil || p.dev.cur == nil {
		return
	}
	p.clone = &clone{copied: []*x509.Certificate{p.dev.cur}}
	if p.dev.next != nil && rapid.Bool().Draw(p.T, "the new one too") {
		p.clone.copied = append(p.clone.copied, p.dev.next)
	}
}

func (p *play) cloneAsks() {
	if p.clone != nil {
		from := slices.Concat(p.clone.copied, p.clone.got)
		p.cloneAsksFrom(rapid.SampledFrom(from).Draw(p.T, "from"))
	}
}

func (p *play) cloneAsksFrom(cert *x509.Certificate) {
	p.clone.acted = true
	g, err := p.w.Reenroll(p.t.Context(), renewal(p, cert, kit.Key(p)))
	if err == nil {
		p.clone.got = append(p.clone.got, leaf(p, g))
	}
}

func (p *play) cloneConnects() {
	if p.clone == nil {
		return
	}
	cert := rapid.SampledFrom(slices.Concat(p.clone.copied, p.clone.got)).Draw(p.T, "certificate")
	p.clone.acted = true
	p.admit(cert)
	p.clone.shown = p.clone.shown || slices.Contains(p.clone.got, cert)
}

// showdown lets both finish what they have begun, in either order.
func (p *play) showdown() {
	if p.clone == nil {
		if p.copy(); p.clone == nil {
			return // nothing to copy yet
		}
	}
	sides := []func(){p.deviceFinishes, p.cloneFinishes}
	if rapid.Bool().Draw(p.T, "clone first") {
		slices.Reverse(sides)
	}
	for _, finish := range sides {
		finish()
		p.w.clock.Advance(time.Second)
	}
	if p.dev.shown && p.clone.shown {
		p.wantStopped()
		return
	}
	dev, err := p.w.Registry.Device(p.t.Context(), p.w.DB, p.id)
	expired := p.w.clock.Now().After(p.clone.copied[0].NotAfter)
	if err != nil || dev.State != countersign.DeviceSuspended && !expired {
		p.Fatalf("nobody is expired, device has shown its own: %v, clone: %v, device is %s, %v", p.dev.shown, p.clone.shown, dev.State, err)
	}
}

func (p *play) deviceFinishes() {
	if p.dev.shown {
		return
	}
	for range 2 { // what it held when it was copied, then one of its own
		if p.dev.next == nil {
			if p.dev.key == nil {
				p.dev.key = kit.Key(p)
			}
			g, err := p.request()()
			if err != nil {
				return
			}
			p.received(g)
			p.w.clock.Advance(time.Second)
		}
		p.dev.shown = p.dev.next == p.dev.own
		p.admit(p.dev.next)
		p.dev.tried = true
		p.settle()
		if p.dev.shown {
			return
		}
		p.w.clock.Advance(time.Second)
	}
}

func (p *play) cloneFinishes() {
	if p.clone.shown {
		return
	}
	if len(p.clone.got) == 0 {
		p.cloneAsksFrom(p.clone.copied[len(p.clone.copied)-1])
		p.w.clock.Advance(time.Second)
	}
	if n := len(p.clone.got); n > 0 {
		p.clone.acted, p.clone.shown = true, true
		p.admit(p.clone.got[n-1])
	}
}

// wantStopped wants the device suspended, a person told, and nobody let in.
func (p *play) wantStopped() {
	dev, err := p.w.Registry.Device(p.t.Context(), p.w.DB, p.id)
	if err != nil || dev.State != countersign.DeviceSuspended {
		p.Fatalf("both have renewed and connected: got device %s, %v, want suspended", dev.State, err)
	}
	found, _, err := p.w.Events.List(p.t.Context(), event.Filter{Device: p.id, Type: countersign.FindingFork, Limit: 10})
	if err != nil || len(found) == 0 {
		p.Fatalf("got %d findings, %v, want an alert", len(found), err)
	}
	for _, cert := range slices.Concat(p.clone.copied, p.clone.got, p.dev.old, []*x509.Certificate{p.dev.cur, p.dev.next, p.dev.own}) {
		if cert == nil {
			continue
		}
		if v := p.admit(cert); v.Allow {
			p.Fatalf("certificate %x is still let in", cert.SerialNumber)
		}
	}
}
