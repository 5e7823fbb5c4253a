package interop

import (
	"encoding/json"
	"fmt"
	"net"
	"strings"
	"testing"

	"github.com/chromedp/chromedp"

	"github.com/countersign-iot/countersign/api"
	"github.com/countersign-iot/countersign/test/kit"
)

// browserReceives is kept.js for a page: it sets window.left once it has subscribed and
// left, and fills window.got.
const browserReceives = `(({ url, clientId, password, topic, count }) => {
  window.got = []
  window.left = false
  window.failed = ''
  const client = mqtt.connect(url, {
    clientId, username: clientId, password, protocolVersion: 5, clean: false, resubscribe: false, reconnectPeriod: 0,
    properties: { sessionExpiryInterval: 3600 }
  })
  client.on('error', (e) => { window.failed = e.message })
  client.on('close', () => { window.failed ||= window.left || window.got.length >= count && count > 0 ? '' : 'closed' })
  client.on('connect', () => {
    if (count > 0) return
    client.subscribe(topic, { qos: 2 }, (err, granted) => {
      if (err || granted[0].qos !== 2) window.failed = String(err)
      client.end(false, () => { window.left = true; window.failed = '' })
    })
  })
  client.on('message', (_, payload) => {
    window.got.push(payload.toString())
    if (window.got.length === count) client.end()
  })
})`

// TestBrowserReceivesOverARestart has MQTT.js in Chromium leave a kept session over
// WebSocket, and return after the server was killed and after it was stopped.
func TestBrowserReceivesOverARestart(t *testing.T) {
	t.Parallel()
	kit.Programs(t, "mosquitto_pub")
	pages := examplePages(t)
	k := newTalk(t, fmt.Sprintf("websocket: {origins: [%q]}", pages.URL), "publisher")
	if _, err := k.admin.PutFleet(t.Context(), "default", api.PutFleet{AccessKinds: &[]string{"certificate", "secret"}}); err != nil {
		t.Fatal(err)
	}
	if _, err := k.admin.CreateDevice(t.Context(), api.NewDevice{ID: "browser"}); err != nil {
		t.Fatal(err)
	}
	secret, err := k.admin.CreateSecret(t.Context(), "browser", api.NewSecret{})
	if err != nil {
		t.Fatal(err)
	}
	_, port, err := net.SplitHostPort(k.web)
	if err != nil {
		t.Fatal(err)
	}
	server := "localhost:" + port
	page := chromium(t, server, k.roots)
	receive := func(count int, until string) (got []string) {
		t.Helper()
		args, err := json.Marshal(map[string]any{
			"url": "wss://" + server + "/mqtt", "clientId": "browser", "password": secret.Text, "topic": "talk/browser", "count": count,
		})
		if err != nil {
			t.Fatal(err)
		}
		err = chromedp.Do(page, chromedp.Navigate(pages.URL), chromedp.WaitReady(chromedp.CSS("#token")),
			chromedp.Evaluate[chromedp.Void](browserReceives+"("+string(args)+")"), untilOrFailed(until))
		failed, _ := chromedp.Run(page, chromedp.Evaluate[string](`window.failed`))
		got, _ = chromedp.Run(page, chromedp.Evaluate[[]string](`window.got`))
		if err != nil || failed != "" {
			t.Fatalf("the page waits for %s: %v, it says %q and got %v", until, err, failed, got)
		}
		return got
	}
	for _, powerCut := range []bool{false, true} {
		receive(0, "window.left")
		k.say(t, "talk/browser", 1, 3)
		k.restart(powerCut)
		page = chromium(t, server, k.roots) // each start of the server has a key of its own
		k.say(t, "talk/browser", 4, 6)
		if got, want := strings.Join(receive(6, "window.got.length >= 6"), " "), "1 2 3 4 5 6"; got != want {
			t.Errorf("power cut %v: got %q, want %q", powerCut, got, want)
		}
	}
}

// untilOrFailed waits for a condition in the page, or for its failure.
func untilOrFailed(condition string) chromedp.Action[chromedp.Void] {
	return until("window.failed !== '' || " + condition)
}
