package access

import (
	"context"
	"crypto/rand"
	"crypto/subtle"
	"encoding/base64"
	"fmt"
	mathrand "math/rand/v2"
	"runtime"
	"strings"
	"sync"
	"time"

	"golang.org/x/crypto/argon2"

	"github.com/countersign-iot/countersign"
)

// The parameters of argon2id for new passwords (RFC 9106, 3.1): the first set that OWASP's
// Password Storage Cheat Sheet recommends. One check takes about 30 ms of a core, and
// 19 MiB during that time.
const (
	argonMemory  = 19 << 10 // KiB
	argonTime    = 2
	argonThreads = 1
	argonSalt    = 16
	argonHash    = 32
	// maxMemory (KiB) and maxTime bound the parameters of a record. They are above today's
	// in case this version runs with the database of a later one that has raised them.
	maxMemory = 256 << 10
	maxTime   = 16
)

const (
	// maxWorkers bounds the checks that run at once, and so their memory: 4 times 19 MiB.
	// At most half of the cores check passwords; the others stay free for other work.
	maxWorkers = 4
	// maxQueue bounds the checks that run or wait, each with a password of up to 64 KiB.
	maxQueue = 64
	// strangersQueue is how much of the queue is open to clients that have not connected
	// lately. The rest is reserved for devices that have, from the same address.
	strangersQueue = 48
	// maxOfAddress bounds the checks of one address that run or wait.
	maxOfAddress = 4
	// queueWait is how long a check waits at most. Two workers need about a second for a
	// full queue.
	queueWait = 3 * time.Second
	// maxRegulars bounds the devices that are remembered as having connected.
	maxRegulars = 8192
	// maxSamples is how many durations of checks are kept, for simulate.
	maxSamples = 64
	// maxSimulated bounds the checks that are simulated at once. Each costs a timer.
	maxSimulated = 512
)

// hasher runs argon2id for passwords that people chose, a few at a time.
type hasher struct {
	once  sync.Once
	slots chan struct{}
	// strangers is a second semaphore of the same size, before the slots. A client that
	// has not connected lately waits there first, so that known devices overtake it.
	strangers chan struct{}

	mu        sync.Mutex
	waiting   int            // checks that run or wait
	by        map[string]int // those, by address
	regulars  map[regular]struct{}
	samples   []time.Duration
	next      int // the sample that is overwritten next
	simulated int
}

// regular is a device that has connected with a password, and its address.
type regular struct{ device, source string }

func (h *hasher) init() {
	h.once.Do(func() {
		h.slots = make(chan struct{}, min(max(runtime.GOMAXPROCS(0)/2, 1), maxWorkers))
		h.strangers = make(chan struct{}, cap(h.slots))
		h.by = map[string]int{}
		h.regulars = map[regular]struct{}{}
	})
}

// run waits for a slot and runs fn. It returns Unavailable if the queue is full, or if no
// slot is free within queueWait.
func (h *hasher) run(ctx context.Context, now func() time.Time, who regular, fn func()) error {
	h.init()
	known, ok := h.enter(who)
	if !ok {
		return busy()
	}
	defer h.leave(who)
	began := now()
	wait, cancel := context.WithTimeout(ctx, queueWait)
	defer cancel()
	if !known {
		if !take(wait, h.strangers) {
			return busy()
		}
		defer func() { <-h.strangers }()
	}
	if !take(wait, h.slots) {
		return busy()
	}
	defer func() { <-h.slots }()
	fn()
	h.took(now().Sub(began))
	return nil
}

func take(ctx context.Context, from chan struct{}) bool {
	select {
	case from <- struct{}{}:
		return true
	case <-ctx.Done():
		return false
	}
}

func busy() error {
	return countersign.Errorf(countersign.Unavailable, "too many passwords are being checked now").
		WithNext("try again in a few seconds").WithRetry(queueWait)
}

// enter takes a place in the queue. It reports whether who has connected before, and
// whether there was a place.
func (h *hasher) enter(who regular) (known, ok bool) {
	h.mu.Lock()
	defer h.mu.Unlock()
	room := strangersQueue
	if _, known = h.regulars[who]; known {
		room = maxQueue
	}
	if h.waiting >= room || who.source != "" && h.by[who.source] >= maxOfAddress {
		return known, false
	}
	h.waiting++
	h.by[who.source]++
	return known, true
}

func (h *hasher) leave(who regular) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.waiting--
	if h.by[who.source]--; h.by[who.source] <= 0 {
		delete(h.by, who.source)
	}
}

func (h *hasher) took(d time.Duration) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if len(h.samples) < maxSamples {
		h.samples = append(h.samples, d)
		return
	}
	h.samples[h.next] = d
	h.next = (h.next + 1) % maxSamples
}

// remember lets a device that has connected use the whole queue from now on.
func (h *hasher) remember(who regular) {
	h.init()
	h.mu.Lock()
	defer h.mu.Unlock()
	if len(h.regulars) >= maxRegulars {
		for any := range h.regulars {
			delete(h.regulars, any)
			break
		}
	}
	h.regulars[who] = struct{}{}
}

// simulate waits for as long as a check takes, without its work, so that the time of an
// answer does not show whether there is such a device with a password. If too many are
// simulated already, it returns at once: an attacker who floods the server learns no more
// than from the full queue.
func (h *hasher) simulate(ctx context.Context) {
	h.mu.Lock()
	if len(h.samples) == 0 || h.simulated >= maxSimulated {
		h.mu.Unlock()
		return
	}
	h.simulated++
	d := h.samples[mathrand.IntN(len(h.samples))] //nolint:gosec // chance, no secret
	h.mu.Unlock()
	defer func() {
		h.mu.Lock()
		h.simulated--
		h.mu.Unlock()
	}()
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
	case <-ctx.Done():
	}
}

// argonRecord returns the hash of a password in PHC string format.
func argonRecord(password []byte) []byte {
	salt := make([]byte, argonSalt)
	_, _ = rand.Read(salt) // never fails
	sum := argon2.IDKey(password, salt, argonTime, argonMemory, argonThreads, argonHash)
	b64 := base64.RawStdEncoding.EncodeToString
	return fmt.Appendf(nil, "$argon2id$v=%d$m=%d,t=%d,p=%d$%s$%s", argon2.Version, argonMemory, argonTime, argonThreads, b64(salt), b64(sum))
}

// argonParams are the parameters, salt and hash of a record in PHC string format.
type argonParams struct {
	memory, time uint32
	threads      uint8
	salt, hash   []byte
}

// parseArgon parses a record in PHC string format. It refuses parameters that are out of
// bounds, because a record must not decide how much memory the server allocates.
func parseArgon(record string) (p argonParams, err error) {
	bad := fmt.Errorf("couldn't read the record of a password: not argon2id in PHC form")
	f := strings.Split(record, "$")
	if len(f) != 6 || f[0] != "" || f[1] != "argon2id" || f[2] != fmt.Sprintf("v=%d", argon2.Version) {
		return p, bad
	}
	if n, err := fmt.Sscanf(f[3], "m=%d,t=%d,p=%d", &p.memory, &p.time, &p.threads); err != nil || n != 3 {
		return p, bad
	}
	if f[3] != fmt.Sprintf("m=%d,t=%d,p=%d", p.memory, p.time, p.threads) {
		return p, bad
	}
	b64 := base64.RawStdEncoding.Strict()
	var errSalt, errHash error
	p.salt, errSalt = b64.DecodeString(f[4])
	p.hash, errHash = b64.DecodeString(f[5])
	if errSalt != nil || errHash != nil || len(p.salt) < 8 || len(p.salt) > 64 || len(p.hash) < 16 || len(p.hash) > 64 ||
		p.memory < 8 || p.memory > maxMemory || p.time < 1 || p.time > maxTime || p.threads < 1 || p.threads > 16 {
		return p, bad
	}
	return p, nil
}

// matches reports whether the password is the one of the record. Only hasher.run may call
// it, because it allocates p.memory KiB.
func (p argonParams) matches(password []byte) bool {
	sum := argon2.IDKey(password, p.salt, p.time, p.memory, p.threads, uint32(len(p.hash))) //nolint:gosec // at most 64
	return subtle.ConstantTimeCompare(sum, p.hash) == 1
}
