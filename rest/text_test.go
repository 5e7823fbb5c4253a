package rest_test

import (
	"net/http"
	"net/http/httptest"
	"testing"
)

// TestFiltersThatAreNoTextAreRefused sends octets that a database takes for an error.
func TestFiltersThatAreNoTextAreRefused(t *testing.T) {
	h := newHouse(t)
	h.Local = true
	handler := h.Handler()
	for _, path := range []string{
		"/devices?fleet=%00", "/devices?state=%ff", "/certificates?device=%00", "/credentials?fleet=a%00b", "/events?type=%00", "/devices/%00", "/fleets/%ff",
	} {
		rec := httptest.NewRecorder()
		handler.ServeHTTP(rec, httptest.NewRequest(http.MethodGet, "/api/v1"+path, nil))
		if rec.Code != http.StatusBadRequest {
			t.Errorf("GET %s: got %d, want 400", path, rec.Code)
		}
	}
}
