package server

import (
	"context"
	"errors"
	"fmt"
	"reflect"
	"strings"

	"github.com/countersign-iot/countersign"
	"github.com/countersign-iot/countersign/config"
)

// reloadable are the settings that Reload puts in force, by their names in the file.
// log is the program's own, which changes it together with the server.
var reloadable = map[string]bool{"names": true, "weak_keys": true, "log": true}

// Reload reads again what can change while the server runs: the lists of weak keys, the
// server's TLS certificate with the names of cfg, the authorities and their CRLs. It
// returns what was put in force, and which other settings differ from those of the
// start and count from the next one on. A configuration with a problem changes nothing.
func (s *Server) Reload(ctx context.Context, cfg config.Config) (applied, restart []string, err error) {
	cfg = cfg.WithDefaults()
	if problems := cfg.Check(); len(problems) > 0 {
		return nil, nil, fmt.Errorf("the configuration has %d problems, the first: %w", len(problems), problems[0])
	}
	for name, differs := range differences(s.cfg, cfg) {
		if differs && !reloadable[name] {
			restart = append(restart, name)
		}
	}
	weak, err := readWeakKeys(cfg.WeakKeys) // all or none
	if err != nil {
		return nil, nil, err
	}
	s.ca.WeakKeys.Replace(weak)
	applied = append(applied, "weak_keys")
	s.identity.names.Store(&cfg.Names)
	if err := errors.Join(s.ca.Reload(ctx), s.identity.renew(ctx), s.writeRoots(ctx)); err != nil {
		return applied, restart, err
	}
	applied = append(applied, "server certificate", "authorities")
	for _, a := range s.ca.Authorities() {
		if a.Kind == countersign.IssuingAuthority {
			s.crls.Changed(a.ID)
		}
	}
	applied = append(applied, "crls")
	s.events.Later(countersign.Event{
		Type: countersign.ServerReloaded, Actor: countersign.System, Reason: "the configuration was read again",
		Data: map[string]string{"node": s.events.Node, "applied": strings.Join(applied, ", "), "needs_restart": strings.Join(restart, ", ")},
	})
	return applied, restart, nil
}

// differences yields the settings at the top of the file in their order, with whether
// two configurations differ in them.
func differences(a, b config.Config) func(yield func(string, bool) bool) {
	return func(yield func(string, bool) bool) {
		x, y := reflect.ValueOf(a), reflect.ValueOf(b)
		for i := range x.NumField() {
			if !yield(x.Type().Field(i).Tag.Get("yaml"), !reflect.DeepEqual(x.Field(i).Interface(), y.Field(i).Interface())) {
				return
			}
		}
	}
}
