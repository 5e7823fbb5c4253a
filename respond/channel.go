package respond

import (
	"context"
	"fmt"
	"slices"
	"sync"
	"time"

	"github.com/countersign-iot/countersign"
	"github.com/countersign-iot/countersign/api"
	"github.com/countersign-iot/countersign/config"
)

const (
	// maxPerMinute notices go out one by one; those beyond it are gathered for
	// digestAfter into one. An eleventh mail in the same minute is not read.
	maxPerMinute = 10
	digestAfter  = time.Minute
	// failingAfter attempts in a row a channel counts as failing and an event reports it.
	failingAfter = 3
	// via names this package in events.
	via = "respond"
)

// channel is a configured channel with what this node knows of it.
type channel struct {
	config.Channel
	due chan struct{}

	mu        sync.Mutex
	recent    []time.Time // when notices were made, the last maxPerMinute
	failures  int         // attempts in a row
	lastError string
	delivered time.Time
}

// paced records that n notices were made.
func (c *channel) paced(now time.Time, n int) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for range min(n, maxPerMinute) {
		c.recent = append(c.recent, now)
	}
	if over := len(c.recent) - maxPerMinute; over > 0 {
		c.recent = slices.Delete(c.recent, 0, over)
	}
}

// room returns how many more notices may go out one by one now.
func (c *channel) room(now time.Time) int {
	c.mu.Lock()
	defer c.mu.Unlock()
	n := maxPerMinute
	for _, at := range c.recent {
		if now.Sub(at) < time.Minute {
			n--
		}
	}
	return n
}

// wants reports whether the channel is notified of an alert.
func (c *channel) wants(a *Alert, acts []countersign.Mitigation) bool {
	if len(c.Fleets) > 0 && !slices.Contains(c.Fleets, a.Fleet) {
		return false
	}
	return slices.Contains(acts, countersign.Mitigation(c.Kind)) ||
		c.Severity != "" && a.Severity.Rank() >= countersign.Severity(c.Severity).Rank()
}

// send makes one attempt to deliver a notice; host names this server.
func (c *channel) send(ctx context.Context, host string, now time.Time, n api.Notice) error {
	ctx, cancel := context.WithTimeout(ctx, sendTime)
	defer cancel()
	switch c.Kind {
	case config.ChannelWebhook:
		return sendWebhook(ctx, c.Channel, now, n)
	case config.ChannelMail:
		return sendMail(ctx, c.Channel, host, n)
	case config.ChannelSyslog:
		return sendSyslog(ctx, c.Channel, host, n)
	}
	return fmt.Errorf("there is no kind of channel %q", c.Kind)
}

// note records how an attempt ended and returns the event that is due: the channel
// began to fail, or works again.
func (c *channel) note(now time.Time, failure error) countersign.EventType {
	c.mu.Lock()
	defer c.mu.Unlock()
	if failure == nil {
		was := c.failures >= failingAfter
		c.failures, c.lastError, c.delivered = 0, "", now
		if was {
			return countersign.MitigationDone
		}
		return ""
	}
	c.failures++
	c.lastError = clip(failure.Error())
	if c.failures == failingAfter {
		return countersign.MitigationFailed
	}
	return ""
}

// state shows the channel with the number of notices that wait for it.
func (c *channel) state(waiting int64) api.Channel {
	c.mu.Lock()
	defer c.mu.Unlock()
	return api.Channel{
		Name: c.Name, Kind: c.Kind, Severity: c.Severity, Fleets: c.Fleets, Waiting: waiting,
		Failing: c.failures >= failingAfter, Error: c.lastError, Delivered: c.delivered,
	}
}

func (c *channel) event(kind countersign.EventType, failure error) countersign.Event {
	e := countersign.Event{
		Type: kind, Actor: countersign.System, Via: via, Reason: "the channel works again",
		Data: map[string]string{"act": c.Kind, "channel": c.Name},
	}
	if failure != nil {
		e.Reason = "notifications are not delivered: " + failure.Error()
	}
	return e
}
