package rest

import (
	"net/http"
	"strings"
	"unicode/utf8"

	"github.com/countersign-iot/countersign"
)

// checkText refuses with BadRequest a path or a filter that is not text: PostgreSQL has
// no NUL in its text, and neither database finds anything by invalid UTF-8.
func checkText(r *http.Request) error {
	parts := []string{r.URL.Path}
	for name, values := range r.URL.Query() {
		parts = append(append(parts, name), values...)
	}
	for _, s := range parts {
		if !utf8.ValidString(s) || strings.ContainsRune(s, 0) {
			return countersign.Errorf(countersign.BadRequest, "the path or a parameter holds octets that are not text").WithNext("leave out NUL and what is not UTF-8")
		}
	}
	return nil
}
