package hook

import (
	"context"
	"errors"
	"strings"
	"sync"
	"time"

	"github.com/countersign-iot/countersign"
)

const (
	// maxStopped bounds the credentials whose sessions wait to be looked up in the record.
	// Credentials are stopped by operators, one at a time.
	maxStopped = 1024
	// lookupRetry is the pause after the record could not be read.
	lookupRetry = time.Second
	// lookupTime bounds one read of the record.
	lookupTime = 10 * time.Second
)

// stopped is a credential that is no longer valid.
type stopped struct {
	credential, reason string
	at                 time.Time
}

// stoppedQueue holds the credentials whose sessions on record must be kicked: those that
// were admitted through another node, or before this one was restarted, are not in memory.
type stoppedQueue struct {
	once sync.Once
	c    chan stopped
}

func (q *stoppedQueue) wait() chan stopped {
	q.once.Do(func() { q.c = make(chan stopped, maxStopped) })
	return q.c
}

// endRecorded queues the sessions on record that depend on a credential to be kicked. It
// does not block.
func (s *Server) endRecorded(e countersign.Event, credential string) {
	if s.Record == nil || s.Kicker == nil || len(s.Kicker.Drivers) == 0 {
		return
	}
	select {
	case s.stopped.wait() <- stopped{credential: credential, reason: string(e.Type), at: e.At}:
	default:
		s.Kicker.fail(s.Kicker.Drivers[0].Hook, target{fleet: e.Fleet, device: e.Device}, errors.New("too many credentials were stopped at once"))
	}
}

// runRecorded kicks what endRecorded has queued, until ctx ends.
func (s *Server) runRecorded(ctx context.Context) {
	for {
		select {
		case <-ctx.Done():
			return
		case one := <-s.stopped.wait():
			for s.kickRecorded(ctx, one) != nil {
				select {
				case <-ctx.Done():
					return
				case <-time.After(lookupRetry):
				}
			}
		}
	}
}

func (s *Server) kickRecorded(ctx context.Context, one stopped) error {
	ctx, cancel := context.WithTimeout(ctx, lookupTime)
	defer cancel()
	found := map[string][]key{}
	err := s.Record.Resting(ctx, one.credential, func(r countersign.Session, n countersign.BrokerName) {
		if hook, ok := strings.CutPrefix(r.Gateway, gatewayPrefix); ok {
			found[r.Device] = append(found[r.Device], key{hook, n.Client, n.User})
		}
	})
	if err != nil {
		s.Log.WarnContext(ctx, "sessions at brokers not looked up", "credential", one.credential, "error", err, "retry_in", lookupRetry)
		return err
	}
	for device, keys := range found {
		s.kickEach(device, keys, one.at, one.reason)
	}
	return nil
}
