package api_test

import (
	"errors"
	"net/http"
	"strings"
	"testing"

	"github.com/countersign-iot/countersign"
	"github.com/countersign-iot/countersign/api"
)

func TestEveryCodeHasAStatus(t *testing.T) {
	for _, c := range []countersign.Code{
		countersign.BadRequest, countersign.TooLarge, countersign.BadSignature, countersign.WeakKey, countersign.Unauthenticated,
		countersign.BadCredential, countersign.CredentialSpent, countersign.CredentialExpire, countersign.NotAllowed,
		countersign.SubjectMismatch, countersign.DeviceIsActive, countersign.DeviceOnHold, countersign.DeviceGone,
		countersign.CertUnknown, countersign.CertIsRevoked, countersign.CertIsHeld, countersign.CertExpired,
		countersign.CertNotYetValid, countersign.KeyReused, countersign.Pending, countersign.ForkDetected, countersign.NotFound, countersign.Conflict,
		countersign.RateLimited, countersign.OverBudget, countersign.Misconfigured, countersign.Unavailable, countersign.Internal,
	} {
		if p := api.ProblemOf("r1", countersign.Errorf(c, "no")); api.StatusOf(c) == 0 || p.Status != api.StatusOf(c) || p.Title == "" || p.Code != string(c) {
			t.Errorf("code %s: got %+v, want a status", c, p)
		}
	}
	if p := api.ProblemOf("r1", errors.New("hunter2")); p.Status != http.StatusInternalServerError || strings.Contains(p.Detail, "hunter2") {
		t.Errorf("another error: got %+v, want 500 without the text", p)
	}
}
