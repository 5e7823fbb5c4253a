package interop

import (
	"bufio"
	"context"
	"crypto/tls"
	"encoding/binary"
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

	"github.com/eclipse/paho.golang/packets"

	"github.com/countersign-iot/countersign/test/kit"
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

	mu       sync.Mutex
	ids      map[string]uint16 // packet identifier of each "topic number" of QoS 2, behind a tunnel
	resent   map[string]bool   // which of them came again with DUP
	faults   []string          // what the server must not send
	released map[uint16]int    // how often PUBREL was sent for an identifier
	packets  []string          // by side and type
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
// side ends, so does the other. It notes what the server sends.
func (k *talk) plain(s *stockSubscriber) (port string) {
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
			far, err := tls.Dial("tcp", k.addr, k.ids[s.device].TLSConfig())
			if err != nil {
				_ = near.Close()
				continue
			}
			for _, way := range []struct {
				name     string
				from, to net.Conn
			}{{"client", near, far}, {"server", far, near}} {
				go func() {
					_ = s.watch(way.name, bufio.NewReader(io.TeeReader(way.from, way.to))) // until one of them ends
					_, _ = near.Close(), far.Close()
				}()
			}
		}
	}()
	_, port, _ = net.SplitHostPort(ln.Addr().String())
	return port
}

// watch reads the packets of one side until the connection ends, and notes those of QoS 2.
func (s *stockSubscriber) watch(side string, r *bufio.Reader) error {
	sent := map[string]bool{}
	for {
		first, err := r.ReadByte()
		if err != nil {
			return err
		}
		size, err := binary.ReadUvarint(r)
		if err != nil {
			return err
		}
		body := make([]byte, size)
		if _, err := io.ReadFull(r, body); err != nil {
			return err
		}
		switch kind := first >> 4; kind {
		case packets.CONNECT, packets.CONNACK:
			s.trace("%s %d", side, kind)
		case packets.PUBREC, packets.PUBREL, packets.PUBCOMP:
			if kind == packets.PUBREL && side == "server" {
				s.mu.Lock()
				s.released[binary.BigEndian.Uint16(body)]++
				s.mu.Unlock()
			}
			s.trace("%s %d identifier %d", side, kind, binary.BigEndian.Uint16(body))
		case packets.PUBLISH:
			if first>>1&3 != 2 {
				continue
			}
			n := 2 + int(binary.BigEndian.Uint16(body))
			topic, payload, id, dup := string(body[2:n]), body[n+2:], binary.BigEndian.Uint16(body[n:]), first&8 != 0
			if s.level == "5" {
				size, m := binary.Uvarint(payload)
				payload = payload[m+int(size):]
			}
			s.trace("%s 3 identifier %d: %s %s, DUP %v", side, id, topic, payload, dup)
			s.note(fmt.Sprintf("%s %s", topic, payload), id, dup, sent)
		}
	}
}

func (s *stockSubscriber) trace(format string, args ...any) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.packets = append(s.packets, fmt.Sprintf(format, args...))
}

// note notes a PUBLISH of QoS 2; sent has those of its connection. It is the same message
// again only over another connection, with DUP and the same identifier.
func (s *stockSubscriber) note(message string, id uint16, dup bool, sent map[string]bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	before, again := s.ids[message]
	if again && (sent[message] || !dup || id != before) {
		s.faults = append(s.faults, fmt.Sprintf("%s was sent as two messages, with identifiers %d and %d", message, before, id))
	}
	sent[message], s.ids[message] = true, id
	s.resent[message] = again
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
	kit.Programs(t, "mosquitto_sub", "stdbuf")
	var subscribers []*stockSubscriber
	devices := []string{"publisher"}
	for _, level := range []string{"311", "5"} {
		for _, qos := range []byte{1, 2} {
			s := &stockSubscriber{device: fmt.Sprintf("sub-%s-%d", level, qos), level: level, qos: qos, ids: map[string]uint16{}, resent: map[string]bool{}, released: map[uint16]int{}}
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
			args = []string{"-V", s.level, "-h", "127.0.0.1", "-p", k.plain(s), "-i", s.device}
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
	if t.Failed() { // what holds a subscriber up, if one got nothing more
		sockets, _ := exec.Command("ss", "-tnpi").CombinedOutput() //nolint:noctx // at once
		for _, s := range subscribers {
			t.Logf("%s printed %d\nand exchanged\n%s", s.device, s.got("talk/2"), strings.Join(s.packets, "\n"))
		}
		t.Logf("server:\n%s\nsockets:\n%s", k.out.String(), sockets)
	}
	t.Logf("%d messages over %d kills", len(h.acts["talk/1"])+len(h.acts["talk/2"]), killsOfStock)
}

// checkStock wants all numbers up to n in order, with QoS 1 some of them again. With QoS 2
// it wants each once, apart from two faults of libmosquitto 2.0. It keeps a PUBLISH that
// comes with DUP beside the first one, and prints it when PUBREL comes again after a
// further kill. And it drops a message unprinted whose PUBCOMP it could not send, because
// the connection broke after PUBREL. Both show in what the server sent, which must be
// right.
func checkStock(t *testing.T, s *stockSubscriber, topic string, qos byte, n int) {
	t.Helper()
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, f := range s.faults {
		t.Errorf("%s: %s", s.device, f)
	}
	s.faults = nil
	got := s.got(topic)
	next := 0
	for _, one := range got {
		switch {
		case one == next:
			next++
		case one > next:
			for ; next < one; next++ {
				if qos != 2 || s.released[s.ids[fmt.Sprintf("%s %d", topic, next)]] < 2 {
					t.Errorf("%s: %s: %d is missing before %d", s.device, topic, next, one)
				}
			}
			next++
		case qos == 2 && !s.resent[fmt.Sprintf("%s %d", topic, one)]:
			t.Errorf("%s: %s: got %d twice", s.device, topic, one)
		}
	}
	if next != n {
		t.Errorf("%s: %s: the last is %d, want %d", s.device, topic, next-1, n-1)
	}
}
