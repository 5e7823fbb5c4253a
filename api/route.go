package api

import "strings"

// OpenAPIPath is the path below Base at which each door serves the document that
// describes it.
const OpenAPIPath = "/openapi.json"

// Route describes one route of a door that serves POST, for its OpenAPI document.
type Route struct {
	Path        string // below Base
	Summary     string
	Description string            // empty: none
	Query       map[string]string // what each parameter is, by name
	Request     any               // the zero value of the JSON body
	RawRequest  []string          // media types of a body that may take the place of JSON
	MayBeEmpty  bool              // the body may be left out
	Answer      any               // the zero value of the JSON body
	RawAnswer   string            // media type of the answer where the client does not accept JSON; empty: always JSON
}

// Bearer returns the token of an Authorization header (RFC 6750, 2.1); empty if it is
// of another scheme.
func Bearer(header string) string {
	scheme, token, _ := strings.Cut(header, " ")
	if !strings.EqualFold(scheme, "Bearer") {
		return ""
	}
	return strings.TrimSpace(token)
}
