package rest

import (
	"context"
	"fmt"
	"log/slog"
	"runtime"
	"runtime/debug"
	"sync"
	"time"

	"github.com/countersign-iot/countersign"
	"github.com/countersign-iot/countersign/api"
	"github.com/countersign-iot/countersign/ca"
	"github.com/countersign-iot/countersign/event"
	"github.com/countersign-iot/countersign/ra"
	"github.com/countersign-iot/countersign/registry"
	"github.com/countersign-iot/countersign/respond"
)

const (
	// pulseFor is how long a finding of health is good: anyone may ask, and
	// each finding costs some reads.
	pulseFor = time.Second
	// expiryWarn is how long before its end an authority needs a successor.
	expiryWarn = 90 * 24 * time.Hour
)

// doctor serves the checks of the server itself, its health and its version.
type doctor struct {
	registry *registry.Registry
	events   *event.Log
	ra       *ra.Authority
	ca       *ca.CA
	alerts   *respond.Responder
	more     func(context.Context) []api.Check // what the server finds beyond the records
	offline  time.Duration
	now      func() time.Time
	log      *slog.Logger
	started  time.Time

	mu   sync.Mutex
	at   time.Time // of the last finding of health
	last api.Health
}

func (d *doctor) health(ctx context.Context, _ *struct{}) (api.Health, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	now := d.now()
	if age := now.Sub(d.at); age >= 0 && age < pulseFor {
		return d.last, nil
	}
	h := api.Health{Status: api.HealthOK}
	for _, c := range d.checks(ctx) {
		switch {
		case c.Level == api.LevelFail:
			h.Status = api.HealthFailing
		case c.Level == api.LevelWarn && h.Status == api.HealthOK:
			h.Status = api.HealthDegraded
		}
	}
	d.at, d.last = now, h
	return h, nil
}

func (d *doctor) report(ctx context.Context, _ *struct{}) (api.Doctor, error) {
	return api.Doctor{Checks: d.checks(ctx)}, nil
}

func (d *doctor) checks(ctx context.Context) []api.Check {
	checks := append([]api.Check{d.checkDatabase(ctx), d.checkEvents(), d.checkLog(ctx), d.checkHolds()}, d.checkChannels(ctx)...)
	for _, a := range d.ca.Authorities() {
		if a.State != "active" || a.Kind == countersign.RegisteredAuthority {
			continue
		}
		checks = append(checks, d.checkAuthority(a), d.checkCRL(ctx, a.ID))
	}
	return append(checks, d.more(ctx)...)
}

func (d *doctor) checkDatabase(ctx context.Context) api.Check {
	c := api.Check{Name: "database", Level: api.LevelOK, Message: "answers"}
	if since, lost := d.registry.DB.Lost(); lost {
		return api.Check{
			Name: c.Name, Level: api.LevelFail,
			Message: fmt.Sprintf("cannot be reached since %s: new connections are refused, and live sessions end at %s",
				since.UTC().Format(time.RFC3339), since.Add(d.offline).UTC().Format(time.RFC3339)),
			Fix: "look at the PostgreSQL server and at the network between it and this node",
		}
	}
	began := d.now()
	if _, err := d.registry.Fleets(ctx); err != nil {
		problemOf(ctx, err).LogTo(ctx, d.log, err)
		return api.Check{Name: c.Name, Level: api.LevelFail, Message: "cannot be read", Fix: "look in the server's log"}
	}
	c.Message = fmt.Sprintf("answers in %s", d.now().Sub(began).Round(time.Microsecond))
	return c
}

func (d *doctor) checkEvents() api.Check {
	if d.events.Live() {
		return api.Check{Name: "notices", Level: api.LevelOK, Message: "this node learns of acts on the others at once"}
	}
	return api.Check{
		Name: "notices", Level: api.LevelWarn, Message: "this node does not learn of acts on the others at once: each decision reads the database",
		Fix: "look whether PostgreSQL lets this node LISTEN",
	}
}

// checkLog looks whether the end of the log is where the sealer left it.
func (d *doctor) checkLog(ctx context.Context) api.Check {
	c := api.Check{Name: "log", Level: api.LevelOK, Message: "its end is where it was sealed"}
	problem, err := d.events.CheckEnd(ctx)
	switch {
	case err != nil:
		problemOf(ctx, err).LogTo(ctx, d.log, err)
		c.Level, c.Message, c.Fix = api.LevelFail, "cannot be read", "look in the server's log"
	case problem != "":
		c.Level, c.Message, c.Fix = api.LevelFail, problem, "keep a copy of the database, then compare it with a backup"
	}
	return c
}

func (d *doctor) checkHolds() api.Check {
	c := api.Check{Name: "holds", Level: api.LevelOK, Message: "each act is on record"}
	if d.ra.Holds == nil {
		return c
	}
	if n := d.ra.Holds.Len(); n > 0 {
		c.Level, c.Message = api.LevelFail, fmt.Sprintf("%d emergency holds are in force on this node alone: their acts could not be recorded", n)
		c.Fix = "bring the database back: they are retried every second. Until then ask each other node for the same acts"
	}
	if err := d.ra.Holds.Volatile(); err != nil {
		c.Level, c.Message = api.LevelFail, c.Message+"; a restart forgets them, because they could not be saved"
		c.Fix = "make room on the disk of the data folder"
	}
	return c
}

// checkChannels returns a check for each channel that notifies.
func (d *doctor) checkChannels(ctx context.Context) []api.Check {
	if d.alerts == nil {
		return nil
	}
	list, err := d.alerts.ChannelList(ctx)
	if err != nil {
		problemOf(ctx, err).LogTo(ctx, d.log, err)
		return nil // the check of the database says so
	}
	checks := make([]api.Check, 0, len(list))
	for _, c := range list {
		check := api.Check{Name: "channel " + c.Name, Level: api.LevelOK, Message: "delivers what it is sent"}
		switch {
		case c.Failing:
			check.Level, check.Message, check.Fix = api.LevelWarn, "does not deliver: "+c.Error, "repair what it names, then send a test by the channel"
		case c.Delivered.IsZero():
			check.Message = "has not been used since the server started"
		}
		checks = append(checks, check)
	}
	return checks
}

func (d *doctor) checkAuthority(a countersign.Authority) api.Check {
	left := a.Certificate.NotAfter.Sub(d.now())
	c := api.Check{
		Name: "authority " + a.ID, Level: api.LevelOK,
		Message: fmt.Sprintf("its certificate is good until %s", a.Certificate.NotAfter.UTC().Format(time.DateOnly)),
	}
	switch {
	case left <= 0:
		c.Level, c.Fix = api.LevelFail, "nothing that it signed is valid any more: make a new authority"
	case left < expiryWarn:
		c.Level, c.Fix = api.LevelWarn, "plan its successor: certificates cannot outlive their issuer"
	}
	return c
}

func (d *doctor) checkCRL(ctx context.Context, issuer string) api.Check {
	name := "crl " + issuer
	l, err := d.ca.CRLRecord(ctx, issuer, 0)
	if countersign.CodeOf(err) == countersign.NotFound {
		return api.Check{Name: name, Level: api.LevelWarn, Message: "none is published yet", Fix: "wait a minute; then look in the server's log"}
	}
	if err != nil {
		problemOf(ctx, err).LogTo(ctx, d.log, err)
		return api.Check{Name: name, Level: api.LevelFail, Message: "cannot be read", Fix: "look in the server's log"}
	}
	c := api.Check{
		Name: name, Level: api.LevelOK,
		Message: fmt.Sprintf("#%d with %d entries, next by %s", l.Number, l.Entries, l.NextUpdate.UTC().Format(time.RFC3339)),
	}
	if d.now().After(l.NextUpdate) {
		c.Level, c.Fix = api.LevelFail, "checkers refuse a stale list: look in the server's log why it is not published"
	}
	return c
}

func (d *doctor) version(context.Context, *struct{}) (api.Version, error) {
	v := Version()
	v.StartedAt = d.started.UTC()
	return v, nil
}

// Version returns what this program was built from.
func Version() api.Version {
	v := api.Version{Version: "devel", Go: runtime.Version()}
	info, ok := debug.ReadBuildInfo()
	if !ok {
		return v
	}
	if info.Main.Version != "" && info.Main.Version != "(devel)" {
		v.Version = info.Main.Version
	}
	for _, set := range info.Settings {
		switch set.Key {
		case "vcs.revision":
			v.Revision = set.Value
		case "vcs.modified":
			v.Modified = set.Value == "true"
		}
	}
	return v
}
