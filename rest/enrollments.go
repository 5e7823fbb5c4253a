package rest

import (
	"bytes"
	"context"
	"crypto/x509"
	"encoding/json"
	"net/netip"

	"github.com/countersign-iot/countersign"
	"github.com/countersign-iot/countersign/api"
	"github.com/countersign-iot/countersign/pkcs10"
	"github.com/countersign-iot/countersign/ra"
	"github.com/countersign-iot/countersign/registry"
	"github.com/danielgtaylor/huma/v2"
)

// maxExplainBody is room for the largest CSR and a long chain.
const maxExplainBody = 256 << 10

type decideOn struct {
	CredentialID
	Body *api.Act `required:"false"`
}

func (s *Server) routeEnrollments(a huma.API) {
	const tag = "Enrollments"
	route(s, a, get("/enrollments", tag, "List the enrollments that wait for an operator, oldest first"), s.listEnrollments)
	route(s, a, act("/enrollments/{id}/approve", tag, "Let a waiting enrollment through at the device's next try"), s.approve)
	route(s, a, act("/enrollments/{id}/reject", tag, "Turn a waiting enrollment down"), s.reject)
	route(s, a, act("/enrollments/explain", tag, "Tell what would become of an enrollment, and why; nothing is issued").upTo(maxExplainBody), s.explain)
}

func (s *Server) listEnrollments(ctx context.Context, in *struct {
	api.WaitingFilter
	api.Paging
},
) (api.Page[api.Waiting], error) {
	list, next, err := s.Registry.Queue(ctx, registry.WaitingState(in.State), in.After, limitOf(in.Paging))
	return page(list, next, shapeWaiting), err
}

func (s *Server) approve(ctx context.Context, in *decideOn) (api.Waiting, error) {
	w, err := s.Provisioner.Approve(ctx, in.ID, in.note(), s.by(ctx))
	return shapeWaiting(w), err
}

func (s *Server) reject(ctx context.Context, in *decideOn) (api.Waiting, error) {
	w, err := s.Provisioner.Reject(ctx, in.ID, in.note(), s.by(ctx))
	return shapeWaiting(w), err
}

func (d *decideOn) note() string {
	if d.Body == nil {
		return ""
	}
	return d.Body.Note
}

func (s *Server) explain(ctx context.Context, in *struct{ Body api.Explain }) (api.Explanation, error) {
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
	e, err := s.RA.ExplainTo(ctx, req, s.by(ctx), s.from(ctx))
	return shapeExplanation(e), err
}

func shapeExplanation(e ra.Explanation) api.Explanation {
	return api.Explanation{
		Decision: e.Decision, Code: string(e.Code), Reason: e.Reason, Next: e.Next, Device: e.Device, Fleet: e.Fleet,
		Method: string(e.Method), Evidence: e.Evidence, Profile: e.Profile, Facts: e.Facts,
	}
}

func shapeWaiting(w registry.Waiting) api.Waiting {
	return api.Waiting{
		ID: w.ID, State: string(w.State), Device: w.Device, Fleet: w.Fleet, Method: string(w.Method), Evidence: w.Evidence, KeyHash: w.KeyHash,
		Facts: w.Facts, Remote: w.Remote, Via: w.Via, DecidedBy: string(w.DecidedBy), Note: w.Note,
		CreatedAt: w.CreatedAt.UTC(), ExpiresAt: w.ExpiresAt.UTC(), DecidedAt: w.DecidedAt.UTC(),
	}
}

// rulesOf and shapeRules go by the JSON, which is the same on both sides: the
// shape is there to be described.
func rulesOf(in *api.Rules) (out countersign.Rules, err error) {
	b, err := json.Marshal(in)
	if err != nil {
		return out, err
	}
	dec := json.NewDecoder(bytes.NewReader(b))
	dec.DisallowUnknownFields()
	if err := dec.Decode(&out); err != nil {
		return out, countersign.Errorf(countersign.BadRequest, "the rules cannot be read: %v", err).
			WithNext("write networks as 10.0.0.0/8, lengths of time as 720h, PCRs by number")
	}
	return out, nil
}

func shapeRules(in countersign.Rules) *api.Rules {
	b, err := json.Marshal(in)
	if err != nil || string(b) == "{}" {
		return nil
	}
	var out api.Rules
	if err := json.Unmarshal(b, &out); err != nil { // a test holds the shapes against each other
		return nil
	}
	return &out
}
