package main

import (
	"bytes"
	"context"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"iter"
	"net/http"
	"path/filepath"
	"strconv"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/countersign-iot/countersign/api"
	"github.com/countersign-iot/countersign/sdk"
	"github.com/countersign-iot/countersign/store"
)

const (
	// fullPrefix is that of the names of what is measured on a filled database.
	fullPrefix = "full_"
	// pages is how often each list is read in a round.
	pages = 20
	// revocations is how many devices are revoked in a round, and looked for in the CRL.
	revocations = 5
	// crlEvery is how often it is looked there: a list of a million entries has 49 MB.
	crlEvery = 20 * time.Millisecond
	// waitEvery is how often another client asks meanwhile.
	waitEvery = 2 * time.Millisecond
	// maxCRL bounds a list, at 49 octets for an entry, to ten million of them.
	maxCRL = 512 << 20
)

// fullOn is a database that is filled, with the prefixes of the names of what is measured on
// it, and on the one beside it that is nearly empty.
type fullOn struct {
	prefix   string
	empty    string
	what     string
	postgres bool
}

func fullOnSQLite() fullOn { return fullOn{fullPrefix, "empty_", "filled database", false} }

func fullOnPostgres() fullOn {
	return fullOn{fullPrefix + postgresPrefix, "empty_" + postgresPrefix, "filled PostgreSQL", true}
}

// full measures a server whose database holds a fleet: from its start to its first answer,
// enrollment beside the empty one, and the lists.
func (b *bench) full(ctx context.Context) error {
	return b.fullAt(ctx, fullOnSQLite(), b.authority("", b.token))
}

// fullPostgres does the same on PostgreSQL.
func (b *bench) fullPostgres(ctx context.Context) error {
	if ok, err := b.servePostgres(ctx); !ok || err != nil {
		return err
	}
	p := b.onPostgres
	return b.fullAt(ctx, fullOnPostgres(), p.ours.authority("", p.ours.token))
}

func (b *bench) fullAt(ctx context.Context, on fullOn, empty authority) error {
	f := b.filled[on.prefix]
	if f == nil {
		var err error
		if f, err = b.fillDatabase(ctx, on); err != nil {
			return err
		}
	}
	s := f.server
	begin := now()
	if err := f.start(ctx); err != nil {
		return err
	}
	started := time.Since(begin)
	err := b.keep(alone(on.prefix+"start", []time.Duration{started}), nil)
	if err == nil {
		err = s.settle(ctx) // what a start leaves to be done is not what follows costs
	}
	if err == nil {
		empty.prefix = on.empty
		err = b.onFull(ctx, on, f, empty)
	}
	return errors.Join(err, s.stop())
}

func (b *bench) onFull(ctx context.Context, on fullOn, f *filled, empty authority) error {
	var fresh []*enrollee
	for _, e := range keptEnrollments() {
		for _, a := range ordered(b.round, []authority{empty, f.authority(on.prefix, f.token)}) {
			devices, err := b.enrollAt(ctx, &a, e)
			if err != nil {
				return err
			}
			if a.prefix == on.prefix {
				fresh = devices
			}
		}
	}
	if err := b.withdraws(ctx, on, f, fresh[:min(revocations, len(fresh))]); err != nil {
		return err
	}
	for _, l := range fullLists() {
		var took []time.Duration
		for range pages {
			t := now()
			if err := l.read(ctx, f.server.admin); err != nil {
				return fmt.Errorf("list %s: %w", l.name, err)
			}
			took = append(took, time.Since(t))
		}
		b.report.add(alone(on.prefix+l.name, took))
	}
	return nil
}

// withdraws measures revocations while another client asks for the authority's certificates:
// how long each takes, the longest that the other waits, and the memory above that of rest.
func (b *bench) withdraws(ctx context.Context, on fullOn, f *filled, devices []*enrollee) error {
	rest, err := f.server.rested(ctx, b.opts.size.rest)
	if err != nil {
		return err
	}
	if err := f.server.forgetPeak(); err != nil {
		return err
	}
	asking, stop := context.WithCancel(ctx)
	var waits []time.Duration
	var group errgroup.Group
	group.Go(func() (err error) {
		waits, err = f.waits(asking)
		return err
	})
	s, err := f.revokes(ctx, on.prefix+"revoke_to_crl", devices)
	stop()
	if err := b.keep(s, errors.Join(err, group.Wait())); err != nil {
		return err
	}
	b.report.add(alone(on.prefix+"crl_stall", waits))
	peak, err := f.server.peak()
	return b.keep(sample{name: on.prefix + "crl_memory", bytes: float64(max(0, peak-rest))}, err)
}

// waits asks for the authority's certificates, which no revocation concerns, until ctx ends,
// and returns how long each answer took.
func (c *crew) waits(ctx context.Context) (took []time.Duration, err error) {
	conn, err := c.dialer.dialTLS(ctx, hostOf(c.server.endpoints.Enroll), clientTLS(c.roots, nil))
	if err != nil {
		return nil, err
	}
	w := newWeb(conn)
	defer w.close()
	ask := request("GET", c.server.endpoints.Enroll+"/.well-known/est/cacerts", nil)
	for pause(ctx, waitEvery) == nil {
		t := now()
		if _, err := w.do(ask); err != nil {
			return nil, err
		}
		took = append(took, time.Since(t))
	}
	return took, nil
}

// revokes measures from the request to revoke a device until the CRL that relying parties
// load has its certificate.
func (c *crew) revokes(ctx context.Context, name string, devices []*enrollee) (sample, error) {
	client := &http.Client{Timeout: opTimeout}
	defer client.CloseIdleConnections()
	var took []time.Duration
	for _, d := range devices {
		begin := now()
		if _, err := c.server.admin.Revoke(ctx, d.id, api.Revoke{Reason: "keyCompromise"}); err != nil {
			return sample{}, err
		}
		for listed := false; !listed; {
			if time.Since(begin) > opTimeout {
				return sample{}, fmt.Errorf("the CRL does not have the certificate of %s after %v", d.id, opTimeout)
			}
			var err error
			if listed, err = isListed(ctx, client, d.cert); err != nil {
				return sample{}, err
			}
			if err := pause(ctx, crlEvery); err != nil {
				return sample{}, err
			}
		}
		took = append(took, time.Since(begin)-crlEvery)
	}
	return alone(name, took), nil
}

// isListed reports whether the CRL has a certificate. It looks for the octets of the serial,
// which are random, as parsing a million entries takes longer than what is measured.
func isListed(ctx context.Context, client *http.Client, cert *x509.Certificate) (listed bool, err error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, cert.CRLDistributionPoints[0], nil) //nolint:gosec // our own server wrote it
	if err != nil {
		return false, err
	}
	res, err := client.Do(req) //nolint:gosec // as above
	if err != nil {
		return false, err
	}
	defer func() { err = errors.Join(err, res.Body.Close()) }()
	text, err := io.ReadAll(io.LimitReader(res.Body, maxCRL))
	if err == nil && res.StatusCode != http.StatusOK {
		err = fmt.Errorf("the server answered %s for the CRL", res.Status)
	}
	return bytes.Contains(text, cert.SerialNumber.Bytes()), err
}

// list is a page that operators read.
type list struct {
	name string
	what string
	read func(context.Context, *sdk.Admin) error
}

// fullLists are the lists with each of their filters: a common value and a rare one.
func fullLists() []list {
	devices := func(f api.DeviceFilter) func(context.Context, *sdk.Admin) error {
		return func(ctx context.Context, a *sdk.Admin) error { return firstPage(a.Devices(ctx, f)) }
	}
	certs := func(f func() api.CertificateFilter) func(context.Context, *sdk.Admin) error {
		return func(ctx context.Context, a *sdk.Admin) error { return firstPage(a.Certificates(ctx, f())) }
	}
	events := func(f api.EventFilter, o api.Order) func(context.Context, *sdk.Admin) error {
		return func(ctx context.Context, a *sdk.Admin) error { return firstPage(a.Events(ctx, f, o)) }
	}
	state := func(s string) func() api.CertificateFilter {
		return func() api.CertificateFilter { return api.CertificateFilter{State: s} }
	}
	return []list{
		{"devices", "devices", devices(api.DeviceFilter{})},
		{"devices_active", "devices, state active", devices(api.DeviceFilter{State: "active"})},
		{"devices_retired", "devices, state retired: none", devices(api.DeviceFilter{State: "retired"})},
		{"devices_fleet", "devices of another fleet: none", devices(api.DeviceFilter{Fleet: loadFleet})},
		{"certificates", "certificates", certs(state(""))},
		{"certificates_active", "certificates, state active", certs(state("active"))},
		{"certificates_held", "certificates, state held: none", certs(state("held"))},
		{"certificates_revoked", "certificates, state revoked", certs(state("revoked"))},
		{"certificates_expiring", "certificates, active and expiring within 72 hours", certs(func() api.CertificateFilter {
			return api.CertificateFilter{State: "active", ExpiresBefore: now().Add(72 * time.Hour)}
		})},
		{"certificates_device", "certificates of a device", certs(func() api.CertificateFilter { return api.CertificateFilter{Device: filledName(0)} })},
		{"events", "events, newest first", events(api.EventFilter{}, api.Order{Order: "desc"})},
		{"events_device", "events of a device", events(api.EventFilter{Device: filledName(0)}, api.Order{})},
		{"events_rare", "events of a type that is rare", events(api.EventFilter{Type: "fleet.created"}, api.Order{})},
		{"events_recent", "events of the last minute", func(ctx context.Context, a *sdk.Admin) error {
			return firstPage(a.Events(ctx, api.EventFilter{Since: now().Add(-time.Minute)}, api.Order{}))
		}},
	}
}

// firstPage reads the first page of a list.
func firstPage[T any](all iter.Seq2[T, error]) error {
	for _, err := range all {
		return err
	}
	return nil
}

// filled is a server with a filled database.
type filled struct {
	crew
	database *database // nil: SQLite
}

// start starts the server; the CPU of its database counts.
func (f *filled) start(ctx context.Context) error {
	err := f.server.start(ctx)
	if err == nil && f.database != nil {
		f.server.beside = f.database.process
	}
	return err
}

// end stops what runs.
func (f *filled) end() error {
	var errs []error
	if f.server.process != nil {
		errs = append(errs, f.server.stop())
	}
	if f.database != nil {
		errs = append(errs, f.database.stop())
	}
	return errors.Join(errs...)
}

// open opens the database of the server, which does not run.
func (f *filled) open(ctx context.Context) (*store.DB, error) {
	address := "sqlite:" + filepath.Join(f.server.data, "countersign.db")
	if f.database != nil {
		address = f.database.url
	}
	return store.Open(ctx, store.Options{URL: address, Now: now, Existing: true})
}

// fillDatabase makes the server that is measured by it, and its database.
func (b *bench) fillDatabase(ctx context.Context, on fullOn) (_ *filled, err error) {
	size := b.opts.size.fill
	if err := size.check(); err != nil {
		return nil, err
	}
	f := &filled{}
	f.server = &server{program: b.server.program, data: filepath.Join(b.dir, "f"+strconv.Itoa(len(b.filled))), quiet: b.opts.size.quiet}
	if on.postgres {
		if f.database, err = startPostgres(ctx, b.opts.size.quiet); err != nil {
			return nil, err
		}
		f.server.database = f.database.url
	}
	b.filled[on.prefix] = f
	if err := f.start(ctx); err != nil {
		return nil, err
	}
	first, err := f.firstDevice(ctx, b.limitCA)
	if err := errors.Join(err, f.server.stop()); err != nil {
		return nil, err
	}
	begin := now()
	db, err := f.open(ctx)
	if err != nil {
		return nil, err
	}
	if err := errors.Join(fill(ctx, db, size, first.id), db.Close()); err != nil {
		return nil, err
	}
	b.report.note("the %s has %d devices, %d certificates, %d of them revoked, and %d events; it took %v to fill",
		on.what, size.devices, size.certificates, size.revoked, size.events, time.Since(begin).Round(time.Second))
	if f.database == nil {
		return f, nil
	}
	return f, f.database.analyze(ctx)
}

// firstDevice enrolls a device and connects it.
func (c *crew) firstDevice(ctx context.Context, peers *limitCA) (*enrollee, error) {
	if err := c.meet(ctx, peers.root); err != nil {
		return nil, err
	}
	devices, err := c.connected(ctx, 1)
	if err != nil {
		return nil, err
	}
	return devices[0], nil
}
