package main

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/countersign-iot/countersign/api"
	"github.com/countersign-iot/countersign/simulate/device"
)

// pingEvery is how often the bystander of cuts asks for a sign of life.
const pingEvery = 2 * time.Millisecond

// sessions measures how fast live sessions end when their device is revoked.
func (b *bench) sessions(ctx context.Context) error {
	devices, err := b.connected(ctx, b.opts.size.sessions)
	if err != nil {
		return err
	}
	if err := b.server.restart(ctx); err != nil {
		return err
	}
	live, err := b.joinAll(ctx, b.mqtt().addr, devices, false)
	defer leaveAll(live) // some are cut
	if err != nil {
		return err
	}
	defer b.lost(devices[:b.opts.size.cuts]...)
	return b.cut(ctx, devices, live)
}

// cut revokes devices one after the other, each with a live session. The end is
// when the device's socket ends: a read of what the server no longer sends.
// Two beginnings count: before the request is sent, which is what an operator
// waits for, and the server's answer, after which no client may still rely on the
// session; an end before the answer counts as 0. Meanwhile the last session pings.
func (b *bench) cut(ctx context.Context, devices []*enrollee, live []*device.Wire) error {
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
		if _, err := b.server.admin.Revoke(ctx, devices[i].id, api.Revoke{Reason: "keyCompromise"}); err != nil {
			return fmt.Errorf("revoke %s: %w", devices[i].id, err)
		}
		answered := now()
		select {
		case at := <-gone:
			fromRequest = append(fromRequest, at.Sub(asked))
			fromAnswer = append(fromAnswer, max(at.Sub(answered), 0))
			answers = append(answers, answered.Sub(asked))
		case <-time.After(opTimeout):
			return fmt.Errorf("the session of %s was not cut", devices[i].id)
		case <-ctx.Done():
			return ctx.Err()
		}
	}
	cancel()
	b.report.add(
		alone("revoke_answer", answers), alone("revoke_request_to_cut", fromRequest), alone("revoke_answer_to_cut", fromAnswer),
		alone("bystander_ping", <-bystander),
	)
	return nil
}

// pings asks until ctx ends and returns the times of the answers.
func pings(ctx context.Context, c *device.Wire) []time.Duration {
	var took []time.Duration
	for pause(ctx, pingEvery) == nil {
		t := now()
		if err := errors.Join(c.SetDeadline(t.Add(opTimeout)), device.Ping(c)); err != nil {
			return append(took, opTimeout) // a broken session shows as the worst there is
		}
		took = append(took, time.Since(t))
	}
	return took
}
