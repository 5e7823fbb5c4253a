package access_test

import (
	"context"
	"crypto/rand"
	"net/netip"
	"sync"
	"testing"
	"time"

	"github.com/countersign-iot/countersign"
	"github.com/countersign-iot/countersign/access"
	"github.com/countersign-iot/countersign/store/storetest"
)

// TestFloodOfPasswordsIsBounded sends a flood of wrong passwords. The queue must stay
// bounded, and clients that do not need it must not be affected.
func TestFloodOfPasswordsIsBounded(t *testing.T) {
	db := storetest.Open(t)
	d := newDoor(t, db)
	d.Now, d.Secrets.Now = time.Now, time.Now
	chosen, s := d.secret(t, access.SecretOrder{Device: "pump-1", Given: []byte("correct horse")})
	made, _ := d.secret(t, access.SecretOrder{Device: "pump-2"})
	d.wantIn(t, "before", login("pump-1", chosen), countersign.AccessPassword, "secret:"+s.ID)
	ctx, stop := context.WithCancel(t.Context())
	var wg sync.WaitGroup
	var mu sync.Mutex
	codes := map[countersign.Code]int{}
	for n := range 300 {
		wg.Go(func() {
			for i := 0; ctx.Err() == nil; i++ {
				c := login("pump-1", []byte(rand.Text()))
				c.Remote = netip.AddrPortFrom(netip.AddrFrom4([4]byte{10, 0, byte(n), byte(n / 256)}), 1)
				got := d.Decide(ctx, c)
				mu.Lock()
				codes[got.Code]++
				mu.Unlock()
			}
		})
	}
	in := 0
	for end := time.Now().Add(3 * time.Second); time.Now().Before(end); {
		if w := d.Waiting(); w > access.MaxQueue {
			t.Errorf("%d checks wait, more than %d", w, access.MaxQueue)
			break
		}
		// A secret that the server made needs no place in the queue. One is reserved for
		// the device that has connected before.
		if got := d.Decide(t.Context(), login("pump-2", made)); !got.Allow {
			t.Errorf("a made secret: got %q (%s)", got.Code, got.Reason)
			break
		}
		if got := d.Decide(t.Context(), login("pump-1", chosen)); got.Allow {
			in++
		}
	}
	stop()
	wg.Wait()
	if in == 0 {
		t.Error("the attacked device was never admitted")
	}
	if codes[countersign.BadCredential] == 0 || codes[countersign.Unavailable] == 0 {
		t.Errorf("got %v, want wrong ones and some that had no place", codes)
	}
	if d.Waiting() != 0 {
		t.Errorf("%d checks left", d.Waiting())
	}
}

func TestOneAddressHasFewPlaces(t *testing.T) {
	d := newDoor(t, storetest.Open(t))
	d.Now, d.Secrets.Now = time.Now, time.Now
	d.secret(t, access.SecretOrder{Device: "pump-1", Given: []byte("correct horse")})
	var wg sync.WaitGroup
	var mu sync.Mutex
	busy := 0
	for range 40 {
		wg.Go(func() {
			if got := d.Decide(t.Context(), login("pump-1", []byte("wrong horse"))); got.Code == countersign.Unavailable {
				mu.Lock()
				busy++
				mu.Unlock()
			}
		})
	}
	wg.Wait()
	if busy == 0 {
		t.Errorf("40 checks of one address at once all had a place, want at most %d", access.MaxOfAddress)
	}
}
