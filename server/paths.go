package server

import (
	"net/http"
	"net/url"
	"strings"
)

// evenPaths serves paths in which devices write a slash too many, twice or at the
// end, as if it were not there. [http.ServeMux] answers them with 307, which many
// EST clients do not follow, and then the request is lost. Paths with dots are left
// to it.
func evenPaths(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if path := evenPath(r.URL.Path); path != r.URL.Path {
			even, u := *r, url.URL{Path: path, RawQuery: r.URL.RawQuery}
			even.URL = &u
			r = &even
		}
		next.ServeHTTP(w, r)
	})
}

func evenPath(path string) string {
	if len(path) < 2 || !strings.Contains(path, "//") && !strings.HasSuffix(path, "/") {
		return path
	}
	var b strings.Builder
	for part := range strings.SplitSeq(path, "/") {
		if part != "" {
			b.WriteByte('/')
			b.WriteString(part)
		}
	}
	if b.Len() == 0 {
		return "/"
	}
	return b.String()
}
