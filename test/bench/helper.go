package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"time"
)

// part is what this program does as a process of its own: it reads its task, and ends when
// that is done or standard input ends, since its parent is gone then or has enough.
type part func(ctx context.Context, in io.Reader, out io.Writer) error

// play makes a part of a function of a task, which writes what its parent reads.
func play[T any](do func(ctx context.Context, task T, out *json.Encoder) error) part {
	return func(ctx context.Context, in io.Reader, out io.Writer) error {
		decoder := json.NewDecoder(in)
		var task T
		if err := decoder.Decode(&task); err != nil {
			return err
		}
		ctx, stop := context.WithCancel(ctx)
		defer stop()
		go func() {
			defer stop()
			_, _ = io.Copy(io.Discard, in) // its end is what we wait for, however it comes
		}()
		return do(ctx, task, json.NewEncoder(out))
	}
}

// helper is this program in one of its parts.
type helper struct {
	*process
	in  io.Closer
	out *os.File // a pipe of ours: that of os/exec is closed when the process ends, read or not
}

// startHelper runs this program in the part that command names.
func startHelper(ctx context.Context, command string, quiet time.Duration, task any) (*helper, error) {
	self, err := os.Executable()
	if err != nil {
		return nil, err
	}
	cmd := exec.CommandContext(ctx, self, command) //nolint:gosec // this very program
	in, err := cmd.StdinPipe()
	if err != nil {
		return nil, err
	}
	out, theirs, err := os.Pipe()
	if err != nil {
		return nil, err
	}
	cmd.Stdout = theirs
	p, err := start(cmd, quiet)
	if err := errors.Join(err, theirs.Close()); err != nil {
		return nil, errors.Join(err, out.Close())
	}
	return &helper{p, in, out}, json.NewEncoder(in).Encode(task)
}

// finish reads the helper's last answer and waits for its end.
func (h *helper) finish(answer any) error {
	err := errors.Join(json.NewDecoder(h.out).Decode(answer), h.out.Close())
	<-h.done
	if err != nil {
		return fmt.Errorf("%w: %w", err, h.ended())
	}
	return h.err
}
