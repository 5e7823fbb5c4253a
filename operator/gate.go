package operator

import (
	"context"
	"errors"
	"maps"
	"net/netip"
	"strconv"
	"sync"
	"time"

	"github.com/countersign-iot/countersign"
	"github.com/countersign-iot/countersign/lockout"
)

const (
	// refusalWindow is over how long equal refusals are counted, refusalBurst how many
	// of them are written: a script with an old token must not fill the log.
	refusalWindow = 10 * time.Second
	refusalBurst  = 5
	// maxRefusals bounds the refusals that are counted apart. One that was quiet for a window
	// makes room; beyond, new ones are counted together.
	maxRefusals = 4096
)

// unknown acts where nothing that was shown is known here.
const unknown countersign.Actor = "unknown"

// Gate decides who may ask for what at the doors for operators. It counts wrong
// tokens with the same ledger as the doors for devices, and records what it refuses
// as operator.refused. Set the fields.
type Gate struct {
	Accounts *Accounts
	Ledger   *lockout.Ledger
	// Later appends an event soon; see event.Log. A function, because a test of a refusal
	// needs no log.
	Later func(countersign.Event)
	Now   func() time.Time

	mu       sync.Mutex
	refused  lockout.Table[refusal, repeats]
	overflow map[countersign.Code]*repeats // of what refused had no room for
}

// Ask says where and for what a request was made.
type Ask struct {
	Remote netip.AddrPort // the zero value is not counted
	Via    string         // door
	Route  string
}

// refusal is what makes two refusals the same.
type refusal struct {
	who  string // operator, else network
	code countersign.Code
	what string
}

type repeats struct {
	since           time.Time
	written, silent int
}

// Authenticate returns the token with this secret, as Accounts.Authenticate does.
func (g *Gate) Authenticate(ctx context.Context, secret string, a Ask) (t Token, err error) {
	err = g.Prove(ctx, a, func() error {
		t, err = g.Accounts.Authenticate(ctx, secret)
		return err
	})
	return t, err
}

// Prove has check look at what was shown, and counts it if it is wrong: then the
// answer is slowed, and the address is blocked after some. What is right passes a
// block that the ledger made by itself, since it was not guessed, as often as
// [lockout.Ledger.Try] allows: to find out costs a read of the database, or a
// signature's check. A block by an operator refuses all.
func (g *Gate) Prove(ctx context.Context, a Ask, check func() error) error {
	addr := a.Remote.Addr()
	if err := g.Ledger.Try(addr); err != nil {
		return err
	}
	err := check()
	code := countersign.CodeOf(err)
	switch code {
	case countersign.BadCredential, countersign.CredentialExpire, countersign.NotAllowed:
		g.record(unknown, a, err, nil)
	}
	if code != countersign.BadCredential || errors.Is(err, errStopped) {
		return err // what was right once is no guess
	}
	if blocked := g.Ledger.Check(addr); blocked != nil {
		return blocked
	}
	o := g.Ledger.Count(ctx, lockout.Failure{Addr: addr, Credential: "operator", Door: a.Via, Code: code})
	if o.ByCredential {
		g.Later(countersign.Event{
			Type: countersign.FindingGuessing, Actor: unknown, Remote: written(a.Remote), Via: a.Via, Code: code,
			Reason: "many wrong operator tokens within an hour; addresses are blocked by it",
			Data:   map[string]string{"for_credential": strconv.Itoa(o.CredentialFailures), "label": "operator tokens"},
		})
	}
	g.Ledger.Hold(ctx, o)
	return err
}

// Allow refuses with NotAllowed what a role may not do.
func (g *Gate) Allow(name string, role Role, act Act, a Ask) error {
	if role.May(act) {
		return nil
	}
	err := countersign.Errorf(countersign.NotAllowed, "the role %s of %s does not allow this", role, name).
		WithNext("ask an admin, or use a token with another role")
	g.record(countersign.OperatorActor(name), a, err, map[string]string{"role": string(role), "act": string(act)})
	return err
}

func (g *Gate) record(by countersign.Actor, a Ask, err error, data map[string]string) {
	who := string(by)
	if by == unknown {
		if from, ok := countersign.SourceOf(a.Remote.Addr()); ok {
			who = from.String()
		}
	}
	p := countersign.Public(err)
	silent, write := g.thin(refusal{who, p.Code, a.Route})
	if !write {
		return
	}
	all := map[string]string{"route": a.Route}
	maps.Copy(all, data)
	if silent > 0 {
		all["more_before"] = strconv.Itoa(silent)
	}
	g.Later(countersign.Event{
		Type: countersign.OperatorRefused, Actor: by, Remote: written(a.Remote), Via: a.Via, Code: p.Code, Reason: p.Message, Data: all,
	})
}

// thin reports whether to write a refusal, and how many equal ones before it were
// not written.
func (g *Gate) thin(key refusal) (silent int, write bool) {
	now := g.Now()
	g.mu.Lock()
	defer g.mu.Unlock()
	p := g.entry(key, now)
	if now.Sub(p.since) >= refusalWindow {
		p.written, p.since = 0, now
	}
	if p.written >= refusalBurst {
		p.silent++
		return 0, false
	}
	p.written++
	silent, p.silent = p.silent, 0
	return silent, true
}

// entry finds the count of a refusal. What was left out of one that makes room for it is
// counted with all of its code.
func (g *Gate) entry(key refusal, now time.Time) *repeats {
	g.refused.Max = maxRefusals
	quiet := func(oldest refusal, old *repeats) bool {
		if now.Sub(old.since) < refusalWindow {
			return false
		}
		if old.silent > 0 {
			g.rest(oldest.code, now).silent += old.silent
		}
		return true
	}
	if !g.refused.Room(key, now, quiet) {
		return g.rest(key.code, now)
	}
	p, known := g.refused.Touch(key, now)
	if !known {
		p.since = now
	}
	return p
}

// rest finds the count of all refusals with a code that have none of their own.
func (g *Gate) rest(code countersign.Code, now time.Time) *repeats {
	p := g.overflow[code]
	if p == nil {
		if g.overflow == nil {
			g.overflow = map[countersign.Code]*repeats{}
		}
		p = &repeats{since: now}
		g.overflow[code] = p
	}
	return p
}

// written is an address for the log; empty at the socket.
func written(a netip.AddrPort) string {
	if !a.IsValid() {
		return ""
	}
	return a.String()
}
