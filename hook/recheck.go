package hook

import (
	"strings"

	"github.com/countersign-iot/countersign"
)

// Sessions lists the sessions at brokers that are known here, with what each depends on.
// Their ids are for End.
func (s *Server) Sessions() []countersign.Session {
	return s.cache.sessions()
}

// End ends sessions at their brokers: it refuses their next question and makes the broker
// disconnect them. reasons are by the id from Sessions. It returns how many sessions it
// found.
func (s *Server) End(reasons map[string]string) int {
	now := s.Now()
	ended := 0
	for id, reason := range reasons {
		k, ok := parseSessionID(id)
		if !ok {
			continue
		}
		device, ok := s.cache.cutSession(k)
		if !ok {
			continue
		}
		ended++
		s.kickEach(device, []key{k}, now, reason)
	}
	return ended
}

// idSeparator separates the parts of a session's id: no broker's name, client identifier
// or user name that is accepted contains it.
const idSeparator = "\x00"

func (k key) sessionID() string {
	return strings.Join([]string{"hook", k.hook, k.client, k.user}, idSeparator)
}

func parseSessionID(id string) (key, bool) {
	part := strings.Split(id, idSeparator)
	if len(part) != 4 || part[0] != "hook" {
		return key{}, false
	}
	return key{part[1], part[2], part[3]}, true
}

func (c *cache) sessions() []countersign.Session {
	c.mu.Lock()
	defer c.mu.Unlock()
	list := make([]countersign.Session, 0, len(c.entries))
	for k, e := range c.entries {
		if e.cut {
			continue
		}
		v := &e.verdict
		list = append(list, countersign.Session{
			ID: k.sessionID(), Device: v.Device, Fleet: v.Fleet, Cert: v.Cert, Credential: v.Credential, Scope: v.Scope,
			Gateway: "hook:" + k.hook, ClientID: k.client, Remote: e.conn.Remote, NotAfter: v.NotAfter,
		})
	}
	return list
}

// cutSession marks one session and returns its device.
func (c *cache) cutSession(k key) (device string, known bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	e := c.entries[k]
	if e == nil || e.cut {
		return "", false
	}
	e.cut = true
	return e.verdict.Device, true
}
