package rest

import (
	"context"
	"fmt"
	"runtime"
	"runtime/debug"
	"sync"
	"time"

	"github.com/countersign-iot/countersign"
	"github.com/countersign-iot/countersign/api"
	"github.com/danielgtaylor/huma/v2"
)

const (
	// pulseFor is how long a finding of health is good: strangers may ask, and
	// each finding costs some reads.
	pulseFor = time.Second
	// expiryWarn is how long before its end an authority wants a successor.
	expiryWarn = 90 * 24 * time.Hour
)

// pulse keeps the last finding of health.
type pulse struct {
	mu   sync.Mutex
	at   time.Time
	last api.Health
}

func (s *Server) routeServer(a huma.API) {
	const tag = "Server"
	route(s, a, get("/health", tag, "Say whether the server does its work"), s.health)
	route(s, a, get("/version", tag, "Say what runs"), s.version)
	route(s, a, get("/doctor", tag, "Have the server check itself"), s.doctor)
}

func (s *Server) health(ctx context.Context, _ *struct{}) (api.Health, error) {
	s.pulse.mu.Lock()
	defer s.pulse.mu.Unlock()
	now := s.Now()
	if age := now.Sub(s.pulse.at); age >= 0 && age < pulseFor {
		return s.pulse.last, nil
	}
	h := api.Health{Status: api.HealthOK}
	for _, c := range s.checks(ctx) {
		switch {
		case c.Level == api.LevelFail:
			h.Status = api.HealthFailing
		case c.Level == api.LevelWarn && h.Status == api.HealthOK:
			h.Status = api.HealthDegraded
		}
	}
	s.pulse.at, s.pulse.last = now, h
	return h, nil
}

func (s *Server) doctor(ctx context.Context, _ *struct{}) (api.Doctor, error) {
	return api.Doctor{Checks: s.checks(ctx)}, nil
}

func (s *Server) checks(ctx context.Context) []api.Check {
	checks := append([]api.Check{s.checkDatabase(ctx), s.checkEvents(), s.checkLog(ctx), s.checkHolds()}, s.checkChannels(ctx)...)
	for _, a := range s.CA.Authorities() {
		if a.State != "active" || a.Kind == countersign.RegisteredAuthority {
			continue
		}
		checks = append(checks, s.checkAuthority(a), s.checkCRL(ctx, a.ID))
	}
	if s.Checks != nil {
		checks = append(checks, s.Checks(ctx)...)
	}
	return checks
}

func (s *Server) checkDatabase(ctx context.Context) api.Check {
	c := api.Check{Name: "database", Level: api.LevelOK, Message: "answers"}
	if since, lost := s.Registry.DB.Lost(); lost {
		return api.Check{
			Name: c.Name, Level: api.LevelFail,
			Message: fmt.Sprintf("cannot be reached since %s: new connections are refused, and live sessions end at %s",
				since.UTC().Format(time.RFC3339), since.Add(s.Offline).UTC().Format(time.RFC3339)),
			Fix: "look at the PostgreSQL server and at the network between it and this node",
		}
	}
	began := s.Now()
	if _, err := s.Registry.Fleets(ctx); err != nil {
		s.problem(ctx, err)
		return api.Check{Name: c.Name, Level: api.LevelFail, Message: "cannot be read", Fix: "look in the server's log"}
	}
	c.Message = fmt.Sprintf("answers in %s", s.Now().Sub(began).Round(time.Microsecond))
	return c
}

func (s *Server) checkEvents() api.Check {
	if s.Events.Live() {
		return api.Check{Name: "notices", Level: api.LevelOK, Message: "this node hears of acts on the others at once"}
	}
	return api.Check{
		Name: "notices", Level: api.LevelWarn, Message: "this node does not hear of acts on the others: each decision reads the database",
		Fix: "look whether PostgreSQL lets this node LISTEN",
	}
}

// checkLog looks whether the end of the log is where the sealer left it.
func (s *Server) checkLog(ctx context.Context) api.Check {
	c := api.Check{Name: "log", Level: api.LevelOK, Message: "its end is where it was sealed"}
	problem, err := s.Events.CheckEnd(ctx)
	switch {
	case err != nil:
		s.problem(ctx, err)
		c.Level, c.Message, c.Fix = api.LevelFail, "cannot be read", "look in the server's log"
	case problem != "":
		c.Level, c.Message, c.Fix = api.LevelFail, problem, "keep a copy of the database, then compare it with a backup"
	}
	return c
}

func (s *Server) checkHolds() api.Check {
	c := api.Check{Name: "holds", Level: api.LevelOK, Message: "each act is on record"}
	if s.RA.Holds == nil {
		return c
	}
	if n := s.RA.Holds.Len(); n > 0 {
		c.Level, c.Message = api.LevelFail, fmt.Sprintf("%d emergency holds are in force on this node alone: their acts could not be recorded", n)
		c.Fix = "bring the database back: they are retried every second. Until then ask each other node for the same acts"
	}
	if err := s.RA.Holds.Volatile(); err != nil {
		c.Level, c.Message = api.LevelFail, c.Message+"; a restart forgets them, because they could not be saved"
		c.Fix = "make room on the disk of the data folder"
	}
	return c
}

func (s *Server) checkAuthority(a countersign.Authority) api.Check {
	left := a.Certificate.NotAfter.Sub(s.Now())
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

func (s *Server) checkCRL(ctx context.Context, issuer string) api.Check {
	name := "crl " + issuer
	l, err := s.CA.CRLRecord(ctx, issuer, 0)
	if countersign.CodeOf(err) == countersign.NotFound {
		return api.Check{Name: name, Level: api.LevelWarn, Message: "none is published yet", Fix: "wait a minute; then look in the server's log"}
	}
	if err != nil {
		s.problem(ctx, err)
		return api.Check{Name: name, Level: api.LevelFail, Message: "cannot be read", Fix: "look in the server's log"}
	}
	c := api.Check{
		Name: name, Level: api.LevelOK,
		Message: fmt.Sprintf("#%d with %d entries, next by %s", l.Number, l.Entries, l.NextUpdate.UTC().Format(time.RFC3339)),
	}
	if s.Now().After(l.NextUpdate) {
		c.Level, c.Fix = api.LevelFail, "checkers refuse a stale list: look in the server's log why it is not published"
	}
	return c
}

func (s *Server) version(context.Context, *struct{}) (api.Version, error) {
	v := Version()
	v.StartedAt = s.started.UTC()
	return v, nil
}

// Version says what this program was built from.
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
