package hook_test

import (
	"strings"
	"testing"

	"github.com/nats-io/nkeys"

	"github.com/countersign-iot/countersign/hook"
)

func TestCalloutRefusesWrongSeeds(t *testing.T) {
	t.Parallel()
	seed := func(make func() (nkeys.KeyPair, error)) []byte {
		k, err := make()
		if err != nil {
			t.Fatal(err)
		}
		s, err := k.Seed()
		if err != nil {
			t.Fatal(err)
		}
		return s
	}
	account, user, curve := seed(nkeys.CreateAccount), seed(nkeys.CreateUser), seed(nkeys.CreateCurveKeys)
	for _, c := range []struct {
		name       string
		seed, xkey []byte
		ok         bool
	}{
		{"account", account, nil, true},
		{"account and curve", account, curve, true},
		{"a user's seed", user, nil, false},
		{"an account for xkey", account, account, false},
		{"none", nil, nil, false},
		{"text", []byte("SAnothing"), nil, false},
	} {
		err := (&hook.Callout{Hook: "n", Seed: c.seed, XKey: c.xkey}).Prepare()
		if (err == nil) != c.ok {
			t.Errorf("%s: got %v, want success %v", c.name, err, c.ok)
		}
		if err != nil && len(c.seed) > 0 && strings.Contains(err.Error(), string(c.seed)) {
			t.Errorf("%s: the error shows the seed", c.name)
		}
	}
}
