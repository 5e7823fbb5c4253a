package rest

import (
	"context"
	"crypto/x509"
	"net/netip"

	"github.com/countersign-iot/countersign"
	"github.com/countersign-iot/countersign/api"
	"github.com/countersign-iot/countersign/pkcs10"
	"github.com/countersign-iot/countersign/provision"
	"github.com/countersign-iot/countersign/ra"
	"github.com/countersign-iot/countersign/registry"
)

// maxExplainBody is room for the largest CSR and a long chain.
const maxExplainBody = 256 << 10

// enrollments serves the enrollments that wait for an operator.
type enrollments struct {
	registry    *registry.Registry
	provisioner *provision.Provisioner
	ra          *ra.Authority
}

func (e *enrollments) list(ctx context.Context, in *struct {
	api.WaitingFilter
	api.Paging
},
) (api.Page[api.Waiting], error) {
	list, next, err := e.registry.Queue(ctx, api.WaitingState(in.State), in.After, limitOf(in.Paging))
	return api.Page[api.Waiting]{Items: append([]api.Waiting{}, list...), Next: next}, err
}

func (e *enrollments) approve(ctx context.Context, in *noteOn) (api.Waiting, error) {
	return e.provisioner.Approve(ctx, in.ID, value(in.Body).Note, byOf(ctx))
}

func (e *enrollments) reject(ctx context.Context, in *noteOn) (api.Waiting, error) {
	return e.provisioner.Reject(ctx, in.ID, value(in.Body).Note, byOf(ctx))
}

func (e *enrollments) explain(ctx context.Context, in *body[api.Explain]) (api.Explanation, error) {
	b := in.Body
	req := countersign.EnrollRequest{Fleet: b.Fleet, Door: "explain", Evidence: countersign.Evidence{Token: b.Token}}
	var err error
	if req.CSR, err = pkcs10.Decode([]byte(b.CSR)); err != nil {
		return api.Explanation{}, err
	}
	if b.Certificates != "" {
		list, err := certificatesOf("certificates", b.Certificates)
		if err != nil {
			return api.Explanation{}, err
		}
		for _, der := range list {
			c, err := x509.ParseCertificate(der)
			if err != nil {
				return api.Explanation{}, countersign.Errorf(countersign.BadRequest, "a certificate cannot be read").WithCause(err)
			}
			req.Evidence.Peer = append(req.Evidence.Peer, c)
		}
	}
	if b.Remote != "" {
		addr, err := netip.ParseAddr(b.Remote)
		if err != nil {
			return api.Explanation{}, countersign.Errorf(countersign.BadRequest, "remote %.60q is not an IP address", b.Remote)
		}
		req.Remote = netip.AddrPortFrom(addr, 0)
	}
	return e.ra.ExplainTo(ctx, req, byOf(ctx), callerOf(ctx).from)
}
