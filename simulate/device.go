package simulate

import (
	"context"
	"math/rand/v2"
	"net"
	"net/url"
	"time"

	"github.com/countersign-iot/countersign"
	"github.com/countersign-iot/countersign/sdk"
	"github.com/countersign-iot/countersign/simulate/device"
)

const (
	// publishEvery is about how often an honest device publishes.
	publishEvery = 5 * time.Second
	// retryMin and retryMax bound the pause before an honest device tries again.
	retryMin = 200 * time.Millisecond
	retryMax = 5 * time.Second
	// Of a thousand pauses between messages so many end with a broken line, with
	// another address, or with a renewal.
	breaksOf1000, roamsOf1000, renewsOf1000 = 15, 3, 4
)

// reading is what a simulated device publishes.
const reading = "21.5"

// brokerOf finds the gateway on loopback, since only there a process has many
// addresses of its own.
func brokerOf(o Options) (device.Broker, error) {
	b, err := device.At(o.Endpoints.MQTT, o.Roots)
	if err != nil {
		return b, countersign.Errorf(countersign.BadRequest, "the server has no MQTT listener").WithNext("set listeners.mqtt")
	}
	_, port, err := net.SplitHostPort(b.Addr)
	b.Addr = net.JoinHostPort("127.0.0.1", port)
	return b, err
}

// player is a simulated device.
type player struct {
	device.Client
	run    *run
	stolen *sdk.Identity // a copy of its key, as a thief took it
}

// live is the life of an honest device: it publishes, loses its line, comes back,
// sometimes from another address of its site, and renews its certificate.
func (d *player) live(ctx context.Context, random *rand.Rand) {
	if !wait(ctx, time.Duration(random.Int64N(int64(2*time.Second)))) {
		return
	}
	for first := true; ctx.Err() == nil; first = false {
		s := d.come(ctx, random)
		if s == nil {
			return
		}
		if !first {
			d.run.reconnects.Add(1)
		}
		d.work(ctx, s, random)
	}
}

// come connects, however often it takes; nil once ctx has ended.
func (d *player) come(ctx context.Context, random *rand.Rand) *device.Session {
	for pause := retryMin; ctx.Err() == nil; pause = min(2*pause, retryMax) {
		s, err := d.Connect(ctx)
		if err == nil {
			return s
		}
		if ctx.Err() == nil {
			d.run.refused.Add(1)
		}
		wait(ctx, pause/2+time.Duration(random.Int64N(int64(pause))))
	}
	return nil
}

// work publishes until the session ends.
func (d *player) work(ctx context.Context, s *device.Session, random *rand.Rand) {
	for {
		select {
		case <-ctx.Done():
			s.Leave()
			return
		case <-s.Ended():
			return
		case <-time.After(publishEvery/2 + time.Duration(random.Int64N(int64(publishEvery)))):
		}
		if s.Publish(ctx, d.Topic("up/sim"), reading) == nil {
			d.run.messages.Add(1)
		}
		switch n := random.IntN(1000); {
		case n < breaksOf1000:
			s.Lose()
			return
		case n < breaksOf1000+roamsOf1000:
			s.Lose()
			d.From = d.run.address(100, 1+random.IntN(250)) // what a carrier gives it
			d.run.befriend(d.From)
			return
		case n < breaksOf1000+roamsOf1000+renewsOf1000:
			if d.Renew(ctx) == nil {
				d.run.renewals.Add(1)
			}
			s.Leave()
			return
		}
	}
}

// befriend notes an address of honest devices.
func (r *run) befriend(addr string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.honest[addr] = true
}

// wait pauses; false once ctx has ended.
func wait(ctx context.Context, d time.Duration) bool {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return true
	case <-ctx.Done():
		return false
	}
}

// sasToken is a password with which a device connects.
func sasToken(key []byte, id string, expiry time.Time) []byte {
	return []byte(device.SAS(url.QueryEscape("countersign/devices/"+id), key, expiry))
}
