package rest

import (
	"net/http"

	"github.com/countersign-iot/countersign"
	"github.com/countersign-iot/countersign/operator"
)

// Protect lets a request through to a handler of another package, such as
// metrics, if its caller may do the act.
func (s *Server) Protect(act operator.Act, h http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if !s.Local && act != operator.Anyone {
			t, err := s.Operators.Authenticate(r.Context(), bearer(r.Header.Get("Authorization")))
			if err == nil && !t.Role.May(act) {
				err = countersign.Errorf(countersign.NotAllowed, "the role %s of %s does not allow this", t.Role, t.Name).
					WithNext("use a token with another role")
			}
			if err != nil {
				p := problemOf(r.Context(), err)
				logProblem(r.Context(), s.Log, p, err)
				writePlain(w, p)
				return
			}
		}
		h.ServeHTTP(w, r)
	})
}
