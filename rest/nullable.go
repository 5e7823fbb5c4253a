package rest

import (
	"slices"

	"github.com/danielgtaylor/huma/v2"
)

// allowNull writes into the schemas of requests what the decoder does: an optional
// field may be null, which means the same as to leave it out. Encoders of several
// languages write null for what is not set.
func allowNull(a *huma.OpenAPI) {
	w := nullable{registry: a.Components.Schemas, seen: map[*huma.Schema]bool{}}
	for _, path := range a.Paths {
		for _, op := range []*huma.Operation{path.Get, path.Put, path.Post, path.Delete, path.Patch} {
			if op == nil || op.RequestBody == nil {
				continue
			}
			for _, body := range op.RequestBody.Content {
				w.visit(body.Schema)
			}
		}
	}
}

type nullable struct {
	registry huma.Registry
	seen     map[*huma.Schema]bool
}

func (w *nullable) resolved(s *huma.Schema) *huma.Schema {
	if s != nil && s.Ref != "" {
		return w.registry.SchemaFromRef(s.Ref)
	}
	return s
}

func (w *nullable) visit(s *huma.Schema) {
	if s = w.resolved(s); s == nil || w.seen[s] {
		return
	}
	w.seen[s] = true
	w.visit(s.Items)
	if more, ok := s.AdditionalProperties.(*huma.Schema); ok {
		w.visit(more)
	}
	for name, field := range s.Properties {
		w.visit(field)
		if slices.Contains(s.Required, name) {
			continue
		}
		if field.Ref != "" { // a reference has no room for null
			inline := *w.resolved(field)
			inline.Description = field.Description
			field = &inline
			s.Properties[name] = field
		}
		field.Nullable = field.Type != ""
		if len(field.Enum) > 0 && !slices.Contains(field.Enum, nil) {
			field.Enum = append(slices.Clone(field.Enum), nil)
		}
	}
}
