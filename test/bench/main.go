// Command bench measures the authority beside the limits of the machine it runs
// on, in one run: how much of what the hardware and Go's cryptography can do is
// left once requests are authenticated, written down durably and answered. It
// builds the released program, runs it as a process of its own and drives it over
// loopback as devices and relying parties do.
//
// Load generator and server share the machine, so what counts is the server's CPU
// time for an operation and its ratio to a limit measured in the same run. It reports
// how slow something is in its output and never by its exit status.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/signal"
	"slices"
	"strings"
	"syscall"
)

const (
	// defaultRounds is enough for a median, and shows how far runs differ.
	defaultRounds = 3
	maxRounds     = 100
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	err := command(ctx, os.Args[1:], os.Stdout, os.Stderr)
	stop()
	switch {
	case errors.Is(err, flag.ErrHelp):
		os.Exit(2) //nolint:forbidigo // this is main; the rule knows only those under cmd
	case err != nil:
		fmt.Fprintln(os.Stderr, "bench:", err)
		os.Exit(1) //nolint:forbidigo // as above
	}
}

// parts are what this program does beside measuring, each in a process of its own: the
// servers that are its limits, the attacker, and the pair that asks and answers.
func parts() map[string]part {
	return map[string]part{limitsCommand: play(serveLimits), hostileCommand: play(beHostile), askCommand: play(beAsking)}
}

// command runs the benchmark or one of its parts.
func command(ctx context.Context, args []string, out, errOut io.Writer) error {
	if len(args) == 1 && parts()[args[0]] != nil {
		return parts()[args[0]](ctx, os.Stdin, out)
	}
	o, err := parseFlags(args, errOut)
	if err != nil {
		return err
	}
	return run(ctx, o, out)
}

func parseFlags(args []string, errOut io.Writer) (options, error) {
	o := options{size: fullSize(), build: true}
	f := flag.NewFlagSet("bench", flag.ContinueOnError)
	f.SetOutput(errOut)
	quick := f.Bool("quick", false, "small counts: shows that it works, not how fast")
	f.IntVar(&o.rounds, "rounds", 0, "rounds (default 3, or 1 with -quick)")
	f.StringVar(&o.json, "json", "", "write the result to this `file` too")
	f.StringVar(&o.stat, "benchstat", "", "write every round to this `file` in the format of Go's benchmarks")
	f.StringVar(&o.database, "database", "", "`URL` of a PostgreSQL to use instead of SQLite; its CPU is not counted")
	f.StringVar(&o.server, "server", "", "measure this `program` instead of building one from this tree")
	devices := f.Int("devices", -1, "devices of the filled database (default 1,000,000)")
	certificates := f.Int("certificates", -1, "certificates of it (default 1,100,000)")
	revoked := f.Int("revoked", -1, "certificates of it that are revoked (default 100,000)")
	events := f.Int("events", -1, "events of it (default 10,000,000)")
	f.BoolVar(&o.whole, "whole", false, "measure everything: also what else is measured only where it is named")
	f.BoolVar(&o.build, "build", true, "build the peers that were not built before")
	only := f.String("only", "", "comma-separated `names` of what to measure: "+strings.Join(subjectNames(), ","))
	if err := f.Parse(args); err != nil {
		return o, err
	}
	if *quick {
		o.size = quickSize()
	}
	for _, n := range []struct{ given, into *int }{
		{devices, &o.size.fill.devices}, {certificates, &o.size.fill.certificates}, {revoked, &o.size.fill.revoked}, {events, &o.size.fill.events},
	} {
		if *n.given >= 0 {
			*n.into = *n.given
		}
	}
	if err := o.size.fill.check(); err != nil {
		return o, err
	}
	if o.rounds == 0 {
		o.rounds = defaultRounds
		if *quick {
			o.rounds = 1
		}
	}
	if o.rounds < 1 || o.rounds > maxRounds {
		return o, fmt.Errorf("-rounds %d is not between 1 and %d", o.rounds, maxRounds)
	}
	if *only != "" {
		o.only = strings.Split(*only, ",")
	}
	o.only = append(o.only, f.Args()...)
	for _, name := range o.only {
		if !slices.Contains(subjectNames(), name) {
			return o, fmt.Errorf("there is no %q; there are %s", name, strings.Join(subjectNames(), ", "))
		}
	}
	return o, nil
}

// subject is a group of measurements that belong side by side.
type subject struct {
	name    string
	measure func(*bench, context.Context) error
	asked   bool // only where it is named, or with -whole
}

// subjects are measured in this order in each round; the later ones use what the
// earlier ones enrolled.
func subjects() []subject {
	return []subject{
		{name: "limits", measure: (*bench).limits},
		{name: "enroll", measure: (*bench).enroll},
		{name: "connect", measure: (*bench).connectAll},
		{name: "renew", measure: (*bench).renew},
		{name: "ocsp", measure: (*bench).ocsp},
		{name: "sessions", measure: (*bench).sessions},
		{name: "flood", measure: (*bench).flood},
		{name: "memory", measure: (*bench).memory},
		{name: "messages", measure: (*bench).messages},
		{name: "fanout", measure: (*bench).fanout},
		{name: "scale", measure: (*bench).scale, asked: true},
		{name: "full", measure: (*bench).full, asked: true},
		{name: "full-postgres", measure: (*bench).fullPostgres, asked: true},
		{name: "postgres", measure: (*bench).postgres, asked: true},
		{name: "slow", measure: (*bench).slow, asked: true},
	}
}

// measures reports whether a subject is part of this run.
func (o *options) measures(s subject) bool {
	return slices.Contains(o.only, s.name) || len(o.only) == 0 && (o.whole || !s.asked)
}

func subjectNames() []string {
	var names []string
	for _, s := range subjects() {
		names = append(names, s.name)
	}
	return names
}

// run measures everything and writes the report.
func run(ctx context.Context, o options, out io.Writer) error {
	b, err := newBench(ctx, o)
	if err == nil {
		err = b.measure(ctx, out)
	}
	return errors.Join(err, b.close())
}

// measure runs the rounds and writes the report in each form that is wanted.
func (b *bench) measure(ctx context.Context, out io.Writer) error {
	o, r := b.opts, b.report
	for round := range o.rounds {
		b.round = round
		for _, s := range subjects() {
			if !o.measures(s) {
				continue
			}
			_, _ = fmt.Fprintf(out, "round %d of %d: %s\n", round+1, o.rounds, s.name)
			if err := s.measure(b, ctx); err != nil {
				return fmt.Errorf("measure %s: %w", s.name, err)
			}
		}
	}
	r.finish()
	if o.json != "" {
		if err := r.save(o.json); err != nil {
			return err
		}
	}
	if o.stat != "" {
		if err := saveFile(o.stat, r.benchmarks()); err != nil {
			return fmt.Errorf("write the result: %w", err)
		}
	}
	return r.print(out)
}
