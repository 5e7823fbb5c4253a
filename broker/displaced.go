package broker

import (
	"context"
	"database/sql"
	"errors"

	countersign "github.com/countersign-iot/countersign"
	"github.com/countersign-iot/countersign/store"
)

// errDisplaced is the answer to all that needs the rows of a node that another process
// has taken over.
func (b *Broker) errDisplaced() error {
	return countersign.Errorf(countersign.Conflict, "another process has taken over the MQTT sessions of node %q", b.o.Node).
		WithNext("give each node a name of its own in the setting engine.node, or remove the file node from a copied data folder; then restart this one")
}

// displace has the core serve no kept session any more: two processes have the name of
// one node, and the rows are the other's, which was started later. A session that went on
// here would be resumed and empty, while its messages wait there. Sessions that are not
// kept need no rows and are served. Only a start of this process takes the rows back.
func (b *Broker) displace() {
	if b.displaced.Swap(true) {
		return
	}
	b.o.Log.Error("no kept MQTT session is served any more", "error", b.errDisplaced())
	b.mu.Lock()
	all := make([]*session, 0, len(b.sessions))
	for _, s := range b.sessions {
		if s.kept {
			all = append(all, s)
		}
	}
	b.mu.Unlock()
	for _, s := range all {
		s.mu.Lock()
		c := s.conn
		s.mu.Unlock()
		if c != nil {
			c.client.Lost(Unspecified, "another process has taken over the sessions of this node")
		}
	}
}

// Owned returns nil while the rows of the node are this process's. The error has the code
// Conflict when another process with the same name has taken them over, and Unavailable
// when the database does not answer.
func (b *Broker) Owned(ctx context.Context) error {
	if b.displaced.Load() {
		return b.errDisplaced()
	}
	if !b.o.DB.Postgres() {
		return nil // SQLite has one process
	}
	var started int64
	err := b.o.DB.QueryRow(ctx, `SELECT started FROM mqtt_node WHERE node = $1`, b.o.Node).Scan(&started)
	if errors.Is(err, sql.ErrNoRows) || err == nil && started != b.started {
		b.displace()
		return b.errDisplaced()
	}
	return store.Wrap(err)
}
