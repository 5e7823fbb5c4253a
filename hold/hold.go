// Package hold keeps the devices that this node refuses although the database could
// not record it: emergency holds. A hold is in memory, where a decision asks for it,
// and in one small file, so that it survives a restart. It knows no database; package
// ra places holds, and retries each act until it is recorded.
package hold

import (
	"crypto/rand"
	"fmt"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/countersign-iot/countersign"
)

const (
	// maxHolds bounds the holds of a node: an operator places them one by one, and each
	// is written anew with every other.
	maxHolds = 1000
	// maxText bounds each text of a hold. It keeps the file small, too.
	maxText = 300
)

// Act is what was to be recorded.
type Act string

// The acts.
const (
	Revoke  Act = "revoke"
	Suspend Act = "suspend"
	Retire  Act = "retire"
)

// Hold is an act on a device that is in force on this node only, until it is recorded.
type Hold struct {
	ID     string                 `json:"id"`
	Act    Act                    `json:"act"`
	Device string                 `json:"device"`
	Reason countersign.ReasonCode `json:"reason"` // of a revocation
	Actor  countersign.Actor      `json:"actor"`
	Note   string                 `json:"note"`
	Via    string                 `json:"via"`
	Alert  string                 `json:"alert,omitempty"` // id of the alert that it is about
	At     time.Time              `json:"at"`              // when it was placed

	// Dropped by an operator: no longer in force, and still to be recorded as dropped.
	DroppedBy  countersign.Actor `json:"dropped_by,omitempty"`
	DroppedVia string            `json:"dropped_via,omitempty"`
	DroppedAt  time.Time         `json:"dropped_at,omitzero"`

	// Tries counts the attempts to record it since this process started.
	Tries int    `json:"-"`
	Error string `json:"-"` // of the last one
}

// Dropped reports whether an operator has dropped it.
func (h *Hold) Dropped() bool { return !h.DroppedAt.IsZero() }

// Why is the reason in the answer to a device that is held back.
func (h *Hold) Why() string {
	return "an emergency hold of this node is on the device: its " + string(h.Act) + " is yet to be recorded"
}

// Book has the holds of this node. Open makes one; its methods may be called from any
// goroutine.
type Book struct {
	now  func() time.Time
	file file

	// attempt is held while the end of a hold is being recorded, so that a hold is not
	// dropped, or recorded by a second caller, in the middle of it.
	attempt sync.Mutex

	mu       sync.Mutex
	holds    []Hold         // in the order in which they were placed
	inForce  map[string]int // how many are, by device
	volatile error          // why what is in memory is not in the file; nil: it is
}

// Open reads the holds in a file; none if there is no such file. A file that cannot be
// read is an error: what it held back must not come in because of that.
func Open(path string, now func() time.Time) (*Book, error) {
	b := &Book{now: now, file: file{path: path}}
	holds, err := b.file.read()
	if err != nil {
		return nil, err
	}
	b.holds = holds
	b.count()
	b.file.prepare()
	return b, nil
}

// Place puts a hold in force, and into the file. Where the same act on the device is
// held already, that one is returned and placed is false. saved is why it could not be
// written to the file: it is in force, and a restart forgets it. The error is Conflict
// when there are too many.
func (b *Book) Place(h Hold) (in Hold, placed bool, saved, err error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	for i := range b.holds {
		if o := &b.holds[i]; o.Device == h.Device && o.Act == h.Act && !o.Dropped() {
			return *o, false, b.save(), nil
		}
	}
	if len(b.holds) >= maxHolds {
		return h, false, nil, countersign.Errorf(countersign.Conflict, "this node has %d emergency holds, the most that there may be", maxHolds)
	}
	h.ID, h.At = strings.ToLower(rand.Text()[:12]), b.now().UTC().Truncate(time.Microsecond)
	h.Note, h.Via = clip(h.Note), clip(h.Via)
	b.holds = append(b.holds, h)
	b.count()
	return h, true, b.save(), nil
}

// Of returns the hold that is in force on a device; of several the first.
func (b *Book) Of(device string) (Hold, bool) {
	if b == nil || device == "" {
		return Hold{}, false
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.inForce[device] == 0 {
		return Hold{}, false
	}
	i := slices.IndexFunc(b.holds, func(h Hold) bool { return h.Device == device && !h.Dropped() })
	return b.holds[i], true
}

// Refuse is the error of a request of a device that is held back; nil if it is not.
func (b *Book) Refuse(device string) error {
	h, ok := b.Of(device)
	if !ok {
		return nil
	}
	return countersign.Errorf(countersign.DeviceOnHold, "%s", h.Why())
}

// List returns the holds in the order in which they were placed, the dropped ones that
// are yet to be recorded too.
func (b *Book) List() []Hold {
	if b == nil {
		return nil
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	return slices.Clone(b.holds)
}

// Len returns how many are in force.
func (b *Book) Len() int {
	n := 0
	for _, h := range b.List() {
		if !h.Dropped() {
			n++
		}
	}
	return n
}

// Volatile returns why the holds in memory are not in the file; nil if they are.
func (b *Book) Volatile() error {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.volatile
}

// Drop takes a hold out of force: the act is not retried any more. That it was dropped
// is yet to be recorded, see Record. It waits for an attempt to record the act that has
// begun. NotFound if there is no such hold, because that attempt succeeded or otherwise,
// or it is dropped already.
func (b *Book) Drop(id string, actor countersign.Actor, via string) (Hold, error) {
	b.attempt.Lock()
	defer b.attempt.Unlock()
	b.mu.Lock()
	defer b.mu.Unlock()
	i := slices.IndexFunc(b.holds, func(h Hold) bool { return h.ID == id && !h.Dropped() })
	if i < 0 {
		return Hold{}, countersign.Errorf(countersign.NotFound, "this node has no emergency hold %.40q", id).
			WithNext("list the holds of this node; each node has its own, and one whose act was recorded is no longer listed")
	}
	b.holds[i].DroppedBy, b.holds[i].DroppedVia, b.holds[i].DroppedAt = actor, via, b.now().UTC().Truncate(time.Microsecond)
	b.count()
	_ = b.save() // Volatile has it
	return b.holds[i], nil
}

// Record calls record with a hold as it is now, one call at a time. If that returns nil,
// the hold's act, or its drop, is on record and the hold is forgotten; otherwise the
// attempt is noted. A hold that is not there any more is on record: nil.
func (b *Book) Record(id string, record func(Hold) error) error {
	b.attempt.Lock()
	defer b.attempt.Unlock()
	list := b.List()
	i := slices.IndexFunc(list, func(h Hold) bool { return h.ID == id })
	if i < 0 {
		return nil
	}
	err := record(list[i])
	b.mu.Lock()
	defer b.mu.Unlock()
	if err == nil {
		b.holds = slices.DeleteFunc(b.holds, func(h Hold) bool { return h.ID == id })
		b.count()
		_ = b.save() // Volatile has it; a hold that comes back after a restart is recorded once all the same
		return nil
	}
	for i := range b.holds {
		if h := &b.holds[i]; h.ID == id {
			h.Tries++
			h.Error = countersign.Public(err).Message
		}
	}
	return err
}

// Save writes the file again where that failed before.
func (b *Book) Save() {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.volatile != nil {
		_ = b.save()
	}
}

// count wants the lock, as save does.
func (b *Book) count() {
	b.inForce = map[string]int{}
	for i := range b.holds {
		if h := &b.holds[i]; !h.Dropped() {
			b.inForce[h.Device]++
		}
	}
}

func (b *Book) save() error {
	b.volatile = b.file.write(b.holds)
	if b.volatile != nil {
		b.volatile = fmt.Errorf("write the emergency holds: %w", b.volatile)
	}
	return b.volatile
}

func clip(s string) string {
	return strings.ToValidUTF8(strings.ReplaceAll(s[:min(len(s), maxText)], "\x00", ""), "")
}
