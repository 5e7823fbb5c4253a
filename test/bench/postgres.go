package main

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"time"

	"github.com/countersign-iot/countersign/store/storetest"
)

// postgresPrefix is that of the names of what is measured on PostgreSQL.
const postgresPrefix = "postgres_"

// database is a PostgreSQL of one server that is measured, so that what it uses is counted
// for that server.
type database struct {
	*process
	cluster *storetest.Cluster
	url     string
}

// startPostgres makes and starts one, with the defaults but for memory and the size of its
// log, which would have it write checkpoints all the time. It returns
// [storetest.ErrMissing] where PostgreSQL is not installed.
func startPostgres(ctx context.Context, quiet time.Duration) (_ *database, err error) {
	cluster, err := storetest.Make("-c", "shared_buffers=512MB", "-c", "max_wal_size=4GB")
	if err != nil {
		return nil, err
	}
	d := &database{cluster: cluster, url: cluster.URL()}
	defer func() {
		if err != nil {
			err = errors.Join(err, os.RemoveAll(cluster.Dir()))
		}
	}()
	if d.process, err = start(cluster.Server(), quiet); err != nil {
		return nil, err
	}
	if err := d.serves(ctx, func(ctx context.Context) bool { return cluster.Exec(ctx, "SELECT 1") == nil }); err != nil {
		return nil, err
	}
	return d, nil
}

// analyze does after a fill what the database does by itself within minutes, so that it does
// not do it while something is measured.
func (d *database) analyze(ctx context.Context) error { return d.cluster.Exec(ctx, "VACUUM ANALYZE") }

// stop ends it and removes its folder. Its clients have ended before.
func (d *database) stop() error { return errors.Join(d.process.stop(), os.RemoveAll(d.cluster.Dir())) } //nolint:gosec // Make made it

// onPostgres is our server and step-ca, each on a PostgreSQL of its own.
type onPostgres struct {
	ours      *crew
	stepCA    *stepCA // nil: it could not be built
	databases []*database
}

// servePostgres starts our server and step-ca on PostgreSQL if they do not run yet. It
// reports false where PostgreSQL is not installed.
func (b *bench) servePostgres(ctx context.Context) (ok bool, err error) {
	if b.onPostgres == nil {
		b.onPostgres = &onPostgres{}
		err = b.onPostgres.start(ctx, b)
	}
	if errors.Is(err, storetest.ErrMissing) {
		b.onPostgres = nil
		b.report.note("PostgreSQL is not installed and was not measured")
		return false, nil
	}
	return err == nil, err
}

// postgres measures enrollment with PostgreSQL, whose CPU counts.
func (b *bench) postgres(ctx context.Context) error {
	if ok, err := b.servePostgres(ctx); !ok || err != nil {
		return err
	}
	p := b.onPostgres
	all := []authority{p.ours.authority(postgresPrefix, p.ours.token)}
	if p.stepCA != nil {
		all = append(all, p.stepCA.authority(stepCAPrefix+postgresPrefix, &p.ours.client))
	}
	for _, e := range keptEnrollments() {
		for _, a := range ordered(b.round, all) {
			if _, err := b.enrollAt(ctx, &a, e); err != nil {
				return err
			}
		}
	}
	return nil
}

// start starts everything. What it started before an error is ended by stop.
func (p *onPostgres) start(ctx context.Context, b *bench) error {
	quiet := b.opts.size.quiet
	one, err := p.database(ctx, quiet)
	if err != nil {
		return err
	}
	p.ours = &crew{server: &server{program: b.server.program, data: filepath.Join(b.dir, "p"), database: one.url, quiet: quiet}}
	if err := p.ours.server.start(ctx); err != nil {
		return err
	}
	p.ours.server.beside = one.process
	if err := p.ours.meet(ctx, b.limitCA.root); err != nil {
		return err
	}
	program := b.peerProgram(ctx, stepCASource())
	if program == "" {
		return nil
	}
	other, err := p.database(ctx, quiet)
	if err != nil {
		return err
	}
	db := stepDB{Type: "postgresql", DataSource: other.url, Database: "stepca"}
	setup := stepSetup{program, filepath.Join(b.dir, "stepcapg"), quiet, b.limitCA, db}
	if p.stepCA, err = setup.start(ctx); err != nil {
		return err
	}
	p.stepCA.beside = other.process
	return nil
}

func (p *onPostgres) database(ctx context.Context, quiet time.Duration) (*database, error) {
	d, err := startPostgres(ctx, quiet)
	if err == nil {
		p.databases = append(p.databases, d)
	}
	return d, err
}

// stop ends the servers, then their databases.
func (p *onPostgres) stop() error {
	var errs []error
	if p.ours != nil && p.ours.server.process != nil {
		errs = append(errs, p.ours.server.stop())
	}
	if p.stepCA != nil {
		errs = append(errs, p.stepCA.stop())
	}
	for _, d := range p.databases {
		errs = append(errs, d.stop())
	}
	return errors.Join(errs...)
}
