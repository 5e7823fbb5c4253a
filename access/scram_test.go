package access_test

import (
	"crypto/hmac"
	"crypto/pbkdf2"
	"crypto/sha256"
	"encoding/base64"
	"errors"
	"net/netip"
	"strconv"
	"strings"
	"testing"

	"github.com/countersign-iot/countersign"
	"github.com/countersign-iot/countersign/access"
	"github.com/countersign-iot/countersign/attest"
	"github.com/countersign-iot/countersign/store"
	"github.com/countersign-iot/countersign/store/storetest"
)

// TestSCRAMVector is the example of RFC 7677, 3.
func TestSCRAMVector(t *testing.T) {
	const (
		bare   = "n=user,r=rOprNGfwEbeRWgbNEkqO"
		first  = "r=rOprNGfwEbeRWgbNEkqO%hvYDpWUa2RaTCAfuxFIlj)hNlF$k0,s=W22ZaJ0SNY7soEsUEjb6gQ==,i=4096"
		final  = "c=biws,r=rOprNGfwEbeRWgbNEkqO%hvYDpWUa2RaTCAfuxFIlj)hNlF$k0"
		proof  = "dHzbZapWIk4jUhN+Ute9ytag9zjfMHgsqmmiz7AndVQ="
		answer = "6rriTRBi23WpRR/wtup+mMhUZUn/dB5nLTJRsjl95G4="
	)
	salt, _ := base64.StdEncoding.DecodeString("W22ZaJ0SNY7soEsUEjb6gQ==")
	p, _ := base64.StdEncoding.DecodeString(proof)
	auth := []byte(bare + "," + first + "," + final)
	right, signature, err := access.SCRAM("pencil", salt, auth, p, 4096)
	if err != nil || !right || base64.StdEncoding.EncodeToString(signature) != answer {
		t.Errorf("got %v, %s, %v", right, base64.StdEncoding.EncodeToString(signature), err)
	}
	if right, _, _ := access.SCRAM("pencils", salt, auth, p, 4096); right {
		t.Error("another secret is right too")
	}
	user, _, first1, _ := access.ParseSCRAM("n,," + bare)
	_, binding, _, final1 := access.ParseSCRAM(final + ",p=" + proof)
	if user != "user" || first1 != nil || binding != "n,," || final1 != nil {
		t.Errorf("got %q, %v, %q, %v", user, first1, binding, final1)
	}
}

// client is the client side of SCRAM-SHA-256 (RFC 5802, 3), as far as a device needs it.
type client struct{ user, secret, bare, header string }

func (c *client) first() string {
	c.header, c.bare = "n,,", "n="+c.user+",r=fyko+d2lbbFgONRv9qkxdawL"
	return c.header + c.bare
}

var errServer = errors.New("the server did not prove itself")

// final returns the answer to the server's first message, and what the server must answer.
func (c *client) final(t *testing.T, asked string) (message, want string) {
	t.Helper()
	f := strings.Split(asked, ",")
	if len(f) != 3 || !strings.HasPrefix(f[0], "r=fyko+d2lbbFgONRv9qkxdawL") || len(f[0]) < 40 {
		t.Fatalf("the server asked %q", asked)
	}
	salt, err := base64.StdEncoding.DecodeString(f[1][2:])
	if err != nil {
		t.Fatal(err)
	}
	n, err := strconv.Atoi(f[2][2:])
	if err != nil || n < 4096 {
		t.Fatalf("iterations: %q", f[2])
	}
	salted, err := pbkdf2.Key(sha256.New, c.secret, salt, n, 32)
	if err != nil {
		t.Fatal(err)
	}
	key := sign(salted, "Client Key")
	stored := sha256.Sum256(key)
	without := "c=" + base64.StdEncoding.EncodeToString([]byte(c.header)) + "," + f[0]
	auth := c.bare + "," + asked + "," + without
	proof := sign(stored[:], auth)
	for i := range proof {
		proof[i] ^= key[i]
	}
	return without + ",p=" + base64.StdEncoding.EncodeToString(proof), "v=" + base64.StdEncoding.EncodeToString(sign(sign(salted, "Server Key"), auth))
}

func sign(key []byte, text string) []byte {
	h := hmac.New(sha256.New, key)
	h.Write([]byte(text))
	return h.Sum(nil)
}

// tryScram runs an exchange as a device does.
func (d *door) tryScram(t *testing.T, user, secret string) (countersign.Exchange, error) {
	t.Helper()
	x, err := d.Exchange(t.Context(), countersign.Connection{Remote: home, Username: user}, "SCRAM-SHA-256")
	if err != nil {
		t.Fatal(err)
	}
	c := &client{user: user, secret: secret}
	asked, done, err := x.Next(t.Context(), []byte(c.first()))
	if err != nil || done {
		return x, err
	}
	message, want := c.final(t, string(asked))
	answer, done, err := x.Next(t.Context(), []byte(message))
	if err == nil && (!done || string(answer) != want) {
		err = errServer
	}
	return x, err
}

func (d *door) scram(t *testing.T, secret string) countersign.Exchange {
	t.Helper()
	x, err := d.tryScram(t, "pump-1", secret)
	if err != nil {
		t.Fatal(err)
	}
	return x
}

func TestSCRAMLetsItsDeviceIn(t *testing.T) {
	storetest.Each(t, func(t *testing.T, db *store.DB) {
		d := newDoor(t, db)
		first, s1 := d.secret(t, access.SecretOrder{Device: "pump-1"})
		second, s2 := d.secret(t, access.SecretOrder{Device: "pump-1", Slot: attest.Secondary})
		c := login("pump-1", nil)
		for _, tt := range []struct {
			secret []byte
			id     string
		}{{first, s1.ID}, {second, s2.ID}} { // both have the same salt
			c.Exchange = d.scram(t, string(tt.secret))
			d.wantIn(t, "scram", c, countersign.AccessSCRAM, "secret:"+tt.id)
		}
		// The secret is stopped after the exchange: the verdict must refuse.
		d.exec(t, `UPDATE device_secret SET state = 'stopped' WHERE id = $1`, s2.ID)
		d.wantOut(t, "stopped between exchange and verdict", c, countersign.CredentialExpire)

		x, err := d.tryScram(t, "pump-1", "csds_wrong")
		c.Exchange = x
		if got := d.wantOut(t, "wrong secret", c, countersign.BadCredential); countersign.CodeOf(err) != countersign.BadCredential || got.Kind != countersign.AccessSCRAM || got.Claims != "pump-1" {
			t.Errorf("got %v, %+v", err, got)
		}
		x, err = d.tryScram(t, "pump-9", string(first))
		c.Exchange, c.Username = x, "pump-9"
		if d.wantOut(t, "nobody", c, countersign.BadCredential); countersign.CodeOf(err) != countersign.BadCredential {
			t.Errorf("unknown name: got %v", err)
		}
	})
}

func TestSCRAMTellsNobodysNamesApart(t *testing.T) {
	d := newDoor(t, storetest.Open(t))
	d.secret(t, access.SecretOrder{Device: "pump-1"})
	salt := func(user string) string {
		t.Helper()
		x, err := d.Exchange(t.Context(), countersign.Connection{}, "SCRAM-SHA-256")
		if err != nil {
			t.Fatal(err)
		}
		asked, _, err := x.Next(t.Context(), []byte("n,,n="+user+",r=0123456789abcdef"))
		if err != nil {
			t.Fatal(err)
		}
		return strings.Join(strings.Split(string(asked), ",")[1:], ",")
	}
	for _, user := range []string{"pump-1", "pump-2", "pump-9"} { // with a secret, without one, and not on record
		if first, again := salt(user), salt(user); first != again || len(salt(user)) != len(salt("pump-1")) {
			t.Errorf("%s is asked differently each time, or differently from others", user)
		}
	}
	if salt("pump-1") == salt("pump-9") {
		t.Error("two names have one salt")
	}
}

// TestExchangeIsOfItsOwnConnection checks that only an exchange counts that the same
// Decider has completed, for this connection.
func TestExchangeIsOfItsOwnConnection(t *testing.T) {
	d, other := newDoor(t, storetest.Open(t)), newDoor(t, storetest.Open(t))
	text, _ := d.secret(t, access.SecretOrder{Device: "pump-1"})
	c := login("pump-1", nil)
	begun, err := d.Exchange(t.Context(), c, "SCRAM-SHA-256")
	if err != nil {
		t.Fatal(err)
	}
	c.Exchange = begun
	d.wantOut(t, "begun only", c, countersign.BadRequest)
	c.Exchange = d.scram(t, string(text))
	if got := other.Decide(t.Context(), c); got.Allow {
		t.Error("admitted by the exchange of another Decider")
	}
	c.Remote = netip0()
	d.wantOut(t, "on another connection", c, countersign.BadCredential)
	if _, err := d.Exchange(t.Context(), c, "PLAIN"); countersign.CodeOf(err) != countersign.BadRequest {
		t.Errorf("PLAIN: got %v", err)
	}
	// An exchange that has ended or failed cannot be continued.
	x := d.scram(t, string(text))
	if _, _, err := x.Next(t.Context(), []byte("n,,n=pump-1,r=0123456789abcdef")); err == nil {
		t.Error("the exchange goes on after its end")
	}
	c = login("pump-1", nil)
	c.Exchange = x
	d.wantOut(t, "gone on after its end", c, countersign.BadCredential)
}

func TestSCRAMMessagesThatAreRefused(t *testing.T) {
	d := newDoor(t, storetest.Open(t))
	for _, m := range []string{
		"", "n", "n,", "n,,", "n,,n=pump-1", "n,,r=0123456789abcdef,n=pump-1", "p=tls-unique,,n=pump-1,r=0123456789abcdef", "x,,n=pump-1,r=0123456789abcdef",
		"n,,m=ext,n=pump-1,r=0123456789abcdef", "n,,n=,r=0123456789abcdef", "n,,n=pump 1,r=0123456789abcdef", "n,,n=pump=41,r=0123456789abcdef",
		"n,,n=pump-1,r=short", "n,,n=pump-1,r=" + strings.Repeat("x", 257), "n,,n=pump-1,r=0123456789\x00abcdef", "n,,n=pump-1,r=0123456789 abcdef",
		"n,a=pump-2,n=pump-1,r=0123456789abcdef", "n,b=pump-1,n=pump-1,r=0123456789abcdef", "n,,n=" + strings.Repeat("x", 2000) + ",r=0123456789abcdef",
	} {
		x, err := d.Exchange(t.Context(), countersign.Connection{}, "SCRAM-SHA-256")
		if err != nil {
			t.Fatal(err)
		}
		if answer, done, err := x.Next(t.Context(), []byte(m)); countersign.CodeOf(err) != countersign.BadCredential || done || answer != nil {
			t.Errorf("%.60q: got %q, %v, %v", m, answer, done, err)
		}
	}
	for _, m := range []string{"n,,n=pump-1,r=0123456789abcdef", "y,,n=pump-1,r=0123456789abcdef,ext=1", "n,a=pump-1,n=pump-1,r=0123456789abcdef"} {
		x, err := d.Exchange(t.Context(), countersign.Connection{}, "SCRAM-SHA-256")
		if err != nil {
			t.Fatal(err)
		}
		if _, _, err := x.Next(t.Context(), []byte(m)); err != nil {
			t.Errorf("%q: got %v", m, err)
		}
	}
	x, err := d.Exchange(t.Context(), countersign.Connection{Username: "pump-2"}, "SCRAM-SHA-256")
	if err != nil {
		t.Fatal(err)
	}
	if _, _, err := x.Next(t.Context(), []byte("n,,n=pump-1,r=0123456789abcdef")); err == nil {
		t.Error("an exchange for another name than the connection's")
	}
}

func FuzzSCRAM(f *testing.F) {
	f.Add("n,,n=pump-1,r=0123456789abcdef")
	f.Add("y,a=pump-1,n=pump-1,r=0123456789abcdef,x=1")
	f.Add("c=biws,r=0123456789abcdef,p=dHzbZapWIk4jUhN+Ute9ytag9zjfMHgsqmmiz7AndVQ=")
	f.Fuzz(func(t *testing.T, m string) {
		user, _, first, final := access.ParseSCRAM(m)
		if first == nil && !countersign.IsDeviceID(user) {
			t.Errorf("%q names %q, which is no device id", m, user)
		}
		if first != nil && countersign.CodeOf(first) != countersign.BadCredential || final != nil && countersign.CodeOf(final) != countersign.BadCredential {
			t.Errorf("%q: got %v, %v", m, first, final)
		}
		if first == nil && final == nil {
			t.Errorf("%q is both a first and a final message", m)
		}
	})
}

func netip0() netip.AddrPort { return netip.MustParseAddrPort("198.51.100.1:1") }
