package mqtt_test

import (
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"strings"
	"sync"
	"testing"
	"time"

	countersign "github.com/countersign-iot/countersign"
	"github.com/countersign-iot/countersign/test/kit"
)

// slowAnswers stands before a broker and holds back what it answers for delay.
func slowAnswers(t *testing.T, broker string, delay time.Duration) string {
	t.Helper()
	ln := kit.Must(net.Listen("tcp", "127.0.0.1:0"))
	var wg sync.WaitGroup
	t.Cleanup(func() { _ = ln.Close(); wg.Wait() })
	wg.Go(func() {
		for {
			near, err := ln.Accept()
			if err != nil {
				return
			}
			far, err := net.Dial("tcp", broker)
			if err != nil {
				_ = near.Close()
				continue
			}
			wg.Go(func() {
				_, _ = io.Copy(far, near)
				_ = far.(*net.TCPConn).CloseWrite()
			})
			wg.Go(func() {
				defer func() { _ = near.Close(); _ = far.Close() }()
				buf := make([]byte, 16<<10)
				for {
					n, err := far.Read(buf)
					time.Sleep(delay)
					if n > 0 {
						if _, err := near.Write(buf[:n]); err != nil {
							return
						}
					}
					if err != nil {
						return
					}
				}
			})
		}
	})
	return ln.Addr().String()
}

// TestTheWillOfADeviceRevokedDuringItsConnectIsNotPublished revokes at a random moment
// of many connects; the engine may have read the CONNECT by then, or answered it.
func TestTheWillOfADeviceRevokedDuringItsConnectIsNotPublished(t *testing.T) {
	engines := map[string]func(t *testing.T) engine{
		"builtin": func(*testing.T) engine { return engine{} },
		"broker": func(t *testing.T) engine {
			return relayTo(startMosquitto(t, "allow_anonymous true\n"))
		},
		"slow broker": func(t *testing.T) engine {
			return relayTo(slowAnswers(t, startMosquitto(t, "allow_anonymous true\n"), 20*time.Millisecond))
		},
	}
	const rounds, workers = 300, 6
	for name, engine := range engines {
		t.Run(name, func(t *testing.T) {
			g := start(t, engine(t))
			wills := make(chan string, 2*rounds)
			listen(t, g, "devices/#", wills)
			span := 6 * time.Millisecond
			if name == "slow broker" {
				span = 40 * time.Millisecond
			}
			var wg sync.WaitGroup
			for w := range workers {
				wg.Go(func() {
					for i := w; i < rounds; i += workers {
						id := fmt.Sprintf("racer%d", i)
						d := g.dialWith(t, id, g.issue(id, time.Hour))
						level := byte(4 + i%2)
						var none []byte
						if level == 5 {
							none = []byte{0}
						}
						d.send(connectPacket(level, id, 6, 60, cat(none, str("devices/"+id+"/up/will"), str("bye"))))
						time.Sleep(time.Duration(rand.Int64N(int64(span))))
						g.guard.refuse(id, countersign.CertIsRevoked)
						g.Index.Cut(countersign.Cut{Device: id, Reason: "revoked"})
						_ = d.SetReadDeadline(time.Now().Add(10 * time.Second))
						for {
							if _, _, err := d.read(); err != nil {
								if strings.Contains(err.Error(), "timeout") {
									t.Errorf("%s outlived its revocation", id)
								}
								break
							}
						}
					}
				})
			}
			wg.Wait()
			kit.Eventually(t, "an empty index", func() bool { return g.Index.Len() == 0 })
			// A device that is lost proves that the platform hears wills, and that those of
			// before would have come by now.
			d := g.dial(t, "lost")
			d.send(connectPacket(4, "lost", 6, 60, cat(str("devices/lost/up/will"), str("bye"))))
			d.recv()
			time.Sleep(100 * time.Millisecond)
			_ = d.raw.SetLinger(0)
			_ = d.raw.Close()
			n := 0
			for end := time.After(10 * time.Second); ; {
				select {
				case m := <-wills:
					if m == "devices/lost/up/will bye" {
						if n > 0 {
							t.Errorf("%d wills of %d revoked devices were published", n, rounds)
						}
						return
					}
					n++
				case <-end:
					t.Fatalf("the will of a lost device was not published; %d of others were", n)
				}
			}
		})
	}
}
