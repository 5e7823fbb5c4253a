// Command countersign is the identity authority and its command line: it runs the
// server (dev, server run) and administers it over the Unix socket in the data
// folder. Data goes to standard output, all else to standard error. "countersign
// help exit-codes" and "countersign help environment" are the rest of the contract.
package main

import (
	"os"
	"time"
)

func main() { os.Exit(run()) }

// run is main without the exit.
func run() int {
	a := &app{
		in:     os.Stdin,
		out:    os.Stdout,
		errOut: os.Stderr,
		getenv: os.Getenv,
		now:    time.Now, //nolint:forbidigo // the program's own clock starts here
	}
	return a.run(os.Args[1:])
}
