package countersign

import (
	"cmp"
	"context"
	"slices"
	"strings"
)

// MessageStore shows operators what gateways store for devices, and lets them purge it.
// A gateway implements it.
type MessageStore interface {
	// Usage returns what the devices use that f names, in the order of CompareUsage.
	Usage(ctx context.Context, f UsageFilter) ([]Usage, error)
	// TotalUsage returns the sums over all devices; its Device is empty. It is called
	// for each scrape of the metrics and must be cheap.
	TotalUsage(ctx context.Context) (Usage, error)
	// Purge drops what is stored for a device and returns what that was. What cannot be
	// dropped alone is refused with the code Conflict; the rest is dropped all the same.
	// After an error the result has what was dropped until then.
	Purge(ctx context.Context, device string, what Stored) (Purged, error)
}

// Usage is how much one device uses of a gateway and of the store behind it.
type Usage struct {
	Device         string // as Session.Device has it
	Sessions       int    // live, on this node
	Kept           int    // sessions that wait for their client
	Subscriptions  int    // topic filters of live and kept sessions
	Retained       int    // retained messages that it sent
	RetainedOctets int64  // with their topics
	Queued         int    // messages that wait for it
	QueuedOctets   int64
}

// Octets returns the size of what is stored for the device, in octets.
func (u Usage) Octets() int64 { return u.RetainedOctets + u.QueuedOctets }

// CompareUsage orders by octets, the most first, then by device.
func CompareUsage(a, b Usage) int {
	return cmp.Or(cmp.Compare(b.Octets(), a.Octets()), cmp.Compare(a.Device, b.Device))
}

// UsageFilter names a part of the devices that use something.
type UsageFilter struct {
	Device string // empty: all
	// After begins the list behind this place in the order of CompareUsage, whether or
	// not a device is there now. The zero value begins it with the first.
	After UsagePlace
	Limit int // most devices
}

// UsagePlace is a place in the order of CompareUsage.
type UsagePlace struct {
	Octets int64
	Device string // empty: no place
}

// Stored names kinds of what is stored for a device.
type Stored struct {
	Retained bool // retained messages that it sent
	Queued   bool // messages that wait for it
	Sessions bool // sessions that wait for their client, with their subscriptions and queues
	// All is for a device that has lost its identity: all of these, and the sessions
	// that are ending at this moment.
	All bool
}

// String lists the kinds.
func (s Stored) String() string {
	var kinds []string
	for kind, is := range map[string]bool{"queued": s.Queued, "retained": s.Retained, "sessions": s.Sessions} {
		if is || s.All {
			kinds = append(kinds, kind)
		}
	}
	slices.Sort(kinds)
	return strings.Join(kinds, ",")
}

// Purged is what a purge dropped, as far as it was counted.
type Purged struct {
	Retained       int
	RetainedOctets int64
	Queued         int
	QueuedOctets   int64
	Sessions       int
}
