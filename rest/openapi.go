package rest

import (
	"encoding/json"
	"fmt"
	"net/http"
	"reflect"
	"slices"
	"strings"

	"github.com/danielgtaylor/huma/v2"

	"github.com/countersign-iot/countersign/api"
)

// newDocument returns a document (OpenAPI 3.1) without routes.
func newDocument(description string, security map[string]*huma.SecurityScheme) *huma.OpenAPI {
	return &huma.OpenAPI{
		OpenAPI: "3.1.0",
		Info:    &huma.Info{Title: "Countersign", Version: "1", Description: description},
		Servers: []*huma.Server{{URL: "/"}},
		Components: &huma.Components{
			Schemas: huma.NewMapRegistry("#/components/schemas/", huma.DefaultSchemaNamer), SecuritySchemes: security,
		},
	}
}

// operationID names an operation for those who generate clients:
// post-devices-id-revoke.
func operationID(method, path string) string {
	return strings.ToLower(method) + strings.NewReplacer("/", "-", "{", "", "}", "").Replace(path)
}

func problemResponse(schemas huma.Registry) *huma.Response {
	schema := schemas.Schema(reflect.TypeFor[api.Problem](), true, "Problem")
	return &huma.Response{Description: "Problem", Content: map[string]*huma.MediaType{api.ProblemType: {Schema: schema}}}
}

// DescribeDevices returns the OpenAPI document of the door for devices, in JSON. It is
// here because this package knows the library that makes it.
func DescribeDevices(routes []api.Route) []byte {
	doc := newDocument("Enrollment of devices. This listener asks for client certificates.", map[string]*huma.SecurityScheme{
		"certificate": {Type: "mutualTLS", Description: "the device's certificate, or one that it was made with"},
		"bearer":      {Type: "http", Scheme: "bearer", Description: "enrollment token"},
		"basic":       {Type: "http", Scheme: "basic", Description: "enrollment token as password with any user name, or the device's id and secret"},
	})
	doc.Security = []map[string][]string{{"certificate": {}}, {"bearer": {}}, {"basic": {}}}
	schema := func(v any) *huma.MediaType {
		return &huma.MediaType{Schema: doc.Components.Schemas.Schema(reflect.TypeOf(v), true, "")}
	}
	raw := func(content map[string]*huma.MediaType, types ...string) map[string]*huma.MediaType {
		for _, t := range types {
			content[t] = &huma.MediaType{Schema: &huma.Schema{Type: huma.TypeString}}
		}
		return content
	}
	for _, r := range routes {
		op := &huma.Operation{
			OperationID: operationID(http.MethodPost, r.Path), Method: http.MethodPost, Path: api.Base + r.Path, Tags: []string{"Devices"},
			Summary: r.Summary, Description: r.Description,
			RequestBody: &huma.RequestBody{
				Required: !r.MayBeEmpty, Content: raw(map[string]*huma.MediaType{"application/json": schema(r.Request)}, r.RawRequest...),
			},
			Responses: map[string]*huma.Response{
				"200": {Description: "OK", Content: map[string]*huma.MediaType{"application/json": schema(r.Answer)}}, "default": problemResponse(doc.Components.Schemas),
			},
		}
		if r.RawAnswer != "" {
			raw(op.Responses["200"].Content, r.RawAnswer)
		}
		for name, what := range r.Query {
			op.Parameters = append(op.Parameters, &huma.Param{Name: name, In: "query", Description: what, Schema: &huma.Schema{Type: huma.TypeString}})
		}
		slices.SortFunc(op.Parameters, func(a, b *huma.Param) int { return strings.Compare(a.Name, b.Name) })
		doc.AddOperation(op)
	}
	allowNull(doc)
	b, err := json.Marshal(doc)
	if err != nil {
		panic(fmt.Sprintf("the document of the door for devices cannot be encoded: %v", err)) // it has no input from outside
	}
	return b
}
