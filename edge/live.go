package edge

import (
	"sync"
	"sync/atomic"
	"time"

	countersign "github.com/countersign-iot/countersign"
)

// Live is one connection in the index. Its owner registers it before it asks
// the Gatekeeper, admits it with the answer and removes it when it is over.
type Live struct {
	index    *Index
	conn     *Conn
	farewell Farewell

	ended  atomic.Pointer[countersign.Ending]
	closed chan struct{} // closed once the socket is

	// The index's lock owns what follows.
	session  countersign.Session
	admitted bool
	since    uint64 // the index's count of cuts when this was registered
	known    uint64 // the index's count of changes then
	expiry   *time.Timer
	next     *Live // registered after this one, not yet admitted
	prev     *Live
}

// Farewell writes the protocol's last words to the peer and reports whether it wrote
// any. It runs at most once, while the write deadline is at most farewellBound away.
type Farewell func(countersign.Ending) bool

// farewellBound is how long last words may hold up the end of a connection. A
// peer that reads takes them in microseconds.
const farewellBound = 5 * time.Millisecond

// Ended returns why this side ended the connection; false while it is live. It is
// checked for every frame before the frame is processed.
func (l *Live) Ended() (countersign.Ending, bool) {
	if e := l.ended.Load(); e != nil {
		return *e, true
	}
	return countersign.Ending{}, false
}

// Done is closed once this side has ended the connection and its socket is closed.
func (l *Live) Done() <-chan struct{} { return l.closed }

// Session returns the session as admitted.
func (l *Live) Session() countersign.Session {
	l.index.mu.Lock()
	defer l.index.mu.Unlock()
	return l.session
}

// End ends the connection: no frame passes from now on, the peer gets last words
// if it takes them at once, then the raw socket is closed. It returns within
// little more than farewellBound whatever the peer does. Only the first call
// counts; it reports whether this was it.
func (l *Live) End(e countersign.Ending) bool {
	if !l.mark(e) {
		return false
	}
	l.close(e)
	return true
}

func (l *Live) mark(e countersign.Ending) bool { return l.ended.CompareAndSwap(nil, &e) }

// close runs once, in the call of End that set the mark.
func (l *Live) close(e countersign.Ending) {
	var once sync.Once
	shut := func(how func()) { once.Do(func() { how(); close(l.closed) }) }
	// The mark came first: a writer that reads it after it set its own deadline
	// does not write, so this deadline bounds every write that is under way.
	_ = l.conn.SetWriteDeadline(l.index.Now().Add(farewellBound))
	timer := time.AfterFunc(farewellBound, func() { shut(l.conn.Abort) })
	said := l.farewell(e)
	timer.Stop()
	if said {
		// A reset could overtake the last words, in our kernel or in the peer's. What
		// the peer still sends is answered with a reset by the kernel.
		shut(l.conn.hangUp)
	}
	shut(l.conn.Abort)
}

// Index holds every live connection of a node, by device and by credential. One
// index serves all gateways.
type Index struct {
	Now func() time.Time // the clock of the sockets' deadlines and of NotAfter
	// Stale is called with an admitted session whose basis changed while it was decided
	// (see Changed): it must be compared with the record again. It must not block. It
	// is a function because the index has no access to the record. Nil: none.
	Stale func(countersign.Session)

	mu       sync.Mutex
	byDevice map[string][]*Live // under the devices of its scope too
	byCert   map[countersign.CertRef][]*Live
	byCred   map[string][]*Live
	admitted map[*Live]struct{}

	// A connection whose admission is being decided belongs to no device yet. It
	// waits in this list, in order of registration, and the cuts made meanwhile
	// are kept so that its admission can look them up.
	first, last *Live
	cuts        []countersign.Cut
	forgotten   uint64 // cuts[0] is cut number forgotten+1

	changes    uint64            // calls of Changed
	changed    map[string]uint64 // by fleet: the last of them that named it
	allChanged uint64            // the last of them that named all
}

// NewIndex returns an empty index.
func NewIndex(now func() time.Time) *Index {
	return &Index{
		Now:      now,
		byDevice: map[string][]*Live{},
		byCert:   map[countersign.CertRef][]*Live{},
		byCred:   map[string][]*Live{},
		admitted: map[*Live]struct{}{},
		changed:  map[string]uint64{},
	}
}
