package mqtt

import (
	"io"
	"net"
	"sync"
)

// remote is a session at the broker of a Relay. A second goroutine reads the broker.
// Answers go against the stream, so both write to both sides.
type remote struct {
	*session
	level   byte // of the broker's side: 5, or 4
	conn    net.Conn
	engine  frameReader   // the broker's frames; owned by open, then by runDown
	up      outbox        // to the broker
	gone    chan struct{} // closed once runDown is over; nil before start
	filters map[string]struct{}

	// Owned by runDown.
	aliasesDown map[uint16]string
	lastDown    string

	// What one direction leaves for the other.
	mu        sync.Mutex
	refusedUp map[uint16]struct{}  // QoS 2 from the device, refused, awaiting its PUBREL
	refusedDn map[uint16]struct{}  // QoS 2 to the device, refused, awaiting the broker's PUBREL
	merged    [2]map[uint16][]byte // codes to merge into SUBACK, and into UNSUBACK; fromBack where the broker answers
}

func (r *remote) closeWrite() {
	if w, ok := r.conn.(interface{ CloseWrite() error }); ok {
		_ = w.CloseWrite()
	}
}

// hangUp waits for the broker's end, within the deadline that is set, and closes.
func (r *remote) hangUp() {
	_, _ = io.Copy(io.Discard, r.conn)
	_ = r.conn.Close()
	r.engine.release()
}

// closeInbox is the packet that ends the subscriptions to the session's inbox, where
// the broker keeps the session and the inbox must not outlive it; nil: there are none.
func (r *remote) closeInbox() []byte {
	if r.expiry == 0 {
		return nil
	}
	p := subscribe{id: 1} // nothing is waited for any more
	for f := range r.filters {
		if r.ownInbox(f) {
			p.filters = append(p.filters, subscription{filter: f})
		}
	}
	if p.filters == nil {
		return nil
	}
	return p.encode(pktUnsubscribe, r.level)
}

// mergedOf is the table for packets of type kind or for the answers to them.
func (r *remote) mergedOf(kind byte) *map[uint16][]byte {
	if kind == pktSubscribe || kind == pktSuback {
		return &r.merged[0]
	}
	return &r.merged[1]
}
