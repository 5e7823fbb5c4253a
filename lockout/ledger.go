// Package lockout counts wrong credentials, delays the answers to them, and blocks the
// addresses that they come from for a time. Its [Ledger] refuses addresses, never devices,
// so that an attacker cannot use it to lock a device out. [Rates] and [Table] are bounded
// counters that other packages use too.
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
	// window is how long the failures of an address count together. A device with the
	// right secret does not fail blockAfter times in it. One that retries a wrong secret
	// once a minute does, and an operator should look at it.
	window     = 10 * time.Minute
	blockAfter = 10
	// nameWindow is the window of a credential and of a device id. It is longer, because
	// these are guessed slowly, from many addresses.
	nameWindow = time.Hour
	// notableAfter failures with one credential or device id are a finding, and again each
	// ten times as many, so that a flood makes few findings.
	notableAfter = 10
	// firstDelay delays the answer to the first failure; each further failure doubles it.
	firstDelay = 200 * time.Millisecond
	// maxDelay bounds the delay, because a delayed answer also occupies a connection of
	// the server.
	maxDelay = 5 * time.Second
	// maxWaiting bounds the answers that are delayed at once, over all addresses. Above
	// it, answers are not delayed, so that they do not occupy all connections.
	maxWaiting = 512
	// triesPerMinute is how often the clients behind one blocked address may try to prove
	// themselves: a site of some hundred devices is back within minutes, and a guesser
	// costs no more than one honest device that reconnects.
	triesPerMinute = 60
	// triesAtOnce is how many of these may come at once: the devices of one cabinet.
	triesAtOnce = 20
)

// Ledger counts wrong credentials by address (IPv6 by /64), by credential and by device
// id. It delays the answers to them and blocks the addresses that they come from.
//
// An attacker must not be able to use it to lock a device out. So:
//
//   - Only an address is ever refused, and only for failures that came from it. The
//     counts of a device id and of a credential refuse no client, because an attacker can
//     claim any name. They are reported ([Outcome]) and delay the answers to failures.
//   - A block that the ledger made by itself refuses credentials that can be guessed. A
//     client that has proved to have the key of a certificate on record has guessed
//     nothing, and passes ([Ledger.CheckProven]): it may be behind the attacker's NAT.
//   - A success does not reduce the count of an address: otherwise the owner of one valid
//     credential could guess forever, with a success after each nine failures.
//   - Every block ends.
//
// Set the fields, call Load, then Run. The counts survive a restart, and a crash except
// for the last flushEvery; blocks are durable before the answer. With PostgreSQL a block
// is in force on every node within pollEvery, and each node counts by itself.
type Ledger struct {
	DB  *store.DB // nil: only in memory, without Load, Run, Block, Refuse and Unblock
	Now func() time.Time
	Log *slog.Logger
	// Allow are networks whose addresses are not counted, blocked or delayed.
	Allow []netip.Prefix
	// Events records address.blocked and address.unblocked in the transaction of the block.
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
	Delay    time.Duration // for which Hold delays the answer
	// ByCredential and ByDevice are true if this failure brought the count of its
	// credential or device id to a number that is a finding: 10, 100, 1000 within an hour.
	ByCredential, ByDevice bool
	// CredentialFailures and DeviceFailures are those counts.
	CredentialFailures, DeviceFailures int
}

// allowed reports whether the address is of a network that is never blocked.
func (l *Ledger) allowed(source netip.Prefix) bool {
	return slices.ContainsFunc(l.Allow, func(p netip.Prefix) bool { return p.Overlaps(source) })
}

// Check returns RateLimited, with the time to wait, if the address is blocked. It reads
// only memory. Call it before any work for a client without a credential, or with one
// that could be guessed.
func (l *Ledger) Check(addr netip.Addr) error { return l.check(addr, false) }

// CheckProven is Check for a client that has proved, in a handshake, to have the key of a
// certificate on record. Only a block by an operator refuses it.
func (l *Ledger) CheckProven(addr netip.Addr) error { return l.check(addr, true) }

// Try is Check for a client whose credential cannot be guessed, such as a token of 256
// random bits or a signature. It also admits the client from an address that the ledger
// blocked by itself, because it may be honest and share the address with a guesser. If the
// credential then proves wrong, the caller must refuse it with the error of Check. Try
// admits triesPerMinute from such an address, so that a block also bounds the work.
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
	return countersign.Errorf(countersign.RateLimited, "too many wrong credentials came from %s, and after them too many attempts", src).
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

// Count counts a failure and returns what follows from it. If it blocks the address, the
// block is durable when Count returns. If the database fails, the block is in force in
// memory and written later.
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

// countAddress counts a failure of an address and returns the block that it made, or nil.
// It does not count for a blocked address: requests that were in progress when the block
// began, and tries from behind it, do not prolong it.
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

// countName counts a failure under a name. It ignores strings that cannot be a name,
// because with them an attacker could fill the memory.
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

// Succeed clears the failures of a device id after the device has proved itself. It does
// not change the count of its address, see [Ledger].
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

// Hold waits for the outcome's Delay, or until ctx ends, before the answer to a failure is
// sent. The caller must not have a transaction open or a lock held.
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

// lock locks mu, and sets the kinds and windows of the counts the first time, so that a
// zero Ledger can be used.
func (l *Ledger) lock() {
	l.mu.Lock()
	if l.addresses.kind == "" {
		l.addresses.kind, l.addresses.window = "address", window
		l.credentials.kind, l.credentials.window = "credential", nameWindow
		l.devices.kind, l.devices.window = "device", nameWindow
	}
}

func (l *Ledger) counts() [3]*tallies { return [...]*tallies{&l.addresses, &l.credentials, &l.devices} }
