package hook

import (
	"slices"
	"sync"
	"time"

	"github.com/countersign-iot/countersign"
)

const (
	// maxEntries bounds the verdicts that are kept: some 100 MB at most. A session
	// whose verdict was dropped to make room is decided again at its next question.
	maxEntries = 100_000
	// maxOfDevice bounds those of one device, so that it cannot push out the others'.
	maxOfDevice = 64
	// maxAge is how long a verdict is kept without asking again. Changes are notified
	// at once; this limits the effect of one that was not foreseen.
	maxAge = 5 * time.Minute
	// maxRecent bounds the cuts that are compared with decisions under way. A decision
	// takes milliseconds; one with more cuts than these meanwhile is made again.
	maxRecent = 1024
)

// key names a session as the broker does. An empty client matches any of the
// user's.
type key struct{ hook, client, user string }

// entry is what is known about a session at a broker.
type entry struct {
	verdict countersign.Verdict
	conn    countersign.Connection // without what proved it
	asked   time.Time
	cut     bool // its device lost what the verdict depends on; it must connect again
	stale   bool // must be decided again before it is used
	unnamed bool // see cache.unnamed
	opened  *countersign.Session
}

// cache keeps verdicts by session.
type cache struct {
	mu       sync.Mutex
	entries  map[key]*entry
	byDevice map[string][]key
	live     map[key]key // sessions reported as opened, by hook and client alone
	recent   []string    // devices and credentials cut recently, oldest first
	dropped  uint64      // recent[0] is cut number dropped+1
}

// mark returns the number of cuts so far, for cutSince.
func (c *cache) mark() uint64 {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.dropped + uint64(len(c.recent))
}

// cutSince reports whether the device may have been cut after mark.
func (c *cache) cutSince(mark uint64, device string) bool {
	return mark < c.dropped || slices.Contains(c.recent[mark-c.dropped:], device)
}

// put keeps the verdict of a decision that began at mark. It refuses one whose device
// was cut since.
func (c *cache) put(keys []key, e entry, mark uint64) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.cutSince(mark, everything) || c.cutSince(mark, e.verdict.Device) || c.cutSince(mark, credentialCut+e.verdict.Credential) {
		return false
	}
	if c.entries == nil {
		c.entries, c.byDevice = map[key]*entry{}, map[string][]key{}
	}
	for _, k := range keys {
		c.set(k, e)
	}
	return true
}

// set must be called with the lock held, as drop.
func (c *cache) set(k key, e entry) {
	if old := c.entries[k]; old != nil {
		c.drop(k, old)
		if e.opened = old.opened; e.opened != nil {
			c.live[key{hook: k.hook, client: k.client}] = k
		}
	}
	if len(c.entries) >= maxEntries {
		for k, old := range c.entries { // any one: the order of a map is random
			c.drop(k, old)
			break
		}
	}
	if keys := c.byDevice[e.verdict.Device]; len(keys) >= maxOfDevice {
		c.drop(keys[0], c.entries[keys[0]])
	}
	c.entries[k] = &e
	c.byDevice[e.verdict.Device] = append(c.byDevice[e.verdict.Device], k)
}

func (c *cache) drop(k key, e *entry) {
	delete(c.entries, k)
	if e.opened != nil {
		delete(c.live, key{hook: k.hook, client: k.client})
	}
	device := e.verdict.Device
	keys := c.byDevice[device]
	if i := slices.Index(keys, k); i >= 0 {
		keys = slices.Delete(keys, i, i+1)
	}
	if len(keys) == 0 {
		delete(c.byDevice, device)
		return
	}
	c.byDevice[device] = keys
}

// get returns the entry of a session.
func (c *cache) get(k key) (entry, bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	e, ok := c.entries[k]
	if !ok {
		return entry{}, false
	}
	return *e, true
}

// unnamed returns the entry of the user's session whose client the broker did not
// name when it connected, as RabbitMQ does with a certificate. Later questions name one.
func (c *cache) unnamed(k key) (entry, bool) {
	e, ok := c.get(key{hook: k.hook, user: k.user})
	return e, ok && e.unnamed
}

// setUnnamed records that the broker named no client when the session connected.
func (c *cache) setUnnamed(k key) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if e := c.entries[k]; e != nil {
		e.unnamed = true
	}
}

// cut marks the device's sessions for which lost reports true, and returns them by hook.
func (c *cache) cut(device string, lost func(entry) bool) map[string][]key {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.note(device)
	found := map[string][]key{}
	for _, k := range c.byDevice[device] {
		if e := c.entries[k]; lost(*e) {
			e.cut = true
			found[k.hook] = append(found[k.hook], k)
		}
	}
	return found
}

// credentialCut begins the name of a credential among those that were cut.
const credentialCut = "\x00"

// everything is recorded when all verdicts are in doubt.
const everything = "\x01"

// note records what was cut. It must be called with the lock held.
func (c *cache) note(name string) {
	if len(c.recent) == maxRecent {
		c.recent = append(c.recent[:0:0], c.recent[maxRecent/2:]...)
		c.dropped += maxRecent / 2
	}
	c.recent = append(c.recent, name)
}

// cutCredential marks the sessions that depend on a credential and returns them by
// device. It searches all, since such a cut is an operator's command and rare.
func (c *cache) cutCredential(credential string) map[string][]key {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.note(credentialCut + credential)
	found := map[string][]key{}
	for k, e := range c.entries {
		if !e.cut && e.verdict.Credential == credential {
			e.cut = true
			found[e.verdict.Device] = append(found[e.verdict.Device], k)
		}
	}
	return found
}

// known reports whether any session of the device at the hook is known.
func (c *cache) known(hook, device string) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return slices.ContainsFunc(c.byDevice[device], func(k key) bool { return k.hook == hook && !c.entries[k].cut })
}

// restore undoes the cuts of the device: its sessions are decided again.
func (c *cache) restore(device string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, k := range c.byDevice[device] {
		e := c.entries[k]
		e.cut, e.stale = false, true
	}
}

// doubt makes every verdict be decided again, after a change of what they depend on;
// those that are being decided too.
func (c *cache) doubt() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.note(everything)
	for _, e := range c.entries {
		e.stale = true
	}
}

// ended removes a session and returns the one that was reported as opened; nil if none.
// A broker may leave out the user.
func (c *cache) ended(k key) *countersign.Session {
	c.mu.Lock()
	defer c.mu.Unlock()
	e := c.entries[k]
	if full, ok := c.live[k]; ok {
		k, e = full, c.entries[full]
	}
	if e == nil {
		return nil
	}
	s := e.opened
	c.drop(k, e)
	return s
}

// open records that a session was reported as opened; false if it was already, or is
// not known.
func (c *cache) open(k key, s countersign.Session) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	e := c.entries[k]
	if e == nil || e.opened != nil {
		return false
	}
	e.opened = &s
	if c.live == nil {
		c.live = map[key]key{}
	}
	c.live[key{hook: k.hook, client: k.client}] = k
	return true
}

// expired returns the sessions, by device, that should have ended by now, and marks
// them.
func (c *cache) expired(now time.Time) map[string][]key {
	c.mu.Lock()
	defer c.mu.Unlock()
	over := map[string][]key{}
	for k, e := range c.entries {
		if !e.cut && !e.verdict.NotAfter.IsZero() && now.After(e.verdict.NotAfter) {
			e.cut = true
			over[e.verdict.Device] = append(over[e.verdict.Device], k)
		}
	}
	return over
}
