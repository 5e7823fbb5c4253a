package demo

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"math/big"
	"net/http"
	"strings"
	"time"

	"github.com/countersign-iot/countersign"
	"github.com/countersign-iot/countersign/api"
	"github.com/countersign-iot/countersign/attest"
	"github.com/countersign-iot/countersign/est"
	"github.com/countersign-iot/countersign/sdk"
	"github.com/countersign-iot/countersign/simulate/device"
)

const (
	// methodsFleet is where the devices of --methods live.
	methodsFleet = "ways"
	// sleepersFleet has certificates so short that one can expire in a demo, which
	// moves its server's clock by sleep for that.
	sleepersFleet = "sleepers"
	shortLife     = 5 * time.Minute
	sleep         = 10 * time.Minute
	// makerLife is how long what the demo's manufacturer signs is good.
	makerLife = 24 * time.Hour
)

// way is one way to a certificate, as --methods shows it.
type way struct {
	method string
	note   string // what a success shows
	// enroll adds the evidence to e and enrolls the device with it.
	enroll func(ctx context.Context, e *sdk.Enrollment) (*sdk.Identity, error)
}

// methodSteps are the steps of --methods: a device for each way in, each checked by
// a connection with the certificate that it got. Recovery is last, since it moves
// the server's clock.
func (d *demo) methodSteps() []step {
	ways := []way{
		{"token", "a secret for this device, good once", d.byToken},
		{"factory", "the line vouches; request and answer were one JSON line each", d.byFactory},
		{"claim", "a shared certificate within its bounds; used outside of them it was refused and stopped", d.byClaim},
		{"idevid", "its maker's certificate, of a CA that proved possession of its key", d.byIDevID},
		{"thumbprint", "a certificate that it signed itself, known by its SHA-256", d.byThumbprint},
		{"key", "a SAS token by the device's own key", d.byKey},
		{"group", "a SAS token by a key derived on the line; the group key itself was refused", d.byGroup},
		{"tpm", "a software TPM proved which chip it is and that the key was made in it", d.byTPM},
		{"token, after approval", "202 first, then an operator said yes", d.byApproval},
		{"recovery", fmt.Sprintf("expired %s ago by the server's clock: refused at the enrollment listener, renewed at the recovery listener", sleep-shortLife), d.byRecovery},
	}
	steps := []step{{"open a fleet to every method", d.openWays}}
	for _, w := range ways {
		steps = append(steps, step{"enroll by " + w.method, func(ctx context.Context) (string, error) {
			e := d.enrollment("by-" + strings.TrimPrefix(w.method, "token, after "))
			id, err := w.enroll(ctx, &e)
			if err != nil || w.method == "tpm" { // the chip is gone by now; byTPM has checked it
				return w.note, err
			}
			return w.note, d.admitted(ctx, id)
		}})
	}
	return steps
}

// admitted checks an identity by using it.
func (d *demo) admitted(ctx context.Context, id *sdk.Identity) error {
	dev := &device.Client{Identity: id, Broker: d.broker}
	s, err := dev.Connect(ctx)
	if err != nil {
		return fmt.Errorf("%s cannot connect: %w", id.Device(), err)
	}
	defer s.Leave()
	if err := s.Publish(ctx, dev.Topic("up/hello"), "from "+id.Device()); err != nil {
		return fmt.Errorf("%s cannot publish: %w", id.Device(), err)
	}
	return nil
}

func (d *demo) openWays(ctx context.Context) (string, error) {
	all := []string{"token", "factory", "claim", "idevid", "thumbprint", "key", "group", "tpm"}
	if _, err := d.admin.PutFleet(ctx, methodsFleet, api.PutFleet{Methods: &all}); err != nil {
		return "", err
	}
	return strings.Join(all, ", "), nil
}

// enrollment is that of a device of the fleet, without its evidence.
func (d *demo) enrollment(device string) sdk.Enrollment {
	return sdk.Enrollment{Server: d.server.Endpoints().Enroll, Roots: d.roots, Fleet: methodsFleet, Device: device}
}

func (d *demo) byToken(ctx context.Context, e *sdk.Enrollment) (*sdk.Identity, error) {
	token, err := d.admin.CreateToken(ctx, api.NewToken{Device: e.Device, Fleet: e.Fleet})
	if err != nil {
		return nil, err
	}
	e.Token = token.Secret
	return sdk.Enroll(ctx, *e)
}

func (d *demo) byFactory(ctx context.Context, e *sdk.Enrollment) (*sdk.Identity, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, err
	}
	csr, err := x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{Subject: pkix.Name{CommonName: e.Device}}, key)
	if err != nil {
		return nil, err
	}
	line, err := json.Marshal(api.FactoryRequest{Item: "demo-1", CSR: base64.StdEncoding.EncodeToString(csr)})
	if err != nil {
		return nil, err
	}
	for l, err := range d.admin.Factory(ctx, methodsFleet, "", strings.NewReader(string(line)+"\n")) {
		switch {
		case err != nil:
			return nil, err
		case l.Error != nil:
			return nil, fmt.Errorf("%s: %s", l.Error.Code, l.Error.Message)
		case l.Certificate != "":
			path, err := certificates(l.Certificate)
			if err != nil {
				return nil, err
			}
			e.Key = key
			return sdk.Known(*e, path)
		}
	}
	return nil, errors.New("the factory got no answer")
}

func certificates(text string) (certs []*x509.Certificate, err error) {
	for block, rest := pem.Decode([]byte(text)); block != nil; block, rest = pem.Decode(rest) {
		c, err := x509.ParseCertificate(block.Bytes)
		if err != nil {
			return nil, fmt.Errorf("read a certificate: %w", err)
		}
		certs = append(certs, c)
	}
	return certs, nil
}

// byClaim also shows that the claim covers no other id.
func (d *demo) byClaim(ctx context.Context, e *sdk.Enrollment) (*sdk.Identity, error) {
	claim, err := d.admin.CreateClaim(ctx, api.NewClaim{
		Devices: []string{"by-claim-00..by-claim-99"}, Bounds: api.Bounds{Fleet: methodsFleet, Label: "demo", Uses: 10, TTLSeconds: 600},
	})
	if err != nil {
		return nil, err
	}
	shown, err := tls.X509KeyPair([]byte(claim.Chain), []byte(claim.Key))
	if err != nil {
		return nil, fmt.Errorf("read the claim: %w", err)
	}
	e.Device, e.Certificate = "by-claim-07", &shown
	id, err := sdk.Enroll(ctx, *e)
	if err != nil {
		return nil, err
	}
	other := d.enrollment("another")
	other.Certificate = &shown
	if _, err := sdk.Enroll(ctx, other); est.StatusOf(err) != http.StatusForbidden {
		return nil, fmt.Errorf("the claim was not refused for an id outside of its bounds: %w", err)
	}
	c, err := d.admin.Credential(ctx, claim.ID)
	if err != nil {
		return nil, err
	}
	if c.State != "stopped" {
		return nil, fmt.Errorf("the claim is %s after its misuse, want stopped", c.State)
	}
	return id, nil
}

func (d *demo) byIDevID(ctx context.Context, e *sdk.Enrollment) (*sdk.Identity, error) {
	m, err := newMaker(d.now())
	if err != nil {
		return nil, err
	}
	code, err := d.admin.RegistrationCode(ctx)
	if err != nil {
		return nil, err
	}
	proof, err := m.sign(pkix.Name{CommonName: code.Code})
	if err != nil {
		return nil, err
	}
	_, err = d.admin.RegisterAuthority(ctx, api.NewAuthority{ID: "maker", Certificate: certPEM(m.cert.Raw), Verification: certPEM(proof.Certificate[0])})
	if err != nil {
		return nil, err
	}
	rules := api.Rules{Authorities: []string{"maker"}, ID: &api.IDRule{Field: "serial_number"}}
	if _, err := d.admin.PutFleet(ctx, methodsFleet, api.PutFleet{Rules: &rules}); err != nil {
		return nil, err
	}
	shown, err := m.sign(pkix.Name{Organization: []string{"Maker"}, SerialNumber: e.Device})
	if err != nil {
		return nil, err
	}
	e.Certificate = &shown
	return sdk.Enroll(ctx, *e)
}

// maker is a manufacturer with a CA of its own.
type maker struct {
	cert *x509.Certificate
	key  *ecdsa.PrivateKey
	now  time.Time
}

func newMaker(now time.Time) (*maker, error) {
	m := &maker{now: now}
	t := m.template(pkix.Name{Organization: []string{"Maker"}, CommonName: "Maker's devices"})
	t.IsCA, t.KeyUsage = true, x509.KeyUsageCertSign|x509.KeyUsageCRLSign
	made, err := m.issue(t)
	if err != nil {
		return nil, err
	}
	m.cert, err = x509.ParseCertificate(made.Certificate[0])
	return m, err
}

func (m *maker) template(subject pkix.Name) *x509.Certificate {
	return &x509.Certificate{
		SerialNumber: big.NewInt(m.now.UnixNano()), Subject: subject, BasicConstraintsValid: true,
		NotBefore: m.now.Add(-time.Hour), NotAfter: m.now.Add(makerLife), KeyUsage: x509.KeyUsageDigitalSignature,
	}
}

// sign makes a key and a certificate of the maker for it.
func (m *maker) sign(subject pkix.Name) (tls.Certificate, error) { return m.issue(m.template(subject)) }

// issue signs by the CA, or, without one, by the new key itself.
func (m *maker) issue(t *x509.Certificate) (tls.Certificate, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return tls.Certificate{}, err
	}
	parent, signer := t, key
	if m.cert != nil {
		parent, signer = m.cert, m.key
	} else {
		m.key = key
	}
	der, err := x509.CreateCertificate(rand.Reader, t, parent, &key.PublicKey, signer) //nolint:forbidigo // a manufacturer's certificate, not ours
	return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key}, err
}

func certPEM(der []byte) string {
	return string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}))
}

func (d *demo) byThumbprint(ctx context.Context, e *sdk.Enrollment) (*sdk.Identity, error) {
	self := &maker{now: d.now()}
	shown, err := self.sign(pkix.Name{CommonName: e.Device})
	if err != nil {
		return nil, err
	}
	print := sha256.Sum256(shown.Certificate[0])
	_, err = d.admin.CreateThumbprint(ctx, api.NewThumbprint{Device: e.Device, Fleet: methodsFleet, Primary: hex.EncodeToString(print[:])})
	if err != nil {
		return nil, err
	}
	e.Certificate = &shown
	return sdk.Enroll(ctx, *e)
}

func (d *demo) byKey(ctx context.Context, e *sdk.Enrollment) (*sdk.Identity, error) {
	made, err := d.admin.CreateKey(ctx, api.NewKey{Device: e.Device, Fleet: methodsFleet})
	if err != nil {
		return nil, err
	}
	key, err := base64.StdEncoding.DecodeString(made.Primary)
	if err != nil {
		return nil, err
	}
	e.Token = sas(e.Device, key, d.now())
	return sdk.Enroll(ctx, *e)
}

// byGroup also shows that the group key itself is refused from a device.
func (d *demo) byGroup(ctx context.Context, e *sdk.Enrollment) (*sdk.Identity, error) {
	made, err := d.admin.CreateGroupKey(ctx, api.NewGroupKey{Label: "line-1", Fleet: methodsFleet})
	if err != nil {
		return nil, err
	}
	group, err := base64.StdEncoding.DecodeString(made.Primary)
	if err != nil {
		return nil, err
	}
	e.Token = sas(e.Device, group, d.now())
	if _, err := sdk.Enroll(ctx, *e); est.StatusOf(err) != http.StatusForbidden {
		return nil, fmt.Errorf("the group key itself was not refused: %w", err)
	}
	e.Token = sas(e.Device, attest.DeriveKey(group, e.Device), d.now())
	return sdk.Enroll(ctx, *e)
}

// sas is the password of an enrollment by a symmetric key.
func sas(id string, key []byte, now time.Time) string {
	return device.SAS(methodsFleet+"/registrations/"+id, key, now.Add(time.Hour))
}

func (d *demo) byApproval(ctx context.Context, e *sdk.Enrollment) (*sdk.Identity, error) {
	rules := api.Rules{Approval: []string{string(countersign.MethodToken)}}
	if _, err := d.admin.PutFleet(ctx, methodsFleet, api.PutFleet{Rules: &rules}); err != nil {
		return nil, err
	}
	token, err := d.admin.CreateToken(ctx, api.NewToken{Device: e.Device, Fleet: methodsFleet})
	if err != nil {
		return nil, err
	}
	if e.Key, err = ecdsa.GenerateKey(elliptic.P256(), rand.Reader); err != nil {
		return nil, err
	}
	e.Token = token.Secret
	if _, err := sdk.Enroll(ctx, *e); est.StatusOf(err) != http.StatusAccepted {
		return nil, fmt.Errorf("the enrollment did not wait for approval: %w", err)
	}
	for w, err := range d.admin.Enrollments(ctx, api.WaitingFilter{State: "waiting"}) {
		if err != nil {
			return nil, err
		}
		if w.Device != e.Device {
			continue
		}
		if _, err := d.admin.Approve(ctx, w.ID, api.Act{Note: "demo"}); err != nil {
			return nil, err
		}
		return sdk.Enroll(ctx, *e)
	}
	return nil, errors.New("the request is not in the queue")
}

// byRecovery lets a certificate expire by moving the server's clock, and has the
// device renew with it where that is allowed, and only there.
func (d *demo) byRecovery(ctx context.Context, e *sdk.Enrollment) (*sdk.Identity, error) {
	if err := d.openSleepers(ctx); err != nil {
		return nil, err
	}
	e.Device, e.Fleet = "sleeper", sleepersFleet
	id, err := d.byToken(ctx, e)
	if err != nil {
		return nil, err
	}
	d.ahead.Store(int64(sleep))
	if err := id.Renew(ctx); est.StatusOf(err) != http.StatusForbidden {
		return nil, fmt.Errorf("the enrollment listener did not refuse an expired certificate: %w", err)
	}
	e.Server = d.server.Endpoints().Recovery
	if id, err = device.Elsewhere(id, *e); err != nil {
		return nil, err
	}
	return id, id.Renew(ctx)
}

func (d *demo) openSleepers(ctx context.Context) error {
	p, err := d.admin.Profile(ctx, "device")
	if err != nil {
		return err
	}
	p.Name, p.Description, p.ValiditySeconds = "short", "for a demo that cannot wait", int64(shortLife/time.Second)
	if _, err := d.admin.PutProfile(ctx, *p); err != nil {
		return err
	}
	rules := api.Rules{Recovery: &api.Recovery{MaxAge: "1h", MaxTimes: 1}}
	_, err = d.admin.PutFleet(ctx, sleepersFleet, api.PutFleet{Profile: &p.Name, Rules: &rules})
	return err
}
