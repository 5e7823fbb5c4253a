package hook

import (
	"context"
	"errors"
	"log/slog"
	"slices"
	"strconv"
	"sync"
	"time"

	"github.com/countersign-iot/countersign"
)

const (
	// maxJobs bounds the devices that wait to be kicked at one broker. More at once is a
	// fleet that is cut off as a whole.
	maxJobs = 10_000
	// kickWorkers bounds the calls to one broker at a time.
	kickWorkers = 8
	// kickTime bounds one call.
	kickTime = 10 * time.Second
	// confirmAfter is how soon a broker is asked whether a kicked session is gone.
	confirmAfter = 50 * time.Millisecond
	// kickBackoff is how long a driver waits after a failure, doubled by each one up to
	// maxBackoff.
	kickBackoff = 250 * time.Millisecond
	maxBackoff  = 30 * time.Second
	// failuresReported is after how many failures in a row an alert is raised.
	failuresReported = 3
	// giveUp is after how long a kick is abandoned if the broker cannot be reached. The
	// sessions are refused at their next question, if the broker asks any.
	giveUp = time.Hour
	// tickEvery is the resolution of the queue.
	tickEvery = 25 * time.Millisecond
	// expireEvery is how often sessions whose verdicts have expired are searched for.
	expireEvery = 5 * time.Second
	// maxLooks bounds the search for a job that can be dropped.
	maxLooks = 256
	// maxSessions bounds the sessions of one device that a kick names.
	maxSessions = 64
)

// sweeps are the times after a cut at which the broker is searched again, for a session
// whose admission raced the cut, or that the broker listed late.
var sweeps = []time.Duration{time.Second, 3 * time.Second, 8 * time.Second, 20 * time.Second, 60 * time.Second}

// target is the device to kick, and since when.
type target struct {
	device   string
	fleet    string
	cert     countersign.CertRef
	sessions []key // as far as they are known
	at       time.Time
	reason   string
	// whole: the device must not reconnect. Otherwise it may, with another credential, so
	// it is kicked once and not searched for again.
	whole bool
}

// clients returns the client ids to end: those that are known, and the device's own id
// unless others of its sessions may continue.
func (t *target) clients() []string { return t.names(func(k key) string { return k.client }) }

// users returns the user names, in the same way.
func (t *target) users() []string { return t.names(func(k key) string { return k.user }) }

func (t *target) names(of func(key) string) []string {
	var list []string
	if t.whole || len(t.sessions) == 0 {
		list = append(list, t.device)
	}
	for _, k := range t.sessions {
		if n := of(k); n != "" && !slices.Contains(list, n) {
			list = append(list, n)
		}
	}
	return list
}

// Driver ends sessions at one broker.
type Driver struct {
	Hook string
	// kick makes the broker end the sessions of t that it has, and returns how many it
	// found, with an error too. None is a success.
	kick func(ctx context.Context, t target) (int, error)
	// restore undoes what kick did to keep the device out; nil: nothing to undo.
	restore   func(ctx context.Context, device string) error
	close     func() // nil: nothing is open
	uncounted bool   // the broker does not report how many sessions there were
}

// Kicked is the outcome of a kick, for metrics.
type Kicked struct {
	Hook string
	OK   bool
	Took time.Duration // from the cut until the broker has none of the device's sessions
}

// Kicker ends sessions at brokers, and tries again until the brokers report that they
// are gone.
type Kicker struct {
	Drivers []*Driver
	// Report writes to the event log and must not block; Observe is for metrics, nil: none.
	// Functions, because both belong to the server.
	Report  func(countersign.Event)
	Observe func(Kicked)
	Log     *slog.Logger
	Now     func() time.Time

	mu      sync.Mutex
	jobs    map[string]map[string]*job // by hook and device
	wake    chan struct{}
	ready   sync.Once
	alerted map[string]time.Time // when a driver's failure was last reported, by hook
}

// job is one device to be kicked at one broker.
type job struct {
	target
	next     time.Time
	found    int // sessions ended and not yet reported
	failures int
	sweep    int // which of sweeps is next
	running  bool
	restore  bool // the cut was undone
	// confirmed: the broker reported that none is left. A later sweep may find more.
	confirmed bool
}

func (k *Kicker) init() {
	k.ready.Do(func() {
		k.wake, k.jobs, k.alerted = make(chan struct{}, 1), map[string]map[string]*job{}, map[string]time.Time{}
		for _, d := range k.Drivers {
			k.jobs[d.Hook] = map[string]*job{}
		}
	})
}

// kick adds a job for a target. It does nothing if the hook has no driver, or k is nil.
func (k *Kicker) kick(hook string, t target) {
	if k == nil {
		return
	}
	k.init()
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.jobs[hook] == nil { // it has no driver
		return
	}
	j := k.jobs[hook][t.device]
	if j == nil {
		if len(k.jobs[hook]) >= maxJobs && !k.makeRoom(hook) {
			if now := k.Now(); now.Sub(k.alerted[hook]) > maxBackoff { // once, not for each device of a fleet
				k.alerted[hook] = now
				k.fail(hook, t, errors.New("too many devices are to be disconnected at once"))
			}
			return
		}
		j = &job{target: t}
		k.jobs[hook][t.device] = j
	} else {
		for _, s := range t.sessions {
			if !slices.Contains(j.sessions, s) {
				j.sessions = append(j.sessions, s)
			}
		}
		if t.whole || !j.whole {
			j.fleet, j.cert, j.reason = t.fleet, t.cert, t.reason
		}
		if j.found == 0 { // the previous cut is done: the time is that of the new one
			j.at = t.at
		}
	}
	j.sessions = j.sessions[:min(len(j.sessions), maxSessions)]
	j.whole = j.whole || t.whole
	j.next, j.sweep, j.restore, j.confirmed = k.Now(), 0, false, false
	k.rouse()
}

// makeRoom drops a job that only has sweeps left; false if there is none among a few.
// It must be called with the lock held.
func (k *Kicker) makeRoom(hook string) bool {
	looks := 0
	for device, j := range k.jobs[hook] { // in random order
		if looks++; looks > maxLooks {
			return false
		}
		if j.confirmed && !j.running && !j.restore {
			delete(k.jobs[hook], device)
			return true
		}
	}
	return false
}

// settle ends the search for a device whose sessions are known to be gone: a session that
// appears from now on is new. An empty hook means all.
func (k *Kicker) settle(hook, device string) {
	if k == nil {
		return
	}
	k.init()
	k.mu.Lock()
	defer k.mu.Unlock()
	for name, jobs := range k.jobs {
		if j := jobs[device]; j != nil && (hook == "" || hook == name) && j.confirmed && !j.running {
			delete(jobs, device)
		}
	}
}

// restore undoes a cut, because the device is active again. again: it has a new identity,
// so the sessions of the old one must still be ended.
func (k *Kicker) restore(device string, again bool) {
	if k == nil {
		return
	}
	k.init()
	k.mu.Lock()
	defer k.mu.Unlock()
	for _, d := range k.Drivers {
		j := k.jobs[d.Hook][device]
		switch {
		case d.restore != nil && j == nil:
			j = &job{target: target{device: device, at: k.Now()}, confirmed: true}
			k.jobs[d.Hook][device] = j
			fallthrough
		case d.restore != nil:
			j.restore, j.whole, j.next = true, false, k.Now()
		case j != nil && !again && j.running:
			j.whole = false // the call under way is the last
		case j != nil && !again:
			delete(k.jobs[d.Hook], device)
		}
	}
	k.rouse()
}

func (k *Kicker) rouse() {
	select {
	case k.wake <- struct{}{}:
	default:
	}
}

// Run kicks until ctx ends. s, whose sessions expire, may be nil.
func (k *Kicker) Run(ctx context.Context, s *Server) error {
	k.init()
	var workers sync.WaitGroup
	defer func() {
		workers.Wait()
		for _, d := range k.Drivers {
			if d.close != nil {
				d.close()
			}
		}
	}()
	slots := map[string]chan struct{}{}
	for _, d := range k.Drivers {
		slots[d.Hook] = make(chan struct{}, kickWorkers)
	}
	if s != nil {
		workers.Go(func() { s.runRecorded(ctx) })
	}
	tick, expire := time.NewTicker(tickEvery), time.NewTicker(expireEvery)
	defer tick.Stop()
	defer expire.Stop()
	for {
		for _, d := range k.Drivers {
			for _, j := range k.due(d.Hook, kickWorkers-len(slots[d.Hook])) {
				slots[d.Hook] <- struct{}{}
				workers.Go(func() {
					defer func() { <-slots[d.Hook] }()
					k.work(ctx, d, j)
				})
			}
		}
		select {
		case <-ctx.Done():
			return nil
		case <-k.wake:
		case <-tick.C:
		case <-expire.C:
			if s != nil {
				s.sweep()
			}
		}
	}
}

// due returns up to n jobs whose time has come.
func (k *Kicker) due(hook string, n int) (list []*job) {
	now := k.Now()
	k.mu.Lock()
	defer k.mu.Unlock()
	for _, j := range k.jobs[hook] {
		if len(list) >= n {
			break
		}
		if !j.running && !j.next.After(now) {
			j.running = true
			list = append(list, j)
		}
	}
	return list
}

// work makes one call for a job and settles when the next is due.
func (k *Kicker) work(ctx context.Context, d *Driver, j *job) {
	k.mu.Lock()
	t, restore, confirmed, began := j.target, j.restore, j.confirmed, j.next
	k.mu.Unlock()
	call, cancel := context.WithTimeout(ctx, kickTime)
	defer cancel()
	var n int
	var err error
	if !restore || !confirmed {
		n, err = d.kick(call, t)
	}
	if restore && err == nil {
		err = d.restore(call, t.device)
	}
	if ctx.Err() != nil {
		return // the server stops; at its next start it reads the recent events
	}
	k.mu.Lock()
	defer k.mu.Unlock()
	j.running = false
	j.found = max(j.found, n) // also if the call failed: a session that was found and is gone later was ended
	switch {
	case !j.next.Equal(began): // it was added again meanwhile, and is due
	case err != nil:
		k.failed(d, j, err)
	case restore:
		delete(k.jobs[d.Hook], t.device)
	case n > 0 && t.whole:
		j.failures = 0
		j.next = k.Now().Add(confirmAfter)
	default:
		k.gone(d, j)
	}
}

// gone records that the broker has none of the device's sessions. It must be called with
// the lock held.
func (k *Kicker) gone(d *Driver, j *job) {
	now := k.Now()
	j.failures, j.confirmed = 0, true
	if j.found > 0 {
		took, sessions := max(now.Sub(j.at), 0), strconv.Itoa(j.found)
		if d.uncounted {
			sessions = "unknown"
		}
		k.observe(Kicked{Hook: d.Hook, OK: true, Took: took})
		k.Report(countersign.Event{
			Type: countersign.SessionKicked, Actor: countersign.System, Device: j.device, Fleet: j.fleet, Cert: j.cert, Via: "hook:" + d.Hook,
			Reason: j.reason, Data: map[string]string{"sessions": sessions, "took": took.Round(time.Millisecond).String()},
		})
		j.found = 0
	}
	for ; j.whole && j.sweep < len(sweeps); j.sweep++ {
		if next := j.at.Add(sweeps[j.sweep]); next.After(now) {
			j.next = next
			j.sweep++
			return
		}
	}
	delete(k.jobs[d.Hook], j.device)
}

// failed postpones a job. It must be called with the lock held.
func (k *Kicker) failed(d *Driver, j *job, err error) {
	now := k.Now()
	j.failures++
	k.observe(Kicked{Hook: d.Hook})
	k.Log.Warn("sessions at a broker not ended", "hook", d.Hook, "device", j.device, "failures", j.failures, "error", err)
	if now.Sub(j.at) > giveUp {
		delete(k.jobs[d.Hook], j.device)
		k.fail(d.Hook, j.target, errors.New("given up after "+giveUp.String()))
		return
	}
	if j.failures == failuresReported && now.Sub(k.alerted[d.Hook]) > maxBackoff { // one alert for a broker that is down, not one for each device
		k.alerted[d.Hook] = now
		k.fail(d.Hook, j.target, err)
	}
	j.next = now.Add(min(kickBackoff<<min(j.failures-1, 16), maxBackoff))
}

// fail raises an alert. The text of the driver's error goes to the log.
func (k *Kicker) fail(hook string, t target, err error) {
	k.Report(countersign.Event{
		Type: countersign.MitigationFailed, Actor: countersign.System, Device: t.device, Fleet: t.fleet, Cert: t.cert, Via: "hook:" + hook,
		Reason: "the broker's sessions of the device could not be ended: " + plain(err.Error()), Data: map[string]string{"mitigation": "kick", "hook": hook},
	})
}

func (k *Kicker) observe(o Kicked) {
	if k.Observe != nil {
		k.Observe(o)
	}
}

// Waiting returns how many devices wait to be kicked.
func (k *Kicker) Waiting() int {
	k.init()
	k.mu.Lock()
	defer k.mu.Unlock()
	n := 0
	for _, jobs := range k.jobs {
		for _, j := range jobs {
			if !j.confirmed {
				n++
			}
		}
	}
	return n
}
