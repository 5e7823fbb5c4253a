package detect

import (
	"cmp"
	"net/netip"
	"strconv"
	"time"

	"github.com/countersign-iot/countersign"
	"github.com/countersign-iot/countersign/lockout"
)

// door has the rules about refused connections and enrollments.
type door struct {
	m *machine
	// Devices that try to connect after their identity was revoked, suspended or expired.
	revoked, suspended, expired counter[string]
	strangers                   counter[netip.Prefix]
	wrong                       lockout.Table[string, wrongs]
	sprays                      counter[string]
	probes                      counter[netip.Prefix]
	skews                       counter[string]
}

// wrongs counts the wrong secrets of a device for two findings: one for the first wrong
// secret, and a more severe one for many.
type wrongs struct{ first, many burst }

func (d *door) init(m *machine) {
	d.m = m
	d.revoked = newCounter[string](m.rules[ConnectAfterRevocation], maxDevices)
	d.suspended = newCounter[string](m.rules[ConnectAfterSuspension], maxDevices)
	d.expired = newCounter[string](m.rules[ConnectAfterExpiry], maxDevices)
	d.strangers = newCounter[netip.Prefix](m.rules[UnknownIssuer], maxSources)
	d.wrong = lockout.Table[string, wrongs]{Max: maxDevices, TTL: lasts(m.rules[WrongSecret])}
	d.sprays = newCounter[string](m.rules[SecretSpraying], maxSources)
	d.probes = newCounter[netip.Prefix](m.rules[DeviceProbing], maxSources)
	d.skews = newCounter[string](m.rules[ClockSkew], maxDevices)
}

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

// enrollment handles the refusal, over any protocol, of a device that has proved its identity.
func (d *door) enrollment(e *countersign.Event) {
	if e.Device == "" || e.Actor != countersign.DeviceActor(e.Device) { // the device id is only claimed
		return
	}
	switch e.Code {
	case countersign.CertIsRevoked, countersign.DeviceGone:
		d.lost(e, &d.revoked, "after its identity was revoked")
	case countersign.CertIsHeld, countersign.DeviceOnHold:
		d.lost(e, &d.suspended, "while it is suspended")
	case countersign.CertExpired:
		d.lost(e, &d.expired, "with a certificate that has expired")
	case countersign.CertNotYetValid:
		d.skew(e)
	case countersign.CredentialExpire:
		if e.Data["kind"] == string(countersign.AccessSAS) && e.Data["ended_at"] != "" { // the device signs the token itself, with the time of its clock
			d.skew(e)
		}
	}
}

// lost handles a device that tries to connect although it is no longer allowed to.
// Repeated tries are one finding.
func (d *door) lost(e *countersign.Event, by *counter[string], how string) {
	if _, enough := by.add(e.Device, hit{at: e.At, seq: e.Seq}, 1); !enough {
		return
	}
	what := map[string]string{"code": string(e.Code), "reason": e.Reason, "via": e.Via, "address": e.Remote, "ended_at": e.Data["ended_at"]}
	if ended, err := time.Parse(time.RFC3339, e.Data["ended_at"]); err == nil {
		what["since"] = span(max(e.At.Sub(ended), 0))
	}
	d.m.report(by.rule, e, countersign.Finding{
		Subject: deviceSubject(e.Device), Device: e.Device, Evidence: what, Summary: e.Device + " tried to connect " + how + ".",
	})
}

// unknown handles a certificate of an unknown issuer.
func (d *door) unknown(e *countersign.Event) {
	from, _, ok := source(e.Remote)
	if !ok {
		return
	}
	if b, enough := d.strangers.add(from, hit{at: e.At, seq: e.Seq}, tally(e)); enough {
		d.m.report(d.strangers.rule, e, countersign.Finding{
			Subject: addressSubject(from), Events: b.seqs(),
			Summary: "Certificates that were not issued here are presented from " + from.Addr().String() + ".",
			Evidence: map[string]string{
				"claims_subject": e.Data["claims_subject"], "claims_issuer": e.Data["claims_issuer"], "client_id": e.Data["client_id"], "via": e.Via,
			},
		})
	}
}

// claimed returns the device that a failed connection claimed to be: its id if there is
// such a device, else what the client sent.
func claimed(e *countersign.Event) string {
	return cmp.Or(e.Device, e.Data["claims_device"], e.Data["client_id"])
}

// secret handles a wrong secret at a gateway.
func (d *door) secret(e *countersign.Event) {
	if e.Device != "" {
		d.wrongFor(e)
	}
	name := claimed(e)
	if name == "" {
		return
	}
	if tried := e.Data["tried"]; tried != "" {
		if b, enough := d.sprays.add(tried, hit{at: e.At, seq: e.Seq, key: name}, 1); enough {
			d.spread(d.sprays.rule, e, b, countersign.Finding{Subject: "server", Summary: "One wrong secret is tried on many devices."})
		}
	}
	if from, _, ok := source(e.Remote); ok {
		if b, enough := d.probes.add(from, hit{at: e.At, seq: e.Seq, key: name}, 1); enough {
			d.spread(d.probes.rule, e, b, countersign.Finding{
				Subject: addressSubject(from), Summary: "Wrong secrets are tried on many devices from " + from.Addr().String() + ".",
			})
		}
	}
}

// spread reports a finding about secrets that were tried on several devices.
func (d *door) spread(r *Rule, e *countersign.Event, b *burst, f countersign.Finding) {
	var names []string
	for _, h := range b.hits {
		names = append(names, clip(h.key))
	}
	f.Events = b.seqs()
	f.Evidence = map[string]string{"devices": join(names), "address": e.Remote, "via": e.Via, "tried": e.Data["tried"]}
	d.m.report(r, e, f)
}

// wrongFor handles a wrong secret in the name of a device that exists.
func (d *door) wrongFor(e *countersign.Event) {
	r := d.m.rules[WrongSecret]
	w, _ := d.wrong.Touch(e.Device, e.At)
	first := *r
	first.Threshold = 1
	one := w.first.add(&first, hit{at: e.At, seq: e.Seq})
	many := w.many.addMany(r, hit{at: e.At, seq: e.Seq}, tally(e))
	if !one && !many {
		return
	}
	f := countersign.Finding{
		Subject: deviceSubject(e.Device), Device: e.Device, Events: w.many.seqs(),
		Summary:  "A wrong secret was presented for " + e.Device + ".",
		Evidence: map[string]string{"address": e.Remote, "via": e.Via, "client_id": e.Data["client_id"], "wrong": strconv.Itoa(len(w.many.hits))},
	}
	if many {
		f.Severity, f.Summary = countersign.SeverityHigh, "Wrong secrets are presented for "+e.Device+" repeatedly."
	}
	d.m.report(r, e, f)
}

// skew handles a device whose clock seems to be wrong.
func (d *door) skew(e *countersign.Event) {
	b, enough := d.skews.add(e.Device, hit{at: e.At, seq: e.Seq}, 1)
	if !enough {
		return
	}
	d.m.report(d.skews.rule, e, countersign.Finding{
		Subject: deviceSubject(e.Device), Device: e.Device, Events: b.seqs(),
		Summary:  "The clock of " + e.Device + " seems to be wrong.",
		Evidence: map[string]string{"code": string(e.Code), "reason": e.Reason, "via": e.Via, "address": e.Remote},
	})
}
