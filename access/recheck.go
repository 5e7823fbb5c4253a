package access

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"strings"

	"github.com/countersign-iot/countersign"
	"github.com/countersign-iot/countersign/policy"
	"github.com/countersign-iot/countersign/registry"
	"github.com/countersign-iot/countersign/store"
)

// Lost is a live session that the record no longer supports, and why.
type Lost struct {
	Session countersign.Session
	Code    countersign.Code
	Reason  string
	// ByPolicy is true if the client may connect again at once, with what the fleet's
	// policy permits now. The clients of all other lost sessions may not.
	ByPolicy bool
}

// recheckChunk is how many sessions are compared with the record at once. It bounds the
// part of the record that is in memory, to some MB.
const recheckChunk = 1000

// Recheck compares live sessions with the record as it is now and returns those that are
// no longer allowed: because of the Standing of their certificate, their device or
// credential, what their fleet accepts, or its policy. It reads in batches, so that it can
// check all sessions of a node. After an error nothing is known about any session. If a
// manufacturer's CRL is out of date, it is unknown whether a certificate is revoked: a
// new connection is then refused, but no session ends.
func (d *Decider) Recheck(ctx context.Context, sessions []countersign.Session) ([]Lost, error) {
	var lost []Lost
	fleets := map[string][]countersign.Session{}
	for chunk := range slices.Chunk(sessions, recheckChunk) {
		all, err := d.standings(ctx, d.DB, chunk)
		if err != nil {
			return nil, err
		}
		for _, s := range chunk {
			code, reason, err := all.refusal(ctx, s)
			switch {
			case err != nil:
				return nil, fmt.Errorf("couldn't compare sessions with the record: %w", err)
			case code == "" || code == countersign.Unavailable:
				fleets[s.Fleet] = append(fleets[s.Fleet], s)
			default:
				lost = append(lost, Lost{Session: s, Code: code, Reason: reason})
			}
		}
	}
	for _, fleet := range slices.Sorted(maps.Keys(fleets)) {
		in, err := d.Policies.Of(ctx, fleet)
		if err != nil {
			return nil, err
		}
		losers, err := d.Policies.Losers(ctx, in.Policy, fleets[fleet])
		if err != nil {
			return nil, err
		}
		for _, s := range losers {
			lost = append(lost, Lost{Session: s, Code: countersign.NotAllowed, Reason: "the policy of the fleet changed", ByPolicy: true})
		}
	}
	return lost, nil
}

// Refusal reports why the certificate or credential of a session is not valid now, by the
// rules of Recheck; the code is empty if it is valid. In a transaction that has locked the
// device the answer holds until the transaction ends. first is true if the device is
// registered and may become active by the credential.
func (d *Decider) Refusal(ctx context.Context, rd store.Reader, s countersign.Session) (code countersign.Code, reason string, first bool, err error) {
	all, err := d.standings(ctx, rd, []countersign.Session{s})
	if err != nil {
		return "", "", false, err
	}
	all.first = true
	code, reason, err = all.refusal(ctx, s)
	return code, reason, code == "" && all.devices[s.Device].state == countersign.DeviceRegistered, err
}

// Good returns those of the certificates that are valid for a use now.
func (d *Decider) Good(ctx context.Context, rd store.Reader, refs []countersign.CertRef, use Use) (map[countersign.CertRef]bool, error) {
	all := &standings{decider: d, rd: rd, certs: map[countersign.CertRef]record{}}
	serials := set[countersign.Serial]{}
	for _, ref := range refs {
		serials[ref.Serial] = true
	}
	if err := all.readCertificates(ctx, serials.list()); err != nil {
		return nil, err
	}
	good := map[countersign.CertRef]bool{}
	for _, ref := range refs {
		rec, ok := all.certs[ref]
		if !ok {
			continue
		}
		s, err := d.judge(ctx, rd, &rec, use, nil)
		if err != nil {
			return nil, err
		}
		if s.Code == "" {
			good[ref] = true
		}
	}
	return good, nil
}

// standings are the records of the devices, certificates and credentials of some
// sessions.
type standings struct {
	decider *Decider
	rd      store.Reader
	first   bool // accept a registered device that may become active by its credential

	devices map[string]holder // without their secrets
	fleets  map[string]string // their rules, JSON
	certs   map[countersign.CertRef]record
	own     map[string][]record // of devices that a broker vouches for: those not revoked
	hadCert map[string]bool     // of these, the devices that certificates were issued to
	secrets map[string]Secret
	tokens  map[string]Token
	keys    map[string]registry.Credential
}

func (d *Decider) standings(ctx context.Context, rd store.Reader, sessions []countersign.Session) (*standings, error) {
	a := &standings{
		decider: d, rd: rd, devices: map[string]holder{}, fleets: map[string]string{}, certs: map[countersign.CertRef]record{},
		own: map[string][]record{}, hadCert: map[string]bool{}, secrets: map[string]Secret{}, tokens: map[string]Token{},
	}
	n := newNames()
	for i := range sessions {
		n.session(&sessions[i])
	}
	err := fill(ctx, rd, lookup[string]{"access tokens", `SELECT ` + tokenColumns + ` FROM access_token WHERE id IN`, n.tokens.list()}, scanToken, func(k Token) {
		a.tokens[k.ID] = k
		n.credential(k.Source) // a token is valid only as long as the credential that it was issued for
	})
	if err != nil {
		return nil, err
	}
	if err := a.readFleets(ctx, n.fleets.list()); err != nil {
		return nil, err
	}
	if err := a.readDevices(ctx, n.devices.list()); err != nil {
		return nil, err
	}
	if err := a.readCertificates(ctx, n.serials.list()); err != nil {
		return nil, err
	}
	if err := a.readOwn(ctx, n.vouched.list()); err != nil {
		return nil, err
	}
	err = fill(ctx, rd, lookup[string]{"the secrets of devices", `SELECT ` + secretColumns + ` FROM device_secret s WHERE id IN`, n.secrets.list()}, scanSecret, func(s Secret) {
		a.secrets[s.ID] = s
	})
	if err != nil {
		return nil, err
	}
	a.keys, err = registry.CredentialsByID(ctx, rd, n.keys.list())
	return a, err
}

// set is a set of names.
type set[T ~string] map[T]bool

func (s set[T]) list() []T { return slices.Sorted(maps.Keys(s)) }

// names are the keys of the records that sessions rest on, each once.
type names struct {
	fleets, devices, vouched, secrets, tokens, keys set[string]
	serials                                         set[countersign.Serial]
}

func newNames() *names {
	return &names{set[string]{}, set[string]{}, set[string]{}, set[string]{}, set[string]{}, set[string]{}, set[countersign.Serial]{}}
}

func (n *names) session(s *countersign.Session) {
	n.fleets[s.Fleet] = true
	if policy.KindOf(s.Device) == policy.Devices {
		n.devices[s.Device] = true
	}
	for _, id := range s.Scope {
		n.devices[id] = true
	}
	if !s.Cert.IsZero() {
		n.serials[s.Cert.Serial] = true
	}
	if strings.HasPrefix(s.Credential, vouchedCredential) {
		n.vouched[s.Device] = true
	}
	n.credential(s.Credential)
}

// credential adds the credential, kind:id, of a session or an access token.
func (n *names) credential(credential string) {
	switch kind, id, _ := strings.Cut(credential, ":"); kind {
	case guestCredential, "", "vouched":
	case "certificate":
		if ref, err := countersign.ParseCertRef(id); err == nil { // else it is on no record
			n.serials[ref.Serial] = true
		}
	case "secret":
		n.secrets[id] = true
	case "token":
		n.tokens[id] = true
	case string(countersign.MethodKey), string(countersign.MethodGroup):
		n.keys[id] = true
	}
}

func (a *standings) readFleets(ctx context.Context, names []string) error {
	var name, rules string
	scan := func(row store.Row) (none struct{}, err error) { return none, row.Scan(&name, &rules) }
	return fill(ctx, a.rd, lookup[string]{"the rules of fleets", `SELECT name, rules FROM fleet WHERE name IN`, names}, scan, func(struct{}) { a.fleets[name] = rules })
}

func (a *standings) readDevices(ctx context.Context, ids []string) error {
	scan := func(row store.Row) (h holder, err error) {
		err = row.Scan(&h.device, &h.fleet, &h.state, &h.reason, &h.revoked)
		return h, err
	}
	return fill(ctx, a.rd, lookup[string]{"the record of devices", `SELECT id, fleet, state, reason, revoked_pos FROM device WHERE id IN`, ids}, scan, func(h holder) { a.devices[h.device] = h })
}

func (a *standings) readCertificates(ctx context.Context, serials []countersign.Serial) error {
	return fill(ctx, a.rd, lookup[countersign.Serial]{"the record of certificates", `SELECT ` + recordColumns + ` FROM ` + recordTables + ` WHERE c.serial IN`, serials},
		scanRecord, func(r record) { a.certs[r.ref] = r })
}

// readOwn reads the certificates of devices that a broker vouches for. The broker may have
// verified any of them.
func (a *standings) readOwn(ctx context.Context, ids []string) error {
	err := fill(ctx, a.rd, lookup[string]{"the certificates of devices", `SELECT DISTINCT device FROM certificate WHERE device IN`, ids},
		store.Scan[string], func(id string) { a.hadCert[id] = true })
	if err != nil {
		return err
	}
	return fill(ctx, a.rd, lookup[string]{"the certificates of devices", `SELECT ` + recordColumns + ` FROM ` + recordTables + ` WHERE c.state <> 'revoked' AND c.device IN`, ids},
		scanRecord, func(r record) { a.own[r.device] = append(a.own[r.device], r) })
}

// lookup is a query for the rows where a column has one of values.
type lookup[V ~string] struct {
	what   string // for errors
	text   string // ends with the column and IN
	values []V
}

// fill calls add for each row of a lookup.
func fill[T any, V ~string](ctx context.Context, rd store.Reader, q lookup[V], scan func(store.Row) (T, error), add func(T)) error {
	for v, err := range store.RowsIn(ctx, rd, scan, q.text, q.values) {
		if err != nil {
			return fmt.Errorf("couldn't read %s: %w", q.what, err)
		}
		add(v)
	}
	return nil
}

// refusal reports why a session is no longer allowed; the code is empty if it is.
func (a *standings) refusal(ctx context.Context, s countersign.Session) (countersign.Code, string, error) {
	if !s.NotAfter.IsZero() && a.decider.Now().After(s.NotAfter) {
		return countersign.CredentialExpire, "the credential that the session rests on has expired", nil
	}
	var made countersign.Position
	if !s.Cert.IsZero() {
		code, reason, err := a.certRefusal(ctx, s.Cert)
		if code != "" || err != nil {
			return code, reason, err
		}
	} else if s.Credential != "" {
		var code countersign.Code
		var reason string
		var err error
		if made, code, reason, err = a.credentialRefusal(ctx, &s, s.Credential); code != "" || err != nil {
			return code, reason, err
		}
	}
	if code, reason := a.deviceRefusal(&s, made); code != "" {
		return code, reason, nil
	}
	return a.fleetRefusal(&s)
}

func (a *standings) certRefusal(ctx context.Context, ref countersign.CertRef) (countersign.Code, string, error) {
	rec, ok := a.certs[ref]
	if !ok {
		return countersign.CertUnknown, "the certificate is not on record", nil
	}
	s, err := a.decider.judge(ctx, a.rd, &rec, Connecting, nil)
	return s.Code, s.Reason, err
}

// deviceRefusal checks the device of a session, and the devices that it is for.
func (a *standings) deviceRefusal(s *countersign.Session, made countersign.Position) (countersign.Code, string) {
	own := policy.KindOf(s.Device) == policy.Devices
	ids := s.Scope
	if own {
		ids = append([]string{s.Device}, ids...)
	}
	for _, id := range ids {
		h, ok := a.devices[id]
		if !ok {
			return countersign.NotAllowed, "the device is not on record"
		}
		if h.fleet != s.Fleet {
			return countersign.NotAllowed, "the device is of another fleet now"
		}
		kind, _, _ := strings.Cut(s.Credential, ":")
		code, reason, first := h.refusal(proof{made: made, vouched: !own || !s.Cert.IsZero() || kind == "vouched"})
		if code != "" {
			return code, reason
		}
		if first && !a.first {
			return countersign.NotAllowed, "the device is registered"
		}
	}
	return "", ""
}

// credentialRefusal checks a credential, kind:id, of a session or an access token. made is
// the position of the log when it was made.
func (a *standings) credentialRefusal(ctx context.Context, s *countersign.Session, credential string) (made countersign.Position, code countersign.Code, reason string, err error) {
	good := false
	switch kind, id, _ := strings.Cut(credential, ":"); kind {
	case guestCredential: // fleetRefusal decides about it
		return 0, "", "", nil
	case "vouched":
		code, reason, err = a.vouchedRefusal(ctx, s.Device)
		return 0, code, reason, err
	case "certificate":
		ref, _ := countersign.ParseCertRef(id) // a malformed one is not on record
		code, reason, err = a.certRefusal(ctx, ref)
		return 0, code, reason, err
	case "secret":
		secret, ok := a.secrets[id]
		good, made = ok && secret.Active() && !secret.Ended(a.decider.Now()), secret.made
	case "token":
		return a.tokenRefusal(ctx, s, id)
	case string(countersign.MethodKey), string(countersign.MethodGroup):
		key, ok := a.keys[id]
		if !s.Remote.IsValid() { // a broker that asks again does not send the address; it was checked when the device connected
			key.Networks = nil
		}
		good = ok && keyUsable(&key, a.decider.Now(), s.Remote.Addr()) && key.Fleet == s.Fleet && key.Covers(s.Device)
		made = key.CreatedPos
	}
	if !good {
		return made, countersign.CredentialExpire, "the credential that the session rests on is no longer in force", nil
	}
	return made, "", "", nil
}

// vouchedRefusal checks the certificates of a device that a broker vouches for. The broker
// may have verified any of them, so one valid certificate is enough. A device that never
// had one was authenticated in another way.
func (a *standings) vouchedRefusal(ctx context.Context, device string) (countersign.Code, string, error) {
	if !a.hadCert[device] {
		return "", "", nil
	}
	code, reason := countersign.CertIsRevoked, "all certificates of the device are revoked"
	for i := range a.own[device] {
		s, err := a.decider.judge(ctx, a.rd, &a.own[device][i], vouched, nil)
		if err != nil || s.Code == "" {
			return "", "", err
		}
		if i == 0 {
			code, reason = s.Code, s.Reason
		}
	}
	return code, reason, nil
}

// tokenRefusal checks an access token and, for a device, the credential that it was issued
// for.
func (a *standings) tokenRefusal(ctx context.Context, s *countersign.Session, id string) (countersign.Position, countersign.Code, string, error) {
	k, ok := a.tokens[id]
	if !ok || !k.RevokedAt.IsZero() || !a.decider.Now().Before(k.ExpiresAt) {
		return k.IssuedPos, countersign.CredentialExpire, "the access token is no longer in force", nil
	}
	if strings.Contains(k.Subject, "/") { // an operator's: it is revoked together with the credential that it was issued for
		return k.IssuedPos, "", "", nil
	}
	made, code, reason, err := a.credentialRefusal(ctx, s, k.Source)
	if code == "" && err == nil {
		if h := a.devices[k.Subject]; made != 0 && made < h.revoked {
			code, reason = countersign.CredentialExpire, "the credential that the access token was issued for is older than the device's identity"
		}
	}
	return k.IssuedPos, code, reason, err
}

// fleetRefusal checks that the fleet accepts the kind of the session's credential. For a
// certificate, judge has done that. A fleet does not choose how operators, and devices
// that a broker vouches for, authenticate.
func (a *standings) fleetRefusal(s *countersign.Session) (countersign.Code, string, error) {
	text, ok := a.fleets[s.Fleet]
	if !ok {
		return countersign.NotAllowed, "there is no such fleet", nil
	}
	rules, err := a.decider.rules.of(s.Fleet, text)
	if err != nil {
		return "", "", err
	}
	if s.Credential == guestCredential && !rules.Access.Guests {
		return countersign.NotAllowed, "fleet " + s.Fleet + " admits no guests", nil
	}
	kinds := kindsOf(*s, a.secrets)
	if !s.Cert.IsZero() || kinds == nil || slices.ContainsFunc(kinds, func(k countersign.AccessKind) bool { return Accepts(rules.Access, k) }) {
		return "", "", nil
	}
	return countersign.NotAllowed, fmt.Sprintf("fleet %s does not accept a %s", s.Fleet, kinds[0]), nil
}

// kindsOf returns the kinds of credential that a session may have been opened with; nil if
// a fleet does not choose them.
func kindsOf(s countersign.Session, made map[string]Secret) []countersign.AccessKind {
	kind, id, _ := strings.Cut(s.Credential, ":")
	switch {
	case policy.KindOf(s.Device) != policy.Devices || kind == "vouched":
		return nil
	case s.Credential == "":
		return []countersign.AccessKind{countersign.AccessCertificate}
	case kind == "token":
		return []countersign.AccessKind{countersign.AccessToken}
	case kind != "secret":
		return []countersign.AccessKind{countersign.AccessSAS}
	case made[id].Kind == countersign.AccessPassword:
		return []countersign.AccessKind{countersign.AccessPassword}
	}
	return []countersign.AccessKind{countersign.AccessSecret, countersign.AccessSCRAM}
}
