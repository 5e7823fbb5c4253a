package broker_test

import (
	"fmt"
	"syscall"
	"testing"
	"time"

	"github.com/countersign-iot/countersign/broker"
	"github.com/countersign-iot/countersign/store/storetest"
)

// sink is a client that takes everything at once.
type sink struct {
	conn *broker.Conn
	acks chan struct{}
	left chan broker.Delivery
}

func (s *sink) Deliver(d broker.Delivery) broker.Outcome {
	if d.QoS > 0 {
		s.left <- d
	}
	return broker.Sent
}
func (s *sink) Acknowledge(broker.Acknowledgment, uint16, byte) { s.acks <- struct{}{} }
func (s *sink) Flush()                                          {}
func (s *sink) Receives(string) bool                            { return true }
func (s *sink) Lost(byte, string)                               {}

// run acknowledges what the client gets.
func (s *sink) run() {
	for d := range s.left {
		s.conn.Acknowledge(broker.Puback, d.ID, broker.Success)
	}
}

func cpu() time.Duration {
	var u syscall.Rusage
	_ = syscall.Getrusage(syscall.RUSAGE_SELF, &u)
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}

func BenchmarkPublish(b *testing.B) {
	for _, c := range []struct {
		name string
		qos  byte
		h    broker.Hello
		subs int
	}{
		{"fan-in/qos=0", 0, clean("s"), 1},
		{"fan-in/qos=1", 1, clean("s"), 1},
		{"kept/qos=1", 1, kept("s"), 1},
		{"fan-out/qos=0", 0, clean("s"), 10_000},
		{"fan-out/qos=1", 1, clean("s"), 10_000},
		{"fan-out/kept", 1, kept("s"), 1_000},
	} {
		b.Run(c.name, func(b *testing.B) {
			core := open(b, storetest.Open(b), broker.Limits{Queued: 1 << 20, QueuedOctets: 1 << 40, Store: 1 << 40})
			defer func() { _ = core.Close(b.Context()) }()
			for i := range c.subs {
				h := c.h
				h.ClientID = fmt.Sprint("s", i)
				h.Device = h.ClientID
				s := &sink{acks: make(chan struct{}, 512), left: make(chan broker.Delivery, 256)}
				s.conn, _, _ = core.Connect(b.Context(), h, s)
				s.conn.Start()
				s.conn.Subscribe(b.Context(), []broker.Subscription{{Filter: "up/#", QoS: 1}})
				go s.run()
			}
			p := &sink{acks: make(chan struct{}, 512)}
			p.conn, _, _ = core.Connect(b.Context(), clean("p"), p)
			payload := make([]byte, 256)
			started := cpu()
			b.ReportAllocs()
			b.ResetTimer()
			flight := 0
			for i := range b.N {
				m := &broker.Message{Topic: "up/device/temperature", Payload: payload, QoS: c.qos, Device: "p"}
				_ = p.conn.Publish(m, uint16(i%60000)+1)
				if c.qos > 0 {
					if flight++; flight >= 200 {
						<-p.acks
						flight--
					}
				}
			}
			for range flight {
				<-p.acks
			}
			p.conn.Flush()
			b.ReportMetric(float64((cpu()-started).Nanoseconds())/float64(b.N*c.subs), "cpu-ns/delivered")
		})
	}
}
