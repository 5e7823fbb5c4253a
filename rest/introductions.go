package rest

import (
	"context"
	"time"

	"github.com/danielgtaylor/huma/v2"

	"github.com/countersign-iot/countersign"
	"github.com/countersign-iot/countersign/api"
	"github.com/countersign-iot/countersign/ra"
)

func (s *Server) routeIntroductions(a huma.API) {
	route(s, a, add("/introductions", "Introductions", "Introduce two devices to each other for a short time"), s.introduce)
}

func (s *Server) introduce(ctx context.Context, in *struct{ Body api.NewIntroduction }) (api.SignedIntroduction, error) {
	if in.Body.Device == "" {
		return api.SignedIntroduction{}, countersign.Errorf(countersign.BadRequest, "an operator names both devices").WithNext("add device")
	}
	return s.RA.IntroduceBoth(ctx, Introduction(in.Body), s.by(ctx))
}

// Introduction reads the request for an introduction.
func Introduction(in api.NewIntroduction) ra.Introduction {
	return ra.Introduction{Device: in.Device, Peer: in.Peer, Purpose: in.Purpose, TTL: time.Duration(in.TTLSeconds) * time.Second}
}
