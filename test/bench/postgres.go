package main

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/url"
	"os"
	"os/exec"
	"os/user"
	"path/filepath"
	"strconv"
	"syscall"
	"time"

	"github.com/jackc/pgx/v5"
)

const (
	// postgresPrefix is that of the names of what is measured on PostgreSQL.
	postgresPrefix = "postgres_"
	// postgresServes is how long PostgreSQL may take to start on a busy machine.
	postgresServes = time.Minute
)

// database is a PostgreSQL of one server that is measured, so that what it uses is counted
// for that server.
type database struct {
	*process
	dir string
	url string
}

// postgresPrograms is the folder of the newest installed version; empty if there is none.
func postgresPrograms() string {
	found, err := filepath.Glob("/usr/lib/postgresql/*/bin/initdb")
	if err != nil {
		return ""
	}
	best, version := "", 0
	for _, path := range found {
		bin := filepath.Dir(path)
		if v, err := strconv.Atoi(filepath.Base(filepath.Dir(bin))); err == nil && v > version {
			best, version = bin, v
		}
	}
	return best
}

// startPostgres makes and starts one, with the defaults but for memory and the size of its
// log, which would have it write checkpoints all the time.
func startPostgres(ctx context.Context, quiet time.Duration) (_ *database, err error) {
	bin := postgresPrograms()
	d := &database{}
	if d.dir, err = os.MkdirTemp("", "csbenchpg"); err != nil { // not in ours, which its user may not enter
		return nil, err
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, os.RemoveAll(d.dir))
		}
	}()
	as, err := postgresUser(d.dir)
	if err != nil {
		return nil, err
	}
	data := filepath.Join(d.dir, "data")
	found := exec.CommandContext(ctx, filepath.Join(bin, "initdb"), "-D", data, "-U", "postgres", "-A", "trust", "-E", "UTF8", "--locale=C") //nolint:gosec // the installed program
	found.Dir, found.SysProcAttr = d.dir, &syscall.SysProcAttr{Credential: as}
	if text, err := found.CombinedOutput(); err != nil {
		return nil, fmt.Errorf("initdb: %w: %s", err, text)
	}
	addr, err := freeAddr()
	if err != nil {
		return nil, err
	}
	host, port, err := net.SplitHostPort(addr)
	if err != nil {
		return nil, err
	}
	d.url = (&url.URL{Scheme: "postgres", User: url.User("postgres"), Host: addr, Path: "/postgres", RawQuery: "sslmode=disable"}).String()
	serve := exec.CommandContext(context.WithoutCancel(ctx), filepath.Join(bin, "postgres"), "-D", data, "-p", port, "-k", d.dir, //nolint:gosec // as above
		"-c", "listen_addresses="+host, "-c", "shared_buffers=512MB", "-c", "max_wal_size=4GB")
	serve.Dir, serve.SysProcAttr = d.dir, &syscall.SysProcAttr{Credential: as}
	if d.process, err = start(serve, quiet); err != nil {
		return nil, err
	}
	ctx, stop := context.WithTimeout(ctx, postgresServes)
	defer stop()
	if err := d.await(ctx, func() bool { return d.answers(ctx) }); err != nil {
		return nil, errors.Join(fmt.Errorf("PostgreSQL does not serve: %w", err), d.process.stop())
	}
	return d, nil
}

func (d *database) answers(ctx context.Context) bool {
	conn, err := pgx.Connect(ctx, d.url)
	return err == nil && conn.Close(ctx) == nil
}

// analyze does after a fill what the database does by itself within minutes, so that it does
// not do it while something is measured.
func (d *database) analyze(ctx context.Context) error {
	conn, err := pgx.Connect(ctx, d.url)
	if err != nil {
		return err
	}
	_, err = conn.Exec(ctx, "VACUUM ANALYZE")
	return errors.Join(err, conn.Close(ctx))
}

// stop ends it and removes its folder. Its clients have ended before.
func (d *database) stop() error { return errors.Join(d.process.stop(), os.RemoveAll(d.dir)) } //nolint:gosec // made above

// postgresUser makes the user that runs PostgreSQL, which refuses root, the owner of dir. Nil
// is this process's own.
func postgresUser(dir string) (*syscall.Credential, error) {
	if os.Getuid() != 0 {
		return nil, nil
	}
	u, err := user.Lookup("postgres")
	if err != nil {
		return nil, err
	}
	uid, uidErr := strconv.ParseUint(u.Uid, 10, 32)
	gid, gidErr := strconv.ParseUint(u.Gid, 10, 32)
	if err := errors.Join(uidErr, gidErr); err != nil {
		return nil, err
	}
	return &syscall.Credential{Uid: uint32(uid), Gid: uint32(gid)}, os.Chown(dir, int(uid), int(gid))
}

// onPostgres is our server and step-ca, each on a PostgreSQL of its own.
type onPostgres struct {
	ours      *crew
	stepCA    *stepCA // nil: it could not be built
	databases []*database
}

// servePostgres starts our server and step-ca on PostgreSQL if they do not run yet. It
// reports false where PostgreSQL is not installed.
func (b *bench) servePostgres(ctx context.Context) (ok bool, err error) {
	if postgresPrograms() == "" {
		b.report.note("PostgreSQL is not installed and was not measured")
		return false, nil
	}
	if b.onPostgres == nil {
		b.onPostgres = &onPostgres{}
		err = b.onPostgres.start(ctx, b)
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
