package ra_test

import (
	"fmt"
	"net/http"
	"net/http/httptest"
	"testing"

	"github.com/countersign-iot/countersign"
	"github.com/countersign-iot/countersign/event"
	"github.com/countersign-iot/countersign/registry"
	"github.com/countersign-iot/countersign/store/storetest"
	"github.com/countersign-iot/countersign/test/kit"
)

// TestAWebhookThatRefusesIsNotDown has it refuse more devices than it may fail for.
func TestAWebhookThatRefusesIsNotDown(t *testing.T) {
	w := newWorld(t, storetest.Open(t))
	status := http.StatusForbidden
	hook := httptest.NewServer(http.HandlerFunc(func(out http.ResponseWriter, _ *http.Request) {
		out.WriteHeader(status)
		_, _ = out.Write([]byte(`{"allowProvisioning": true}`))
	}))
	defer hook.Close()
	w.rules(t, "default", countersign.Rules{Webhook: &countersign.Webhook{URL: hook.URL, Secret: "env:X"}})
	for n := range 12 {
		kit.WantCode(t, asks(w.Enroll, enrollment(t, kit.Key(t), fmt.Sprint("stranger-", n), w.token(t, registry.Credential{}))), countersign.NotAllowed)
	}
	status = http.StatusOK
	if err := asks(w.Enroll, enrollment(t, kit.Key(t), "pump-1", w.token(t, registry.Credential{}))); err != nil {
		t.Errorf("a device that the webhook knows: %v", err)
	}
}

// TestAReusedKeyAccusesNobodyInAStrangersWords enrolls with one key under other names.
func TestAReusedKeyAccusesNobodyInAStrangersWords(t *testing.T) {
	w := newWorld(t, storetest.Open(t))
	key, leaked := kit.Key(t), w.token(t, registry.Credential{UsesMax: 10})
	if err := asks(w.Enroll, enrollment(t, key, "thief", leaked)); err != nil {
		t.Fatal(err)
	}
	kit.WantCode(t, asks(w.Enroll, enrollment(t, key, "pump-1", leaked)), countersign.KeyReused)
	for id, claimed := range map[string]bool{"pump-1": true, "thief": false} {
		list := w.events(t, event.Filter{Type: countersign.FindingKeyReuse, Device: id})
		if len(list) != 1 || (list[0].Data["claimed"] != "") != claimed {
			t.Errorf("%s: got %+v, want one finding, claimed %t", id, list, claimed)
		}
	}
}
