package interop

import (
	"context"
	"crypto/tls"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"os/exec"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"
)

// killsOfStock is how often the server is killed below the clients of mosquitto.
const killsOfStock = 10

// stockSubscriber is a mosquitto_sub with a kept session, with what it has printed. Over
// TLS it ends when the connection breaks, and is started again, as systemd does. With QoS 2
// that would lose what mosquitto_sub has in memory only: it speaks through a tunnel then,
// and connects again by itself.
type stockSubscriber struct {
	out           output
	device, level string
	qos           byte
}

// run runs it until ctx ends.
func (s *stockSubscriber) run(ctx context.Context, args []string) {
	args = append(args, "-t", "talk/#", "-q", strconv.Itoa(int(s.qos)), "-c", "-F", "%t %p")
	if s.level == "5" {
		// Its library counts a PUBLISH that is sent again against Receive Maximum for a second
		// time, and then ends itself.
		args = append(args, "-x", "3600", "-D", "connect", "receive-maximum", "65535")
	}
	for ctx.Err() == nil {
		cmd := exec.CommandContext(ctx, "stdbuf", append([]string{"-oL", "mosquitto_sub"}, args...)...)
		cmd.Stdout, cmd.Stderr = &s.out, &s.out
		_ = cmd.Run() // it ends with the server
		time.Sleep(retryAfter)
	}
}

// plain listens for clients without TLS and connects each as the device. When either
// side ends, so does the other.
func (k *talk) plain(device string) (port string) {
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		k.t.Fatal(err)
	}
	k.t.Cleanup(func() { _ = ln.Close() })
	go func() {
		for {
			near, err := ln.Accept()
			if err != nil {
				return
			}
			far, err := tls.Dial("tcp", k.addr, k.ids[device].TLSConfig())
			if err != nil {
				_ = near.Close()
				continue
			}
			for _, way := range [][2]net.Conn{{near, far}, {far, near}} {
				go func() {
					_, _ = io.Copy(way[0], way[1]) // until one of them ends
					_, _ = near.Close(), far.Close()
				}()
			}
		}
	}()
	_, port, _ = net.SplitHostPort(ln.Addr().String())
	return port
}

// got returns the numbers that it has printed of a topic.
func (s *stockSubscriber) got(topic string) (list []int) {
	for line := range strings.Lines(s.out.String()) {
		text, ok := strings.CutPrefix(strings.TrimSuffix(line, "\n"), topic+" ")
		if n, err := strconv.Atoi(text); ok && err == nil {
			list = append(list, n)
		}
	}
	return list
}

// TestStockSubscriberMissesNothingOverTenKills has mosquitto_sub -c, with QoS 1 and 2,
// MQTT 3.1.1 and 5, receive while the server is killed ten times and a publisher goes on,
// which sends again what was not acknowledged. What QoS 2 carries all the way comes once.
func TestStockSubscriberMissesNothingOverTenKills(t *testing.T) {
	t.Parallel()
	peers(t, "mosquitto_sub", "stdbuf")
	var subscribers []*stockSubscriber
	devices := []string{"publisher"}
	for _, level := range []string{"311", "5"} {
		for _, qos := range []byte{1, 2} {
			s := &stockSubscriber{device: fmt.Sprintf("sub-%s-%d", level, qos), level: level, qos: qos}
			devices = append(devices, s.device)
			subscribers = append(subscribers, s)
		}
	}
	k := newTalk(t, generous+"}", devices...)
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	for _, s := range subscribers {
		args := k.mosquitto(s.device, s.level)
		if s.qos == 2 {
			args = []string{"-V", s.level, "-h", "127.0.0.1", "-p", k.plain(s.device), "-i", s.device}
		}
		go s.run(ctx, args)
	}
	if !eventually(func() bool { return k.subscribed() == len(subscribers) }) {
		t.Fatal("the subscribers of mosquitto did not subscribe")
	}
	h := newHistory()
	var stopping atomic.Bool
	p := &publisher{k: k, h: h, device: "publisher", window: 5, pace: 5 * time.Millisecond, next: func(n int) *act {
		if stopping.Load() {
			return nil
		}
		qos := byte(1 + n%2)
		return &act{topic: fmt.Sprintf("talk/%d", qos), n: n / 2, qos: qos, payload: strconv.Itoa(n / 2)}
	}}
	var publishing sync.WaitGroup
	publishing.Go(func() {
		if err := p.run(ctx); err != nil {
			t.Error(err)
		}
	})
	for range killsOfStock {
		time.Sleep(roundLeast + rand.N(roundMore))
		k.restart(true)
	}
	stopping.Store(true)
	publishing.Wait()
	eventually(func() bool {
		return !slices.ContainsFunc(subscribers, func(s *stockSubscriber) bool {
			return !slices.Contains(s.got("talk/1"), len(h.acts["talk/1"])-1) || !slices.Contains(s.got("talk/2"), len(h.acts["talk/2"])-1)
		})
	})
	for _, s := range subscribers {
		for _, qos := range []byte{1, 2} {
			topic := fmt.Sprintf("talk/%d", qos)
			checkStock(t, s, topic, min(qos, s.qos), len(h.acts[topic]))
		}
	}
	t.Logf("%d messages over %d kills", len(h.acts["talk/1"])+len(h.acts["talk/2"]), killsOfStock)
}

// checkStock wants all numbers up to n in order, with QoS 1 some of them again.
func checkStock(t *testing.T, s *stockSubscriber, topic string, qos byte, n int) {
	t.Helper()
	got := s.got(topic)
	next := 0
	for _, one := range got {
		switch {
		case one == next:
			next++
		case one > next:
			t.Errorf("%s: %s: got %d after %d", s.device, topic, one, next-1)
			next = one + 1
		case qos == 2:
			t.Errorf("%s: %s: got %d twice", s.device, topic, one)
		}
	}
	if next != n {
		t.Errorf("%s: %s: the last is %d, want %d", s.device, topic, next-1, n-1)
	}
}
