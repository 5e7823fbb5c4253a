// Command countersign is the identity authority and its command line: it runs the
// server (dev, server run) and administers it over the Unix socket in the data
// folder. Data goes to standard output, all else to standard error. "countersign
// help exit-codes" and "countersign help environment" are the rest of the contract.
package main

import (
	"os"
	"time"

	"github.com/countersign-iot/countersign/cmd/countersign/command"
)

func main() {
	env := command.Env{
		In:     os.Stdin,
		Out:    os.Stdout,
		Err:    os.Stderr,
		Getenv: os.Getenv,
		Now:    time.Now, //nolint:forbidigo // the program's own clock starts here
	}
	os.Exit(env.Run(os.Args[1:]))
}
