package rest

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"io"
	"log/slog"
	"net/http"
	"net/netip"
	"reflect"
	"runtime"
	"strings"
	"time"
	"unicode"

	"github.com/countersign-iot/countersign"
	"github.com/countersign-iot/countersign/api"
	"github.com/countersign-iot/countersign/ca"
	"github.com/countersign-iot/countersign/pkcs10"
	"github.com/countersign-iot/countersign/ra"
	"github.com/countersign-iot/countersign/registry"
	"github.com/danielgtaylor/huma/v2"
	"github.com/danielgtaylor/huma/v2/adapters/humago"
)

const (
	// maxFactoryBody is one line.
	maxFactoryBody = api.MaxFactoryLine
	// factoryWindow is how many items are under way at once: enough to keep all
	// cores and the database's group commit busy, and with lines of at most
	// api.MaxFactoryLine a bound on memory.
	factoryWindow = 128
	// workersPerCore: an item waits for the database most of its time.
	workersPerCore = 8
	// lineTimeout is how long a factory may pause between two lines, and how long
	// it may take to read one.
	lineTimeout = time.Minute
	// maxItem bounds an idempotency key, which stays in the certificate's record.
	maxItem = 128
)

// FactoryPath are the parameters of a factory's requests.
type FactoryPath struct {
	Fleet   string `path:"fleet" maxLength:"63"`
	Profile string `query:"profile" maxLength:"63" doc:"Certificate profile; default the fleet's."`
}

// factory serves factories, which ask for the certificates of new devices.
type factory struct {
	ra       *ra.Authority
	registry *registry.Registry
	ca       *ca.CA
	now      func() time.Time
	log      *slog.Logger
}

// stream registers a route whose request and answer are lines of JSON.
func (f *factory) stream(a huma.API, op huma.Operation, _ *slog.Logger) {
	body := func(t reflect.Type) map[string]*huma.MediaType {
		schema := *a.OpenAPI().Components.Schemas.Schema(t, true, "")
		return map[string]*huma.MediaType{api.FactoryType: {Schema: &schema}}
	}
	op.Responses["200"] = &huma.Response{Description: "OK", Content: body(reflect.TypeFor[api.FactoryLine]())}
	op.MaxBodyBytes, op.BodyReadTimeout = 0, 0 // patient has its own limits
	huma.Register(a, op, f.many)
	// Described afterwards: huma reads the whole of a body that it knows of.
	a.OpenAPI().Paths[op.Path].Post.RequestBody = &huma.RequestBody{Required: true, Content: body(reflect.TypeFor[api.FactoryRequest]())}
}

func (f *factory) one(ctx context.Context, in *struct {
	FactoryPath
	Body api.FactoryRequest
},
) (api.FactoryResult, error) {
	run := &factoryRun{factory: f, FactoryPath: in.FactoryPath, by: byOf(ctx).Actor, remote: callerOf(ctx).from}
	out := api.FactoryResult{Item: in.Body.Item}
	g, err := run.enroll(ctx, in.Body)
	if err != nil {
		return out, err
	}
	return granted(out, g), nil
}

// factoryRun is one factory's request with what all its items share.
type factoryRun struct {
	*factory
	FactoryPath
	by     countersign.Actor
	remote netip.AddrPort

	control *http.ResponseController
	out     *bufio.Writer
	report  api.FactoryReport
}

func (f *factory) many(ctx context.Context, in *FactoryPath) (*huma.StreamResponse, error) {
	if _, err := f.registry.Fleet(ctx, f.registry.DB, in.Fleet); err != nil {
		return nil, logged(ctx, f.log, err)
	}
	if in.Profile != "" {
		if _, err := ca.ReadProfile(ctx, f.ca.DB, in.Profile); err != nil {
			return nil, logged(ctx, f.log, err)
		}
	}
	return &huma.StreamResponse{Body: func(hctx huma.Context) {
		r, w := humago.Unwrap(hctx)
		run := &factoryRun{factory: f, FactoryPath: *in, by: byOf(ctx).Actor, control: http.NewResponseController(w), out: bufio.NewWriter(w)}
		run.remote, _ = netip.ParseAddrPort(r.RemoteAddr) // a Unix socket has none
		w.Header().Set("Content-Type", api.FactoryType)
		if r.ProtoMajor == 1 { // net/http cannot reuse a full-duplex connection whose request was not read to its end
			w.Header().Set("Connection", "close")
		}
		run.serve(ctx, r.Body)
	}}, nil
}

// job is one line under way. done has room for its result, so that a worker
// never waits for the writer.
type job struct {
	line []byte
	done chan api.FactoryResult
}

// serve reads lines, works on factoryWindow of them at once, and writes results
// in the order of the lines. Reading stops while the window is full.
func (f *factoryRun) serve(ctx context.Context, in io.Reader) {
	began := f.now()
	ctx, stop := context.WithCancel(ctx)
	defer stop()
	_ = f.control.EnableFullDuplex() // HTTP/2 has it anyway; without it answers come once all is read
	work, order := make(chan job), make(chan job, factoryWindow)
	for range min(factoryWindow, workersPerCore*runtime.GOMAXPROCS(0)) {
		go func() {
			for j := range work {
				j.done <- f.item(ctx, j.line)
			}
		}()
	}
	var broken error
	go func() {
		defer close(order) // broken is written before
		defer close(work)
		broken = f.read(ctx, in, work, order)
	}()
	for j := range order {
		if err := f.write(<-j.done, len(order) == 0); err != nil {
			stop() // no client reads; what is under way ends on record and is returned again when asked
			break
		}
	}
	for range order { // the reader ends by itself
	}
	f.report.Error = factoryError(broken)
	f.report.TookMillis = f.now().Sub(began).Milliseconds()
	_ = f.encode(struct {
		Report api.FactoryReport `json:"report"`
	}{f.report}) // a client that is gone needs no answer
	_ = f.flush()
}

// read hands out the lines. It takes the place in the order first, so that no
// more than the window are in memory.
func (f *factoryRun) read(ctx context.Context, in io.Reader, work, order chan<- job) error {
	lines := bufio.NewScanner(&patient{in, f})
	lines.Buffer(make([]byte, 0, 16<<10), api.MaxFactoryLine)
	for lines.Scan() {
		if len(bytes.TrimSpace(lines.Bytes())) == 0 {
			continue
		}
		j := job{line: bytes.Clone(lines.Bytes()), done: make(chan api.FactoryResult, 1)}
		for _, to := range []chan<- job{order, work} {
			select {
			case to <- j:
			case <-ctx.Done():
				if to == work { // it is in the order already, where its result is waited for
					j.done <- api.FactoryResult{Error: factoryError(ctx.Err())}
				}
				return ctx.Err()
			}
		}
	}
	if err := lines.Err(); errors.Is(err, bufio.ErrTooLong) {
		return countersign.Errorf(countersign.TooLarge, "a line is longer than %d bytes", api.MaxFactoryLine).WithNext("write one request per line")
	} else if err != nil {
		return countersign.Errorf(countersign.BadRequest, "the request broke off").WithNext("send it again: what was granted is returned again").WithCause(err)
	}
	return nil
}

// patient has for each read its own time limit instead of one for the whole request.
type patient struct {
	io.Reader
	run *factoryRun
}

func (p *patient) Read(b []byte) (int, error) {
	_ = p.run.control.SetReadDeadline(p.run.now().Add(lineTimeout)) // a server that knows no deadlines has its own
	return p.Reader.Read(b)
}

// write writes a result; idle says that none is ready behind it.
func (f *factoryRun) write(r api.FactoryResult, idle bool) error {
	switch {
	case r.Error != nil:
		f.report.Refused++
	case r.Again:
		f.report.Again++
	default:
		f.report.Granted++
	}
	if err := f.encode(r); err != nil || !idle {
		return err
	}
	return f.flush()
}

func (f *factoryRun) encode(v any) error {
	_ = f.control.SetWriteDeadline(f.now().Add(lineTimeout)) // a server that knows no deadlines has its own
	b, err := json.Marshal(v)
	if err != nil {
		return err
	}
	_, err = f.out.Write(append(b, '\n'))
	return err
}

func (f *factoryRun) flush() error {
	if err := f.out.Flush(); err != nil {
		return err
	}
	return f.control.Flush()
}

// item answers one line.
func (f *factoryRun) item(ctx context.Context, line []byte) (out api.FactoryResult) {
	var in api.FactoryRequest
	dec := json.NewDecoder(bytes.NewReader(line))
	dec.DisallowUnknownFields()
	if err := dec.Decode(&in); err != nil || dec.More() {
		out.Error = factoryError(countersign.Errorf(countersign.BadRequest, "the line is not one JSON object as wanted here").
			WithNext(`write {"item": "...", "csr": "..."}`))
		return out
	}
	out.Item = in.Item
	g, err := f.enroll(ctx, in)
	if err != nil {
		out.Error = factoryError(err)
		return out
	}
	return granted(out, g)
}

func (f *factoryRun) enroll(ctx context.Context, in api.FactoryRequest) (*countersign.Grant, error) {
	if in.Item == "" || len(in.Item) > maxItem || strings.ContainsFunc(in.Item, func(r rune) bool { return !unicode.IsPrint(r) }) {
		return nil, countersign.Errorf(countersign.BadRequest, "item is not 1 to %d printable octets", maxItem).WithNext("give each device an item that stays the same in another run")
	}
	csr, err := pkcs10.Decode([]byte(in.CSR))
	if err != nil {
		return nil, err
	}
	if in.ID != "" {
		req, err := pkcs10.Parse(csr)
		if err == nil && req.Subject.CommonName != in.ID {
			return nil, countersign.Errorf(countersign.SubjectMismatch, "the line is for device %.140q, the request for %.140q", in.ID, req.Subject.CommonName).
				WithNext("put that device id into the common name of the request")
		}
	}
	return f.ra.Enroll(ctx, countersign.EnrollRequest{
		CSR: csr, Fleet: f.Fleet, Door: "factory", Remote: f.remote,
		Evidence: countersign.Evidence{Voucher: &countersign.Voucher{Actor: f.by, Item: in.Item, Profile: f.Profile}},
	})
}

func granted(out api.FactoryResult, g *countersign.Grant) api.FactoryResult {
	shown := api.GrantOf(g)
	out.Device, out.Serial, out.NotAfter, out.Again, out.Certificate = shown.Device, shown.Serial, shown.NotAfter, g.Again, shown.Chain
	return out
}

// factoryError returns err for a line of the answer; nil for nil.
func factoryError(err error) *api.FactoryError {
	if err == nil {
		return nil
	}
	p := countersign.Public(err)
	return &api.FactoryError{Code: string(p.Code), Message: p.Message, Next: p.Next}
}
