package rest

import (
	"net/http"

	"github.com/countersign-iot/countersign/operator"
)

// Protect lets a request through to a handler of another package, such as
// metrics, if its caller may do the act.
func (s *Server) Protect(act operator.Act, h http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		_, err := s.identify(r.Context(), r.RemoteAddr, r.Header.Get("Authorization"), act, r.Method+" "+r.URL.Path)
		if err != nil {
			logged(r.Context(), s.Log, err).Write(w)
			return
		}
		h.ServeHTTP(w, r)
	})
}
