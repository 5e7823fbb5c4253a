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
	"github.com/countersign-iot/countersign/ra"
	"github.com/countersign-iot/countersign/store"
)

// delivery is one attempt to deliver a notice.
type delivery struct {
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
	err = c.send(ctx, d.Host, d.Now(), p.notice)
	if err != nil && ctx.Err() != nil {
		return false, nil // it waits for the next process
	}
	if err != nil {
		d.Log.WarnContext(ctx, "notification not delivered", "channel", c.Name, "attempts", p.attempts, "error", err)
	}
	return true, p.finish(ctx, d, c, err)
}

// claimNotice returns the notice of a channel that is due first; nil: none is. A digest
// ends to gather.
func (d *Responder) claimNotice(ctx context.Context, c *channel) (p *delivery, err error) {
	err = d.DB.Write(store.Emergency(ctx), func(ctx context.Context, tx *store.Tx) error {
		p = nil // the transaction may be tried again
		if err := tx.Lock(ctx, lock); err != nil {
			return err
		}
		now := d.now()
		var q delivery
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

// finish records how an attempt ended.
func (p *delivery) finish(ctx context.Context, d *Responder, c *channel, failure error) error {
	// Not ctx: what was sent must not be sent again because the server is being stopped.
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), writeTime)
	defer cancel()
	turned := c.note(d.now(), failure)
	var gone bool
	err := d.DB.Write(store.Emergency(ctx), func(ctx context.Context, tx *store.Tx) error {
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
			if err := p.note(ctx, tx, now, c, failure); err != nil {
				return err
			}
		}
		if turned == "" && (failure == nil || !gone) {
			return nil
		}
		return d.Events.Append(ctx, tx, c.event(cmp.Or(turned, countersign.MitigationFailed), failure))
	})
	if err != nil {
		return fmt.Errorf("record a delivery: %w", err)
	}
	result := Done
	if failure != nil {
		result = Failed
	}
	d.observe("notification", c.Name, result)
	if gone && failure != nil {
		d.observe("notification", c.Name, "dropped")
	}
	return nil
}

// note puts the end of a delivery on the alert that it is about.
func (p *delivery) note(ctx context.Context, tx *store.Tx, now time.Time, c *channel, failure error) error {
	a, err := get(ctx, tx, p.alert)
	if countersign.CodeOf(err) == countersign.NotFound {
		return nil // it was closed long ago
	}
	if err != nil {
		return err
	}
	l := Line{At: now, Actor: countersign.System, Act: c.Kind, Outcome: Done, Text: "sent to " + c.Name}
	if failure != nil {
		l.Outcome, l.Text = Failed, "given up after a day: "+c.Name+": "+failure.Error()
	}
	a.add(l)
	return a.save(ctx, tx)
}

// TestChannel sends a notice by a channel now and returns the outcome. NotFound if
// there is no such channel.
func (d *Responder) TestChannel(ctx context.Context, name string, by ra.By) (api.ChannelTest, error) {
	d.init()
	for _, c := range d.channels {
		if c.Name != name {
			continue
		}
		began := d.Now()
		err := c.send(ctx, d.Host, began, api.Notice{ID: newID(), Kind: NewsTest, At: d.now(), Host: d.Host})
		out := api.ChannelTest{Channel: name, Delivered: err == nil, Millis: d.Now().Sub(began).Milliseconds()}
		e := c.event(countersign.MitigationDone, err)
		e.Actor, e.Via, e.Reason = by.Actor, by.Via, "an operator tried the channel"
		if err != nil {
			e.Type, out.Error = countersign.MitigationFailed, clip(err.Error())
			e.Reason = "an operator tried the channel: " + err.Error()
		}
		return out, d.DB.Write(ctx, func(ctx context.Context, tx *store.Tx) error { return d.Events.Append(ctx, tx, e) })
	}
	return api.ChannelTest{}, countersign.Errorf(countersign.NotFound, "there is no channel %.80q", name).
		WithNext("list the channels")
}
