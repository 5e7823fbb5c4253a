package mqtt

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"time"
)

const (
	// reviveEvery is how often it is looked whether the disk takes writes again.
	reviveEvery = time.Second
	// reviveRoom is what must fit then: the engine's first writes, with some to spare,
	// lest it falls ill again at once and takes the sessions with it that it has.
	reviveRoom = 4 << 20
)

// fellIll is called when a write of the engine's store failed. nats-server keeps
// such a store from all further writes until it starts anew, and each client that
// connects waits for five seconds in vain; so dial refuses at once, and the
// engine starts anew as soon as there is room.
func (n *NATS) fellIll() {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.ill || n.closed {
		return
	}
	n.ill = true
	n.reviver.Go(n.revive)
}

func (n *NATS) revive() {
	tick := time.NewTicker(reviveEvery)
	defer tick.Stop()
	for {
		select {
		case <-n.stop:
			return
		case <-tick.C:
		}
		if n.hasRoom() != nil {
			continue // the failure is in the log already
		}
		n.mu.Lock()
		old := n.srv
		n.mu.Unlock()
		old.Shutdown()
		old.WaitForShutdown()
		if err := n.start(); err != nil {
			n.o.Log.ErrorContext(context.Background(), "message engine not started anew", "error", err)
			continue
		}
		n.mu.Lock()
		n.ill = false
		n.mu.Unlock()
		n.o.Log.WarnContext(context.Background(), "message engine started anew, its store takes writes again")
		return
	}
}

// hasRoom tries whether the engine's disk takes reviveRoom.
func (n *NATS) hasRoom() error {
	path := filepath.Join(n.o.Dir, "room")
	err := os.WriteFile(path, make([]byte, reviveRoom), 0o600)
	return errors.Join(err, os.Remove(path))
}
