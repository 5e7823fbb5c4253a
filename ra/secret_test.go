package ra_test

import (
	"context"
	"crypto/hmac"
	"crypto/pbkdf2"
	"crypto/sha256"
	"crypto/x509"
	"encoding/base64"
	"fmt"
	"net/netip"
	"net/url"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/countersign-iot/countersign"
	"github.com/countersign-iot/countersign/access"
	"github.com/countersign-iot/countersign/api"
	"github.com/countersign-iot/countersign/attest"
	"github.com/countersign-iot/countersign/event"
	"github.com/countersign-iot/countersign/lockout"
	"github.com/countersign-iot/countersign/provision"
	"github.com/countersign-iot/countersign/ra"
	"github.com/countersign-iot/countersign/registry"
	"github.com/countersign-iot/countersign/store"
	"github.com/countersign-iot/countersign/test/kit"
)

var everyKind = []countersign.AccessKind{
	countersign.AccessCertificate, countersign.AccessPassword, countersign.AccessSecret, countersign.AccessSCRAM, countersign.AccessSAS, countersign.AccessToken,
}

// opens lets the default fleet connect with every kind.
func (w *world) opens(t *testing.T) {
	t.Helper()
	w.rules(t, "default", countersign.Rules{Access: countersign.Access{Kinds: everyKind}})
}

func (w *world) registered(t *testing.T, id string) {
	t.Helper()
	if _, err := w.provisioner().CreateDevice(t.Context(), countersign.Device{ID: id}, boss); err != nil {
		t.Fatal(err)
	}
}

func (w *world) secret(t *testing.T, o access.SecretOrder) (access.Secret, []byte) {
	t.Helper()
	s, text, err := w.CreateSecret(t.Context(), o, boss)
	if err != nil {
		t.Fatal(err)
	}
	if o.Given != nil {
		text = o.Given
	}
	return s, text
}

func by(device string, secret []byte, from string) countersign.Connection {
	return countersign.Connection{
		Gateway: "mqtt", Protocol: "MQTT 5", ClientID: device, Username: device, Password: secret, Remote: netip.MustParseAddrPort(from + ":50000"),
	}
}

// hasty admits without waiting out the delay of a refusal: the caller hangs up once
// it is decided.
func (w *world) hasty(t *testing.T, c countersign.Connection) countersign.Verdict {
	t.Helper()
	ctx, hangUp := context.WithCancel(t.Context())
	defer hangUp()
	w.Observe = func(ra.Outcome) { hangUp() }
	defer func() { w.Observe = nil }()
	return w.Admit(ctx, c)
}

// hubToken signs as Azure's SDKs do.
func hubToken(key []byte, device string, until time.Time) []byte {
	sr := url.QueryEscape("hub.example.net/devices/" + device)
	h := hmac.New(sha256.New, key)
	fmt.Fprintf(h, "%s\n%d", sr, until.Unix())
	return fmt.Appendf(nil, "SharedAccessSignature sr=%s&sig=%s&se=%d", sr, url.QueryEscape(base64.StdEncoding.EncodeToString(h.Sum(nil))), until.Unix())
}

// scram goes through SCRAM-SHA-256 (RFC 5802, 3) and gives the exchange, whatever
// became of it.
func (w *world) scram(t *testing.T, c countersign.Connection, secret string) countersign.Connection {
	t.Helper()
	x, err := w.Exchange(t.Context(), c, "SCRAM-SHA-256")
	if err != nil {
		t.Fatal(err)
	}
	bare := "n=" + c.Username + ",r=0123456789abcdef"
	asked, _, err := x.Next(t.Context(), []byte("n,,"+bare))
	if err != nil {
		t.Fatal(err)
	}
	f := strings.Split(string(asked), ",")
	salt, _ := base64.StdEncoding.DecodeString(f[1][2:])
	n, _ := strconv.Atoi(f[2][2:])
	salted, err := pbkdf2.Key(sha256.New, secret, salt, n, 32)
	if err != nil {
		t.Fatal(err)
	}
	sign := func(key []byte, text string) []byte {
		h := hmac.New(sha256.New, key)
		h.Write([]byte(text))
		return h.Sum(nil)
	}
	key := sign(salted, "Client Key")
	stored := sha256.Sum256(key)
	without := "c=biws," + f[0]
	proof := sign(stored[:], bare+","+string(asked)+","+without)
	for i := range proof {
		proof[i] ^= key[i]
	}
	_, _, _ = x.Next(t.Context(), []byte(without+",p="+base64.StdEncoding.EncodeToString(proof)))
	c.Exchange = x
	return c
}

// TestBruteForceEndsInABlock tries every kind of secret in the name of a device, and
// wants the guesser's address blocked and told, and the device to come in all along.
func TestBruteForceEndsInABlock(t *testing.T) {
	each(t, func(t *testing.T, w *world) {
		w.opens(t)
		w.Ledger = &lockout.Ledger{DB: w.DB, Now: w.Now, Log: w.Log, Events: w.Events}
		w.Access.Tokens = &access.Tokens{DB: w.DB, Now: w.Now, Key: make([]byte, 32)}
		w.registered(t, "pump-1")
		first, made := w.secret(t, access.SecretOrder{Device: "pump-1"})
		_, chosen := w.secret(t, access.SecretOrder{Device: "pump-1", Slot: attest.Secondary, Given: []byte("correct horse")})
		_, keys, err := w.provisioner().CreateKey(t.Context(), registry.Credential{Device: "pump-1"}, provision.SymmetricKeys{}, boss)
		if err != nil {
			t.Fatal(err)
		}
		key, err := attest.ParseSymmetricKey(keys.Primary)
		if err != nil {
			t.Fatal(err)
		}
		var token string
		write(t, w.DB, func(ctx context.Context, tx *store.Tx) (err error) {
			_, token, err = w.Access.Tokens.Issue(ctx, tx, access.Token{Subject: "pump-1", Source: first.Credential(), Fleet: "default"}, time.Hour)
			return err
		})
		soon := w.Now().Add(time.Hour)
		for i, tt := range []struct {
			kind  countersign.AccessKind
			right func(from string) countersign.Connection
			wrong func(from string, n int) countersign.Connection
		}{
			{
				countersign.AccessSecret, func(from string) countersign.Connection { return by("pump-1", made, from) },
				func(from string, n int) countersign.Connection {
					return by("pump-1", append(made[:len(made)-1:len(made)-1], "!#%&()*,;:"[n]), from)
				},
			},
			{
				countersign.AccessPassword, func(from string) countersign.Connection { return by("pump-1", chosen, from) },
				func(from string, n int) countersign.Connection {
					return by("pump-1", fmt.Appendf(nil, "guess %d", n), from)
				},
			},
			{
				countersign.AccessSCRAM, func(from string) countersign.Connection { return w.scram(t, by("pump-1", nil, from), string(made)) },
				func(from string, n int) countersign.Connection {
					return w.scram(t, by("pump-1", nil, from), fmt.Sprint("csds_", n))
				},
			},
			{
				countersign.AccessSAS, func(from string) countersign.Connection { return by("pump-1", hubToken(key, "pump-1", soon), from) },
				func(from string, n int) countersign.Connection {
					return by("pump-1", hubToken(fmt.Append(key[1:], n), "pump-1", soon), from)
				},
			},
			{
				countersign.AccessToken, func(from string) countersign.Connection { return by("pump-1", []byte(token), from) },
				func(from string, n int) countersign.Connection {
					// All of the signature: the last letter alone has two bits that say nothing.
					return by("pump-1", []byte(token[:strings.LastIndexByte(token, '.')+1]+strings.Repeat(strconv.Itoa(n), 43)), from)
				},
			},
		} {
			guesser, home := fmt.Sprintf("203.0.113.%d", i+1), fmt.Sprintf("192.0.2.%d", i+1)
			for n := range 10 {
				if v := w.hasty(t, tt.wrong(guesser, n)); v.Allow || v.Code != countersign.BadCredential {
					t.Errorf("%s, guess %d: got %v, %q (%s)", tt.kind, n, v.Allow, v.Code, v.Reason)
				}
			}
			if v := w.hasty(t, tt.wrong(guesser, 0)); v.Allow || v.Code != countersign.RateLimited {
				t.Errorf("%s: from the blocked address, another guess: got %v, %q", tt.kind, v.Allow, v.Code)
			}
			if v := w.hasty(t, by("pump-1", chosen, guesser)); v.Allow || v.Code != countersign.RateLimited {
				t.Errorf("%s: from the blocked address with the right password, which can be guessed: got %v, %q", tt.kind, v.Allow, v.Code)
			}
			if v := w.hasty(t, by("pump-1", made, guesser)); !v.Allow {
				t.Errorf("%s: from the blocked address with the right secret, which cannot: got %q", tt.kind, v.Code)
			}
			if v := w.Admit(t.Context(), tt.right(home)); !v.Allow || v.Device != "pump-1" {
				t.Errorf("%s: the attacked device: got %q (%s), want in", tt.kind, v.Code, v.Reason)
			}
			blocks := w.events(t, event.Filter{Type: countersign.AddressBlocked})
			if len(blocks) != i+1 || blocks[i].Data["network"] != guesser+"/32" || countersign.AddressBlocked.Kind().Level != "alert" {
				t.Errorf("%s: got %d blocks, want one of %s and an alert", tt.kind, len(blocks), guesser)
			}
			refused := w.events(t, event.Filter{Type: countersign.ConnectRefused, Device: "pump-1"})
			last := refused[len(refused)-1]
			if tt.kind != countersign.AccessToken && (last.Data["kind"] != string(tt.kind) || last.Actor != "unknown") {
				t.Errorf("%s: the refusal is told as %v by %s", tt.kind, last.Data, last.Actor)
			}
			for _, e := range w.events(t, event.Filter{}) {
				for name, v := range e.Data {
					if strings.Contains(v, string(made[5:20])) || strings.Contains(v, "guess") {
						t.Errorf("%s: event %s tells a secret in %s", tt.kind, e.Type, name)
					}
				}
			}
		}
	})
}

// TestSprayingOneSecretIsSeen tries one secret on many devices from many addresses.
func TestSprayingOneSecretIsSeen(t *testing.T) {
	each(t, func(t *testing.T, w *world) {
		w.opens(t)
		tried := map[string]bool{}
		for n := range 10 {
			id := fmt.Sprint("pump-", n)
			if n%2 == 0 {
				w.registered(t, id)
			}
			w.hasty(t, by(id, []byte("Spring2026!"), fmt.Sprint("203.0.113.", n)))
		}
		for _, e := range w.events(t, event.Filter{Type: countersign.ConnectRefused}) {
			tried[e.Data["tried"]] = true
			if e.Data["kind"] != "password" || len(e.Data["tried"]) != 8 {
				t.Errorf("got %v", e.Data)
			}
			if e.Device == "" && !strings.HasPrefix(e.Data["claims_device"], "pump-") {
				t.Errorf("a device that there is not: got %v", e.Data)
			}
		}
		if len(tried) != 1 {
			t.Errorf("one secret was told as %v", tried)
		}
		if got := w.events(t, event.Filter{Type: countersign.FindingGuessing}); len(got) != 1 || got[0].Data["for_credential"] != "10" {
			t.Errorf("findings: got %+v, want one", got)
		}
		w.hasty(t, by("pump-0", []byte("Summer2026!"), "203.0.113.200"))
		refused := w.events(t, event.Filter{Type: countersign.ConnectRefused})
		if tried[refused[len(refused)-1].Data["tried"]] {
			t.Error("another secret is told as the same")
		}
	})
}

func TestFirstSecretMakesADeviceActive(t *testing.T) {
	each(t, func(t *testing.T, w *world) {
		w.opens(t)
		w.registered(t, "pump-1")
		s, text := w.secret(t, access.SecretOrder{Device: "pump-1"})
		v := w.Admit(t.Context(), by("pump-1", text, "192.0.2.1"))
		if !v.Allow || v.Credential != "secret:"+s.ID || w.device(t, "pump-1").State != countersign.DeviceActive {
			t.Fatalf("got %+v, device %s", v, w.device(t, "pump-1").State)
		}
		if got := w.events(t, event.Filter{Type: countersign.DeviceActivated}); len(got) != 1 || got[0].Data["credential"] != v.Credential {
			t.Errorf("events: got %+v", got)
		}
		if v := w.Admit(t.Context(), by("pump-1", text, "192.0.2.1")); !v.Allow {
			t.Errorf("again: got %+v", v)
		}
	})
}

// TestSecretsFollowTheDevicesLife suspends, brings back, revokes and retires a
// device that has nothing but a secret.
func TestSecretsFollowTheDevicesLife(t *testing.T) {
	each(t, func(t *testing.T, w *world) {
		w.opens(t)
		w.registered(t, "pump-1")
		s, text := w.secret(t, access.SecretOrder{Device: "pump-1"})
		try := func(what string, text []byte, want countersign.Code) {
			t.Helper()
			w.clock.Advance(time.Second)
			if v := w.Admit(t.Context(), by("pump-1", text, "192.0.2.1")); v.Code != want || v.Allow != (want == "") {
				t.Errorf("%s: got %q (%s), want %q", what, v.Code, v.Reason, want)
			}
		}
		act := ra.Act{Device: "pump-1", Actor: "operator:boss"}
		try("made", text, "")
		if _, err := w.Suspend(t.Context(), act); err != nil {
			t.Fatal(err)
		}
		try("suspended", text, countersign.DeviceOnHold)
		if _, err := w.Reactivate(t.Context(), act); err != nil {
			t.Fatal(err)
		}
		try("reactivated", text, "") // everything that it needs is still there
		w.takeCuts()
		if _, err := w.Revoke(t.Context(), countersign.RevokeRequest{Device: "pump-1", Reason: countersign.KeyCompromise}); err != nil {
			t.Fatal(err)
		}
		try("revoked", text, countersign.CredentialExpire)
		if got := w.events(t, event.Filter{Type: countersign.SecretStopped}); len(got) != 1 || got[0].Data["secret"] != s.ID {
			t.Errorf("events: got %+v", got)
		}
		if cuts := w.takeCuts(); len(cuts) != 1 || cuts[0].Device != "pump-1" {
			t.Errorf("cuts: got %+v", cuts)
		}
		_, next := w.secret(t, access.SecretOrder{Device: "pump-1"})
		try("the old one of a device that came back", text, countersign.CredentialExpire)
		try("the new one", next, "")
		if _, err := w.Retire(t.Context(), act); err != nil {
			t.Fatal(err)
		}
		try("retired", next, countersign.DeviceGone)
		if _, _, err := w.CreateSecret(t.Context(), access.SecretOrder{Device: "pump-1"}, boss); countersign.CodeOf(err) != countersign.DeviceGone {
			t.Errorf("a secret for a retired device: got %v", err)
		}
	})
}

func TestStoppedSecretCutsItsSessions(t *testing.T) {
	each(t, func(t *testing.T, w *world) {
		w.opens(t)
		w.registered(t, "pump-1")
		s, _ := w.secret(t, access.SecretOrder{Device: "pump-1"})
		stopped, _, err := w.StopSecret(t.Context(), "pump-1", s.ID, "in a repository", boss)
		if err != nil || stopped.Active() {
			t.Fatalf("got %+v, %v", stopped, err)
		}
		if cuts := w.takeCuts(); len(cuts) != 1 || cuts[0].Credential != "secret:"+s.ID {
			t.Errorf("cuts: got %+v", cuts)
		}
		again, done, err := w.StopSecret(t.Context(), "pump-1", s.ID, "", boss)
		if err != nil || !done.Already || again.Reason != "in a repository" {
			t.Errorf("again: got %+v, %+v, %v, want that it was stopped already", again, done, err)
		}
		if cuts := w.takeCuts(); len(cuts) != 1 || cuts[0].Credential != "secret:"+s.ID {
			t.Errorf("cuts at the second time: got %+v", cuts)
		}
		_, _, err = w.StopSecret(t.Context(), "pump-2", s.ID, "", boss)
		kit.WantCode(t, err, countersign.NotFound)

		// The end of an overlap cuts what rests on the old one.
		first, _ := w.secret(t, access.SecretOrder{Device: "pump-1"})
		w.secret(t, access.SecretOrder{Device: "pump-1", Rotate: true, Overlap: time.Hour})
		if n, err := w.SweepSecrets(t.Context()); n != 0 || err != nil {
			t.Errorf("within the overlap: got %d, %v", n, err)
		}
		w.clock.Advance(time.Hour)
		if n, err := w.SweepSecrets(t.Context()); n != 1 || err != nil {
			t.Errorf("after the overlap: got %d, %v", n, err)
		}
		if cuts := w.takeCuts(); len(cuts) != 1 || cuts[0].Credential != "secret:"+first.ID {
			t.Errorf("cuts: got %+v", cuts)
		}
	})
}

func TestDeviceChangesItsOwnSecret(t *testing.T) {
	each(t, func(t *testing.T, w *world) {
		w.opens(t)
		cert := w.active(t, "pump-1")
		_, old := w.secret(t, access.SecretOrder{Device: "pump-1", Slot: attest.Secondary})
		s, err := w.ChangeSecret(t.Context(), by("pump-1", old, "192.0.2.1"), api.ChangeSecret{})
		next := []byte(s.Text)
		if err != nil || s.Slot != string(attest.Secondary) || s.CreatedBy != "device:pump-1" {
			t.Fatalf("got %+v, %v", s, err)
		}
		for _, text := range [][]byte{old, next} { // a day of overlap
			if v := w.Admit(t.Context(), by("pump-1", text, "192.0.2.1")); !v.Allow {
				t.Errorf("within the overlap: got %q", v.Code)
			}
		}
		_, err = w.ChangeSecret(t.Context(), by("pump-1", next, "192.0.2.1"), api.ChangeSecret{})
		kit.WantCode(t, err, countersign.RateLimited)
		w.clock.Advance(25 * time.Hour)
		if v := w.Admit(t.Context(), by("pump-1", old, "192.0.2.1")); v.Allow {
			t.Error("the old one is good after the overlap")
		}
		c := by("pump-1", nil, "192.0.2.1")
		c.Username, c.Peer = "", peerOf(cert)
		s, err = w.ChangeSecret(t.Context(), c, api.ChangeSecret{Binary: true})
		if err != nil || s.Slot != string(attest.Primary) || len(s.Octets) != 32 {
			t.Errorf("with its certificate: got %+v, %v", s, err)
		}
		ctx, hangUp := context.WithCancel(t.Context())
		w.Observe = func(ra.Outcome) { hangUp() }
		_, err = w.ChangeSecret(ctx, by("pump-1", []byte("wrong, for sure"), "192.0.2.1"), api.ChangeSecret{})
		kit.WantCode(t, err, countersign.BadCredential)
		w.Observe = nil

		w.rules(t, "default", countersign.Rules{}) // certificates alone: a secret would open nothing
		w.clock.Advance(time.Hour)
		_, err = w.ChangeSecret(t.Context(), c, api.ChangeSecret{})
		kit.WantCode(t, err, countersign.NotAllowed)
	})
}

func TestUsesOfSecretsAreWrittenBehind(t *testing.T) {
	each(t, func(t *testing.T, w *world) {
		w.opens(t)
		w.registered(t, "pump-1")
		s, _ := w.secret(t, access.SecretOrder{Device: "pump-1"})
		w.Opened(countersign.Session{Device: "pump-1", Fleet: "default", Credential: s.Credential(), Since: w.Now()})
		ctx, stop := context.WithCancel(t.Context())
		done := make(chan error, 1)
		go func() { done <- w.Run(ctx) }()
		stop() // Run writes what is left
		if err := <-done; err != nil {
			t.Fatal(err)
		}
		list, err := w.Secrets(t.Context(), "pump-1")
		if err != nil || len(list) != 1 || !list[0].UsedAt.Equal(w.Now()) {
			t.Errorf("got %+v, %v", list, err)
		}
	})
}

func TestBrokersDeviceIsNoGuess(t *testing.T) {
	each(t, func(t *testing.T, w *world) {
		w.active(t, "pump-1")
		for range 10 {
			w.hasty(t, by("pump-1", []byte("wrong horse"), "192.0.2.1"))
		}
		c := countersign.Connection{Gateway: "hook", Username: "pump-1", Vouched: "emqx", Remote: netip.MustParseAddrPort("192.0.2.1:1")}
		if v := w.Admit(t.Context(), c); !v.Allow {
			t.Errorf("got %q (%s): the block of a guesser refuses what a broker vouches for", v.Code, v.Reason)
		}
	})
}

func peerOf(cert *x509.Certificate) []*x509.Certificate { return []*x509.Certificate{cert} }
