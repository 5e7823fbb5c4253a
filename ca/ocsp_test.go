package ca_test

import (
	"bytes"
	"context"
	"crypto"
	"crypto/x509"
	"encoding/asn1"
	"encoding/hex"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"runtime"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/crypto/cryptobyte"
	cbasn1 "golang.org/x/crypto/cryptobyte/asn1"
	"golang.org/x/crypto/ocsp"

	"github.com/countersign-iot/countersign"
	"github.com/countersign-iot/countersign/ca"
	"github.com/countersign-iot/countersign/keystore"
	"github.com/countersign-iot/countersign/status"
	"github.com/countersign-iot/countersign/store"
	"github.com/countersign-iot/countersign/store/storetest"
	"github.com/countersign-iot/countersign/test/kit"
)

// query is a request about a certificate as it comes over the wire.
func (h *house) query(t failer, cert *countersign.Certificate, hash crypto.Hash) countersign.OCSPQuery {
	t.Helper()
	der, err := ocsp.CreateRequest(parse(t, cert.DER), h.certificateOf(t, ca.IssuingID), &ocsp.RequestOptions{Hash: hash})
	if err != nil {
		t.Fatalf("CreateRequest: %v", err)
	}
	q, err := status.ParseOCSPRequest(der)
	if err != nil {
		t.Fatalf("ParseOCSPRequest: %v", err)
	}
	return q
}

func (h *house) parseAnswer(t failer, a countersign.OCSPAnswer, cert *countersign.Certificate) *ocsp.Response {
	t.Helper()
	res, err := ocsp.ParseResponseForCert(a.DER, parse(t, cert.DER), h.certificateOf(t, ca.IssuingID))
	if err != nil {
		t.Fatalf("ParseResponseForCert: %v", err)
	}
	return res
}

// ask asks without a nonce, so that the answer may come from the cache.
func (h *house) ask(t failer, cert *countersign.Certificate) *ocsp.Response {
	t.Helper()
	a, err := h.OCSP(t.Context(), h.query(t, cert, crypto.SHA1))
	if err != nil {
		t.Fatalf("OCSP: %v", err)
	}
	return h.parseAnswer(t, a, cert)
}

func TestOCSPTellsWhatIsOnRecord(t *testing.T) {
	storetest.Each(t, func(t *testing.T, db *store.DB) {
		h := found(t, db)
		cert := h.issue(t, ca.ProfileDevice, "pump-1")
		unrecorded := h.sign(t, h.order(t, ca.ProfileDevice, "nobody")).Certificate
		want := func(c *countersign.Certificate, status, reason int, at time.Time) {
			t.Helper()
			for _, hash := range []crypto.Hash{crypto.SHA1, crypto.SHA256} {
				a, err := h.OCSP(t.Context(), h.query(t, c, hash))
				if err != nil {
					t.Fatalf("OCSP: %v", err)
				}
				res := h.parseAnswer(t, a, c)
				if this := res.ThisUpdate; at.After(this) {
					at = this
				}
				if res.Status != status || res.RevocationReason != reason || !res.RevokedAt.Equal(at) || res.IssuerHash != hash {
					t.Errorf("got status %d, reason %d, revoked at %v, hash %v; want %d, %d, %v, %v",
						res.Status, res.RevocationReason, res.RevokedAt, res.IssuerHash, status, reason, at, hash)
				}
				if !res.ProducedAt.Equal(a.ProducedAt) || !res.ThisUpdate.Equal(a.ThisUpdate) || !res.NextUpdate.Equal(a.NextUpdate) || !a.NextUpdate.After(a.ThisUpdate) {
					t.Errorf("times in the answer differ from those beside it: %+v", a)
				}
			}
		}
		want(&cert, ocsp.Good, 0, time.Time{})
		want(&unrecorded, ocsp.Unknown, 0, time.Time{})
		h.clock.Advance(time.Minute)
		h.write(t, func(ctx context.Context, tx *store.Tx) error { return h.Hold(ctx, tx, &cert) })
		want(&cert, ocsp.Revoked, ocsp.CertificateHold, h.clock.Now())
		h.clock.Advance(time.Minute)
		h.write(t, func(ctx context.Context, tx *store.Tx) error { return h.Release(ctx, tx, &cert) })
		want(&cert, ocsp.Good, 0, time.Time{})
		h.clock.Advance(time.Minute)
		h.write(t, func(ctx context.Context, tx *store.Tx) error {
			return h.Revoke(ctx, tx, &cert, countersign.KeyCompromise)
		})
		want(&cert, ocsp.Revoked, ocsp.KeyCompromise, h.clock.Now())
		plain := h.issue(t, ca.ProfileDevice, "pump-2")
		h.write(t, func(ctx context.Context, tx *store.Tx) error {
			return h.Revoke(ctx, tx, &plain, countersign.Unspecified)
		})
		want(&plain, ocsp.Revoked, ocsp.Unspecified, h.clock.Now())
		since := h.clock.Now()
		h.clock.Advance(time.Minute)
		h.write(t, func(ctx context.Context, tx *store.Tx) error {
			return h.RaiseReason(ctx, tx, &plain, countersign.KeyCompromise)
		})
		want(&plain, ocsp.Revoked, ocsp.KeyCompromise, since)
	})
}

func TestOCSPEchoesNonce(t *testing.T) {
	h := found(t, storetest.Open(t))
	cert := h.issue(t, ca.ProfileDevice, "pump-1")
	for _, size := range []int{1, 32, status.MaxNonce} {
		q := h.query(t, &cert, crypto.SHA1)
		q.Nonce = bytes.Repeat([]byte{0xa5}, size)
		a, err := h.OCSP(t.Context(), q)
		if err != nil {
			t.Fatal(err)
		}
		h.parseAnswer(t, a, &cert)
		if !bytes.Contains(a.DER, q.Nonce) {
			t.Errorf("the nonce of %d octets is not in the answer", size)
		}
	}
	a, err := h.OCSP(t.Context(), h.query(t, &cert, crypto.SHA1))
	if err != nil || bytes.Contains(a.DER, []byte{0xa5, 0xa5, 0xa5, 0xa5}) {
		t.Errorf("an answer with a nonce was returned to another client (%v)", err)
	}
}

func TestOCSPAnswersSeveralInOne(t *testing.T) {
	h := found(t, storetest.Open(t))
	good, gone := h.issue(t, ca.ProfileDevice, "good"), h.issue(t, ca.ProfileDevice, "gone")
	h.write(t, func(ctx context.Context, tx *store.Tx) error { return h.Revoke(ctx, tx, &gone, countersign.Superseded) })
	q := h.query(t, &good, crypto.SHA1)
	q.CertIDs = append(q.CertIDs, h.query(t, &gone, crypto.SHA256).CertIDs...)
	a, err := h.OCSP(t.Context(), q)
	if err != nil {
		t.Fatal(err)
	}
	if got := h.parseAnswer(t, a, &good).Status; got != ocsp.Good {
		t.Errorf("the good one: got %d", got)
	}
	if got := h.parseAnswer(t, a, &gone); got.Status != ocsp.Revoked || got.RevocationReason != ocsp.Superseded {
		t.Errorf("the revoked one: got %d, reason %d", got.Status, got.RevocationReason)
	}
}

func TestOCSPSpeaksForIssuingAuthoritiesOnly(t *testing.T) {
	h := found(t, storetest.Open(t))
	cert := h.issue(t, ca.ProfileDevice, "pump-1")
	q := h.query(t, &cert, crypto.SHA1)
	ask := func(ids ...countersign.CertID) error {
		_, err := h.OCSP(t.Context(), countersign.OCSPQuery{CertIDs: ids})
		return err
	}
	foreign := q.CertIDs[0]
	foreign.IssuerKeyHash = make([]byte, 20)
	unhashed := q.CertIDs[0]
	unhashed.Hash = 0
	der, err := ocsp.CreateRequest(h.certificateOf(t, ca.IssuingID), h.certificateOf(t, ca.RootID), nil)
	if err != nil {
		t.Fatal(err)
	}
	root, err := status.ParseOCSPRequest(der)
	if err != nil {
		t.Fatal(err)
	}
	kit.WantCode(t, ask(foreign), countersign.CertUnknown)
	kit.WantCode(t, ask(unhashed), countersign.CertUnknown)
	kit.WantCode(t, ask(q.CertIDs[0], foreign), countersign.CertUnknown)
	kit.WantCode(t, ask(root.CertIDs...), countersign.CertUnknown) // the root key rests
	kit.WantCode(t, ask(), countersign.BadRequest)
	if err := ask(q.CertIDs...); err != nil {
		t.Errorf("ours: %v", err)
	}
}

// TestResponderIsDelegated checks what RFC 6960, 4.2.2.2 asks of the certificate.
func TestResponderIsDelegated(t *testing.T) {
	h := found(t, storetest.Open(t))
	cert := h.responder(t)
	if err := cert.CheckSignatureFrom(h.certificateOf(t, ca.IssuingID)); err != nil {
		t.Error(err)
	}
	if !slices.Equal(cert.ExtKeyUsage, []x509.ExtKeyUsage{x509.ExtKeyUsageOCSPSigning}) || cert.KeyUsage != x509.KeyUsageDigitalSignature {
		t.Errorf("usages: got %v, %v, want OCSPSigning and digitalSignature alone", cert.ExtKeyUsage, cert.KeyUsage)
	}
	noCheck := false
	for _, e := range cert.Extensions {
		if e.Id.String() == "1.3.6.1.5.5.7.48.1.5" {
			noCheck = bytes.Equal(e.Value, []byte{5, 0}) && !e.Critical
		}
	}
	if !noCheck {
		t.Error("id-pkix-ocsp-nocheck is missing")
	}
	rec, err := ca.Shown(t.Context(), h.db, cert)
	if err != nil || rec.Profile != "ocsp-responder" || rec.State != countersign.CertActive {
		t.Errorf("on record: got %+v, %v", rec, err)
	}
}

func TestResponderIsRenewedAtTwoThirds(t *testing.T) {
	h := found(t, storetest.Open(t))
	cert := h.issue(t, ca.ProfileIDevID, "pump-1")
	first := h.ask(t, &cert).Certificate
	life := first.NotAfter.Sub(first.NotBefore)
	h.clock.Advance(life*2/3 - 16*time.Minute)
	if got := h.ask(t, &cert).Certificate; !got.Equal(first) {
		t.Error("renewed before two thirds of its life")
	}
	h.clock.Advance(12 * time.Minute)
	second := h.ask(t, &cert).Certificate
	if second.Equal(first) {
		t.Error("not renewed after two thirds of its life")
	}
	// Where the disk refuses, the old one serves to its end and no longer.
	h.write(t, func(ctx context.Context, tx *store.Tx) error {
		_, err := tx.Exec(ctx, `ALTER TABLE serial_block RENAME TO away`)
		return err
	})
	h.clock.Advance(life*2/3 + time.Minute)
	if got := h.ask(t, &cert).Certificate; !got.Equal(second) {
		t.Error("renewed although nothing could be recorded")
	}
	h.clock.Advance(life)
	if _, err := h.OCSP(t.Context(), h.query(t, &cert, crypto.SHA1)); err == nil {
		t.Error("an expired responder signed")
	}
}

// TestResponderOutlivesNoAuthority asks in the last days of the issuing authority.
func TestResponderOutlivesNoAuthority(t *testing.T) {
	h := found(t, storetest.Open(t))
	cert := h.issue(t, ca.ProfileIDevID, "pump-1")
	end := h.certificateOf(t, ca.IssuingID).NotAfter
	h.clock.Advance(end.Sub(start) - 24*time.Hour)
	for range 23 {
		got := h.ask(t, &cert).Certificate
		if got.NotAfter.After(end) || h.clock.Now().After(got.NotAfter) {
			t.Fatalf("at %v: the responder is good until %v, the authority until %v", h.clock.Now(), got.NotAfter, end)
		}
		h.clock.Advance(time.Hour)
	}
}

// hostile makes requests that are meant to fill the memory, by their number.
func (h *house) hostile(t *testing.T, cert *countersign.Certificate) map[string]func(i int) []byte {
	good, err := ocsp.CreateRequest(parse(t, cert.DER), h.certificateOf(t, ca.IssuingID), nil)
	if err != nil {
		t.Fatal(err)
	}
	q, err := status.ParseOCSPRequest(good)
	if err != nil {
		t.Fatal(err)
	}
	id := q.CertIDs[0]
	// request puts together a request with the algorithm's parameters and serial as they are.
	request := func(serial []byte, parameters ...byte) []byte {
		var b cryptobyte.Builder
		sequence := func(next func(b *cryptobyte.Builder)) func(b *cryptobyte.Builder) {
			return func(b *cryptobyte.Builder) { b.AddASN1(cbasn1.SEQUENCE, next) }
		}
		sequence(sequence(sequence(sequence(sequence(func(b *cryptobyte.Builder) {
			b.AddASN1(cbasn1.SEQUENCE, func(b *cryptobyte.Builder) {
				b.AddASN1ObjectIdentifier(asn1.ObjectIdentifier{1, 3, 14, 3, 2, 26})
				b.AddBytes(parameters)
			})
			b.AddASN1OctetString(id.IssuerNameHash)
			b.AddASN1OctetString(id.IssuerKeyHash)
			b.AddASN1(cbasn1.INTEGER, func(b *cryptobyte.Builder) { b.AddBytes(serial) })
		})))))(&b)
		return b.BytesOrPanic()
	}
	serial := id.Serial.Int().Bytes()
	number := func(i int) []byte { return []byte{0x41, byte(i >> 16), byte(i >> 8), byte(i)} }
	return map[string]func(i int) []byte{
		"large parameters":   func(i int) []byte { return request(serial, octetString(append(number(i), make([]byte, 15900)...))...) },
		"small parameters":   func(i int) []byte { return request(serial, octetString(number(i))...) },
		"padded serial":      func(i int) []byte { return request(append(make([]byte, 1+i%4000), serial...), 5, 0) },
		"unknown serial":     func(i int) []byte { return request(append(number(i), make([]byte, 16)...), 5, 0) },
		"long serial":        func(i int) []byte { return request(append(number(i), make([]byte, 4000)...), 5, 0) },
		"each form of one":   func(i int) []byte { return request(serial, []byte{5, 0}[:i%2*2]...) },
		"with a large nonce": func(i int) []byte { return append(slices.Clip(good), make([]byte, i%8000)...) },
	}
}

func octetString(content []byte) []byte {
	var b cryptobyte.Builder
	b.AddASN1OctetString(content)
	return b.BytesOrPanic()
}

// heap is the memory in use, in octets.
func heap() int64 {
	runtime.GC()
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return int64(m.HeapAlloc)
}

// TestHostileRequestsTakeNoMemory: whatever a stranger asks, no more is kept than an
// answer for each form of each certificate that there is.
func TestHostileRequestsTakeNoMemory(t *testing.T) {
	const requests, mayGrow = 12_000, 4 << 20
	h := found(t, storetest.Open(t))
	cert := h.issue(t, ca.ProfileDevice, "pump-1")
	door := &status.Server{Authority: h.CA, Now: h.clock.Now}
	for name, make := range h.hostile(t, &cert) {
		post := func(i int) {
			r := httptest.NewRequestWithContext(t.Context(), http.MethodPost, "/ocsp", bytes.NewReader(make(i)))
			r.Header.Set("Content-Type", "application/ocsp-request")
			door.ServeHTTP(httptest.NewRecorder(), r)
		}
		post(0)
		before := heap()
		for i := range requests {
			post(i)
		}
		if grown := heap() - before; grown > mayGrow {
			t.Errorf("%s: %d requests took %d KiB, want at most %d", name, requests, grown>>10, mayGrow>>10)
		}
	}
	runtime.KeepAlive(h)
}

// TestAskingForTheRevokedPushesOutNoOther: the serials of revoked certificates are
// public, so anyone can ask for all of them.
func TestAskingForTheRevokedPushesOutNoOther(t *testing.T) {
	const revoked = 20_000 // 24 MB of answers
	h := found(t, storetest.Open(t))
	cert := h.issue(t, ca.ProfileDevice, "pump-1")
	q := h.query(t, &cert, crypto.SHA1)
	first, err := h.OCSP(t.Context(), q)
	if err != nil {
		t.Fatal(err)
	}
	h.write(t, func(ctx context.Context, tx *store.Tx) error {
		for i := range revoked {
			_, err := tx.Exec(ctx, `INSERT INTO certificate (serial, issuer, device, fleet, profile, state, held_from, reason, replaced, predecessor, evidence,
					method, key_hash, fingerprint, not_before, not_after, issued_at, used_at, accept_until, revoked_at, shard, der)
				VALUES ($1, 'issuing', 'x', 'default', '', 'revoked', '', 1, FALSE, '', '', '', '', '', 0, $2, 0, 0, 0, 1, 0, 'x')`,
				fmt.Sprintf("41%038x", i), store.Micros(start.Add(time.Hour)))
			if err != nil {
				return err
			}
		}
		return nil
	})
	before := heap()
	for i := range revoked {
		other := q.CertIDs[0]
		serial := fmt.Sprintf("41%038x", i)
		number, err := hex.DecodeString(serial)
		if err != nil {
			t.Fatal(err)
		}
		other.Serial = countersign.Serial(serial)
		other.DER = append(bytes.Clone(other.DER[:len(other.DER)-20]), number...)
		if _, err := h.OCSP(t.Context(), countersign.OCSPQuery{CertIDs: []countersign.CertID{other}}); err != nil {
			t.Fatal(err)
		}
	}
	if grown := heap() - before; grown > 12<<20 {
		t.Errorf("%d answers took %d KiB, want at most 12 MiB", revoked, grown>>10)
	}
	h.clock.Advance(time.Minute)
	if again, err := h.OCSP(t.Context(), q); err != nil || !bytes.Equal(again.DER, first.DER) {
		t.Errorf("the answer about another certificate was signed anew (%v)", err)
	}
	runtime.KeepAlive(h)
}

func TestOCSPAnswerIsKeptAndRefreshed(t *testing.T) {
	h := found(t, storetest.Open(t))
	cert := h.issue(t, ca.ProfileDevice, "pump-1")
	first := h.ask(t, &cert)
	h.clock.Advance(9 * time.Minute)
	if got := h.ask(t, &cert); !got.ProducedAt.Equal(first.ProducedAt) {
		t.Error("a fresh answer was signed anew")
	}
	h.clock.Advance(2 * time.Minute)
	if got := h.ask(t, &cert); !got.ProducedAt.Equal(h.clock.Now().Add(-backdate)) {
		t.Error("an old answer was given again")
	}
}

// TestOCSPKeepsNothingWhileDeaf revokes on another node while this one is not notified.
func TestOCSPKeepsNothingWhileDeaf(t *testing.T) {
	h := found(t, storetest.Open(t))
	var notified atomic.Bool
	notified.Store(true)
	other := h.CA
	c, err := ca.Open(t.Context(), ca.Options{
		DB: h.db, Keys: &keystore.Store{Dir: h.keys}, Now: h.clock.Now, Log: slog.New(slog.DiscardHandler), Cacheable: notified.Load,
	})
	if err != nil {
		t.Fatal(err)
	}
	h.CA = c
	cert := h.issue(t, ca.ProfileDevice, "pump-1")
	h.ask(t, &cert) // kept
	notified.Store(false)
	h.write(t, func(ctx context.Context, tx *store.Tx) error {
		return other.Revoke(ctx, tx, &cert, countersign.KeyCompromise)
	})
	if got := h.ask(t, &cert).Status; got != ocsp.Revoked {
		t.Errorf("while deaf: got status %d, want revoked", got)
	}
	c.Forget(cert.Ref()) // what it missed is made up for
	notified.Store(true)
	if got := h.ask(t, &cert).Status; got != ocsp.Revoked {
		t.Errorf("hearing again: got status %d, want revoked", got)
	}
}

// TestRevokedIsNeverAnsweredGood asks all the time while certificates are revoked.
// A client that asks after a revocation was answered gets it, and no "good" that was
// being made meanwhile is kept.
func TestRevokedIsNeverAnsweredGood(t *testing.T) {
	storetest.Each(t, func(t *testing.T, db *store.DB) {
		h := found(t, db)
		for i := range 40 {
			cert := h.issue(t, ca.ProfileDevice, fmt.Sprintf("device-%d", i))
			q := h.query(t, &cert, crypto.SHA1)
			var revoked atomic.Bool
			stop := make(chan struct{})
			var wg sync.WaitGroup
			for range 4 {
				wg.Go(func() {
					for {
						select {
						case <-stop:
							return
						default:
						}
						before := revoked.Load()
						a, err := h.OCSP(t.Context(), q)
						if err != nil {
							t.Errorf("OCSP: %v", err)
							return
						}
						res, err := ocsp.ParseResponse(a.DER, nil)
						if err != nil || before && res.Status != ocsp.Revoked {
							t.Errorf("after the revocation: got status %d, %v", res.Status, err)
							return
						}
					}
				})
			}
			mine := cert
			err := db.Write(t.Context(), func(ctx context.Context, tx *store.Tx) error {
				c := mine
				return h.Revoke(ctx, tx, &c, countersign.KeyCompromise)
			})
			revoked.Store(true)
			if err == nil && h.ask(t, &cert).Status != ocsp.Revoked {
				err = errors.New("good after the revocation")
			}
			close(stop)
			wg.Wait()
			if err != nil || t.Failed() {
				t.Fatalf("certificate %d: %v", i, err)
			}
		}
	})
}

func TestOpenSSLVerifiesOCSPAnswer(t *testing.T) {
	h := found(t, storetest.Open(t))
	cert := h.issue(t, ca.ProfileDevice, "pump-1")
	h.write(t, func(ctx context.Context, tx *store.Tx) error {
		return h.Revoke(ctx, tx, &cert, countersign.KeyCompromise)
	})
	a, err := h.OCSP(t.Context(), h.query(t, &cert, crypto.SHA1))
	if err != nil {
		t.Fatal(err)
	}
	issuing := writePEM(t, "issuing.pem", "CERTIFICATE", h.certificateOf(t, ca.IssuingID).Raw)
	out, err := openssl(t, "ocsp", "-respin", writeFile(t, "answer.der", a.DER), "-issuer", issuing,
		"-cert", writePEM(t, "leaf.pem", "CERTIFICATE", cert.DER), "-verify_other", issuing, "-no_nonce",
		"-CAfile", writePEM(t, "root.pem", "CERTIFICATE", h.certificateOf(t, ca.RootID).Raw),
		"-attime", fmt.Sprint(start.Unix()+1), "-validity_period", "999999999")
	if err != nil || !strings.Contains(out, "Response verify OK") || !strings.Contains(out, ": revoked") || !strings.Contains(out, "Reason: keyCompromise") {
		t.Errorf("openssl ocsp: %v\n%s", err, out)
	}
}
