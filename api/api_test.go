package api_test

import (
	"encoding/json"
	"reflect"
	"regexp"
	"testing"
	"time"

	"github.com/countersign-iot/countersign/api"
	"github.com/google/go-cmp/cmp"
)

// shapes are all bodies of the API.
func shapes() []any {
	return []any{
		&api.Page[api.Device]{}, &api.Problem{}, &api.Endpoints{}, &api.Health{}, &api.Doctor{}, &api.Version{},
		&api.Device{}, &api.NewDevice{}, &api.Act{}, &api.Revoke{}, &api.Cut{}, &api.Session{}, &api.Fleet{}, &api.PutFleet{},
		&api.Certificate{}, &api.Authority{}, &api.Profile{}, &api.EnrollRequest{}, &api.Grant{},
		&api.Credential{}, &api.NewToken{}, &api.IssuedToken{}, &api.NewTokens{}, &api.IssuedTokens{}, &api.NewClaim{}, &api.IssuedClaim{},
		&api.NewKey{}, &api.NewGroupKey{}, &api.IssuedKey{}, &api.NewThumbprint{}, &api.NewTPM{}, &api.Rules{},
		&api.Waiting{}, &api.Explain{}, &api.Explanation{}, &api.RegistrationCode{}, &api.NewAuthority{}, &api.PutCRLs{},
		&api.FactoryRequest{}, &api.FactoryResult{}, &api.TPMIdentity{}, &api.TPMChallenge{}, &api.TPMAnswer{},
		&api.Event{}, &api.Verification{},
		&api.OperatorToken{}, &api.NewOperatorToken{}, &api.IssuedOperatorToken{},
		&api.Alert{}, &api.AlertNote{}, &api.AlertAssign{}, &api.AlertSnooze{}, &api.AlertClose{}, &api.AlertBlock{}, &api.AlertActions{},
		&api.AlertActed{}, &api.AlertRule{}, &api.Channel{}, &api.ChannelTest{}, &api.Notice{},
		&api.AccessToken{}, &api.NewAccessToken{}, &api.IssuedAccessToken{},
		&api.Hold{}, &api.StoppedCredential{}, &api.StoppedSecret{},
	}
}

// fill sets every field to something that is not zero.
func fill(v reflect.Value) {
	switch v.Kind() {
	case reflect.Pointer:
		v.Set(reflect.New(v.Type().Elem()))
		fill(v.Elem())
	case reflect.Struct:
		if v.Type() == reflect.TypeFor[time.Time]() {
			v.Set(reflect.ValueOf(time.Date(2026, 1, 2, 3, 4, 5, 6000, time.UTC)))
			return
		}
		for _, field := range v.Fields() {
			fill(field)
		}
	case reflect.Slice:
		v.Set(reflect.MakeSlice(v.Type(), 1, 1))
		fill(v.Index(0))
	case reflect.Map:
		item := reflect.New(v.Type().Elem()).Elem()
		fill(item)
		v.Set(reflect.MakeMap(v.Type()))
		v.SetMapIndex(reflect.ValueOf("k"), item)
	case reflect.String:
		v.SetString("x")
	case reflect.Uint8:
		v.SetUint(7)
	case reflect.Int, reflect.Int64:
		v.SetInt(7)
	case reflect.Bool:
		v.SetBool(true)
	default:
		panic("a kind that the API does not have: " + v.Kind().String())
	}
}

func TestShapesRoundTrip(t *testing.T) {
	for _, s := range shapes() {
		fill(reflect.ValueOf(s).Elem())
		b, err := json.Marshal(s)
		if err != nil {
			t.Errorf("%T: %v", s, err)
			continue
		}
		again := reflect.New(reflect.TypeOf(s).Elem()).Interface()
		if err := json.Unmarshal(b, again); err != nil {
			t.Errorf("%T: %v", s, err)
		}
		if diff := cmp.Diff(s, again); diff != "" {
			t.Errorf("%T (-sent +read):\n%s", s, diff)
		}
	}
}

func TestNamesAreSnakeCase(t *testing.T) {
	snake := regexp.MustCompile(`^[a-z0-9]+(_[a-z0-9]+)*$`)
	for _, s := range shapes() {
		fill(reflect.ValueOf(s).Elem())
		b, err := json.Marshal(s)
		if err != nil {
			t.Fatalf("%T: %v", s, err)
		}
		var names map[string]any
		if err := json.Unmarshal(b, &names); err != nil {
			t.Fatalf("%T: %v", s, err)
		}
		fields := 0
		for _, f := range reflect.VisibleFields(reflect.TypeOf(s).Elem()) {
			if !f.Anonymous {
				fields++
			}
		}
		if len(names) != fields {
			t.Errorf("%T: %d fields are sent, it has %d", s, len(names), fields)
		}
		for name := range names {
			if !snake.MatchString(name) {
				t.Errorf("%T: %s is not snake_case", s, name)
			}
		}
	}
}

func TestUnsetTimesAreLeftOut(t *testing.T) {
	b, err := json.Marshal(api.Certificate{})
	if err != nil {
		t.Fatal(err)
	}
	var names map[string]any
	if err := json.Unmarshal(b, &names); err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"used_at", "accept_until", "revoked_at"} {
		if v, there := names[name]; there {
			t.Errorf("%s: got %v, want it left out", name, v)
		}
	}
}
