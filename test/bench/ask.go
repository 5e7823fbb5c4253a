package main

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/binary"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"os"
	"time"

	"github.com/countersign-iot/countersign/simulate/device"
)

// askCommand makes this program two devices of which one asks and the other answers. In a
// process of its own they do not wait behind the sessions of a fan-out, which wake all at
// once.
const askCommand = "ask"

// askEvery is the pause between two requests.
const askEvery = 2 * time.Millisecond

// asking is the task of that process.
type asking struct {
	Addr   string        `json:"addr"`
	Roots  []byte        `json:"roots"` // PEM
	For    time.Duration `json:"for"`
	IDs    [2]string     `json:"ids"`
	Chains [2][]byte     `json:"chains"`
	Keys   [2][]byte     `json:"keys"`
}

// ask measures the time from a request to its answer, both commands of QoS 1.
func (b *bench) ask(ctx context.Context, t target, name string, pair []*enrollee) (sample, error) {
	roots, err := os.ReadFile(b.server.endpoints.Roots) //nolint:gosec // of our own server
	if err != nil {
		return sample{}, err
	}
	roots = append(roots, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: b.limitCA.root.Raw})...)
	a := asking{Addr: t.addr, Roots: roots, For: b.opts.size.ask}
	for i, d := range pair {
		if a.Chains[i], a.Keys[i], err = pemOf(d.identity); err != nil {
			return sample{}, err
		}
		a.IDs[i] = d.id
	}
	h, err := startHelper(ctx, askCommand, idleFor, a)
	if err != nil {
		return sample{}, err
	}
	var all []asked
	if err := h.finish(&all); err != nil {
		return sample{}, fmt.Errorf("%s: %w", t.prefix+name, err)
	}
	return answers(t.prefix+name, all), nil
}

// answers sums up.
func answers(name string, all []asked) sample {
	took := make([]time.Duration, len(all))
	for i, one := range all {
		took[i] = one.Took
	}
	s := alone(name, took)
	s.worst, s.second = 0, worstSecond(all)
	return s
}

// beAsking is the process of ask.
func beAsking(ctx context.Context, a asking, out *json.Encoder) error {
	c := &client{roots: x509.NewCertPool()}
	c.roots.AppendCertsFromPEM(a.Roots)
	var pair [2]*device.Wire
	for i, id := range a.IDs {
		d := &enrollee{id: id}
		var err error
		if d.identity, err = tls.X509KeyPair(a.Chains[i], a.Keys[i]); err != nil {
			return err
		}
		if pair[i], err = c.join(ctx, a.Addr, d, false); err != nil {
			return err
		}
		if err := pair[i].Subscribe("devices/"+id+"/down/#", 1); err != nil {
			return err
		}
	}
	all, err := a.exchange(ctx, pair)
	leaveAll(pair[:])
	return errors.Join(err, out.Encode(all))
}

// exchange has the first ask the second, one request after the other.
func (a *asking) exchange(ctx context.Context, pair [2]*device.Wire) ([]asked, error) {
	broken, got := make(chan error, 2), make(chan uint64, 1)
	topic := func(i int) string { return "devices/" + a.IDs[i] + "/down/ask" }
	go func() {
		id := uint16(0)
		broken <- pair[1].Receive(func(payload []byte) {
			id = id%60_000 + 1
			_, _ = pair[1].Write(device.PublishPacket(topic(0), 1, id, payload)) // the asker waits in vain
		}, nil)
	}()
	go func() {
		broken <- pair[0].Receive(func(payload []byte) { got <- binary.BigEndian.Uint64(payload) }, nil)
	}()
	var all []asked
	begin := now()
	for n := uint64(1); time.Since(begin) < a.For; n++ {
		t := now()
		payload := binary.BigEndian.AppendUint64(nil, n)
		if _, err := pair[0].Write(device.PublishPacket(topic(1), 1, uint16(n%60_000+1), payload)); err != nil {
			return nil, err
		}
		select {
		case <-got:
		case err := <-broken:
			return nil, err
		case <-time.After(opTimeout):
			return nil, fmt.Errorf("request %d has no answer", n)
		}
		all = append(all, asked{t.Sub(begin), time.Since(t)})
		if err := pause(ctx, askEvery); err != nil {
			return nil, err
		}
	}
	return all, nil
}
