package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"
)

const (
	// clockTick is the unit of CPU times in /proc on every Linux platform (USER_HZ).
	clockTick = 10 * time.Millisecond
	// idleFor is for how long a process must use no CPU before it counts as idle.
	idleFor = 200 * time.Millisecond
	// idleMost is how many times as long is waited for that: background work may never end.
	idleMost = 15
	// settleMost is how long is waited for what a start leaves to be done.
	settleMost = 2 * time.Minute
	// stopTimeout is how long a process has to end before it is killed.
	stopTimeout = 10 * time.Second
)

// process is a server under test, as the kernel sees it.
type process struct {
	cmd    *exec.Cmd
	stderr *bytes.Buffer // read once the process has ended
	done   chan struct{} // closed when it has
	err    error         // how it ended; valid after done
	quiet  time.Duration // for how long it must use no CPU to count as idle
	beside *process      // whose CPU, with that of its children, counts too; nil: none
}

// start runs a program in a process group of its own, so that an interrupt
// reaches it through us.
func start(cmd *exec.Cmd, quiet time.Duration) (*process, error) {
	p := &process{cmd: cmd, stderr: &bytes.Buffer{}, done: make(chan struct{}), quiet: quiet}
	cmd.Stderr = p.stderr
	if cmd.SysProcAttr == nil {
		cmd.SysProcAttr = &syscall.SysProcAttr{}
	}
	cmd.SysProcAttr.Setpgid = true
	if err := cmd.Start(); err != nil {
		return nil, fmt.Errorf("couldn't start %s: %w", cmd.Path, err)
	}
	go func() {
		defer close(p.done)
		p.err = cmd.Wait()
	}()
	return p, nil
}

// peerServes is how long a peer may take until it accepts connections, on a busy machine.
const peerServes = time.Minute

// serve starts a peer and returns when it accepts connections at addr. The peer is not
// ended by ctx: stop does that in order.
func serve(ctx context.Context, addr string, quiet time.Duration, program string, args ...string) (*process, error) {
	p, err := start(exec.CommandContext(context.WithoutCancel(ctx), program, args...), quiet) //nolint:gosec // installed, or built from the pinned source
	if err != nil {
		return nil, err
	}
	err = p.serves(ctx, func(context.Context) bool {
		c, err := net.DialTimeout("tcp", addr, time.Second)
		return err == nil && c.Close() == nil
	})
	if err != nil {
		return nil, err
	}
	return p, nil
}

// serves waits until ready reports that a peer serves, and stops it where it does not.
func (p *process) serves(ctx context.Context, ready func(ctx context.Context) bool) error {
	ctx, stop := context.WithTimeout(ctx, peerServes)
	defer stop()
	if err := p.await(ctx, func() bool { return ready(ctx) }); err != nil {
		return errors.Join(fmt.Errorf("%s does not serve: %w", filepath.Base(p.cmd.Path), err), p.stop())
	}
	return nil
}

// ended is the error of a process that is not there any more.
func (p *process) ended() error {
	return fmt.Errorf("%s ended (%w): %s", filepath.Base(p.cmd.Path), p.err, strings.TrimSpace(p.stderr.String()))
}

// await polls until ready reports that the process serves.
func (p *process) await(ctx context.Context, ready func() bool) error {
	for !ready() {
		select {
		case <-p.done:
			return p.ended()
		default:
		}
		if err := pause(ctx, 20*time.Millisecond); err != nil {
			return err
		}
	}
	return nil
}

func (p *process) stop() error {
	if err := p.cmd.Process.Signal(syscall.SIGTERM); err != nil && !errors.Is(err, os.ErrProcessDone) {
		return err
	}
	select {
	case <-p.done:
		return nil
	case <-time.After(stopTimeout):
		return errors.Join(fmt.Errorf("%s did not stop", p.cmd.Path), p.cmd.Process.Kill())
	}
}

func (p *process) proc(name string) (string, error) {
	b, err := os.ReadFile(filepath.Join("/proc", strconv.Itoa(p.cmd.Process.Pid), name)) //nolint:gosec // about our own child
	if err != nil {
		return "", fmt.Errorf("couldn't look at %s: %w", p.cmd.Path, err)
	}
	return string(b), nil
}

// cpu is the time that the process has run on any core, in user and kernel mode, and the
// one beside it.
func (p *process) cpu() (time.Duration, error) {
	stat, err := p.proc("stat")
	if err != nil {
		return 0, err
	}
	own, _, err := parseStat(stat)
	if err != nil || p.beside == nil {
		return own, err
	}
	theirs, err := p.beside.family()
	return own + theirs, err
}

// family is the time of the process, its children and those that have ended: PostgreSQL has
// a process for each connection.
func (p *process) family() (time.Duration, error) {
	pid := strconv.Itoa(p.cmd.Process.Pid)
	children, err := p.proc(filepath.Join("task", pid, "children"))
	if err != nil {
		return 0, err
	}
	var sum time.Duration
	for child := range strings.FieldsSeq(children) {
		stat, err := os.ReadFile(filepath.Join("/proc", child, "stat")) //nolint:gosec // a child of our child
		if err != nil {
			continue // it has ended, and counts below
		}
		own, _, err := parseStat(string(stat))
		if err != nil {
			return 0, err
		}
		sum += own
	}
	stat, err := p.proc("stat")
	if err != nil {
		return 0, err
	}
	own, ended, err := parseStat(stat)
	return sum + own + ended, err
}

// rss is the resident memory in bytes.
func (p *process) rss() (int64, error) {
	status, err := p.proc("status")
	if err != nil {
		return 0, err
	}
	return parseMemory(status, "VmRSS")
}

// forgetPeak has the kernel count the peak of resident memory anew.
func (p *process) forgetPeak() error {
	file := filepath.Join("/proc", strconv.Itoa(p.cmd.Process.Pid), "clear_refs")
	return os.WriteFile(file, []byte("5"), 0o600) // 5: the peak (proc(5))
}

// peak is the most resident memory since the start or forgetPeak, in bytes.
func (p *process) peak() (int64, error) {
	status, err := p.proc("status")
	if err != nil {
		return 0, err
	}
	return parseMemory(status, "VmHWM")
}

// rested is the resident memory once the process had time to return some.
func (p *process) rested(ctx context.Context, rest time.Duration) (int64, error) {
	if err := pause(ctx, rest); err != nil {
		return 0, err
	}
	return p.rss()
}

// idle waits until the process has done what was left to do after its answers,
// so that it counts for the operations that caused it, and returns its CPU time.
func (p *process) idle(ctx context.Context) (time.Duration, error) {
	last, err := p.cpu()
	if err != nil {
		return 0, err
	}
	since, begin := now(), now()
	for time.Since(since) < p.quiet && time.Since(begin) < idleMost*p.quiet {
		if err := pause(ctx, clockTick); err != nil {
			return 0, err
		}
		used, err := p.cpu()
		if err != nil {
			return 0, err
		}
		if used != last {
			last, since = used, now()
		}
	}
	return last, nil
}

// settle waits until the process is idle after its start, at most settleMost.
func (p *process) settle(ctx context.Context) error {
	begin := now()
	for time.Since(begin) < settleMost {
		before := now()
		if _, err := p.idle(ctx); err != nil || time.Since(before) < idleMost*p.quiet {
			return err
		}
	}
	return nil
}

// around reads the CPU of the process around ops operations. work does them, and
// returns how long each took where that is measured.
func (p *process) around(ctx context.Context, name string, ops int, work func() ([]time.Duration, error)) (sample, error) {
	before, err := p.idle(ctx)
	if err != nil {
		return sample{}, err
	}
	begin := now()
	took, err := work()
	wall := time.Since(begin)
	if err != nil {
		return sample{}, fmt.Errorf("%s: %w", name, err)
	}
	after, err := p.idle(ctx)
	s := timed(name, took)
	s.ops, s.wall, s.cpu = ops, wall, after-before
	return s, err
}

// load drives the process and reads its CPU around it.
func (p *process) load(ctx context.Context, name string, workers, n int, op operation) (sample, error) {
	all := make([]asked, n)
	s, err := p.around(ctx, name, n, func() ([]time.Duration, error) {
		begin := now()
		took, err := drive(ctx, workers, n, func(ctx context.Context, worker, i int) error {
			all[i].At = time.Since(begin)
			return op(ctx, worker, i)
		})
		for i, t := range took {
			all[i].Took = t
		}
		return took, err
	})
	s.second = worstSecond(all)
	return s, err
}

// parseStat reads utime and stime, and cutime and cstime of children that have ended, fields
// 14 to 17 of /proc/PID/stat (proc(5)). The second field is the program's name in parentheses
// and may hold anything.
func parseStat(stat string) (own, children time.Duration, err error) {
	end := strings.LastIndexByte(stat, ')')
	fields := strings.Fields(stat[end+1:])
	if end < 0 || len(fields) < 15 {
		return 0, 0, fmt.Errorf("couldn't read /proc/PID/stat: %.100q", stat)
	}
	var ticks [4]int64
	for i, f := range fields[11:15] { // counted from field 3
		if ticks[i], err = strconv.ParseInt(f, 10, 64); err != nil {
			return 0, 0, fmt.Errorf("couldn't read /proc/PID/stat: %w", err)
		}
	}
	return time.Duration(ticks[0]+ticks[1]) * clockTick, time.Duration(ticks[2]+ticks[3]) * clockTick, nil
}

// parseMemory reads a line, in kB, of /proc/PID/status.
func parseMemory(status, name string) (int64, error) {
	for line := range strings.Lines(status) {
		if rest, ok := strings.CutPrefix(line, name+":"); ok {
			kb, err := strconv.ParseInt(strings.TrimSpace(strings.TrimSuffix(strings.TrimSpace(rest), "kB")), 10, 64)
			if err != nil {
				return 0, fmt.Errorf("couldn't read %s: %w", name, err)
			}
			return kb << 10, nil
		}
	}
	return 0, fmt.Errorf("couldn't find %s in /proc/PID/status", name)
}

// ownCPU is the time that this process has run, for limits measured within it.
func ownCPU() (time.Duration, error) {
	var u syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &u); err != nil {
		return 0, fmt.Errorf("couldn't read the own CPU time: %w", err)
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano()), nil
}
