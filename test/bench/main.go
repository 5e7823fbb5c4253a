// Command bench measures the authority beside the limits of the machine it runs
// on, in one run: how much of what the hardware and Go's cryptography can do is
// left once requests are authenticated, written down durably and answered. It
// builds the released program, runs it as a process of its own and drives it over
// loopback as devices and relying parties do.
//
// Load generator and server share the machine, so what counts is the server's CPU
// time for an operation and its ratio to a limit measured in the same run. It says
// how slow something is by its output and never by its exit status.
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
	"time"
)

const (
	// defaultRounds gives a median and shows how far runs lie apart.
	defaultRounds = 3
	maxRounds     = 100
)

// options are the flags.
type options struct {
	size     size
	rounds   int
	only     []string // subjects; empty: all
	json     string   // file for the result
	stat     string   // file for the result as benchstat reads it
	database string   // URL of a PostgreSQL; empty: SQLite
	server   string   // the program to measure; empty: this tree's, built as it is released
}

// size is how much is done in a round.
type size struct {
	enroll   int           // enrollments on kept connections
	connect  int           // enrollments, renewals and MQTT connections on new ones
	ocsp     int           // OCSP requests
	sessions int           // live sessions
	cuts     int           // of them revoked
	limit    time.Duration // time for each limit
	rest     time.Duration // for memory to settle
	quiet    time.Duration // for which a process uses no CPU before its CPU time is read
	hostile  int           // connections a second of the attacker
	flood    time.Duration // each phase of the flood
	idle     int           // sessions whose memory is measured
	messages int           // of a stream
	fan      int           // sessions that get one message
	ask      time.Duration // requests and answers, each time
	scale    int           // sessions of subject scale
	commands int           // to some of them
}

// fullSize makes rounds of about a minute, each figure from at least a second of work.
func fullSize() size {
	return size{
		enroll: 3000, connect: 1500, ocsp: 40_000, sessions: 1000, cuts: 200, limit: time.Second, rest: 8 * time.Second, quiet: idleFor, hostile: 1000, flood: 10 * time.Second,
		idle: 5000, messages: 20_000, fan: 10_000, ask: 10 * time.Second, scale: 20_000, commands: 1000,
	}
}

// quickSize only shows that everything works; its figures are too coarse to compare.
func quickSize() size {
	return size{
		enroll: 200, connect: 60, ocsp: 1000, sessions: 60, cuts: 10, limit: 50 * time.Millisecond, rest: 200 * time.Millisecond, quiet: idleFor, hostile: 200, flood: 3 * time.Second,
		idle: 60, messages: 2000, fan: 60, ask: 500 * time.Millisecond, scale: 200, commands: 20,
	}
}

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

// command runs the benchmark or, as a process of its own, the servers that are
// its limits, the attacker, or the pair that asks and answers.
func command(ctx context.Context, args []string, out, errOut io.Writer) error {
	switch {
	case len(args) == 2 && args[0] == limitsCommand:
		return serveLimits(ctx, args[1], out)
	case len(args) == 1 && args[0] == hostileCommand:
		return beHostile(ctx, os.Stdin, out)
	case len(args) == 1 && args[0] == askCommand:
		return beAsking(ctx, os.Stdin, out)
	}
	o, err := parseFlags(args, errOut)
	if err != nil {
		return err
	}
	return run(ctx, o, out)
}

func parseFlags(args []string, errOut io.Writer) (options, error) {
	o := options{size: fullSize()}
	f := flag.NewFlagSet("bench", flag.ContinueOnError)
	f.SetOutput(errOut)
	quick := f.Bool("quick", false, "small counts: shows that it works, not how fast")
	f.IntVar(&o.rounds, "rounds", 0, "rounds (default 3, or 1 with -quick)")
	f.StringVar(&o.json, "json", "", "write the result to this `file` too")
	f.StringVar(&o.stat, "benchstat", "", "write every round to this `file` in the format of Go's benchmarks")
	f.StringVar(&o.database, "database", "", "`URL` of a PostgreSQL to use instead of SQLite; its CPU is not counted")
	f.StringVar(&o.server, "server", "", "measure this `program` instead of building one from this tree")
	only := f.String("only", "", "comma-separated `names` of what to measure: "+strings.Join(subjectNames(), ","))
	if err := f.Parse(args); err != nil {
		return o, err
	}
	if *quick {
		o.size = quickSize()
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

// now reads the clock.
func now() time.Time {
	return time.Now() //nolint:forbidigo // a benchmark measures time and has nobody to hand it one
}
