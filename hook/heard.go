package hook

import (
	"github.com/countersign-iot/countersign"
)

// Heard takes note of what happened anywhere: verdicts that no longer hold are cut, and
// the Kicker ends the sessions that rest on them. It does not block.
func (s *Server) Heard(e countersign.Event) {
	switch e.Type {
	case countersign.DeviceRevoked, countersign.DeviceRetiredEv, countersign.DeviceSuspendedEv:
		s.cut(e, func(countersign.Verdict) bool { return true }, true)
	case countersign.CertRevokedEv, countersign.CertHeldEv, countersign.CertReplaced:
		s.cut(e, func(v countersign.Verdict) bool { return v.Cert == e.Cert }, true)
	case countersign.SecretStopped, countersign.CredentialStopped:
		// Which secret of the device it was matters little: whoever holds another one
		// comes back with it.
		s.cut(e, func(v countersign.Verdict) bool { return v.Credential != "" }, false)
	case countersign.DeviceReactivated, countersign.CertReleased:
		s.cache.restore(e.Device)
		s.Kicker.restore(e.Device)
	case countersign.CertIssued:
		s.Kicker.settle("", e.Device)
	case countersign.PolicyApplied, countersign.FleetSaved, countersign.AuthorityUpdated:
		s.cache.doubt()
	}
}

// cut ends what lost names. A device that may not come back is kicked also where the hook
// knows none of its sessions, because it never asks or this process is young.
// Where blind is set, so is one that may.
func (s *Server) cut(e countersign.Event, lost func(countersign.Verdict) bool, blind bool) {
	if e.Device == "" {
		return
	}
	whole := e.Type == countersign.DeviceRevoked || e.Type == countersign.DeviceRetiredEv || e.Type == countersign.DeviceSuspendedEv
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

// sweep kicks the sessions that have outlived their verdicts.
func (s *Server) sweep() {
	now := s.Now()
	for device, keys := range s.cache.expired(now) {
		by := map[string][]key{}
		for _, one := range keys {
			by[one.hook] = append(by[one.hook], one)
		}
		for hook, sessions := range by {
			s.Kicker.kick(hook, target{device: device, sessions: sessions, at: now, reason: "the session is at its end"})
		}
	}
}
