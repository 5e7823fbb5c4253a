package rest

import (
	"encoding/json"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/danielgtaylor/huma/v2"

	"github.com/countersign-iot/countersign/access"
	"github.com/countersign-iot/countersign/api"
	"github.com/countersign-iot/countersign/operator"
	"github.com/countersign-iot/countersign/ra"
)

// bare is a server with routes that nothing answers.
func bare() *Server {
	return &Server{Now: time.Now, Log: slog.New(slog.DiscardHandler), Local: true, RA: &ra.Authority{Access: &access.Decider{}}}
}

// TestRoutesAreDescribedAndHaveARight compares the table of routes, which is what is
// served, with the document, in both directions.
func TestRoutesAreDescribedAndHaveARight(t *testing.T) {
	s := bare()
	acts := map[string]operator.Act{}
	for _, g := range s.routes() {
		for _, r := range g.routes {
			if acts[r.name] = r.act; r.summary == "" {
				t.Errorf("%s has no summary", r.name)
			}
		}
	}
	described, ids := map[string]bool{}, map[string]bool{}
	for path, item := range s.describe(http.NewServeMux()).OpenAPI().Paths {
		for method, op := range map[string]*huma.Operation{
			"GET": item.Get, "POST": item.Post, "PUT": item.Put, "DELETE": item.Delete, "PATCH": item.Patch,
		} {
			if op == nil {
				continue
			}
			name := method + " " + strings.TrimPrefix(path, api.Base)
			described[name] = true
			if ids[op.OperationID] {
				t.Errorf("%s shares its operation id %s with another route", name, op.OperationID)
			}
			ids[op.OperationID] = true
			for segment := range strings.SplitSeq(path, "/") {
				if param, ok := strings.CutPrefix(segment, "{"); ok && !takes(op, strings.TrimSuffix(param, "}")) {
					t.Errorf("%s does not read %s", name, segment)
				}
			}
			if acts[name] == "" {
				t.Errorf("%s has no right in the table: it is closed to all", name)
			}
		}
	}
	for name := range acts {
		if !described[name] {
			t.Errorf("the table has %s, which is not described", name)
		}
	}
}

// TestEveryRouteNamesItsMethods asks each path by each method that it has not.
func TestEveryRouteNamesItsMethods(t *testing.T) {
	s := bare()
	h := s.Handler()
	methods := map[string][]string{}
	for _, g := range s.routes() {
		for _, r := range g.routes {
			method, path, _ := strings.Cut(r.name, " ")
			methods[path] = append(methods[path], method)
		}
	}
	for path, has := range methods {
		path = strings.NewReplacer("{", "", "}", "").Replace(path)
		for _, m := range []string{"GET", "POST", "PUT", "PATCH", "DELETE"} {
			if slices.Contains(has, m) {
				continue
			}
			w := httptest.NewRecorder()
			h.ServeHTTP(w, httptest.NewRequest(m, api.Base+path, nil))
			allow := strings.Split(w.Header().Get("Allow"), ", ")
			for _, want := range has {
				if w.Code == http.StatusNotFound || w.Code == http.StatusMethodNotAllowed && !slices.Contains(allow, want) {
					t.Errorf("%s %s: got %d, Allow %q, want 405 and %s", m, path, w.Code, allow, want)
				}
			}
		}
	}
}

func takes(op *huma.Operation, param string) bool {
	return slices.ContainsFunc(op.Parameters, func(p *huma.Param) bool { return p.In == "path" && p.Name == param })
}

func TestOpenAPIDescribesProblems(t *testing.T) {
	s := bare()
	doc := s.describe(http.NewServeMux()).OpenAPI()
	if doc.OpenAPI != "3.1.0" {
		t.Errorf("OpenAPI: got %s, want 3.1.0", doc.OpenAPI)
	}
	schemas := doc.Components.Schemas.Map()
	if schemas["Problem"] == nil || schemas["ErrorModel"] != nil {
		t.Error("schemas: want Problem and no ErrorModel")
	}
	for path, item := range doc.Paths {
		if item.Get != nil && item.Get.Responses["default"].Content[api.ProblemType] == nil {
			t.Errorf("GET %s does not describe its problems", path)
		}
	}
}

// TestOptionalFieldsMayBeNull wants the schema to say what the decoder does.
func TestOptionalFieldsMayBeNull(t *testing.T) {
	s := bare()
	doc := s.describe(http.NewServeMux()).OpenAPI()
	text, err := json.Marshal(doc)
	if err != nil {
		t.Fatal(err)
	}
	var served struct {
		Components struct {
			Schemas map[string]struct {
				Required   []string
				Properties map[string]map[string]any
			}
		}
	}
	if err := json.Unmarshal(text, &served); err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"NewDevice", "PutFleet", "NewToken", "NewClaim", "Explain", "Rules", "Recovery", "FactoryRequest"} {
		schema, ok := served.Components.Schemas[name]
		if !ok {
			t.Errorf("there is no schema %s", name)
		}
		for field, f := range schema.Properties {
			types, _ := f["type"].([]any)
			may := slices.Contains(types, any("null"))
			if enum, ok := f["enum"].([]any); ok && !slices.Contains(enum, nil) {
				may = false
			}
			if required := slices.Contains(schema.Required, field); !required && !may {
				t.Errorf("%s.%s: got %v, want null among its types", name, field, f)
			} else if required && may && f["items"] == nil {
				t.Errorf("%s.%s is required and may be null", name, field)
			}
		}
	}
}
