package main

import (
	"context"
	"errors"
	"fmt"
	"net"
	"slices"
	"time"

	"github.com/countersign-iot/countersign/api"
	"github.com/countersign-iot/countersign/simulate/device"
)

// pingEvery is how often the bystander of cuts asks for a sign of life.
const pingEvery = 2 * time.Millisecond

// sessions measures how fast live sessions end when their device is revoked.
func (b *bench) sessions(ctx context.Context) (samples []sample, err error) {
	devices, err := b.connected(ctx, b.opts.size.sessions)
	if err != nil {
		return nil, err
	}
	if err := b.restart(ctx); err != nil {
		return nil, err
	}
	live, err := b.hold(ctx, hostOf(b.endpoints.MQTT), devices)
	defer func() {
		for _, c := range live {
			_ = c.Close() // some are cut
		}
	}()
	if err != nil {
		return nil, err
	}
	samples, err = b.cut(ctx, devices, live)
	revoked := devices[:b.opts.size.cuts]
	b.active = b.active[len(revoked):]
	b.all = slices.DeleteFunc(b.all, func(d *enrollee) bool { return slices.Contains(revoked, d) })
	return samples, err
}

// hold opens a session for each device. What it returns with an error is open too.
func (b *bench) hold(ctx context.Context, addr string, devices []*enrollee) ([]net.Conn, error) {
	live := make([]net.Conn, len(devices))
	_, _, err := drive(ctx, connectWorkers, len(devices), func(ctx context.Context, _, i int) error {
		c, err := b.connect(ctx, addr, devices[i])
		if err != nil {
			return err
		}
		live[i] = c
		return c.SetDeadline(time.Time{})
	})
	return slices.DeleteFunc(live, func(c net.Conn) bool { return c == nil }), err
}

// rested is the resident memory once the process had time to give some back.
func (p *process) rested(ctx context.Context, rest time.Duration) (int64, error) {
	select {
	case <-ctx.Done():
		return 0, ctx.Err()
	case <-time.After(rest):
	}
	return p.rss()
}

// cut revokes devices one after the other, each with a live session. The end is
// when the device's socket says so: a read of what the server no longer sends.
// Two beginnings count: before the request is sent, which is what an operator
// waits for, and the server's answer, after which nobody may still rely on the
// session; an end before the answer counts as 0. Meanwhile the last session pings.
func (b *bench) cut(ctx context.Context, devices []*enrollee, live []net.Conn) ([]sample, error) {
	n := b.opts.size.cuts
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	bystander := make(chan []time.Duration, 1)
	go func() { bystander <- pings(ctx, live[len(live)-1]) }()
	var fromRequest, fromAnswer, answers []time.Duration
	for i := range n {
		gone := make(chan time.Time, 1)
		go func() {
			_, _ = live[i].Read(make([]byte, 1)) // its end is what we wait for
			gone <- now()
		}()
		asked := now()
		if _, err := b.admin.Revoke(ctx, devices[i].id, api.Revoke{Reason: "keyCompromise"}); err != nil {
			return nil, fmt.Errorf("revoke %s: %w", devices[i].id, err)
		}
		answered := now()
		select {
		case at := <-gone:
			fromRequest = append(fromRequest, at.Sub(asked))
			fromAnswer = append(fromAnswer, max(at.Sub(answered), 0))
			answers = append(answers, answered.Sub(asked))
		case <-time.After(opTimeout):
			return nil, fmt.Errorf("the session of %s was not cut", devices[i].id)
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	}
	cancel()
	of := func(name string, took []time.Duration) sample {
		slices.Sort(took)
		return sample{name: name, ops: len(took), alone: true, p50: percentile(took, 50), p99: percentile(took, 99), worst: percentile(took, 100)}
	}
	return []sample{
		of("revoke_answer", answers), of("revoke_request_to_cut", fromRequest), of("revoke_answer_to_cut", fromAnswer),
		of("bystander_ping", <-bystander),
	}, nil
}

// pings asks until ctx ends and gives the times of the answers.
func pings(ctx context.Context, c net.Conn) []time.Duration {
	var took []time.Duration
	for {
		select {
		case <-ctx.Done():
			return took
		case <-time.After(pingEvery):
		}
		t := now()
		if err := errors.Join(c.SetDeadline(t.Add(opTimeout)), device.Ping(c)); err != nil {
			return append(took, opTimeout) // a broken session shows as the worst there is
		}
		took = append(took, time.Since(t))
	}
}
