package server

import (
	"errors"
	"io"
	"net/http"
	"net/netip"
	"strconv"
	"sync"
	"time"

	"github.com/countersign-iot/countersign"
	"github.com/countersign-iot/countersign/edge"
)

const (
	// maxIntake bounds what the requests under way at all HTTP listeners of a node
	// may hold, in octets: their headers, what was read of their bodies and
	// requestCost each. An enrollment holds less than 10 KiB.
	maxIntake = 32 << 20
	// maxIntakePerAddress is what those of one address may hold: a factory line with
	// 400 enrollments at once.
	maxIntakePerAddress = maxIntake / 8
	// requestCost is what a request holds whatever it sends: its goroutine, and the
	// buffers of an HTTP/2 stream.
	requestCost = 8 << 10
	// intakeRetry is what a refused client reads in Retry-After.
	intakeRetry = 5 * time.Second
)

// errIntake ends the reading of a body that there is no room for.
var errIntake = errors.New("the node has no room for the request now")

// intake bounds the memory that requests hold before it is known whose they are. A
// request is counted while its handler runs. When the node has no room, the request
// that has waited longest of the address that holds the most is given up, so that
// neither one address nor many slow ones keep an honest one out.
type intake struct {
	Guard *edge.Guard // gets the count of who was refused

	mu    sync.Mutex
	total int
	by    map[netip.Prefix]*holder
}

// holder is an address with requests under way.
type holder struct {
	held     int
	requests []*request // the oldest first
}

// request is one request under way.
type request struct {
	intake *intake
	door   string
	from   netip.Prefix
	held   int
	gone   bool         // given up; under the intake's lock
	stop   func() error // ends a read that waits
}

// handler puts the handler of a listener under the intake.
func (in *intake) handler(door string, h http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		remote, err := netip.ParseAddrPort(r.RemoteAddr)
		if err != nil { // the operators' socket
			h.ServeHTTP(w, r)
			return
		}
		q := &request{intake: in, door: door}
		q.from, _ = countersign.SourceOf(remote.Addr())
		control := http.NewResponseController(w)
		q.stop = func() error { return control.SetReadDeadline(time.Unix(1, 0)) }
		if !in.enter(q, requestCost+headerSize(r.Header)) {
			refuseIntake(w)
			return
		}
		defer in.leave(q)
		if r.Body != nil && r.Body != http.NoBody {
			r.Body = &countedBody{ReadCloser: r.Body, request: q}
			w = &intakeAnswer{ResponseWriter: w, request: q}
		}
		h.ServeHTTP(w, r)
	})
}

func headerSize(h http.Header) int {
	n := 0
	for name, values := range h {
		for _, v := range values {
			n += len(name) + len(v)
		}
	}
	return n
}

// enter counts a request in and reports whether there is room for it.
func (in *intake) enter(q *request, n int) bool {
	in.mu.Lock()
	h := in.by[q.from]
	if h == nil {
		if in.by == nil {
			in.by = map[netip.Prefix]*holder{}
		}
		h = &holder{}
		in.by[q.from] = h
	}
	h.requests = append(h.requests, q)
	victim, ok := in.take(q, n)
	if !ok {
		in.drop(q)
	}
	in.mu.Unlock()
	in.giveUp(victim)
	if !ok {
		in.Guard.TurnAway(q.door, q.from, edge.ReasonRequests)
	}
	return ok
}

// take counts n more octets of q in. Where the node has no room for them, it returns
// the request that is to be given up for them, or false.
func (in *intake) take(q *request, n int) (victim *request, ok bool) {
	h := in.by[q.from]
	if q.gone || h.held+n > maxIntakePerAddress {
		return nil, false
	}
	if in.total+n > maxIntake {
		if victim = in.victim(h.held + n); victim == nil {
			return nil, false
		}
		victim.gone = true
	}
	q.held += n
	h.held += n
	in.total += n
	return victim, true
}

// victim returns the oldest request of the address that holds the most, and more
// than least. Few addresses hold much when there is no room, so they are looked
// through.
func (in *intake) victim(least int) *request {
	var most *holder
	for _, h := range in.by {
		if h.held > least && (most == nil || h.held > most.held) {
			most = h
		}
	}
	if most == nil {
		return nil
	}
	for _, q := range most.requests {
		if !q.gone {
			return q
		}
	}
	return nil
}

func (in *intake) giveUp(q *request) {
	if q == nil {
		return
	}
	_ = q.stop() // a handler that does not read comes to its end by itself
	in.Guard.TurnAway(q.door, q.from, edge.ReasonEvicted)
}

// leave counts a request out.
func (in *intake) leave(q *request) {
	in.mu.Lock()
	defer in.mu.Unlock()
	in.drop(q)
}

func (in *intake) drop(q *request) {
	h := in.by[q.from]
	for i, one := range h.requests {
		if one == q {
			h.requests = append(h.requests[:i], h.requests[i+1:]...)
			break
		}
	}
	h.held -= q.held
	in.total -= q.held
	q.held = 0
	if len(h.requests) == 0 {
		delete(in.by, q.from)
	}
}

// more counts what was read of a body.
func (q *request) more(n int) error {
	in := q.intake
	in.mu.Lock()
	was := q.gone
	victim, ok := in.take(q, n)
	if !ok {
		q.gone = true
	}
	in.mu.Unlock()
	in.giveUp(victim)
	if ok {
		return nil
	}
	if !was {
		in.Guard.TurnAway(q.door, q.from, edge.ReasonRequests)
	}
	return errIntake
}

func (q *request) refused() bool {
	q.intake.mu.Lock()
	defer q.intake.mu.Unlock()
	return q.gone
}

// countedBody counts a body in as it is read.
type countedBody struct {
	io.ReadCloser
	*request
}

func (b *countedBody) Read(p []byte) (int, error) {
	if b.refused() {
		return 0, errIntake
	}
	n, err := b.ReadCloser.Read(p)
	if n > 0 {
		if e := b.more(n); e != nil {
			return 0, e
		}
	}
	if err != nil && !errors.Is(err, io.EOF) && b.refused() {
		err = errIntake
	}
	return n, err
}

// intakeAnswer answers 503 in place of what a handler answers to a body that broke off
// because there was no room for it: the handler cannot know why.
type intakeAnswer struct {
	http.ResponseWriter
	*request
	status  int
	replace bool
}

func (a *intakeAnswer) WriteHeader(status int) {
	if a.status == 0 && status >= http.StatusBadRequest && a.refused() {
		a.status, a.replace = status, true
		clear(a.Header())
		refuseIntake(a.ResponseWriter)
		return
	}
	if !a.replace {
		a.status = status
		a.ResponseWriter.WriteHeader(status)
	}
}

func (a *intakeAnswer) Write(p []byte) (int, error) {
	if a.status == 0 {
		a.WriteHeader(http.StatusOK)
	}
	if a.replace {
		return len(p), nil
	}
	return a.ResponseWriter.Write(p)
}

// Unwrap serves http.ResponseController.
func (a *intakeAnswer) Unwrap() http.ResponseWriter { return a.ResponseWriter }

func refuseIntake(w http.ResponseWriter) {
	w.Header().Set("Retry-After", strconv.Itoa(int(intakeRetry.Seconds())))
	w.Header().Set("Connection", "close") // what is still to come of the body is not read
	http.Error(w, "the server has no room for the request now; try again in "+intakeRetry.String(), http.StatusServiceUnavailable)
}
