package sdk

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"iter"
	"net/http"
	"net/url"

	"github.com/countersign-iot/countersign/api"
)

// CreateToken makes an enrollment token. The answer is the only one that holds
// its secret, as with everything that is made here.
func (a *Admin) CreateToken(ctx context.Context, t api.NewToken) (*api.IssuedToken, error) {
	return post[api.IssuedToken](ctx, a, "/tokens", t)
}

// CreateTokens makes a token for each of up to api.MaxBulk devices: all, or none.
func (a *Admin) CreateTokens(ctx context.Context, t api.NewTokens) (*api.IssuedTokens, error) {
	return post[api.IssuedTokens](ctx, a, "/tokens/bulk", t)
}

// CreateClaim issues a claim certificate.
func (a *Admin) CreateClaim(ctx context.Context, c api.NewClaim) (*api.IssuedClaim, error) {
	return post[api.IssuedClaim](ctx, a, "/claims", c)
}

// CreateKey registers the symmetric key of one device.
func (a *Admin) CreateKey(ctx context.Context, k api.NewKey) (*api.IssuedKey, error) {
	return post[api.IssuedKey](ctx, a, "/keys", k)
}

// CreateGroupKey registers a key from which those of many devices are derived.
func (a *Admin) CreateGroupKey(ctx context.Context, k api.NewGroupKey) (*api.IssuedKey, error) {
	return post[api.IssuedKey](ctx, a, "/group-keys", k)
}

// CreateThumbprint registers a device's self-signed certificate.
func (a *Admin) CreateThumbprint(ctx context.Context, t api.NewThumbprint) (*api.Credential, error) {
	return post[api.Credential](ctx, a, "/thumbprints", t)
}

// CreateTPM registers the endorsement key of a TPM.
func (a *Admin) CreateTPM(ctx context.Context, t api.NewTPM) (*api.Credential, error) {
	return post[api.Credential](ctx, a, "/tpms", t)
}

// Credential gets one credential without its secret.
func (a *Admin) Credential(ctx context.Context, id string) (*api.Credential, error) {
	return get[api.Credential](ctx, a, "/credentials/"+segment(id))
}

// StopCredential ends a credential at once.
func (a *Admin) StopCredential(ctx context.Context, id string, act api.Act) (*api.StoppedCredential, error) {
	return post[api.StoppedCredential](ctx, a, "/credentials/"+segment(id)+"/stop", act)
}

// Approve lets a waiting enrollment through at the device's next try.
func (a *Admin) Approve(ctx context.Context, id string, act api.Act) (*api.Waiting, error) {
	return post[api.Waiting](ctx, a, "/enrollments/"+segment(id)+"/approve", act)
}

// Reject turns a waiting enrollment down.
func (a *Admin) Reject(ctx context.Context, id string, act api.Act) (*api.Waiting, error) {
	return post[api.Waiting](ctx, a, "/enrollments/"+segment(id)+"/reject", act)
}

// Explain asks what would become of an enrollment.
func (a *Admin) Explain(ctx context.Context, e api.Explain) (*api.Explanation, error) {
	return post[api.Explanation](ctx, a, "/enrollments/explain", e)
}

// RegistrationCode draws a code that an external CA signs over to be registered.
func (a *Admin) RegistrationCode(ctx context.Context) (*api.RegistrationCode, error) {
	return post[api.RegistrationCode](ctx, a, "/authorities/code", nil)
}

// RegisterAuthority registers the CA of a manufacturer.
func (a *Admin) RegisterAuthority(ctx context.Context, n api.NewAuthority) (*api.Authority, error) {
	return post[api.Authority](ctx, a, "/authorities", n)
}

// PutCRLs replaces the revocation lists of a registered authority.
func (a *Admin) PutCRLs(ctx context.Context, id string, c api.PutCRLs) (*api.Authority, error) {
	return call[api.Authority](ctx, a, http.MethodPut, "/authorities/"+segment(id)+"/crls", c)
}

// maxResult bounds one line of a factory's answer: a chain of several
// certificates is under 16 KiB.
const maxResult = 256 << 10

// Factory asks for the certificates of new devices. requests is JSON lines of
// api.FactoryRequest; it is read as results are, so that neither end holds more
// than a window of them. The last line is the report. An iteration that ends with
// an error can be done again with the same requests: what was granted is given
// again. The client must have no time limit of its own.
func (a *Admin) Factory(ctx context.Context, fleet, profile string, requests io.Reader) iter.Seq2[api.FactoryLine, error] {
	return func(yield func(api.FactoryLine, error) bool) {
		path := "/factory/" + segment(fleet) + "/certificates"
		if profile != "" {
			path += "?profile=" + url.QueryEscape(profile)
		}
		ctx, stop := context.WithCancel(ctx)
		defer stop() // or the upload would go on for one who has stopped reading
		res, err := a.send(ctx, http.MethodPost, path, requests, api.FactoryType)
		if err != nil {
			yield(api.FactoryLine{}, err)
			return
		}
		defer func() { _ = res.Body.Close() }()
		if refused(res) {
			_, err := decode[api.FactoryLine](res)
			yield(api.FactoryLine{}, err)
			return
		}
		if err := factoryLines(res.Body, yield); err != nil {
			yield(api.FactoryLine{}, err)
		}
	}
}

func factoryLines(body io.Reader, yield func(api.FactoryLine, error) bool) error {
	lines := bufio.NewScanner(body)
	lines.Buffer(make([]byte, 0, 16<<10), maxResult)
	for lines.Scan() {
		var l api.FactoryLine
		if err := json.Unmarshal(lines.Bytes(), &l); err != nil {
			return fmt.Errorf("couldn't read the answer: %w", err)
		}
		if !yield(l, nil) || l.Report != nil {
			return nil
		}
	}
	err := lines.Err()
	if err == nil {
		err = io.ErrUnexpectedEOF
	}
	return &Unreachable{errors.Join(errors.New("the answer broke off before its report"), err)}
}
