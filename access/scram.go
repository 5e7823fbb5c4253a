package access

import (
	"cmp"
	"context"
	"crypto/rand"
	"crypto/sha256"
	"crypto/subtle"
	"encoding/base64"
	"net/netip"
	"strconv"
	"strings"

	"github.com/countersign-iot/countersign"
)

// scramMethod is the only authentication method of several steps: SCRAM-SHA-256 (RFC 5802,
// 7677) without channel binding, over the TLS of the connection. It works only with the
// secrets that the server makes. They have 256 random bits, so they cannot be found from a
// stolen verifier.
const scramMethod = "SCRAM-SHA-256"

const (
	// maxScram bounds a client's message, in octets: enough for a name and a nonce.
	maxScram = 1024
	// minNonce and maxNonce bound the client's nonce; clients send 18 to 48 characters.
	minNonce, maxNonce = 8, 256
)

// scramExchange is the server's side of one exchange.
type scramExchange struct {
	decider *Decider
	conn    countersign.Connection // as it began; without its secrets
	step    int
	first   clientFirst
	asked   string // server-first-message
	nonce   string
	device  string // whose proof was right; empty: no proof was right so far
	secret  string // id of the secret that the proof was made with
	tried   bool   // a proof was compared: only then can it have been a guess
	fault   string // why the exchange failed
}

// Exchange begins an authentication of several steps. The method must be SCRAM-SHA-256.
func (d *Decider) Exchange(_ context.Context, c countersign.Connection, method string) (countersign.Exchange, error) {
	if method != scramMethod {
		return nil, countersign.Errorf(countersign.BadRequest, "there is no authentication method %.40q", method).WithNext("use " + scramMethod)
	}
	return &scramExchange{decider: d, conn: countersign.Connection{Remote: c.Remote, Username: c.Username}}, nil
}

// Next implements [countersign.Exchange].
func (x *scramExchange) Next(ctx context.Context, data []byte) (answer []byte, done bool, err error) {
	x.step++
	switch {
	case len(data) > maxScram:
		err = errSCRAM("the message is too long")
	case x.step == 1:
		answer, err = x.begin(string(data))
	case x.step == 2:
		answer, err = x.finish(ctx, string(data))
		done = err == nil
	default:
		err = errSCRAM("the exchange is over")
	}
	if err != nil {
		x.step, x.device, x.secret = 3, "", "" // a failed exchange cannot be continued
		x.fault = countersign.Public(err).Message
		return nil, false, err
	}
	return answer, done, nil
}

func errSCRAM(why string) error {
	return countersign.Errorf(countersign.BadCredential, "the SCRAM exchange failed: %s", why)
}

// begin returns the server-first-message. It does not show whether there is such a device:
// the salt is derived from the name, and no record is read.
func (x *scramExchange) begin(message string) ([]byte, error) {
	f, err := parseClientFirst(message)
	if err != nil {
		return nil, err
	}
	x.first = f // the verdict needs it, also if the message is refused below
	if x.conn.Username != "" && x.conn.Username != f.user {
		return nil, errSCRAM("its name is not the user name of the connection")
	}
	salt, err := x.decider.Secrets.scramSaltOf(f.user)
	if err != nil {
		return nil, err
	}
	x.nonce = f.nonce + rand.Text()
	x.asked = "r=" + x.nonce + ",s=" + base64.StdEncoding.EncodeToString(salt) + ",i=" + strconv.Itoa(scramIterations)
	return []byte(x.asked), nil
}

func (x *scramExchange) finish(ctx context.Context, message string) ([]byte, error) {
	f, err := parseClientFinal(message)
	if err != nil {
		return nil, err
	}
	if f.binding != x.first.header || subtle.ConstantTimeCompare([]byte(f.nonce), []byte(x.nonce)) != 1 {
		return nil, errSCRAM("the channel binding or the nonce does not match")
	}
	auth := []byte(x.first.bare + "," + x.asked + "," + f.withoutProof)
	h, err := x.decider.holder(ctx, x.first.user)
	if err != nil {
		return nil, countersign.Errorf(countersign.Unavailable, "the record of the device cannot be read now").WithCause(err)
	}
	x.tried = true
	var server []byte
	for i := range maxSecrets + keepStopped { // the same number for every name, so that the time does not show how many there are
		keys, id := x.decider.Secrets.scramCandidate(h, i)
		if id != "" && keys.proves(auth, f.proof) {
			x.device, x.secret, server = h.device, id, mac(keys.server, auth)
		}
	}
	if x.secret == "" {
		return nil, errSCRAM("the user name or the secret is wrong")
	}
	return []byte("v=" + base64.StdEncoding.EncodeToString(server)), nil
}

// byExchange identifies a device by its exchange on this connection.
func (d *Decider) byExchange(ctx context.Context, c countersign.Connection) Decision {
	x, ok := c.Exchange.(*scramExchange)
	if !ok || x.decider != d || x.conn.Remote != c.Remote && x.conn.Remote != (netip.AddrPort{}) {
		return refuse(countersign.BadCredential, "the authentication was not begun on this connection")
	}
	if !x.tried {
		dec := refuse(countersign.BadRequest, cmp.Or(x.fault, "the SCRAM exchange was not finished"))
		dec.Kind, dec.Claims = countersign.AccessSCRAM, x.first.user
		return dec
	}
	h, err := d.holder(ctx, x.first.user)
	if err != nil {
		return unreadable()
	}
	for i := range h.secrets {
		if s := &h.secrets[i]; x.secret != "" && s.ID == x.secret && h.device == x.device {
			return d.decideSecret(ctx, c, h, s)
		}
	}
	return d.wrong(c, countersign.AccessSCRAM, x.first.user, h)
}

// withExchange checks the exchange of a client that also presented a certificate. A client
// that fails in it, or that used the name of another device, is refused, because it is not
// the one that the certificate was issued to.
func (d *Decider) withExchange(ctx context.Context, c countersign.Connection, dec Decision) Decision {
	if c.Exchange == nil || dec.Code != "" {
		return dec
	}
	x := d.byExchange(ctx, c)
	if x.Code == "" && x.Device != dec.Device {
		x.Code, x.Reason = countersign.SubjectMismatch, "the certificate and the SCRAM exchange are for different devices"
	}
	if x.Code == "" {
		return dec
	}
	return x
}

// scramCandidate returns the SCRAM keys and the id of a device's i-th secret. The id is
// empty if there is no such secret, or if it has no SCRAM keys.
func (k *Secrets) scramCandidate(h *holder, i int) (scramKeys, string) {
	if i >= len(h.secrets) || h.secrets[i].scram == nil {
		return scramKeys{}, ""
	}
	s := &h.secrets[i]
	text, err := k.Sealer.Open(s.scram, scramContext(s.ID))
	if err != nil || len(text) != 1+2*sha256.Size || text[0] != scramVersion {
		return scramKeys{}, ""
	}
	return scramKeys{text[1 : 1+sha256.Size], text[1+sha256.Size:]}, s.ID
}

// clientFirst is a client-first-message (RFC 5802, 7).
type clientFirst struct {
	header string // gs2-header
	bare   string
	user   string
	nonce  string
}

// parseClientFirst parses a client-first-message: gs2-header, n= and r=. It refuses
// mandatory extensions, and channel binding, because the server does not check any: the
// client would wrongly believe that the channel is bound.
func parseClientFirst(message string) (f clientFirst, err error) {
	flag, rest, ok := strings.Cut(message, ",")
	if !ok || flag != "n" && flag != "y" {
		return f, errSCRAM("channel binding is not supported")
	}
	authz, bare, ok := strings.Cut(rest, ",")
	if !ok {
		return f, errSCRAM("the first message is malformed")
	}
	f.header, f.bare = flag+","+authz+",", bare
	attrs := strings.Split(bare, ",")
	if len(attrs) < 2 || !strings.HasPrefix(attrs[0], "n=") || !strings.HasPrefix(attrs[1], "r=") {
		return f, errSCRAM("the first message is malformed")
	}
	if f.user, err = saslName(attrs[0][2:]); err != nil {
		return f, err
	}
	if authz != "" {
		as, ok := strings.CutPrefix(authz, "a=")
		if !ok {
			return f, errSCRAM("the first message is malformed")
		}
		if as, err = saslName(as); err != nil || as != f.user {
			return f, errSCRAM("the authorization identity is not the name")
		}
	}
	f.nonce = attrs[1][2:]
	if len(f.nonce) < minNonce || len(f.nonce) > maxNonce || !printableNonce(f.nonce) {
		return f, errSCRAM("the nonce is malformed")
	}
	return f, nil
}

// saslName decodes the escapes of a name (RFC 5802, 5.1). It accepts only device ids, and
// SASLprep (RFC 4013) does not change these, so it is not applied.
func saslName(s string) (string, error) {
	plain := strings.NewReplacer("=2C", ",", "=3D", "=").Replace(s)
	if !countersign.IsDeviceID(plain) {
		return "", errSCRAM("the name is no device id")
	}
	return plain, nil
}

func printableNonce(s string) bool {
	for i := range len(s) {
		if s[i] < 0x21 || s[i] > 0x7e || s[i] == ',' {
			return false
		}
	}
	return true
}

// clientFinal is a client-final-message (RFC 5802, 7).
type clientFinal struct {
	binding      string // decoded
	nonce        string
	withoutProof string
	proof        []byte
}

func parseClientFinal(message string) (f clientFinal, err error) {
	bad := errSCRAM("the final message is malformed")
	i := strings.LastIndex(message, ",p=")
	if i < 0 {
		return f, bad
	}
	f.withoutProof = message[:i]
	attrs := strings.Split(f.withoutProof, ",")
	if len(attrs) < 2 || !strings.HasPrefix(attrs[0], "c=") || !strings.HasPrefix(attrs[1], "r=") {
		return f, bad
	}
	b64 := base64.StdEncoding.Strict()
	binding, err := b64.DecodeString(attrs[0][2:])
	if err != nil {
		return f, bad
	}
	if f.proof, err = b64.DecodeString(message[i+3:]); err != nil || len(f.proof) != sha256.Size {
		return f, bad
	}
	f.binding, f.nonce = string(binding), attrs[1][2:]
	return f, nil
}
