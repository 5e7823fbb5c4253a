package rest

import (
	"context"
	"time"

	"github.com/countersign-iot/countersign/access"
	"github.com/countersign-iot/countersign/api"
	"github.com/danielgtaylor/huma/v2"
)

// maxSecretBody bounds a request with a secret of 65,535 octets in base64.
const maxSecretBody = 96 << 10

func (s *Server) routeSecrets(a huma.API) {
	const tag = "Secrets"
	route(s, a, get("/devices/{id}/secrets", tag, "List the secrets that a device connects with"), s.listSecrets)
	route(s, a, add("/devices/{id}/secrets", tag, "Give a device a secret to connect with").upTo(maxSecretBody), s.createSecret)
	route(s, a, add("/devices/{id}/secrets/rotate", tag, "Give a device the successor of its secret").upTo(maxSecretBody), s.rotateSecret)
	route(s, a, act("/devices/{id}/secrets/{secret}/stop", tag, "End a secret for good and cut its sessions"), s.stopSecret)
}

// listSecrets gives all of them: a device has few.
func (s *Server) listSecrets(ctx context.Context, in *struct {
	DeviceID
	api.Paging
},
) (api.Page[api.Secret], error) {
	list, err := s.RA.Secrets(ctx, in.ID)
	return page(list, "", shapeSecret), err
}

func (s *Server) createSecret(ctx context.Context, in *struct {
	DeviceID
	Body *api.NewSecret `required:"false"`
},
) (api.IssuedSecret, error) {
	var n api.NewSecret
	if in.Body != nil {
		n = *in.Body
	}
	return s.makeSecret(ctx, secretOrder(in.ID, n))
}

func (s *Server) rotateSecret(ctx context.Context, in *struct {
	DeviceID
	Body *api.RotateSecret `required:"false"`
},
) (api.IssuedSecret, error) {
	var n api.RotateSecret
	if in.Body != nil {
		n = *in.Body
	}
	o := secretOrder(in.ID, n.NewSecret)
	o.Rotate, o.Overlap = true, access.DefaultSecretOverlap
	if n.OverlapSeconds != nil {
		o.Overlap = time.Duration(*n.OverlapSeconds) * time.Second
	}
	return s.makeSecret(ctx, o)
}

func (s *Server) makeSecret(ctx context.Context, o access.SecretOrder) (api.IssuedSecret, error) {
	made, text, err := s.RA.CreateSecret(ctx, o, s.by(ctx))
	return IssuedSecret(made, text, o.Binary), err
}

func (s *Server) stopSecret(ctx context.Context, in *struct {
	DeviceID
	Secret string   `path:"secret" maxLength:"64" doc:"Id of the secret."`
	Body   *api.Act `required:"false"`
},
) (api.StoppedSecret, error) {
	why := ""
	if in.Body != nil {
		why = in.Body.Note
	}
	made, done, err := s.RA.StopSecret(ctx, in.ID, in.Secret, why, s.by(ctx))
	return api.StoppedSecret{Secret: shapeSecret(made), Sessions: done.Sessions, Already: done.Already}, err
}

func secretOrder(device string, n api.NewSecret) access.SecretOrder {
	return access.SecretOrder{
		Device: device, Slot: access.Slot(n.Slot), Given: n.Secret, Binary: n.Binary, TTL: time.Duration(n.TTLSeconds) * time.Second,
	}
}

func shapeSecret(s access.Secret) api.Secret {
	return api.Secret{
		ID: s.ID, Device: s.Device, Slot: string(s.Slot), Kind: string(s.Kind), SCRAM: s.SCRAM, State: s.State, Reason: s.Reason,
		CreatedBy: string(s.CreatedBy), CreatedAt: s.CreatedAt.UTC(), ExpiresAt: s.ExpiresAt.UTC(), UsedAt: s.UsedAt.UTC(),
	}
}

// IssuedSecret is the answer that shows a new secret.
func IssuedSecret(s access.Secret, text []byte, binary bool) api.IssuedSecret {
	out := api.IssuedSecret{Secret: shapeSecret(s)}
	if binary {
		out.Octets = text
	} else {
		out.Text = string(text)
	}
	return out
}
