// Package lockout counts wrong credentials, slows the answers to those who show them,
// and blocks their addresses for a time. Its [Ledger] refuses addresses, never devices:
// what it must not be is a way to lock a device out. [Rates] and [Table] are the bounded
// memories that it and other keepers count in.
package lockout

import (
	"context"
	"log/slog"
	"net/netip"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/countersign-iot/countersign"
	"github.com/countersign-iot/countersign/event"
	"github.com/countersign-iot/countersign/store"
)

const (
	// window is how long the failures of an address count together. A device that knows
	// its secret does not fail ten times in it; one that retries a wrong secret once a
	// minute, day and night, does and is worth a look.
	window     = 10 * time.Minute
	blockAfter = 10
	// nameWindow is the same for a credential and for a device id, which are tried
	// from many addresses, slowly.
	nameWindow = time.Hour
	// notableAfter failures with one credential or in one device's name are a finding,
	// and again at ten times as many, so that a flood makes few findings.
	notableAfter = 10
	// firstDelay slows the first wrong answer; each further one doubles it.
	firstDelay = 200 * time.Millisecond
	// maxDelay bounds it, since a slow answer holds a connection of ours too.
	maxDelay = 5 * time.Second
	// maxWaiting bounds how many callers are being delayed at once over all
	// addresses; beyond it refusals are quick rather than hoarding connections.
	maxWaiting = 512
	// triesPerMinute is how often all those behind one blocked address may prove
	// themselves: a site of some hundred devices comes back within minutes, and a guesser
	// costs no more than one honest device that reconnects.
	triesPerMinute = 60
	// triesAtOnce is how many of them may at once: the devices of one cabinet.
	triesAtOnce = 20
)

// Ledger counts failed credentials by address (IPv6 by /64), by credential and by
// device id, slows the answers to those who fail, and blocks their addresses.
//
// What an attacker must not get from it is a way to lock a device out. So:
//
//   - Only an address is ever refused, and only for failures that came from it. The
//     counts of a device id and of a credential refuse no client: a name costs an
//     attacker nothing. They are reported ([Outcome]) and slow the answers to failures.
//   - A block that the ledger made by itself refuses what can be guessed. A client that
//     has proved to hold the key of a certificate on record has guessed nothing, and
//     passes ([Ledger.CheckProven]), although an attacker may be behind the same NAT.
//   - A success takes nothing off an address: else the owner of one good credential
//     could guess for ever, with a success after each nine failures.
//   - Every block ends.
//
// Set the fields, Load, then Run. It keeps what it counts through a restart,
// within flushEvery of a crash; blocks are durable before the answer. With
// PostgreSQL the blocks hold on every node within pollEvery, and each node counts
// by itself.
type Ledger struct {
	DB  *store.DB // nil: memory of this process alone, without Load, Run and acts of operators
	Now func() time.Time
	Log *slog.Logger
	// Allow are networks whose addresses are neither counted nor blocked nor slowed.
	Allow []netip.Prefix
	// Events gets address.blocked and address.unblocked in the transaction of the block.
	Events *event.Log

	mu          sync.Mutex
	addresses   tallies
	credentials tallies
	devices     tallies
	blocks      blocklist
	unwritten   map[netip.Prefix]unwritten
	waiting     atomic.Int64        // callers of Hold
	polled      time.Time           // only Load and Run touch it
	tries       Rates[netip.Prefix] // of blocked addresses
}

// Failure is a wrong credential.
type Failure struct {
	Addr       netip.Addr
	Credential string // id of the credential, else its kind; never a secret
	Device     string // as claimed, not proved
	Door       string
	Code       countersign.Code
}

// Outcome is what a failure led to.
type Outcome struct {
	Failures int           // of the address within its window
	Blocked  bool          // this failure made the block
	Until    time.Time     // end of the address's block; zero without one
	Delay    time.Duration // by which Hold slows the answer
	// ByCredential and ByDevice: this failure brought the count of its credential, of
	// its device id, to a number worth a finding: 10, 100, 1000 within an hour.
	ByCredential, ByDevice bool
	// CredentialFailures and DeviceFailures are those counts.
	CredentialFailures, DeviceFailures int
}

// allowed reports whether the address is of a network that is never blocked.
func (l *Ledger) allowed(source netip.Prefix) bool {
	return slices.ContainsFunc(l.Allow, func(p netip.Prefix) bool { return p.Overlaps(source) })
}

// Check refuses an address that is blocked, with RateLimited and the time to come
// back. It looks at memory alone: ask it before any work for a client that shows
// something that could be guessed, or nothing.
func (l *Ledger) Check(addr netip.Addr) error { return l.check(addr, false) }

// CheckProven is Check for a client that has proved, in a handshake, to hold the key of a
// certificate on record. Only a block that an operator made refuses it.
func (l *Ledger) CheckProven(addr netip.Addr) error { return l.check(addr, true) }

// Try lets one who shows what cannot be guessed, such as a token of 256 random bits or
// what a key signed, prove it from an address that is blocked for guessing: an honest
// neighbor of a guesser. The caller refuses it with the error of Check if it proves
// nothing. Try refuses beyond triesPerMinute, so that a block bounds the work as well.
func (l *Ledger) Try(addr netip.Addr) error {
	if err := l.Check(addr); err == nil {
		return nil
	}
	if err := l.CheckProven(addr); err != nil {
		return err
	}
	src, _ := countersign.SourceOf(addr)
	if l.tries.Take(src, triesPerMinute, triesAtOnce, l.Now()) {
		return nil
	}
	return countersign.Errorf(countersign.RateLimited, "too many wrong credentials came from %s, and too many others since", src).
		WithNext("try again").WithRetry(time.Minute / triesPerMinute)
}

func (l *Ledger) check(addr netip.Addr, proven bool) error {
	src, ok := countersign.SourceOf(addr)
	if !ok {
		return nil
	}
	now := l.Now()
	l.mu.Lock()
	b, blocked := l.blocks.find(src, now, proven)
	l.mu.Unlock()
	if !blocked || l.allowed(src) {
		return nil
	}
	e := countersign.Errorf(countersign.RateLimited, "too many wrong credentials came from %s", b.Prefix)
	if b.Manual {
		e = countersign.Errorf(countersign.RateLimited, "an operator blocked %s", b.Prefix)
	}
	return e.WithNext("wait, or have an operator remove the block of " + b.Prefix.String()).WithRetry(b.Until.Sub(now))
}

// Count records a failure. When it makes a block, that is on record once Count
// returns; should the database fail, it holds in memory and is written later.
func (l *Ledger) Count(ctx context.Context, f Failure) Outcome {
	now := l.Now().UTC().Truncate(time.Microsecond) // as it is on record
	l.lock()
	var o Outcome
	var made *Block
	if src, ok := countersign.SourceOf(f.Addr); ok && !l.allowed(src) {
		made = l.countAddress(src, now, &o)
		o.Delay = delay(o.Failures)
	}
	o.CredentialFailures, o.ByCredential = countName(&l.credentials, f.Credential, now)
	o.DeviceFailures, o.ByDevice = countName(&l.devices, f.Device, now)
	if o.Delay > 0 {
		o.Delay = max(o.Delay, delay(o.CredentialFailures), delay(o.DeviceFailures))
	}
	l.mu.Unlock()
	if made != nil {
		o.Blocked = true
		l.record(ctx, unwritten{*made, blockedEvent(made, f)})
	}
	return o
}

// countAddress counts a failure of an address and returns the block that it made. An
// address that is blocked is not counted: requests that were under way at
// the time, and those of proven devices, do not prolong it.
func (l *Ledger) countAddress(src netip.Prefix, now time.Time, o *Outcome) *Block {
	if b, blocked := l.blocks.find(src, now, false); blocked {
		o.Failures, o.Until = b.Failures, b.Until
		return nil
	}
	o.Failures = l.addresses.count(src.String(), now)
	if o.Failures < blockAfter {
		return nil
	}
	l.addresses.clear(src.String())
	b := l.blocks.strike(src, o.Failures, now)
	o.Until = b.Until
	return &b
}

// countName counts a failure under a name. What cannot be a name is not counted: it would
// only let a stranger fill the memory.
func countName(s *tallies, name string, now time.Time) (n int, notable bool) {
	if !countersign.IsDeviceID(name) { // the ids of credentials have the same form
		return 0, false
	}
	n = s.count(name, now)
	for at := notableAfter; at <= n; at *= 10 {
		notable = n == at
	}
	return n, notable
}

// Succeed forgets the failures in the name of a device that has now proved itself. The
// count of its address stays, see [Ledger].
func (l *Ledger) Succeed(device string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.devices.clear(device)
}

func delay(failures int) time.Duration {
	if failures < 1 {
		return 0
	}
	return min(firstDelay<<min(failures-1, 10), maxDelay)
}

// Hold keeps the answer to a failed caller back for the outcome's Delay, or until
// ctx ends. Hold nothing while you do: no transaction, no lock.
func (l *Ledger) Hold(ctx context.Context, o Outcome) {
	defer l.waiting.Add(-1)
	if l.waiting.Add(1) > maxWaiting || o.Delay <= 0 {
		return
	}
	t := time.NewTimer(o.Delay)
	defer t.Stop()
	select {
	case <-t.C:
	case <-ctx.Done():
	}
}

// lock takes mu; the zero Ledger counts.
func (l *Ledger) lock() {
	l.mu.Lock()
	if l.addresses.kind == "" {
		l.addresses.kind, l.addresses.window = "address", window
		l.credentials.kind, l.credentials.window = "credential", nameWindow
		l.devices.kind, l.devices.window = "device", nameWindow
	}
}

func (l *Ledger) counts() [3]*tallies { return [...]*tallies{&l.addresses, &l.credentials, &l.devices} }
