package server

import (
	"context"
	"log/slog"
	"time"

	"github.com/countersign-iot/countersign"
	"github.com/countersign-iot/countersign/ca"
)

// noticed acts on what happened here or on another node; sessions have been cut
// already, because the log does that first.
func (s *Server) noticed(e countersign.Event) {
	k := e.Type.Kind()
	if k.Status {
		s.ca.Forget(e.Cert)
		s.crls.Changed(e.Cert.Issuer)
	}
	if k.Authorities {
		go reloadAuthorities(s.ca, s.log)
	}
	switch {
	case s.broker == nil:
	case k.Purges: // the record has dropped it with the event
		s.broker.Forget(e.Device)
	case k.Ends == countersign.EndsDevice && e.Type != countersign.SessionEnded: // it may come again at once
		s.broker.DropWills(e.Device)
	}
}

// reloadAuthorities reads the authorities that another node registered.
func reloadAuthorities(c *ca.CA, log *slog.Logger) {
	ctx, cancel := context.WithTimeout(context.Background(), reloadTime)
	defer cancel()
	if err := c.Reload(ctx); err != nil {
		log.ErrorContext(ctx, "authorities not read again", "error", err)
	}
}

// reloadTime bounds the reading of a few rows.
const reloadTime = 10 * time.Second
