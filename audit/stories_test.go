package audit_test

import (
	"context"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha1"
	"crypto/x509"
	"encoding/hex"
	"fmt"
	"math/big"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/countersign-iot/countersign"
	"github.com/countersign-iot/countersign/audit"
	"github.com/countersign-iot/countersign/ca"
	"github.com/countersign-iot/countersign/detect"
	"github.com/countersign-iot/countersign/policy"
	"github.com/countersign-iot/countersign/store"
	"github.com/countersign-iot/countersign/test/kit"
	"github.com/countersign-iot/countersign/weakkey"
)

// steady fills the world with what is nothing to find.
func (w *world) steady(t testing.TB) {
	t.Helper()
	ago := func(d time.Duration) int64 { return store.Micros(w.Now().Add(-d)) }
	ahead := func(d time.Duration) int64 { return store.Micros(w.Now().Add(d)) }
	w.device(t, "steady-1")
	cert := w.certificate(t, "steady-1")
	w.certificate(t, "steady-1", func(c *certificate) { // renewed: the old one ends as it should
		c.state, c.to = "superseded", w.Now().Add(day)
	})
	w.device(t, "new-1", func(d *device) { d.seen = time.Time{} })
	w.certificate(t, "new-1", func(c *certificate) { c.state = "pending" })
	w.device(t, "resting-1", func(d *device) { d.state, d.seen = "suspended", w.Now().Add(-300*day) })
	w.certificate(t, "resting-1", func(c *certificate) { c.state, c.to = "held", w.Now().Add(day) })
	w.device(t, "gone-1", func(d *device) { d.state, d.owner = "retired", "" })
	w.certificate(t, "gone-1", func(c *certificate) { c.state = "revoked" })
	w.device(t, "later-1", func(d *device) { d.state, d.owner, d.created = "registered", "", w.Now().Add(-90*day) })
	w.device(t, "used-1", func(d *device) { d.seen, d.created = time.Time{}, w.Now().Add(-90*day) }) // elsewhere: at a broker that asks us
	used := w.certificate(t, "used-1")
	w.exec(t, `UPDATE certificate SET used_at = 1 WHERE serial = $1`, string(countersign.SerialOf(used.SerialNumber)))

	w.credential(t, "one-use", "token", `uses_max = 1`)
	w.credential(t, "claim-good", "claim", `uses_max = 500, devices = '["pump-*"]', expires_at = $2`, ahead(60*day))
	w.credential(t, "group-young", "group", `networks = '["10.0.0.0/8"]', devices = '["pump-*"]', created_at = $2`, ago(100*day))
	w.credential(t, "old-stopped", "group", `state = 'stopped', created_at = $2`, ago(900*day))
	w.credential(t, "old-spent", "token", `uses_max = 5000, uses = 5000`)
	w.secret(t, "sec-1", "steady-1", ago(30*day))
	w.token(t, operatorToken{"daily", "admin", ago(100 * day), ahead(50 * day), ago(day)})
	w.token(t, operatorToken{"expired", "admin", ago(400 * day), ago(35 * day), 0})

	gone := w.opened(visit{"lost", "steady-1", "steady-1:old", "192.0.2.77:1000", cert, 25 * day}) // its end was lost with the server
	w.events(t, gone, countersign.Event{Type: countersign.ServerStarted, At: w.Now().Add(-20 * day)})
	for i := range 10 { // reconnects, and moves to another network once a day
		ago := time.Duration(10-i) * 24 * time.Hour
		s := w.opened(visit{fmt.Sprintf("s-%d", i), "steady-1", "steady-1", fmt.Sprintf("192.0.2.%d:99", i%2), cert, ago})
		w.events(t, s, w.closed(s, "taken over: the same client identifier connected again", ago-23*time.Hour))
	}
	home := w.opened(visit{"m-1", "steady-1", "steady-1", "192.0.2.20:1", cert, 300 * time.Minute}) // moves to another network and back
	away := w.opened(visit{"m-2", "steady-1", "steady-1", "192.0.2.21:1", cert, 290 * time.Minute})
	back := w.opened(visit{"m-3", "steady-1", "steady-1", "192.0.2.20:2", cert, 280 * time.Minute})
	const taken = "taken over: the same client identifier connected again"
	w.events(t, home, w.closed(home, taken, 290*time.Minute), away, w.closed(away, taken, 280*time.Minute), back, w.closed(back, "client left", 270*time.Minute))
	a := w.opened(visit{"two-1", "steady-1", "steady-1", "192.0.2.9:1", cert, 3 * time.Hour})
	b := w.opened(visit{"two-2", "steady-1", "steady-1:tunnel", "192.0.2.9:2", cert, 3 * time.Hour}) // two programs of one device
	c := w.opened(visit{"two-3", "steady-1", "steady-1:late", "192.0.2.10:2", cert, 2 * time.Hour})
	w.events(t, a, b, w.closed(b, "client left", 2*time.Hour), c, w.closed(c, "client left", 2*time.Hour-time.Second), w.closed(a, "client left", time.Hour))
}

func (w *world) credential(t testing.TB, id, kind, set string, args ...any) {
	t.Helper()
	w.exec(t, `INSERT INTO credential (id, kind, lookup, second, fleet, device, label, not_before, expires_at, uses_max, uses, per_minute,
			networks, devices, state, reason, created_by, created_at)
		VALUES ($1, $2, $1, '', 'default', '', '', 0, 0, 0, 0, 0, 'null', 'null', 'active', '', '', $3)`, id, kind, store.Micros(w.Now()))
	w.exec(t, `UPDATE credential SET `+set+` WHERE id = $1`, append([]any{id}, args...)...)
}

func (w *world) secret(t testing.TB, id, device string, created int64) {
	t.Helper()
	w.exec(t, `INSERT INTO device_secret (id, device, slot, kind, verifier, state, reason, created_by, created_at, expires_at, used_at)
		VALUES ($1, $2, $3, 'secret', $4, 'active', '', '', $5, 0, 0)`, id, device, "primary", []byte("x"), created)
}

// operatorToken is an operator token as it stands in the record.
type operatorToken struct {
	id, role               string
	created, expires, used int64
}

func (w *world) token(t testing.TB, o operatorToken) {
	t.Helper()
	w.exec(t, `INSERT INTO operator_token (id, name, role, hash, created_at, expires_at, used_at, revoked) VALUES ($1, $1, $2, $3, $4, $5, $6, FALSE)`,
		o.id, o.role, []byte("x"), o.created, o.expires, o.used)
}

// story makes one thing bad and says what has to be found for it, and nothing else.
type story struct {
	name string
	tell func(t *testing.T, w *world)
	want []string
}

func certificateStories() []story {
	return []story{
		{"expiring", func(t *testing.T, w *world) {
			w.device(t, "ending")
			w.certificate(t, "ending", func(c *certificate) { c.from, c.to = w.Now().Add(-340*day), w.Now().Add(20*day) })
			w.device(t, "ended")
			w.certificate(t, "ended", func(c *certificate) { c.from, c.to = w.Now().Add(-40*day), w.Now().Add(-day) })
		}, []string{
			"DEVICE_CERTIFICATE_EXPIRING_CHECK CERTIFICATE_APPROACHING_EXPIRATION device:ending",
			"DEVICE_CERTIFICATE_EXPIRING_CHECK CERTIFICATE_PAST_EXPIRATION device:ended",
		}},
		{"thresholds of a fleet", func(t *testing.T, w *world) {
			week := countersign.Span(7 * day)
			w.fleet(t, "strict", countersign.Rules{Audit: countersign.AuditRules{
				Expiring: countersign.Span(20 * day), MaxAge: week, SecretAge: week, Unused: week, Inactive: week,
			}})
			strict := func(d *device) { d.fleet, d.created = "strict", w.Now().Add(-10*day) }
			w.device(t, "strict-1", strict)
			w.certificate(t, "strict-1", func(c *certificate) {
				c.from, c.issued, c.to = w.Now().Add(-10*day), w.Now().Add(-10*day), w.Now().Add(19*day)
			})
			w.secret(t, "sec-strict", "strict-1", store.Micros(w.Now().Add(-8*day)))
			w.device(t, "strict-2", strict, func(d *device) { d.seen = time.Time{} })
			w.device(t, "strict-3", strict, func(d *device) { d.seen = w.Now().Add(-8 * day) })
		}, []string{
			"DEVICE_CERTIFICATE_AGE_CHECK CERTIFICATE_PAST_AGE_THRESHOLD device:strict-1",
			"DEVICE_CERTIFICATE_EXPIRING_CHECK CERTIFICATE_APPROACHING_EXPIRATION device:strict-1",
			"DEVICE_INACTIVE_CHECK DEVICE_PAST_INACTIVITY_THRESHOLD device:strict-3",
			"DEVICE_NEVER_CONNECTED_CHECK DEVICE_NEVER_CONNECTED device:strict-2",
			"SECRET_AGE_CHECK SECRET_PAST_AGE_THRESHOLD device:strict-1",
		}},
		{"age", func(t *testing.T, w *world) {
			w.device(t, "old")
			w.certificate(t, "old", func(c *certificate) {
				c.from, c.issued, c.to = w.Now().Add(-366*day), w.Now().Add(-366*day), w.Now().Add(3000*day)
			})
		}, []string{"DEVICE_CERTIFICATE_AGE_CHECK CERTIFICATE_PAST_AGE_THRESHOLD device:old"}},
		{"revoked by the maker", func(t *testing.T, w *world) {
			maker, key := newCA(t, "Maker", nil, nil, 2)
			w.device(t, "made")
			external := func(c *certificate) { c.parent, c.key, c.issuer, c.state = maker, key, "maker", "revoked" }
			w.device(t, "made-2")
			// The record of authority and certificate, in this order, needs the list first.
			bad := w.certificate(t, "made", external)
			w.certificate(t, "made-2", external)
			w.register(t, ca.Registration{ID: "maker", Certificate: maker.Raw, CRLs: [][]byte{newList(t, maker, key, start.Add(900*day), bad)}})
			w.exec(t, `UPDATE certificate SET state = 'active' WHERE issuer = 'maker'`)
		}, []string{"REVOKED_DEVICE_CERTIFICATE_STILL_ACTIVE_CHECK CERTIFICATE_REVOKED_BY_ISSUER device:made"}},
		{"intermediate revoked", func(t *testing.T, w *world) {
			root, rootKey := newCA(t, "Upper", nil, nil, 3)
			middle, middleKey := newCA(t, "Middle", root, rootKey, 4)
			renewed, renewedKey := newCA(t, "Middle", root, rootKey, 6) // of the same name, with a key of its own
			w.register(t, ca.Registration{
				ID: "upper", Certificate: root.Raw, Intermediates: [][]byte{renewed.Raw, middle.Raw}, CRLs: [][]byte{newList(t, root, rootKey, start.Add(900*day), middle)},
			})
			w.device(t, "renewed")
			w.certificate(t, "renewed", func(c *certificate) { c.parent, c.key, c.issuer = renewed, renewedKey, "upper" })
			w.device(t, "below")
			w.certificate(t, "below", func(c *certificate) { c.parent, c.key, c.issuer = middle, middleKey, "upper" })
			w.device(t, "beside") // directly below the root, which is good
			w.certificate(t, "beside", func(c *certificate) { c.parent, c.key, c.issuer = root, rootKey, "upper" })
		}, []string{
			"INTERMEDIATE_CA_REVOKED_FOR_ACTIVE_DEVICE_CERTIFICATES_CHECK INTERMEDIATE_CA_REVOKED_BY_ISSUER device:below",
			"REVOKED_CA_CERTIFICATE_STILL_ACTIVE_CHECK CERTIFICATE_REVOKED_BY_ISSUER authority:upper",
		}},
		{"restored backup", func(t *testing.T, w *world) {
			w.device(t, "risen")
			c := w.certificate(t, "risen")
			serial := string(countersign.SerialOf(c.SerialNumber))
			w.exec(t, `UPDATE certificate SET state = 'revoked', reason = 1, revoked_at = $2 WHERE serial = $1`, serial, store.Micros(w.Now()))
			w.publish(t)
			w.exec(t, `UPDATE certificate SET state = 'active', reason = 0, revoked_at = 0 WHERE serial = $1`, serial)
		}, []string{"REVOKED_DEVICE_CERTIFICATE_STILL_ACTIVE_CHECK CERTIFICATE_REVOKED_BY_ISSUER device:risen"}},
		{"session on a revoked certificate", func(t *testing.T, w *world) {
			w.device(t, "undead")
			c := w.certificate(t, "undead")
			serial := countersign.SerialOf(c.SerialNumber)
			w.exec(t, `UPDATE certificate SET state = 'revoked', revoked_at = $2 WHERE serial = $1`, string(serial), store.Micros(w.Now().Add(-time.Hour)))
			w.sessions = append(w.sessions, countersign.Session{
				ID: "x", Device: "undead", Fleet: "default", Cert: countersign.CertRef{Issuer: ca.IssuingID, Serial: serial}, Remote: netip.MustParseAddrPort("192.0.2.1:1"),
			})
		}, []string{"REVOKED_DEVICE_CERTIFICATE_STILL_ACTIVE_CHECK REVOKED_CERTIFICATE_IN_SESSION device:undead"}},
		{"weak keys", func(t *testing.T, w *world) {
			known, err := rsa.GenerateKey(rand.Reader, 2048)
			if err != nil {
				t.Fatal(err)
			}
			w.WeakKeys = &weakkey.Blocklist{}
			sum := sha1.Sum(fmt.Appendf(nil, "Modulus=%X\n", known.N))
			if err := w.WeakKeys.Read(strings.NewReader(hex.EncodeToString(sum[:])[20:])); err != nil {
				t.Fatal(err)
			}
			small, err := rsa.GenerateKey(rand.Reader, 1024)
			if err != nil {
				t.Fatal(err)
			}
			for id, k := range map[string]*rsa.PublicKey{"debian": &known.PublicKey, "small": &small.PublicKey, "roca": roca(t)} {
				w.device(t, id)
				w.certificate(t, id, func(c *certificate) { c.pub = k })
			}
		}, []string{
			"DEVICE_CERTIFICATE_KEY_QUALITY_CHECK CERTIFICATE_KEY_TOO_SMALL device:small",
			"DEVICE_CERTIFICATE_KEY_QUALITY_CHECK CERTIFICATE_KEY_VULNERABILITY_CVE-2008-0166 device:debian",
			"DEVICE_CERTIFICATE_KEY_QUALITY_CHECK CERTIFICATE_KEY_VULNERABILITY_CVE-2017-15361 device:roca",
		}},
		{"keys that share a prime", func(t *testing.T, w *world) {
			for _, id := range []string{"prime-a", "prime-b", "prime-c"} {
				w.device(t, id)
				w.certificate(t, id)
			}
			w.SharedKeys = func(context.Context) ([][2]countersign.Certificate, error) {
				return [][2]countersign.Certificate{{{Device: "prime-a", Fleet: "default"}, {Device: "prime-b", Fleet: "default"}}}, nil
			}
		}, []string{
			"DEVICE_CERTIFICATE_KEY_QUALITY_CHECK CERTIFICATE_KEY_SHARES_PRIME device:prime-a",
			"DEVICE_CERTIFICATE_KEY_QUALITY_CHECK CERTIFICATE_KEY_SHARES_PRIME device:prime-b",
		}},
		{"key reused", func(t *testing.T, w *world) {
			k := &kit.Key(t).PublicKey
			for _, id := range []string{"twin-1", "twin-2", "twin-3"} {
				w.device(t, id)
				w.certificate(t, id, func(c *certificate) { c.pub = k })
			}
		}, []string{"DEVICE_KEY_REUSED_CHECK PUBLIC_KEY_SHARED_BY_MULTIPLE_DEVICES device:twin-2"}},
	}
}

func otherStories() []story {
	return []story{
		{"authorities", func(t *testing.T, w *world) {
			weak, err := x509.CreateCertificate(rand.Reader, &x509.Certificate{
				SerialNumber: big.NewInt(9), NotBefore: start.Add(-300 * day), NotAfter: start.Add(20 * day), IsCA: true, BasicConstraintsValid: true,
			}, w.issuer, roca(t), w.key)
			if err != nil {
				t.Fatal(err)
			}
			w.exec(t, `INSERT INTO authority (id, kind, parent, certificate, key_uri, state, created_at, trust) VALUES ('weak', 'registered', '', $1, '', 'active', 0, '{}')`, weak)
			w.exec(t, `INSERT INTO authority (id, kind, parent, certificate, key_uri, state, created_at, trust) VALUES ('weak-retired', 'registered', '', $1, '', 'retired', 0, '{}')`, weak)
		}, []string{
			"CA_CERTIFICATE_EXPIRING_CHECK CERTIFICATE_APPROACHING_EXPIRATION authority:weak",
			"CA_CERTIFICATE_KEY_QUALITY_CHECK CERTIFICATE_KEY_VULNERABILITY_CVE-2017-15361 authority:weak",
		}},
		{"lists of others", func(t *testing.T, w *world) {
			maker, key := newCA(t, "Lazy maker", nil, nil, 5)
			w.register(t, ca.Registration{ID: "lazy", Certificate: maker.Raw, CRLs: [][]byte{newList(t, maker, key, w.Now().Add(-day))}, RequireCRL: true})
		}, []string{"CRL_STALE_CHECK CRL_PAST_NEXT_UPDATE authority:lazy"}},
		{"lists of ours", func(t *testing.T, w *world) {
			w.exec(t, `UPDATE crl SET next_update = $1 WHERE issuer = 'issuing'`, store.Micros(w.Now().Add(-time.Minute)))
			w.exec(t, `UPDATE crl SET this_update = $1, next_update = $2 WHERE issuer = 'root'`, store.Micros(w.Now().Add(-80*day)), store.Micros(w.Now().Add(20*day)))
			w.exec(t, `INSERT INTO crl (issuer, shard, number, published, this_update, next_update, entries) VALUES ('issuing', 1, 0, 0, 0, 0, 0)`)
			w.exec(t, `UPDATE authority SET created_at = created_at - 7200000000 WHERE id = 'issuing'`)
		}, []string{
			"CRL_STALE_CHECK CRL_NEVER_PUBLISHED authority:issuing",
			"CRL_STALE_CHECK CRL_PAST_NEXT_UPDATE authority:issuing",
			"CRL_STALE_CHECK CRL_PUBLICATION_LATE authority:root",
		}},
		{"devices", func(t *testing.T, w *world) {
			w.device(t, "unused", func(d *device) { d.created, d.seen = w.Now().Add(-31*day), time.Time{} })
			w.device(t, "lost", func(d *device) { d.seen = w.Now().Add(-181 * day) })
			w.device(t, "nobodys", func(d *device) { d.owner = "" })
			retired := func(d *device) { d.state = "retired" }
			w.device(t, "ghost-1", retired)
			w.certificate(t, "ghost-1")
			w.device(t, "ghost-2", retired)
			w.secret(t, "sec-ghost", "ghost-2", store.Micros(w.Now().Add(-900*day)))
			w.device(t, "ghost-3", retired)
			w.credential(t, "cred-ghost", "key", `device = 'ghost-3'`)
		}, []string{
			"DEVICE_INACTIVE_CHECK DEVICE_PAST_INACTIVITY_THRESHOLD device:lost",
			"DEVICE_NEVER_CONNECTED_CHECK DEVICE_NEVER_CONNECTED device:unused",
			"DEVICE_OFFBOARDING_CHECK RETIRED_DEVICE_HAS_CERTIFICATE device:ghost-1",
			"DEVICE_OFFBOARDING_CHECK RETIRED_DEVICE_HAS_CREDENTIAL device:ghost-3",
			"DEVICE_OFFBOARDING_CHECK RETIRED_DEVICE_HAS_SECRET device:ghost-2",
			"DEVICE_ORPHANED_CHECK DEVICE_WITHOUT_OWNER device:nobodys",
		}},
		{"credentials", func(t *testing.T, w *world) {
			w.credential(t, "boundless", "claim", `label = 'line'`)
			w.credential(t, "leaked", "group", `uses_max = 10, networks = '["10.0.0.0/8"]'`)
			w.credential(t, "replaced", "group", `uses_max = 10, networks = '["10.0.0.0/8"]', created_at = $2`, store.Micros(w.Now().Add(time.Minute)))
			for _, id := range []string{"leaked", "replaced"} {
				w.events(t, countersign.Event{
					Type: countersign.FindingGroupKey, At: w.Now().Add(time.Second), Remote: "192.0.2.66", Reason: "a device showed the group key itself",
					Data: map[string]string{"credential": id},
				})
			}
		}, []string{
			"CLAIM_CREDENTIAL_UNBOUNDED_CHECK CREDENTIAL_WITHOUT_BOUNDS credential:boundless",
			"CREDENTIAL_LEAKED_CHECK CREDENTIAL_SEEN_IN_WRONG_HANDS credential:leaked",
		}},
		{"secrets", func(t *testing.T, w *world) {
			w.device(t, "aged")
			w.secret(t, "sec-aged", "aged", store.Micros(w.Now().Add(-366*day)))
			w.credential(t, "key-aged", "key", `device = 'aged', created_at = $2`, store.Micros(w.Now().Add(-400*day)))
		}, []string{
			"SECRET_AGE_CHECK ENROLLMENT_KEY_PAST_AGE_THRESHOLD credential:key-aged",
			"SECRET_AGE_CHECK SECRET_PAST_AGE_THRESHOLD device:aged",
		}},
		{"fleets", func(t *testing.T, w *world) {
			w.fleet(t, "open", countersign.Rules{Access: countersign.Access{
				Guests: true, Kinds: []countersign.AccessKind{countersign.AccessCertificate, countersign.AccessPassword},
			}})
		}, []string{
			"FLEET_WEAK_AUTHENTICATION_CHECK FLEET_ACCEPTS_PASSWORDS fleet:open",
			"FLEET_WEAK_AUTHENTICATION_CHECK FLEET_ADMITS_GUESTS fleet:open",
		}},
		{"policies", func(t *testing.T, w *world) {
			for _, name := range []string{"broad", "broken", "fixed"} {
				w.fleet(t, name, countersign.Rules{})
			}
			put := func(fleet string, version int, source string) {
				w.exec(t, `INSERT INTO policy_version (fleet, version, source, note, created_by, created_at) VALUES ($1, $2, $3, '', '', 0)`, fleet, version, source)
			}
			broad := strings.ReplaceAll(string(policy.Starter()), "${device.id}", "+")
			put("broad", 1, string(policy.Starter()))
			put("broad", 2, broad)
			put("broken", 1, "no policy")
			put("fixed", 1, broad)
			put("fixed", 2, string(policy.Starter()))
		}, []string{
			"IOT_POLICY_OVERLY_PERMISSIVE_CHECK ALLOWS_BROAD_ACCESS_TO_IOT_DATA_PLANE_ACTIONS fleet:broad",
			"IOT_POLICY_POTENTIAL_MISCONFIGURATION_CHECK POLICY_UNREADABLE fleet:broken",
		}},
		{"operator tokens", func(t *testing.T, w *world) {
			at := func(d time.Duration) int64 { return store.Micros(w.Now().Add(d)) }
			w.token(t, operatorToken{"idle", "viewer", at(-100 * day), at(50 * day), 0})
			w.token(t, operatorToken{"mighty", "admin", at(-day), at(300 * day), at(-time.Hour)})
		}, []string{
			"OPERATOR_TOKEN_STALE_CHECK OPERATOR_TOKEN_LONG_LIVED operator_token:mighty",
			"OPERATOR_TOKEN_STALE_CHECK OPERATOR_TOKEN_UNUSED operator_token:idle",
		}},
	}
}

func sessionStories() []story {
	return []story{
		{"shared", func(t *testing.T, w *world) {
			w.device(t, "cloned")
			cert := w.certificate(t, "cloned")
			w.device(t, "told")
			w.device(t, "settled")
			settled := w.certificate(t, "settled")
			w.exec(t, `UPDATE certificate SET state = 'revoked', revoked_at = 1 WHERE device = 'settled'`)
			w.events(t,
				w.raised(detect.SharedCertificate, "cloned", cert, time.Hour), w.raised(detect.SharedCertificate, "cloned", cert, 2*time.Hour),
				w.raised(detect.SharedCertificate, "told", nil, time.Hour), w.raised(detect.IdentityChange, "told", nil, time.Hour),
				w.raised(detect.SharedCertificate, "settled", settled, time.Hour),
			)
		}, []string{
			"DEVICE_CERTIFICATE_SHARED_CHECK CERTIFICATE_SHARED_BY_MULTIPLE_DEVICES device:cloned",
			"DEVICE_SECRET_SHARED_CHECK SECRET_SHARED_BY_MULTIPLE_DEVICES device:told",
		}},
		{"long ago", func(t *testing.T, w *world) {
			w.device(t, "forgiven")
			w.write(t, func(ctx context.Context, tx *store.Tx) error { // behind the others, as a log is
				_, err := tx.Exec(ctx, `INSERT INTO event (id, at, type, actor, device, fleet, issuer, serial, remote, via, code, reason, data)
					VALUES (0, $1, 'finding.raised', 'system', 'forgiven', '', '', '', '', '', '', '', '{"rule":"shared_certificate"}')`, store.Micros(w.Now().Add(-32*day)))
				return err
			})
		}, []string{}},
		{"conflict", func(t *testing.T, w *world) {
			w.device(t, "fought")
			w.events(t, w.raised(detect.ClientIDConflict, "fought", w.certificate(t, "fought"), time.Hour))
		}, []string{"CONFLICTING_CLIENT_IDS_CHECK DUPLICATE_CLIENT_ID_ACROSS_CONNECTIONS device:fought"}},
		{"lost lines", func(t *testing.T, w *world) {
			w.events(t, countersign.Event{Type: countersign.EventsSuppressed, At: w.Now().Add(-time.Hour), Data: map[string]string{"count": "7"}})
		}, []string{"LOGGING_DISABLED_CHECK LOGGING_DISABLED server"}},
	}
}

// roca gives a key with the fingerprint of CVE-2017-15361.
func roca(t testing.TB) *rsa.PublicKey {
	t.Helper()
	m := big.NewInt(1)
	for p := int64(2); p <= 167; p++ { // the first 39 primes
		if big.NewInt(p).ProbablyPrime(10) {
			m.Mul(m, big.NewInt(p))
		}
	}
	for {
		k, err := rand.Int(rand.Reader, new(big.Int).Lsh(big.NewInt(1), uint(2047-m.BitLen())))
		if err != nil {
			t.Fatal(err)
		}
		n := new(big.Int).Exp(big.NewInt(65537), k, m)
		n.Add(n, k.SetBit(k, 2048-m.BitLen(), 1).Mul(k, m))
		key := &rsa.PublicKey{N: n, E: 65537}
		if err := weakkey.Check(key); err != nil && strings.Contains(err.Error(), "ROCA") {
			return key
		}
	}
}

func TestChecksFireInTheirStories(t *testing.T) {
	each(t, func(t *testing.T, w *world) {
		w.steady(t)
		run, found := w.audit(t)
		for _, c := range run.Checks {
			if c.Status != audit.Compliant {
				t.Errorf("steady: %s is %s (%s), want %s", c.Name, c.Status, c.Error, audit.Compliant)
			}
		}
		if len(found) > 0 || run.State != audit.Completed {
			t.Fatalf("steady: %s with findings %q", run.State, found)
		}
		fired := map[string]bool{}
		for _, s := range slices.Concat(certificateStories(), otherStories(), sessionStories()) {
			s.tell(t, w)
			w.clock.Advance(time.Second) // runs have times of their own
			run, now := w.audit(t)
			if run.State != audit.Completed {
				t.Errorf("%s: the run is %s: %s", s.name, run.State, run.Reason)
			}
			fresh := slices.DeleteFunc(slices.Compact(slices.Clone(now)), func(l string) bool { return slices.Contains(found, l) })
			if d := cmp.Diff(s.want, fresh); d != "" {
				t.Errorf("%s: (-want +got)\n%s", s.name, d)
			}
			for _, l := range s.want {
				fired[strings.Fields(l)[0]] = true
			}
			found = now
		}
		for _, c := range audit.Checks() {
			if !fired[c.Name] {
				t.Errorf("%s has no story", c.Name)
			}
		}
	})
}
