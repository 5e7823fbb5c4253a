package hook

import (
	"time"

	"github.com/countersign-iot/countersign"
)

// Heard takes note of what happened anywhere: verdicts that no longer hold are cut, and
// the Kicker ends the sessions that rest on them. It does not block.
func (s *Server) Heard(e countersign.Event) {
	switch e.Type {
	case countersign.DeviceRevoked, countersign.DeviceRetiredEv, countersign.DeviceSuspendedEv:
		s.cut(e, func(entry) bool { return true }, true)
	case countersign.CertRevokedEv, countersign.CertHeldEv, countersign.CertReplaced:
		// A broker that gave a name alone may have seen this certificate.
		s.cut(e, func(x entry) bool { return x.verdict.Cert == e.Cert || x.conn.Vouched != "" }, true)
	case countersign.AccessTokenRevoked:
		subject, credential := e.Data["subject"], "token:"+e.Data["token"]
		for hook, sessions := range s.cache.cut(subject, func(x entry) bool { return x.verdict.Credential == credential }) {
			s.Kicker.kick(hook, target{device: subject, fleet: e.Fleet, sessions: sessions, at: e.At, reason: string(e.Type)})
		}
	case countersign.SecretStopped, countersign.CredentialStopped:
		if e.Device == "" { // of many devices, such as a group key
			s.cutCredential(e, e.Data["kind"]+":"+e.Data["credential"])
			return
		}
		// Which secret of the device it was matters little: whoever holds another one
		// comes back with it.
		s.cut(e, func(x entry) bool { return x.verdict.Credential != "" }, false)
	case countersign.DeviceReactivated, countersign.CertReleased:
		s.cache.restore(e.Device)
		s.Kicker.restore(e.Device, false)
	case countersign.CertIssued:
		if s.Kicker.settle("", e.Device); e.Data["predecessor"] == "" {
			s.Kicker.restore(e.Device, true) // a new life of the device
		}
	case countersign.PolicyApplied, countersign.FleetSaved, countersign.AuthorityUpdated:
		s.cache.doubt()
	}
}

// cut ends what lost names. A device that may not come back is kicked also where the hook
// knows none of its sessions, because it never asks or this process is young.
// Where blind is set, so is one that may.
func (s *Server) cut(e countersign.Event, lost func(entry) bool, blind bool) {
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

// cutCredential ends the sessions that rest on a credential, whosever they are.
func (s *Server) cutCredential(e countersign.Event, credential string) {
	for device, keys := range s.cache.cutCredential(credential) {
		s.kickEach(device, keys, e.At, string(e.Type))
	}
}

// kickEach kicks sessions of a device that may come back.
func (s *Server) kickEach(device string, keys []key, at time.Time, reason string) {
	by := map[string][]key{}
	for _, one := range keys {
		by[one.hook] = append(by[one.hook], one)
	}
	for hook, sessions := range by {
		s.Kicker.kick(hook, target{device: device, sessions: sessions, at: at, reason: reason})
	}
}

// sweep kicks the sessions that have outlived their verdicts.
func (s *Server) sweep() {
	now := s.Now()
	for device, keys := range s.cache.expired(now) {
		s.kickEach(device, keys, now, "the session is at its end")
	}
}
