package policies

import (
	"context"
	"crypto/x509"
	"encoding/json"
	"fmt"
	"maps"
	"slices"
	"strings"

	"github.com/countersign-iot/countersign"
	"github.com/countersign-iot/countersign/policy"
	"github.com/countersign-iot/countersign/store"
)

// OfFleet returns those sessions that a fleet's policy is about.
func OfFleet(sessions []countersign.Session, fleet string) []countersign.Session {
	return slices.DeleteFunc(sessions, func(s countersign.Session) bool { return s.Fleet != fleet })
}

// CountLosers returns how many of the sessions lose something under a source.
func (s *Store) CountLosers(ctx context.Context, source string, sessions []countersign.Session) (int, error) {
	now, err := Read(source)
	if err != nil {
		return 0, err
	}
	losers, err := s.Losers(ctx, now, sessions)
	return len(losers), err
}

// Losers returns those of the sessions of a fleet that would lose something under a
// policy, or would be refused. It reads the records only if the policy speaks of what
// they hold.
func (s *Store) Losers(ctx context.Context, now *policy.Policy, sessions []countersign.Session) ([]countersign.Session, error) {
	var devices []string
	var certs []countersign.CertRef
	for _, one := range sessions {
		if policy.KindOf(one.Device) != policy.Devices {
			continue
		}
		if now.SpeaksOf("device.tags.") {
			devices = append(devices, one.Device)
		}
		if now.SpeaksOf("cert.subject.cn") && !one.Cert.IsZero() {
			certs = append(certs, one.Cert)
		}
	}
	f, err := readFacts(ctx, s.DB, devices, certs)
	if err != nil {
		return nil, err
	}
	var losers []countersign.Session
	for _, one := range sessions {
		subject := f.subject(one)
		given := subject
		given.ClientID = OwnClientID(one.Device)
		if loses(now, one, subject) && (!perhapsGiven(one) || loses(now, one, given)) {
			losers = append(losers, one)
		}
	}
	return losers, nil
}

func loses(now *policy.Policy, s countersign.Session, as policy.Subject) bool {
	perms, connect, _ := now.Permissions(as)
	return !connect || policy.Loses(s.Permissions, perms)
}

// OwnClientID returns the client identifier by which a policy sees a client that leaves it
// to the server.
func OwnClientID(device string) string { return device[strings.IndexByte(device, '/')+1:] }

// MayUseClientID reports whether an MQTT Client Identifier is one of a device's: its id,
// or its id, a slash or colon, and more; empty lets the server choose. No policy can
// widen this. Ids may hold colons too, so a gateway that shares one name space among
// devices must keep "a:b" of device a apart from device "a:b".
func MayUseClientID(device, client string) bool {
	rest, ok := strings.CutPrefix(client, device)
	return client == "" || ok && (rest == "" || rest[0] == '/' || rest[0] == ':')
}

// NotItsClientID is the reason to refuse a client identifier that is not the device's.
func NotItsClientID(device, client string) string {
	return fmt.Sprintf("client id %.80q is neither the device id %q nor starts with it and a slash or colon", client, device)
}

// givenText is how long the text is that the gateway puts behind the name of a session
// whose client leaves the client identifier to it.
const givenText = 12

// perhapsGiven reports whether the gateway may have chosen a session's client identifier:
// the policy judged its client by its own name then.
func perhapsGiven(s countersign.Session) bool {
	text, ok := strings.CutPrefix(s.ClientID, s.Device+":")
	return s.ClientID == "" || ok && len(text) == givenText
}

// facts are what is on record of devices and certificates, as far as a policy may speak of
// it. What is not there has no value, and so permits nothing.
type facts struct {
	tags  map[string]map[string]string
	names map[countersign.CertRef]string // common names
}

// subject is a session as a policy sees it now.
func (f facts) subject(s countersign.Session) policy.Subject {
	return policy.Subject{
		Kind: policy.KindOf(s.Device), Device: s.Device, Fleet: s.Fleet, ClientID: s.ClientID, Scope: s.Scope,
		Tags: f.tags[s.Device], CN: f.names[s.Cert],
	}
}

// readFacts reads what is on record now of devices, and of certificates.
func readFacts(ctx context.Context, rd store.Reader, devices []string, certs []countersign.CertRef) (facts, error) {
	f := facts{tags: map[string]map[string]string{}, names: map[countersign.CertRef]string{}}
	for d, err := range store.RowsIn(ctx, rd, scanTagged, `SELECT id, tags FROM device WHERE id IN`, devices) {
		if err != nil {
			return f, fmt.Errorf("couldn't read the tags of devices: %w", err)
		}
		f.tags[d.id] = d.tags
	}
	serials := map[countersign.Serial]bool{}
	for _, ref := range certs {
		serials[ref.Serial], f.names[ref] = true, ""
	}
	for c, err := range store.RowsIn(ctx, rd, scanNamed, `SELECT issuer, serial, der FROM certificate WHERE serial IN`, slices.Sorted(maps.Keys(serials))) {
		if err != nil {
			return f, fmt.Errorf("couldn't read the names in certificates: %w", err)
		}
		if _, wanted := f.names[c.ref]; wanted {
			f.names[c.ref] = c.name
		}
	}
	return f, nil
}

type tagged struct {
	id   string
	tags map[string]string
}

func scanTagged(row store.Row) (d tagged, err error) {
	var text string
	if err := row.Scan(&d.id, &text); err != nil || text == "" {
		return d, err
	}
	err = json.Unmarshal([]byte(text), &d.tags)
	return d, err
}

type named struct {
	ref  countersign.CertRef
	name string
}

func scanNamed(row store.Row) (c named, err error) {
	var der []byte
	err = row.Scan(&c.ref.Issuer, &c.ref.Serial, &der)
	if cert, bad := x509.ParseCertificate(der); bad == nil { // else it has no name that is known
		c.name = cert.Subject.CommonName
	}
	return c, err
}
