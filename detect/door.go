package detect

import (
	"net/netip"
	"strconv"
	"time"

	"github.com/countersign-iot/countersign"
	"github.com/countersign-iot/countersign/lockout"
)

// door follows refusals.
type door struct {
	m         *machine
	gone      [3]byDevice // by the rules of connectRules
	strangers lockout.Table[netip.Prefix, burst]
	wrong     lockout.Table[string, wrongs]
	sprays    lockout.Table[string, burst]
	probes    lockout.Table[netip.Prefix, burst]
	skews     lockout.Table[string, burst]
}

type byDevice struct {
	rule *Rule
	told lockout.Table[string, burst]
}

// wrongs counts twice: the first wrong secret is a finding, many are a worse one.
type wrongs struct{ first, many burst }

const (
	afterRevocation = iota
	afterSuspension
	afterExpiry
)

func (d *door) init(m *machine) {
	d.m = m
	for i, name := range []string{ConnectAfterRevocation, ConnectAfterSuspension, ConnectAfterExpiry} {
		d.gone[i].rule = m.rules[name]
		d.gone[i].told = lockout.Table[string, burst]{Max: maxDevices, TTL: lasts(m.rules[name])}
	}
	d.strangers = lockout.Table[netip.Prefix, burst]{Max: maxSources, TTL: lasts(m.rules[UnknownIssuer])}
	d.wrong = lockout.Table[string, wrongs]{Max: maxDevices, TTL: lasts(m.rules[WrongSecret])}
	d.sprays = lockout.Table[string, burst]{Max: maxSources, TTL: lasts(m.rules[SecretSpraying])}
	d.probes = lockout.Table[netip.Prefix, burst]{Max: maxSources, TTL: lasts(m.rules[DeviceProbing])}
	d.skews = lockout.Table[string, burst]{Max: maxDevices, TTL: lasts(m.rules[ClockSkew])}
}

// lasts is how long a rule must remember.
func lasts(r *Rule) time.Duration { return max(r.Window, r.Again) }

func (d *door) connection(e *countersign.Event) {
	switch e.Code {
	case countersign.CertUnknown:
		d.unknown(e)
	case countersign.BadCredential:
		d.secret(e)
	default:
		d.enrollment(e)
	}
}

// enrollment is a refusal at any door to a device that has shown to be itself.
func (d *door) enrollment(e *countersign.Event) {
	if e.Device == "" || e.Actor != countersign.DeviceActor(e.Device) { // in the device's name is not by the device
		return
	}
	switch e.Code {
	case countersign.CertIsRevoked, countersign.DeviceGone:
		d.lost(e, &d.gone[afterRevocation], "after its identity was taken away")
	case countersign.CertIsHeld, countersign.DeviceOnHold:
		d.lost(e, &d.gone[afterSuspension], "while it is suspended")
	case countersign.CertExpired:
		d.lost(e, &d.gone[afterExpiry], "with a certificate that has expired")
	case countersign.CertNotYetValid:
		d.skew(e)
	case countersign.CredentialExpire:
		if e.Data["kind"] == string(countersign.AccessSAS) && e.Data["ended_at"] != "" { // the device itself signs it, with its time
			d.skew(e)
		}
	}
}

// lost is a device that comes although it may not any more. One that tries again
// and again is one finding.
func (d *door) lost(e *countersign.Event, g *byDevice, how string) {
	b, _ := g.told.Touch(e.Device, e.At)
	if !b.add(g.rule, hit{at: e.At, seq: e.Seq}) {
		return
	}
	what := map[string]string{"code": string(e.Code), "reason": e.Reason, "via": e.Via, "address": e.Remote, "ended_at": e.Data["ended_at"]}
	if ended, err := time.Parse(time.RFC3339, e.Data["ended_at"]); err == nil {
		what["since"] = span(max(e.At.Sub(ended), 0))
	}
	d.m.report(g.rule, e, countersign.Finding{
		Subject: deviceSubject(e.Device), Device: e.Device, Evidence: what, Summary: e.Device + " tried to come in " + how + ".",
	})
}

// unknown is a certificate of no known issuer.
func (d *door) unknown(e *countersign.Event) {
	from, _, ok := source(e.Remote)
	if !ok {
		return
	}
	r := d.m.rules[UnknownIssuer]
	b, _ := d.strangers.Touch(from, e.At)
	tell := false
	for range min(tally(e), r.Threshold) {
		tell = b.add(r, hit{at: e.At, seq: e.Seq}) || tell
	}
	if tell {
		d.m.report(r, e, countersign.Finding{
			Subject: addressSubject(from), Events: b.seqs(),
			Summary: "Certificates that were not issued here are shown from " + from.Addr().String() + ".",
			Evidence: map[string]string{
				"claims_subject": e.Data["claims_subject"], "claims_issuer": e.Data["claims_issuer"], "client_id": e.Data["client_id"], "via": e.Via,
			},
		})
	}
}

// claimed is the name of a device in whose name a connection failed: a fact where
// there is such a device, else what the client said.
func claimed(e *countersign.Event) (name string) {
	for _, name := range []string{e.Device, e.Data["claims_device"], e.Data["client_id"]} {
		if name != "" {
			return name
		}
	}
	return ""
}

// secret is a wrong secret at a gateway.
func (d *door) secret(e *countersign.Event) {
	if e.Device != "" {
		d.wrongFor(e)
	}
	name := claimed(e)
	if name == "" {
		return
	}
	if tried := e.Data["tried"]; tried != "" {
		r := d.m.rules[SecretSpraying]
		b, _ := d.sprays.Touch(tried, e.At)
		if b.add(r, hit{at: e.At, seq: e.Seq, key: name}) {
			d.spread(r, e, b, countersign.Finding{Subject: "server", Summary: "One wrong secret is tried on many devices."})
		}
	}
	if from, _, ok := source(e.Remote); ok {
		r := d.m.rules[DeviceProbing]
		b, _ := d.probes.Touch(from, e.At)
		if b.add(r, hit{at: e.At, seq: e.Seq, key: name}) {
			d.spread(r, e, b, countersign.Finding{
				Subject: addressSubject(from), Summary: "Wrong secrets are tried on many devices from " + from.Addr().String() + ".",
			})
		}
	}
}

// spread reports what was tried on several devices.
func (d *door) spread(r *Rule, e *countersign.Event, b *burst, f countersign.Finding) {
	var names []string
	for _, h := range b.hits {
		names = append(names, clip(h.key))
	}
	f.Events = b.seqs()
	f.Evidence = map[string]string{"devices": join(names), "address": e.Remote, "via": e.Via, "tried": e.Data["tried"]}
	d.m.report(r, e, f)
}

// wrongFor is a wrong secret in the name of a device that exists.
func (d *door) wrongFor(e *countersign.Event) {
	r := d.m.rules[WrongSecret]
	w, _ := d.wrong.Touch(e.Device, e.At)
	first := *r
	first.Threshold = 1
	one := w.first.add(&first, hit{at: e.At, seq: e.Seq})
	many := false
	for range min(tally(e), r.Threshold) {
		many = w.many.add(r, hit{at: e.At, seq: e.Seq}) || many
	}
	if !one && !many {
		return
	}
	f := countersign.Finding{
		Subject: deviceSubject(e.Device), Device: e.Device, Events: w.many.seqs(),
		Summary:  "A wrong secret was shown for " + e.Device + ".",
		Evidence: map[string]string{"address": e.Remote, "via": e.Via, "client_id": e.Data["client_id"], "wrong": strconv.Itoa(len(w.many.hits))},
	}
	if many {
		f.Severity, f.Summary = countersign.SeverityHigh, "Wrong secrets are shown for "+e.Device+" again and again."
	}
	d.m.report(r, e, f)
}

// skew is a device whose clock seems to be wrong.
func (d *door) skew(e *countersign.Event) {
	r := d.m.rules[ClockSkew]
	b, _ := d.skews.Touch(e.Device, e.At)
	if !b.add(r, hit{at: e.At, seq: e.Seq}) {
		return
	}
	d.m.report(r, e, countersign.Finding{
		Subject: deviceSubject(e.Device), Device: e.Device, Events: b.seqs(),
		Summary:  "The clock of " + e.Device + " seems to be wrong.",
		Evidence: map[string]string{"code": string(e.Code), "reason": e.Reason, "via": e.Via, "address": e.Remote},
	})
}
