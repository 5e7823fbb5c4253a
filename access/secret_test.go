package access_test

import (
	"bytes"
	"context"
	"crypto/hmac"
	"crypto/sha256"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"net/netip"
	"net/url"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/countersign-iot/countersign"
	"github.com/countersign-iot/countersign/access"
	"github.com/countersign-iot/countersign/attest"
	"github.com/countersign-iot/countersign/registry"
	"github.com/countersign-iot/countersign/store"
	"github.com/countersign-iot/countersign/store/storetest"
	"github.com/countersign-iot/countersign/test/kit"
)

// door is a Decider whose fleet pumps accepts every kind and has two active devices.
type door struct {
	*access.Decider
	clock *kit.Clock
}

func (d *door) turn(by time.Duration) { d.clock.Advance(by) }

func newDoor(t *testing.T, db *store.DB) *door {
	t.Helper()
	clock := kit.NewClock(start)
	d := &door{clock: clock, Decider: decider(t, db, clock.Now)}
	d.exec(t, `INSERT INTO authority (id, kind, parent, certificate, key_uri, state, created_at) VALUES ('issuing', 'issuing', '', $1, '', 'active', 0)`, []byte{})
	d.exec(t, `INSERT INTO profile (name, spec, created_at, updated_at) VALUES ('device', '{}', 0, 0)`)
	d.exec(t, `INSERT INTO fleet (name, issuer, profile, methods, overlap, trust_domain, created_at, updated_at) VALUES ('pumps', 'issuing', 'device', '[]', 0, '', 0, 0)`)
	for _, id := range []string{"pump-1", "pump-2"} {
		d.exec(t, `INSERT INTO device (id, fleet, state, reason, owner, tags, revoked_at, created_at, updated_at, last_seen, last_addr)
			VALUES ($1, 'pumps', 'active', '', '', '{"site":"north"}', 0, 0, 0, 0, '')`, id)
	}
	d.accept(t, countersign.Access{Kinds: []countersign.AccessKind{
		countersign.AccessCertificate, countersign.AccessPassword, countersign.AccessSecret, countersign.AccessSCRAM, countersign.AccessSAS, countersign.AccessToken,
	}})
	return d
}

func (d *door) exec(t *testing.T, q string, args ...any) { t.Helper(); exec(t, d.DB, q, args...) }

// key registers the symmetric keys of a device or, if device is empty, of a group. It
// returns the name of the credential in verdicts.
func (d *door) key(t *testing.T, c registry.Credential, k attest.SymmetricKeys) (name string) {
	t.Helper()
	c.Fleet, c.CreatedBy = "pumps", "operator:test"
	lookup := kit.Must(registry.SealKeys(d.Secrets.Sealer, &c, k))
	err := d.DB.Write(t.Context(), func(ctx context.Context, tx *store.Tx) error {
		made, err := d.Registry.CreateCredential(ctx, tx, c, lookup)
		name = made.Evidence()
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return name
}

// accept sets what the fleet accepts.
func (d *door) accept(t *testing.T, a countersign.Access) {
	t.Helper()
	b, err := json.Marshal(countersign.Rules{Access: a})
	if err != nil {
		t.Fatal(err)
	}
	d.exec(t, `UPDATE fleet SET rules = $1 WHERE name = 'pumps'`, string(b))
}

// secret makes a secret. It returns what the device sends, and the record.
func (d *door) secret(t *testing.T, o access.SecretOrder) ([]byte, access.Secret) {
	t.Helper()
	text, s, err := d.trySecret(t, o)
	if err != nil {
		t.Fatalf("make a secret: %v", err)
	}
	return text, s
}

func (d *door) trySecret(t *testing.T, o access.SecretOrder) ([]byte, access.Secret, error) {
	t.Helper()
	o.By = "operator:test"
	n, err := d.Secrets.Prepare(t.Context(), o)
	if err != nil {
		return nil, n.Secret, err
	}
	err = d.DB.Write(t.Context(), func(ctx context.Context, tx *store.Tx) error {
		_, err := d.Secrets.Save(ctx, tx, n)
		return err
	})
	if o.Given != nil {
		return o.Given, n.Secret, err
	}
	return n.Text, n.Secret, err
}

var home = netip.MustParseAddrPort("192.0.2.10:50000")

func login(device string, secret []byte) countersign.Connection {
	return countersign.Connection{Gateway: "mqtt", Protocol: "MQTT 5", ClientID: device, Username: device, Password: secret, Remote: home}
}

// wantIn fails the test unless the connection is admitted as pump-1 by a credential.
func (d *door) wantIn(t *testing.T, what string, c countersign.Connection, kind countersign.AccessKind, credential string) access.Decision {
	t.Helper()
	got := d.Decide(t.Context(), c)
	if !got.Allow || got.Device != "pump-1" || got.Fleet != "pumps" || !got.Known || got.Kind != kind || got.Credential != credential || got.Subject.Tags["site"] != "north" {
		t.Errorf("%s: got %+v, want in as pump-1 by %s %s", what, got, kind, credential)
	}
	return got
}

func (d *door) wantOut(t *testing.T, what string, c countersign.Connection, code countersign.Code) access.Decision {
	t.Helper()
	got := d.Decide(t.Context(), c)
	if got.Allow || got.Code != code {
		t.Errorf("%s: got %v, %q (%s), want %q", what, got.Allow, got.Code, got.Reason, code)
	}
	return got
}

// everyOctet returns a secret of n octets with every value in it.
func everyOctet(n int) []byte {
	b := make([]byte, n)
	for i := range b {
		b[i] = byte(i)
	}
	return b
}

func TestSecretsLetTheirDeviceIn(t *testing.T) {
	storetest.Each(t, func(t *testing.T, db *store.DB) {
		d := newDoor(t, db)
		for _, tt := range []struct {
			name  string
			order access.SecretOrder
			kind  countersign.AccessKind
		}{
			{"made as text", access.SecretOrder{}, countersign.AccessSecret},
			{"made as octets", access.SecretOrder{Binary: true}, countersign.AccessSecret},
			{"password", access.SecretOrder{Given: []byte("correct horse")}, countersign.AccessPassword},
			{"octets with NUL and 0xff", access.SecretOrder{Given: []byte{0, 0xff, 0, 1, 2, 0xfe, 0, 0, 0xff}}, countersign.AccessPassword},
			{"all octets", access.SecretOrder{Given: everyOctet(256)}, countersign.AccessPassword},
			{"65,535 octets", access.SecretOrder{Given: everyOctet(access.MaxSecret)}, countersign.AccessPassword},
		} {
			tt.order.Device, tt.order.Rotate = "pump-1", true
			text, s := d.secret(t, tt.order)
			d.wantIn(t, tt.name, login("pump-1", text), tt.kind, "secret:"+s.ID)
			for what, wrong := range map[string][]byte{
				"one octet less": text[:len(text)-1], "one more": append(bytes.Clone(text), 0), "the last other": append(bytes.Clone(text[:len(text)-1]), text[len(text)-1]^1),
			} {
				got := d.wantOut(t, tt.name+", "+what, login("pump-1", wrong), countersign.BadCredential)
				if got.Known || got.Device != "pump-1" || len(got.Tried) != 8 || bytes.Contains(text, []byte(got.Tried)) {
					t.Errorf("%s, %s: got %+v", tt.name, what, got)
				}
			}
			other := login("pump-2", text)
			d.wantOut(t, tt.name+" of another device", other, countersign.BadCredential)
		}
	})
}

func TestMadeSecretIsLongAndRecognized(t *testing.T) {
	d := newDoor(t, storetest.Open(t))
	text, s := d.secret(t, access.SecretOrder{Device: "pump-1"})
	raw, err := base64.RawURLEncoding.DecodeString(strings.TrimPrefix(string(text), access.SecretPrefix))
	if err != nil || len(raw) != 32 || !strings.HasPrefix(string(text), "csds_") || !s.SCRAM {
		t.Errorf("text: got %d octets, %v, scram %v", len(raw), err, s.SCRAM)
	}
	octets, s := d.secret(t, access.SecretOrder{Device: "pump-1", Slot: attest.Secondary, Binary: true})
	if len(octets) != 32 || s.SCRAM {
		t.Errorf("octets: got %d, scram %v", len(octets), s.SCRAM)
	}
	// The record contains neither of them.
	var verifier, scram []byte
	if err := d.DB.QueryRow(t.Context(), `SELECT verifier, scram FROM device_secret WHERE slot = 'primary'`).Scan(&verifier, &scram); err != nil {
		t.Fatal(err)
	}
	if bytes.Contains(verifier, raw) || bytes.Contains(verifier, text) || bytes.Contains(scram, raw) || len(verifier) != sha256.Size {
		t.Error("the record contains the secret")
	}
}

func TestSecretsThatAreRefused(t *testing.T) {
	d := newDoor(t, storetest.Open(t))
	text, _ := d.secret(t, access.SecretOrder{Device: "pump-2"})
	for name, o := range map[string]access.SecretOrder{
		"seven octets":            {Given: []byte("1234567")},
		"none":                    {Given: []byte{}},
		"65,536 octets":           {Given: make([]byte, 65536)},
		"looks like one of ours":  {Given: text},
		"looks like a SAS token":  {Given: []byte("SharedAccessSignature sr=x")},
		"looks like a JWT":        {Given: []byte("eyJhbGciOi.x.y")},
		"the device's id":         {Device: "pump-long-enough", Given: []byte("pump-long-enough")},
		"a slot that is none":     {Slot: "third"},
		"a ttl of a second":       {TTL: time.Second},
		"a ttl of a century":      {TTL: 100 * 365 * 24 * time.Hour},
		"an overlap of 31 days":   {Rotate: true, Overlap: 31 * 24 * time.Hour},
		"an overlap before birth": {Rotate: true, Overlap: -time.Second},
	} {
		if o.Device == "" {
			o.Device = "pump-1"
		}
		if _, _, err := d.trySecret(t, o); countersign.CodeOf(err) != countersign.BadRequest {
			t.Errorf("%s: got %v, want bad_request", name, err)
		}
	}
	d.secret(t, access.SecretOrder{Device: "pump-1"})
	if _, _, err := d.trySecret(t, access.SecretOrder{Device: "pump-1"}); countersign.CodeOf(err) != countersign.Conflict {
		t.Errorf("a second one in the slot: got %v, want conflict", err)
	}
}

func TestRotationOverlaps(t *testing.T) {
	storetest.Each(t, func(t *testing.T, db *store.DB) {
		d := newDoor(t, db)
		old, s1 := d.secret(t, access.SecretOrder{Device: "pump-1"})
		second, _ := d.secret(t, access.SecretOrder{Device: "pump-1", Slot: attest.Secondary})
		now, s2 := d.secret(t, access.SecretOrder{Device: "pump-1", Rotate: true, Overlap: time.Hour})
		d.turn(time.Hour)
		in := d.wantIn(t, "the old one, to the last moment", login("pump-1", old), countersign.AccessSecret, "secret:"+s1.ID)
		if !in.NotAfter.Equal(start.Add(time.Hour)) {
			t.Errorf("its session ends at %v, want the end of the overlap", in.NotAfter)
		}
		if in = d.wantIn(t, "the new one", login("pump-1", now), countersign.AccessSecret, "secret:"+s2.ID); !in.NotAfter.IsZero() {
			t.Errorf("the new one's session ends at %v", in.NotAfter)
		}
		d.turn(time.Second)
		late := d.wantOut(t, "the old one, after the overlap", login("pump-1", old), countersign.CredentialExpire)
		if !late.Known { // it was right: no guess
			t.Errorf("got %+v", late)
		}
		if got := d.Decide(t.Context(), login("pump-1", second)); !got.Allow {
			t.Errorf("the other slot's: got %+v", got)
		}
		due, err := d.Secrets.Overdue(t.Context(), 10)
		if err != nil || len(due) != 1 || due[0].ID != s1.ID {
			t.Errorf("overdue: got %v, %v", due, err)
		}
		// Without overlap the present one ends with its successor.
		d.secret(t, access.SecretOrder{Device: "pump-1", Rotate: true})
		d.wantOut(t, "rotated at once", login("pump-1", now), countersign.CredentialExpire)
	})
}

func TestSecretsAreBounded(t *testing.T) {
	d := newDoor(t, storetest.Open(t))
	for i := range 20 {
		slot := []attest.KeySlot{attest.Primary, attest.Secondary}[i%2]
		d.secret(t, access.SecretOrder{Device: "pump-1", Slot: slot, Rotate: true, Overlap: 24 * time.Hour})
		d.turn(time.Minute)
	}
	all, err := d.Secrets.Of(t.Context(), d.DB, "pump-1")
	if err != nil {
		t.Fatal(err)
	}
	active := slices.DeleteFunc(slices.Clone(all), func(s access.Secret) bool { return !s.Active() })
	if len(active) != access.MaxSecrets || len(all) > access.MaxSecrets+access.KeepStopped {
		t.Errorf("got %d active of %d", len(active), len(all))
	}
}

func TestStandingOfTheDeviceCounts(t *testing.T) {
	storetest.Each(t, func(t *testing.T, db *store.DB) {
		d := newDoor(t, db)
		text, s := d.secret(t, access.SecretOrder{Device: "pump-1"})
		for state, want := range map[string]countersign.Code{
			"suspended": countersign.DeviceOnHold, "retired": countersign.DeviceGone, "pending": countersign.NotAllowed, "parked": countersign.NotAllowed,
		} {
			d.exec(t, `UPDATE device SET state = $1 WHERE id = 'pump-1'`, state)
			if got := d.wantOut(t, state, login("pump-1", text), want); !got.Known {
				t.Errorf("%s: got %+v", state, got)
			}
		}
		d.exec(t, `UPDATE device SET state = 'registered' WHERE id = 'pump-1'`)
		if got := d.wantIn(t, "registered", login("pump-1", text), countersign.AccessSecret, "secret:"+s.ID); !got.FirstUse {
			t.Error("the first use of a registered device is none")
		}
		d.exec(t, `UPDATE device SET revoked_pos = 1 WHERE id = 'pump-1'`)
		d.wantOut(t, "registered again after a revocation", login("pump-1", text), countersign.NotAllowed)
		d.exec(t, `UPDATE device SET state = 'active'`)
		err := d.DB.Write(t.Context(), func(ctx context.Context, tx *store.Tx) error {
			_, err := d.Secrets.Stop(ctx, tx, "pump-1", s.ID, "in a repository")
			return err
		})
		if err != nil {
			t.Fatal(err)
		}
		if got := d.wantOut(t, "stopped", login("pump-1", text), countersign.CredentialExpire); !strings.Contains(got.Reason, "in a repository") {
			t.Errorf("got %q", got.Reason)
		}
	})
}

func TestFleetsChooseKinds(t *testing.T) {
	storetest.Each(t, func(t *testing.T, db *store.DB) {
		d := newDoor(t, db)
		made, _ := d.secret(t, access.SecretOrder{Device: "pump-1"})
		chosen, _ := d.secret(t, access.SecretOrder{Device: "pump-1", Slot: attest.Secondary, Given: []byte("correct horse")})
		key := bytes.Repeat([]byte{7}, 32)
		d.key(t, registry.Credential{Kind: countersign.MethodKey, Device: "pump-1"}, attest.SymmetricKeys{Primary: key})
		scram := login("pump-1", nil)
		scram.Exchange = d.scram(t, string(made))
		for kind, c := range map[countersign.AccessKind]countersign.Connection{
			countersign.AccessSecret: login("pump-1", made), countersign.AccessPassword: login("pump-1", chosen),
			countersign.AccessSAS: login("pump-1", sasToken(key, "h/devices/pump-1", start.Add(time.Hour))), countersign.AccessSCRAM: scram,
		} {
			for _, accepted := range []countersign.AccessKind{countersign.AccessSecret, countersign.AccessPassword, countersign.AccessSAS, countersign.AccessSCRAM, countersign.AccessCertificate} {
				d.accept(t, countersign.Access{Kinds: []countersign.AccessKind{accepted}})
				if got := d.Decide(t.Context(), c); got.Allow != (kind == accepted) || !got.Allow && got.Code != countersign.NotAllowed {
					t.Errorf("%s, fleet takes %s: got %v, %q", kind, accepted, got.Allow, got.Code)
				}
			}
			d.accept(t, countersign.Access{})
			d.wantOut(t, string(kind)+" where the fleet says nothing", c, countersign.NotAllowed)
			wrong := login("pump-1", []byte("a wrong one, for sure"))
			d.wantOut(t, "wrong secret, kind not taken", wrong, countersign.BadCredential) // the answer must not show what the fleet accepts
		}
	})
}

func TestFleetsMayRefuseCertificates(t *testing.T) {
	db := storetest.Open(t)
	cert := certificate(t, 0xa1)
	good().record(t, db, cert)
	d := desk(t, db)
	set := func(rules string) {
		t.Helper()
		exec(t, db, `UPDATE fleet SET rules = $1`, rules)
	}
	for _, tt := range []struct {
		rules string
		code  countersign.Code
	}{
		{`{}`, ""},
		{`{"access":{"kinds":["secret"]}}`, countersign.NotAllowed},
		{`{"access":{"kinds":["secret","certificate"]}}`, ""},
		{`{"access":{"kinds":["scram"]}}`, countersign.NotAllowed},
		{`{"access":`, countersign.Unavailable}, // rules that cannot be read admit no client
	} {
		set(tt.rules)
		if got := d.Decide(t.Context(), connect(cert)); got.Code != tt.code || got.Allow != (tt.code == "") {
			t.Errorf("%s: got %v, %q", tt.rules, got.Allow, got.Code)
		}
	}
}

// TestNameBesideCertificateIsNoLogin covers what AWS's SDKs send, and what an attacker could.
func TestNameBesideCertificateIsNoLogin(t *testing.T) {
	db := storetest.Open(t)
	cert := certificate(t, 0xa1)
	d := newDoor(t, db)
	text, _ := d.secret(t, access.SecretOrder{Device: "pump-2"})
	d.exec(t, `DELETE FROM device_secret`)
	good().record(t, db, cert)
	for name, password := range map[string][]byte{"?SDK=IoTDeviceSDK/JS&Platform=x": nil, "pump-2": text, "": []byte("x"), "pumps": nil} {
		c := connect(cert)
		c.Username, c.Password = name, password
		if got := d.Decide(t.Context(), c); !got.Allow || got.Device != "pump-1" || got.Credential != "" || got.Kind != countersign.AccessCertificate {
			t.Errorf("user name %q: got %+v", name, got)
		}
	}
	// A certificate that is not on record is refused, also with a right secret beside it.
	c := connect(certificate(t, 0xb2))
	c.Username, c.Password = "pump-2", text
	if got := d.Decide(t.Context(), c); got.Allow || got.Code != countersign.CertUnknown {
		t.Errorf("unknown certificate with a secret: got %+v", got)
	}
}

// sasToken signs as Azure's SDKs do.
func sasToken(key []byte, resource string, expiry time.Time) []byte {
	sr := url.QueryEscape(resource)
	h := hmac.New(sha256.New, key)
	fmt.Fprintf(h, "%s\n%d", sr, expiry.Unix())
	return fmt.Appendf(nil, "SharedAccessSignature sr=%s&sig=%s&se=%d", sr, url.QueryEscape(base64.StdEncoding.EncodeToString(h.Sum(nil))), expiry.Unix())
}

func TestSASTokensLetTheirDeviceIn(t *testing.T) {
	storetest.Each(t, func(t *testing.T, db *store.DB) {
		d := newDoor(t, db)
		key, group := bytes.Repeat([]byte{7}, 32), bytes.Repeat([]byte{9}, 32)
		own := d.key(t, registry.Credential{Kind: countersign.MethodKey, Device: "pump-1"}, attest.SymmetricKeys{Primary: bytes.Repeat([]byte{8}, 32), Secondary: key})
		shared := d.key(t, registry.Credential{Kind: countersign.MethodGroup, Label: "g1"}, attest.SymmetricKeys{Primary: group})
		soon := start.Add(time.Hour)
		as := func(user string, token []byte) countersign.Connection {
			c := login("pump-1", token)
			c.Username = user
			return c
		}
		for name, user := range map[string]string{
			"the id": "pump-1", "as the SDKs do": "hub.example.net/pump-1/?api-version=2021-04-12&DeviceClientType=x", "without the version": "hub.example.net/pump-1",
		} {
			in := d.wantIn(t, name, as(user, sasToken(key, "hub.example.net/devices/pump-1", soon)), countersign.AccessSAS, own)
			if want := soon.Add(attest.SASSkew); !in.NotAfter.Equal(want) {
				t.Errorf("%s: the session ends at %v, want %v", name, in.NotAfter, want)
			}
		}
		for name, tt := range map[string]struct {
			user  string
			token []byte
			code  countersign.Code
		}{
			"another key":               {"pump-1", sasToken(bytes.Repeat([]byte{5}, 32), "hub/devices/pump-1", soon), countersign.BadCredential},
			"another device's resource": {"pump-1", sasToken(key, "hub/devices/pump-2", soon), countersign.SubjectMismatch},
			"made to enroll":            {"pump-1", sasToken(key, "pumps/registrations/pump-1", soon), countersign.SubjectMismatch},
			"for another host":          {"hub/pump-1/?api-version=1", sasToken(key, "other/devices/pump-1", soon), countersign.SubjectMismatch},
			"expired":                   {"pump-1", sasToken(key, "hub/devices/pump-1", start.Add(-time.Hour)), countersign.CredentialExpire},
			"for ever":                  {"pump-1", sasToken(key, "hub/devices/pump-1", start.Add(10*366*24*time.Hour)), countersign.Misconfigured},
			"nobody's":                  {"pump-9", sasToken(key, "hub/devices/pump-9", soon), countersign.BadCredential},
			"no token":                  {"pump-1", []byte("SharedAccessSignature sr="), countersign.BadRequest},
			"the group's own key":       {"pump-2", sasToken(group, "hub/devices/pump-2", soon), countersign.NotAllowed},
		} {
			d.wantOut(t, name, as(tt.user, tt.token), tt.code)
		}
		c := login("pump-2", sasToken(attest.DeriveKey(group, "pump-2"), "hub/devices/pump-2", soon))
		if got := d.Decide(t.Context(), c); !got.Allow || got.Credential != shared || got.Device != "pump-2" {
			t.Errorf("a key derived from the group's: got %+v", got)
		}
	})
}

func TestBrokersVouch(t *testing.T) {
	storetest.Each(t, func(t *testing.T, db *store.DB) {
		d := newDoor(t, db)
		d.accept(t, countersign.Access{}) // it does not matter to a device that a broker authenticates
		c := countersign.Connection{Gateway: "hook", Username: "pump-1", Vouched: "emqx", Remote: home}
		d.wantIn(t, "vouched", c, "", "vouched:emqx")
		for state, want := range map[string]countersign.Code{
			"suspended": countersign.DeviceOnHold, "registered": countersign.NotAllowed, "retired": countersign.DeviceGone,
		} {
			d.exec(t, `UPDATE device SET state = $1 WHERE id = 'pump-1'`, state)
			d.wantOut(t, state, c, want)
		}
		d.exec(t, `UPDATE device SET state = 'active' WHERE id = 'pump-1'`)
		d.exec(t, `INSERT INTO certificate (serial, issuer, device, fleet, profile, state, held_from, reason, replaced, predecessor, evidence, method,
				key_hash, fingerprint, not_before, not_after, issued_at, used_at, accept_until, revoked_at, shard, der)
			VALUES ('a1', 'issuing', 'pump-1', 'pumps', 'device', 'active', '', 0, FALSE, '', '', '', '', '', 0, $1, 0, 0, 0, 0, 0, $2)`,
			store.Micros(start.Add(time.Hour)), []byte{})
		d.accept(t, countersign.Access{Kinds: []countersign.AccessKind{countersign.AccessPassword}})
		d.wantIn(t, "with a good certificate, of a fleet that accepts none", c, "", "vouched:emqx")
		for state, want := range map[string]countersign.Code{"revoked": countersign.CertIsRevoked, "held": countersign.CertIsHeld} {
			d.exec(t, `UPDATE certificate SET state = $1 WHERE device = 'pump-1'`, state)
			d.wantOut(t, "no certificate is good: "+state, c, want)
		}
		d.exec(t, `DELETE FROM certificate WHERE device = 'pump-1'`)
		d.wantIn(t, "never had one", c, "", "vouched:emqx")
		c.Username = "pump-9"
		d.wantOut(t, "not on record", c, countersign.NotAllowed)
	})
}
