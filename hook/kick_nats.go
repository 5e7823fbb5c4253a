package hook

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"time"

	"github.com/nats-io/nats.go"
)

const (
	natsConnz = "$SYS.REQ.SERVER.PING.CONNZ"
	natsKick  = "$SYS.REQ.SERVER.%s.KICK"
	// natsGather is how long the servers of a cluster may take to answer after the
	// first one has.
	natsGather = 100 * time.Millisecond
	// natsFirst is how long the first may take.
	natsFirst = 2 * time.Second
	// maxNATSServers bounds the answers that are read.
	maxNATSServers = 256
)

// connz is a server's report of its connections.
type connz struct {
	Server struct {
		ID string `json:"id"`
	} `json:"server"`
	Data struct {
		Connections []struct {
			CID  uint64 `json:"cid"`
			User string `json:"authorized_user"`
		} `json:"connections"`
	} `json:"data"`
	Error json.RawMessage `json:"error"`
}

// natsKicker is one connection to the system account, opened when it is needed.
type natsKicker struct {
	server NATSServer
	hook   string
	log    *slog.Logger

	mu   sync.Mutex
	conn *nats.Conn
}

// KickNATS ends connections through a user of NATS's system account.
func KickNATS(hook string, server NATSServer, log *slog.Logger) *Driver {
	k := &natsKicker{server: server, hook: hook, log: log}
	return &Driver{Hook: hook, kick: k.kick, close: k.close}
}

func (k *natsKicker) kick(ctx context.Context, t target) (int, error) {
	conn, err := k.connect()
	if err != nil {
		return 0, err
	}
	n := 0
	err = eachConnz(ctx, conn, t.device, func(z connz) error {
		for _, c := range z.Data.Connections {
			if c.User != t.device {
				continue
			}
			body, err := json.Marshal(map[string]uint64{"cid": c.CID})
			if err != nil {
				return err
			}
			n++
			if _, err := conn.RequestWithContext(ctx, fmt.Sprintf(natsKick, z.Server.ID), body); err != nil {
				return fmt.Errorf("couldn't make NATS end a connection: %w", err)
			}
		}
		return nil
	})
	return n, err
}

// eachConnz asks all servers for the connections of a user, and acts on each answer
// as it comes.
func eachConnz(ctx context.Context, conn *nats.Conn, user string, act func(connz) error) (err error) {
	inbox := conn.NewInbox()
	sub, err := conn.SubscribeSync(inbox)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, sub.Unsubscribe()) }()
	body, err := json.Marshal(map[string]any{"auth": true, "user": user, "limit": pageSize * maxPages})
	if err != nil {
		return err
	}
	if err := conn.PublishRequest(natsConnz, inbox, body); err != nil {
		return err
	}
	wait := natsFirst
	for n := 0; n < maxNATSServers && ctx.Err() == nil; n++ {
		m, err := sub.NextMsg(wait)
		if errors.Is(err, nats.ErrTimeout) && n > 0 {
			return nil
		}
		if err != nil {
			return fmt.Errorf("couldn't ask NATS for its connections: %w", err)
		}
		z, err := parseConnz(m.Data)
		if err == nil {
			err = act(z)
		}
		if err != nil {
			return err
		}
		wait = natsGather
	}
	return ctx.Err()
}

// parseConnz reads one server's answer.
func parseConnz(text []byte) (z connz, err error) {
	if len(text) > maxAnswer || json.Unmarshal(text, &z) != nil || z.Server.ID == "" {
		return connz{}, errors.New("couldn't read NATS's list of connections")
	}
	if len(z.Error) > 0 {
		return connz{}, errors.New("NATS refuses to list its connections")
	}
	return z, nil
}

func (k *natsKicker) connect() (*nats.Conn, error) {
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.conn == nil {
		conn, err := nats.Connect(k.server.URL, k.server.options(k.log, k.hook)...)
		if err != nil {
			return nil, fmt.Errorf("couldn't reach NATS: %w", err)
		}
		k.conn = conn
	}
	return k.conn, nil
}

func (k *natsKicker) close() {
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.conn != nil {
		k.conn.Close()
	}
}
