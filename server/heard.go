package server

import (
	"context"
	"time"

	"github.com/countersign-iot/countersign"
)

// heard acts on what happened here or on another node; sessions have been cut
// already, because the log does that first.
func (s *Server) heard(e countersign.Event) {
	k := e.Type.Kind()
	if k.Status {
		s.ca.Forget(e.Cert)
		s.crls.Changed(e.Cert.Issuer)
	}
	if k.Authorities {
		go s.reload()
	}
	if k.Purges {
		select {
		case s.purges <- e.Device:
		default: // the engine's own idle limit clears what a flood of revocations leaves
		}
	}
}

// reload reads the authorities that another node registered.
func (s *Server) reload() {
	ctx, cancel := context.WithTimeout(context.Background(), reloadTime)
	defer cancel()
	if err := s.ca.Reload(ctx); err != nil {
		s.log.ErrorContext(ctx, "authorities not read again", "error", err)
	}
}

// reloadTime bounds the reading of a few rows.
const reloadTime = 10 * time.Second

// maxPurges bounds the devices whose stored messages wait to be dropped.
const maxPurges = 1024

// purge has the engine drop what it keeps of devices that lost their identity. It
// reads every stored session, so nobody waits for it.
func (s *Server) purge(ctx context.Context) error {
	for {
		select {
		case <-ctx.Done():
			return nil
		case device := <-s.purges:
			if s.gateway == nil {
				continue
			}
			_, err := s.gateway.Purge(ctx, device, countersign.Stored{All: true})
			if err != nil && ctx.Err() == nil && countersign.CodeOf(err) != countersign.Conflict { // a broker that cannot
				s.log.WarnContext(ctx, "stored messages not dropped", "device", device, "error", err)
			}
		}
	}
}
