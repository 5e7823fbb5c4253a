package rest

import (
	"context"
	"time"

	"github.com/countersign-iot/countersign/access"
	"github.com/countersign-iot/countersign/api"
	"github.com/countersign-iot/countersign/ra"
)

// maxSecretBody bounds a request with a secret of 65,535 octets in base64.
const maxSecretBody = 96 << 10

// secrets serves the secrets that devices connect with.
type secrets struct{ ra *ra.Authority }

// list returns all of them: a device has few.
func (s *secrets) list(ctx context.Context, in *struct {
	DeviceID
	api.Paging
},
) (api.Page[api.Secret], error) {
	list, err := s.ra.Secrets(ctx, in.ID)
	return api.Page[api.Secret]{Items: each(list, ra.ShapeSecret)}, err
}

func (s *secrets) create(ctx context.Context, in *struct {
	DeviceID
	Body *api.NewSecret `required:"false"`
},
) (api.IssuedSecret, error) {
	return s.issue(ctx, secretOrder(in.ID, value(in.Body)))
}

func (s *secrets) rotate(ctx context.Context, in *struct {
	DeviceID
	Body *api.RotateSecret `required:"false"`
},
) (api.IssuedSecret, error) {
	n := value(in.Body)
	o := secretOrder(in.ID, n.NewSecret)
	o.Rotate, o.Overlap = true, access.DefaultSecretOverlap
	if n.OverlapSeconds != nil {
		o.Overlap = time.Duration(*n.OverlapSeconds) * time.Second
	}
	return s.issue(ctx, o)
}

func (s *secrets) issue(ctx context.Context, o access.SecretOrder) (api.IssuedSecret, error) {
	made, text, err := s.ra.CreateSecret(ctx, o, byOf(ctx))
	return ra.IssuedSecret(made, text, o.Binary), err
}

func (s *secrets) stop(ctx context.Context, in *struct {
	DeviceID
	Secret string   `path:"secret" maxLength:"64" doc:"Id of the secret."`
	Body   *api.Act `required:"false"`
},
) (api.StoppedSecret, error) {
	made, done, err := s.ra.StopSecret(ctx, in.ID, in.Secret, value(in.Body).Note, byOf(ctx))
	return api.StoppedSecret{Secret: ra.ShapeSecret(made), Sessions: done.Sessions, Already: done.Already}, err
}

func secretOrder(device string, n api.NewSecret) access.SecretOrder {
	return access.SecretOrder{
		Device: device, Slot: access.Slot(n.Slot), Given: n.Secret, Binary: n.Binary, TTL: time.Duration(n.TTLSeconds) * time.Second,
	}
}
