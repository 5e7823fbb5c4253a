package respond

import (
	"cmp"
	"context"
	"database/sql"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/countersign-iot/countersign"
	"github.com/countersign-iot/countersign/api"
	"github.com/countersign-iot/countersign/config"
	"github.com/countersign-iot/countersign/ra"
	"github.com/countersign-iot/countersign/store"
)

// parcel is a notice on its way.
type parcel struct {
	id       string
	alert    string
	attempts int
	made     time.Time
	notice   api.Notice
}

// deliver sends the notice that is due first; more: there may be another.
func (d *Responder) deliver(ctx context.Context, c *channel) (more bool, err error) {
	p, err := d.claimNotice(ctx, c)
	if err != nil || p == nil {
		return false, err
	}
	err = d.send(ctx, c, p.notice)
	if err != nil && ctx.Err() != nil {
		return false, nil // it waits for the next process
	}
	if err != nil {
		d.RA.Log.WarnContext(ctx, "notification not delivered", "channel", c.Name, "attempts", p.attempts, "error", err)
	}
	return true, d.delivered(ctx, c, p, err)
}

// claimNotice takes the notice of a channel that is due first. A digest stops to gather.
func (d *Responder) claimNotice(ctx context.Context, c *channel) (p *parcel, err error) {
	err = d.RA.DB.Write(store.Emergency(ctx), func(ctx context.Context, tx *store.Tx) error {
		p = nil // the transaction may be tried again
		if err := tx.Lock(ctx, lock); err != nil {
			return err
		}
		now := d.now()
		var q parcel
		var body string
		var made int64
		err := tx.QueryRow(ctx, `SELECT id, alert, body, attempts, made_at FROM notification
			WHERE channel = $1 AND next_at <= $2 ORDER BY next_at, id LIMIT 1`, c.Name, store.Micros(now)).
			Scan(&q.id, &q.alert, &body, &q.attempts, &made)
		if errors.Is(err, sql.ErrNoRows) {
			return nil
		}
		if err != nil {
			return store.Wrap(err)
		}
		if err := json.Unmarshal([]byte(body), &q.notice); err != nil {
			return fmt.Errorf("decode notice: %w", err)
		}
		old := q.id
		if strings.HasPrefix(old, digestID) {
			q.id = newID()
			q.notice.ID = q.id
			text, err := json.Marshal(q.notice)
			if err != nil {
				return fmt.Errorf("encode notice: %w", err)
			}
			body = string(text)
		}
		q.attempts++
		q.made = store.Time(made)
		_, err = tx.Exec(ctx, `UPDATE notification SET id = $2, body = $3, attempts = $4, next_at = $5 WHERE id = $1`,
			old, q.id, body, q.attempts, store.Micros(now.Add(sendTurn)))
		p = &q
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("claim a notification: %w", err)
	}
	return p, nil
}

// send makes one attempt.
func (d *Responder) send(ctx context.Context, c *channel, n api.Notice) error {
	ctx, cancel := context.WithTimeout(ctx, sendTime)
	defer cancel()
	switch c.Kind {
	case config.ChannelWebhook:
		return d.sendWebhook(ctx, c.Channel, n)
	case config.ChannelMail:
		return d.sendMail(ctx, c.Channel, n)
	case config.ChannelSyslog:
		return d.sendSyslog(ctx, c.Channel, n)
	}
	return fmt.Errorf("there is no kind of channel %q", c.Kind)
}

// delivered records how an attempt ended.
func (d *Responder) delivered(ctx context.Context, c *channel, p *parcel, failure error) error {
	// Not ctx: what was sent must not be sent again because the server is being stopped.
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), writeTime)
	defer cancel()
	turned := c.note(d.now(), failure)
	var gone bool
	err := d.RA.DB.Write(store.Emergency(ctx), func(ctx context.Context, tx *store.Tx) error {
		now := d.now()
		if err := tx.Lock(ctx, lock); err != nil {
			return err
		}
		gone = failure == nil || now.Sub(p.made) > maxAge
		if !gone {
			wait := min(firstPause<<min(p.attempts, 20), longestPause)
			if _, err := tx.Exec(ctx, `UPDATE notification SET next_at = $2, error = $3 WHERE id = $1`,
				p.id, store.Micros(now.Add(wait)), clip(failure.Error())); err != nil {
				return err
			}
		} else if _, err := tx.Exec(ctx, `DELETE FROM notification WHERE id = $1`, p.id); err != nil {
			return err
		}
		if gone && p.alert != "" {
			if err := d.tellTimeline(ctx, tx, c, p.alert, failure); err != nil {
				return err
			}
		}
		if turned == "" && (failure == nil || !gone) {
			return nil
		}
		return d.RA.Events.Append(ctx, tx, c.event(cmp.Or(turned, countersign.MitigationFailed), failure))
	})
	if err != nil {
		return fmt.Errorf("record a delivery: %w", err)
	}
	result := Done
	if failure != nil {
		result = Failed
	}
	d.observe(Outcome{"notification", c.Name, result})
	if gone && failure != nil {
		d.observe(Outcome{"notification", c.Name, "dropped"})
	}
	return nil
}

func (d *Responder) tellTimeline(ctx context.Context, tx *store.Tx, c *channel, alert string, failure error) error {
	a, err := get(ctx, tx, alert)
	if countersign.CodeOf(err) == countersign.NotFound {
		return nil // it was closed long ago
	}
	if err != nil {
		return err
	}
	l := Line{At: d.now(), Actor: countersign.System, Act: c.Kind, Outcome: Done, Text: "told " + c.Name}
	if failure != nil {
		l.Outcome, l.Text = Failed, "given up after a day: "+c.Name+": "+failure.Error()
	}
	a.add(l)
	return a.save(ctx, tx)
}

// note takes down how an attempt ended and returns the event that is due: the channel
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

// ChannelList returns the state of each channel, in the order of the configuration.
func (d *Responder) ChannelList(ctx context.Context) ([]api.Channel, error) {
	d.init()
	list := make([]api.Channel, 0, len(d.channels))
	for _, c := range d.channels {
		out := api.Channel{Name: c.Name, Kind: c.Kind, Severity: c.Severity, Fleets: c.Fleets}
		if err := d.RA.DB.QueryRow(ctx, `SELECT COUNT(*) FROM notification WHERE channel = $1`, c.Name).Scan(&out.Waiting); err != nil {
			return nil, fmt.Errorf("count notifications: %w", store.Wrap(err))
		}
		c.mu.Lock()
		out.Failing, out.Error, out.Delivered = c.failures >= failingAfter, c.lastError, c.delivered
		c.mu.Unlock()
		list = append(list, out)
	}
	return list, nil
}

// TestChannel sends a notice by a channel now and returns the outcome. NotFound if
// there is no such channel.
func (d *Responder) TestChannel(ctx context.Context, name string, by ra.By) (api.ChannelTest, error) {
	d.init()
	for _, c := range d.channels {
		if c.Name != name {
			continue
		}
		began := d.RA.Now()
		err := d.send(ctx, c, api.Notice{ID: newID(), Kind: NewsTest, At: d.now(), Host: d.Host})
		out := api.ChannelTest{Channel: name, Delivered: err == nil, Millis: d.RA.Now().Sub(began).Milliseconds()}
		e := c.event(countersign.MitigationDone, err)
		e.Actor, e.Via, e.Reason = by.Actor, by.Via, "an operator tried the channel"
		if err != nil {
			e.Type, out.Error = countersign.MitigationFailed, clip(err.Error())
			e.Reason = "an operator tried the channel: " + err.Error()
		}
		return out, d.RA.DB.Write(ctx, func(ctx context.Context, tx *store.Tx) error { return d.RA.Events.Append(ctx, tx, e) })
	}
	return api.ChannelTest{}, countersign.Errorf(countersign.NotFound, "there is no channel %.80q", name).
		WithNext("list them with: countersign alert channels")
}
