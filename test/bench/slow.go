package main

import (
	"context"
	"fmt"
	"os/exec"
	"path/filepath"
	"time"
)

const (
	// slowPrefix is that of the names of what is measured on a slow disk.
	slowPrefix = "slow_"
	// slowBy is how much longer each sync takes there: a plain SSD's.
	slowBy = 5 * time.Millisecond
)

// slowly returns the start of a command that runs a program with slow syncs: strace stops it at
// those system calls alone (--seccomp-bpf) and stays in the background (-D), so that the
// program is our child. The server is a static program, into which nothing can be loaded.
func slowly() []string {
	return []string{
		"strace", "-D", "-f", "--seccomp-bpf", "-qq", "-o", "/dev/null", "-e", "trace=fsync,fdatasync",
		"-e", fmt.Sprintf("inject=fsync,fdatasync:delay_exit=%d", slowBy.Microseconds()),
	}
}

// hasStrace reports whether the program is installed.
func hasStrace() bool {
	_, err := exec.LookPath("strace")
	return err == nil
}

// slow measures enrollment where each sync takes 5 ms longer, in turn with our server as
// it is: what group commit leaves of the rate.
func (b *bench) slow(ctx context.Context) error {
	if !hasStrace() {
		b.report.note("strace is not installed: a slow disk was not measured")
		return nil
	}
	if b.slowed == nil {
		c := &crew{server: &server{program: b.server.program, data: filepath.Join(b.dir, "s"), quiet: b.opts.size.quiet, under: slowly()}}
		b.slowed = c
		if err := c.server.start(ctx); err != nil {
			return err
		}
		if err := c.meet(ctx, b.limitCA.root); err != nil {
			return err
		}
	}
	for _, a := range ordered(b.round, []authority{b.authority("fast_", b.token), b.slowed.authority(slowPrefix, b.slowed.token)}) {
		if _, err := b.enrollAt(ctx, &a, enrollment{"enroll_64", manyKept}); err != nil {
			return err
		}
	}
	return nil
}
