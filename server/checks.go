package server

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"time"

	"github.com/countersign-iot/countersign"
	"github.com/countersign-iot/countersign/api"
	"github.com/countersign-iot/countersign/broker"
	"github.com/countersign-iot/countersign/ca"
	"github.com/countersign-iot/countersign/event"
	"github.com/countersign-iot/countersign/keystore"
	"github.com/countersign-iot/countersign/watermark"
)

const (
	// restoredFor is how long an accepted restore is shown: as long as the audit finds it.
	restoredFor = 31 * 24 * time.Hour
	// clockTolerance is what two clocks may differ that are kept right: certificates are
	// backdated by more.
	clockTolerance = 30 * time.Second
)

// selfChecks are what this node finds of itself: what only it can know.
type selfChecks struct {
	*core
	keys   *keystore.Store
	broker *broker.Broker // nil with a broker of others
	mark   *mark
}

// all runs the checks.
func (n *selfChecks) all(ctx context.Context) []api.Check {
	checks := []api.Check{n.reserve(), n.rootKey(), n.state(ctx), n.clock(ctx)}
	if n.broker != nil {
		checks = append(checks, n.messages(ctx))
	}
	return checks
}

// messages reports whether the kept MQTT sessions under this node's name are still
// this process's: a data folder that was copied as a whole has the name of another node.
func (n *selfChecks) messages(ctx context.Context) api.Check {
	c := api.Check{Name: "messages", Level: api.LevelOK, Message: "the MQTT sessions of this node are its own"}
	err := n.broker.Owned(ctx)
	switch e, ok := errors.AsType[*countersign.Error](err); {
	case err == nil:
	case ok && e.Code == countersign.Conflict:
		c.Level, c.Message, c.Fix = api.LevelFail, e.Message+": devices with a kept session are refused here", e.Next
	default:
		c.Level, c.Message, c.Fix = api.LevelFail, "the record of the MQTT sessions cannot be read", "look in the server's log"
	}
	return c
}

func (n *selfChecks) reserve() api.Check {
	r := n.db.Reserve()
	c := api.Check{Name: "reserve", Level: api.LevelOK, Message: fmt.Sprintf("%d MiB of the disk are kept for revocations", r.Left>>20)}
	switch {
	case n.db.Postgres():
		c.Message = "PostgreSQL keeps none: watch the space of its server"
	case r.InUse:
		c.Level, c.Message = api.LevelFail, fmt.Sprintf("the database has no space: only revocations are recorded, %d of %d MiB are left for them", r.Left>>20, r.Size>>20)
		c.Fix = "free space on the disk, or raise storage_limit; the reserve refills by itself"
	case r.Missing():
		c.Level, c.Message = api.LevelWarn, "the disk had no space for it: a revocation fails when the disk is full"
		c.Fix = fmt.Sprintf("free %d MiB on the disk of the database", (r.Size+r.Size/2)>>20)
	}
	return c
}

func (n *selfChecks) rootKey() api.Check {
	c := api.Check{Name: "root key", Level: api.LevelOK, Message: "is encrypted"}
	wrapped, err := n.keys.Wrapped(ca.RootKeyURI)
	switch {
	case errors.Is(err, fs.ErrNotExist) && n.cfg.OfflineRoot:
		c.Message = "is kept elsewhere"
	case err != nil:
		c.Level, c.Message, c.Fix = api.LevelFail, "cannot be read: "+err.Error(), "restore "+n.keys.Path(ca.RootKeyURI)
	case !wrapped && n.opts.Dev:
		c.Message = "is not encrypted, which is good enough for trying out"
	case !wrapped:
		c.Level, c.Message = api.LevelWarn, "is not encrypted: only the mode of its file protects it"
		c.Fix = "encrypt it with openssl pkcs8 -topk8, and set root_passphrase"
	}
	return c
}

// state reports whether the database is as new as it was seen, or was restored.
func (n *selfChecks) state(ctx context.Context) api.Check {
	c := api.Check{Name: "state", Level: api.LevelOK, Message: "the database is as new as it was seen; the last state is in " + n.cfg.Path(watermark.Name)}
	list, _, err := n.events.List(ctx, event.Filter{Type: countersign.DatabaseRestored, Newest: true, Limit: 1})
	switch lost := n.mark.setBack.Load(); {
	case err != nil:
		c.Level, c.Message, c.Fix = api.LevelFail, "the log cannot be read", "look in the server's log"
	case lost != nil:
		c.Level, c.Message = api.LevelFail, "the database was set back while this node ran: "+*lost
		c.Fix = "bring back the newer database; or stop all nodes and accept the older one on each"
	case len(list) > 0 && n.now().Sub(list[0].At) < restoredFor:
		c.Level, c.Message = api.LevelWarn, fmt.Sprintf("%s: %s", list[0].At.UTC().Format(time.RFC3339), list[0].Reason)
		c.Fix = "find out what was recorded in between, revocations first, and do it again"
	case n.mark.failing.Load():
		c.Level, c.Message, c.Fix = api.LevelWarn, "the last state cannot be written down: a restore would not be noticed", "look in the server's log, and at the disk of the data folder"
	case n.mark.note != "":
		c.Level, c.Message = api.LevelWarn, n.mark.note+": nothing shows whether the database is as new as it was"
		c.Fix = "compare it with what you know: the newest revocations, the number of the last CRL"
	}
	return c
}

// clock compares this node's clock with others: that of PostgreSQL, the time of
// the newest event, and what the system reports of its synchronization.
func (n *selfChecks) clock(ctx context.Context) api.Check {
	c := api.Check{Name: "clock", Level: api.LevelOK}
	now := n.now()
	other, err := n.db.Clock(ctx, now)
	if err != nil {
		return api.Check{Name: c.Name, Level: api.LevelFail, Message: "the database's clock cannot be read", Fix: "look in the server's log"}
	}
	if n.db.Postgres() {
		c.Message = fmt.Sprintf("differs from the database's by %s", now.Sub(other).Abs().Round(time.Millisecond))
		if now.Sub(other).Abs() > clockTolerance {
			c.Level, c.Fix = api.LevelFail, "set the clocks of this node and of the database, and keep them right with NTP"
			return c
		}
	}
	list, _, err := n.events.List(ctx, event.Filter{Newest: true, Limit: 1})
	if err == nil && len(list) > 0 && list[0].At.Sub(now) > clockTolerance {
		c.Level, c.Message = api.LevelFail, fmt.Sprintf("is %s behind the newest event in the log", list[0].At.Sub(now).Round(time.Second))
		c.Fix = "set the clock, and keep it right with NTP"
		return c
	}
	said, synchronized := clockStatus()
	if c.Message == "" {
		c.Message = said
	} else {
		c.Message += "; " + said
	}
	if !synchronized {
		c.Level, c.Fix = api.LevelWarn, "run an NTP client, such as chrony; nothing is to be done where the host of a virtual machine sets its clock"
	}
	return c
}
