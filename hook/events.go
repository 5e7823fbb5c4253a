package hook

import (
	"time"

	"github.com/countersign-iot/countersign"
)

// OnEvent acts on an event of any node: verdicts that no longer hold are cut, and the
// Kicker ends the sessions that depend on them. It does not block.
func (s *Server) OnEvent(e countersign.Event) {
	k := e.Type.Kind()
	switch k.Ends {
	case countersign.EndsNothing:
	case countersign.EndsDevice:
		if e.Data["session"] == "" { // a single session is one of a gateway, not of a broker
			s.cut(e, func(entry) bool { return true }, true)
		}
	case countersign.EndsCertificate:
		// A broker that sent a name alone may have seen this certificate.
		s.cut(e, func(x entry) bool { return x.verdict.Cert == e.Cert || x.conn.Vouched != "" }, true)
	case countersign.EndsCredential:
		s.cutCredential(e, e.Credential())
	}
	if k.Restores {
		s.cache.restore(e.Device)
		s.Kicker.restore(e.Device, false)
	}
	if k.Recheck != countersign.RecheckNone {
		s.cache.doubt()
	}
	if e.Type == countersign.CertIssued {
		if s.Kicker.settle("", e.Device); e.Data["predecessor"] == "" {
			s.Kicker.restore(e.Device, true) // a new identity of the device
		}
	}
}

// Doubt makes every verdict be decided again before it is used. It is called when events
// may have been missed.
func (s *Server) Doubt() { s.cache.doubt() }

// cut ends the sessions for which lost reports true. A device that must not reconnect is
// kicked also where the hook knows none of its sessions, because the broker never asks or
// this process has just started. If blind is set, so is one that may reconnect.
func (s *Server) cut(e countersign.Event, lost func(entry) bool, blind bool) {
	if e.Device == "" {
		return
	}
	whole := e.Type.Kind().Ends == countersign.EndsDevice && e.Type != countersign.SessionEnded
	found := s.cache.cut(e.Device, lost)
	for _, h := range s.Hooks {
		sessions := found[h.Name]
		if len(sessions) == 0 && !whole && (!blind || s.cache.known(h.Name, e.Device)) {
			continue
		}
		s.Kicker.kick(h.Name, target{
			device: e.Device, fleet: e.Fleet, cert: e.Cert, sessions: sessions, at: e.At, reason: string(e.Type), whole: whole,
		})
	}
}

// cutCredential ends the sessions that depend on a credential, of any device and
// through any node.
func (s *Server) cutCredential(e countersign.Event, credential string) {
	for device, keys := range s.cache.cutCredential(credential) {
		s.kickEach(device, keys, e.At, string(e.Type))
	}
	s.endRecorded(e, credential)
}

// kickEach kicks sessions of a device that may reconnect.
func (s *Server) kickEach(device string, keys []key, at time.Time, reason string) {
	by := map[string][]key{}
	for _, one := range keys {
		by[one.hook] = append(by[one.hook], one)
	}
	for hook, sessions := range by {
		s.Kicker.kick(hook, target{device: device, sessions: sessions, at: at, reason: reason})
	}
}

// sweep kicks the sessions whose verdicts have expired.
func (s *Server) sweep() {
	now := s.Now()
	for device, keys := range s.cache.expired(now) {
		s.kickEach(device, keys, now, "the session has ended")
	}
}
