package rest

import (
	"bytes"
	"encoding/json"
	"maps"

	"github.com/countersign-iot/countersign"
	"github.com/countersign-iot/countersign/api"
)

// mergeRules applies a JSON merge patch to rules. A rule that there is not is refused.
func mergeRules(now countersign.Rules, change map[string]any) (out countersign.Rules, err error) {
	b, err := json.Marshal(now)
	if err != nil {
		return out, err
	}
	var all map[string]any
	if err := json.Unmarshal(b, &all); err != nil {
		return out, err
	}
	b, err = json.Marshal(merge(all, change))
	if err != nil {
		return out, err
	}
	dec := json.NewDecoder(bytes.NewReader(b))
	dec.DisallowUnknownFields()
	var in api.Rules
	if err := dec.Decode(&in); err != nil {
		return out, countersign.Errorf(countersign.BadRequest, "the rules cannot be read: %v", err).WithNext("use the names that fleet rules have")
	}
	return rulesOf(&in)
}

// merge is MergePatch of RFC 7396, 2.
func merge(target, patch map[string]any) map[string]any {
	out := maps.Clone(target)
	if out == nil {
		out = map[string]any{}
	}
	for k, v := range patch {
		object, nested := v.(map[string]any)
		switch {
		case v == nil:
			delete(out, k)
		case nested:
			inner, _ := out[k].(map[string]any)
			out[k] = merge(inner, object)
		default:
			out[k] = v
		}
	}
	return out
}

// rulesOf and shapeRules go by the JSON, which is the same on both sides: the
// shape is there to be described.
func rulesOf(in *api.Rules) (out countersign.Rules, err error) {
	b, err := json.Marshal(in)
	if err != nil {
		return out, err
	}
	dec := json.NewDecoder(bytes.NewReader(b))
	dec.DisallowUnknownFields()
	if err := dec.Decode(&out); err != nil {
		return out, countersign.Errorf(countersign.BadRequest, "the rules cannot be read: %v", err).
			WithNext("write networks as 10.0.0.0/8, lengths of time as 720h, PCRs by number")
	}
	return out, nil
}

func shapeRules(in countersign.Rules) *api.Rules {
	b, err := json.Marshal(in)
	if err != nil || string(b) == "{}" {
		return nil
	}
	var out api.Rules
	if err := json.Unmarshal(b, &out); err != nil { // a test holds the shapes against each other
		return nil
	}
	return &out
}
