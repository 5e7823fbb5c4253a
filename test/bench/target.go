package main

import (
	"context"
	"errors"
)

// target is a broker that is measured.
type target struct {
	prefix  string // of its names in the report
	process *process
	addr    string
}

// peer is mosquitto with what it keeps.
type peer struct {
	prefix string
	keep   keeping
}

// plainPeer keeps nothing; savingPeers write sessions and messages, after each change and
// once a second.
func plainPeer() peer { return peer{"mosquitto_", nothingKept} }

func savingPeers() []peer {
	return []peer{{"mosquitto_each_", keptEachTime}, {"mosquitto_second_", keptEachSec}}
}

// beside measures our server, then each peer, if it is installed, in a process of its own.
func (b *bench) beside(ctx context.Context, peers []peer, measure func(context.Context, target) ([]sample, error)) ([]sample, error) {
	all, err := measure(ctx, target{"", b.server, hostOf(b.endpoints.MQTT)})
	if err != nil || !hasMosquitto() {
		return all, err
	}
	for _, p := range peers {
		m, addr, err := b.startMosquitto(ctx, p.keep)
		if err != nil {
			return nil, err
		}
		samples, err := measure(ctx, target{p.prefix, m, addr})
		if err := errors.Join(err, m.stop()); err != nil {
			return nil, err
		}
		all = append(all, samples...)
	}
	return all, nil
}
