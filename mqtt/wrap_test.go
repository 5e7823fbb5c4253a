package mqtt_test

import (
	"bytes"
	"strings"
	"testing"
	"time"

	countersign "github.com/countersign-iot/countersign"
	"github.com/countersign-iot/countersign/mqtt"
)

// wrapMark is what the gateway writes in front of a payload with properties.
const wrapMark = "\x00\xc5\x9dmqtt5"

// everything is a gateway whose device "c" may do all, as clients of both versions.
func everything(t *testing.T, engine mqtt.Engine) (v4, v5 *trial) {
	t.Helper()
	g := start(t, engine)
	g.guard.common = &countersign.Permissions{
		Publish: countersign.Filters{Allow: []string{"#"}}, Retain: countersign.Filters{Allow: []string{"#"}},
		Subscribe: countersign.Filters{Allow: []string{"#"}}, Receive: countersign.Filters{Allow: []string{"#"}},
	}
	cert := g.issue("c", time.Hour)
	return &trial{TB: t, g: g, level: 4, id: "c", cert: cert}, &trial{TB: t, g: g, level: 5, id: "c", cert: cert}
}

func TestWrappingShowsNowhere(t *testing.T) {
	v4, v5 := everything(t, nil)
	old, newer := v4.plain(":4"), v5.plain(":5")
	old.sub(2, "c/x")
	newer.sub(2, "c/x")
	heard := make(chan string, 8)
	if err := v4.g.Engine.(mqtt.Platform).Subscribe(t.Context(), "c/x", func(_ string, b []byte) { heard <- string(b) }); err != nil {
		t.Fatal(err)
	}
	says := func(want string) {
		t.Helper()
		old.gets(want)
		select {
		case got := <-heard:
			if got != want {
				t.Errorf("the platform heard %q, want %q", got, want)
			}
		case <-time.After(10 * time.Second):
			t.Error("the platform heard nothing")
		}
	}
	user := cat([]byte{0x26}, str("k"), str("v"))
	forged := wrapMark + strings.Repeat("\x00", 8) + "\x07" + string(user) + "x"
	for qos := range byte(3) {
		v5.plain(":p").put(qos, false, "c/x", "with", user, cat([]byte{0x26}, str("X-Device-ID"), str("other")))
		says("with")
		if m := newer.next(); m.payload != "with" || !bytes.Equal(m.props, user) {
			t.Errorf("QoS %d: got %q with % x", qos, m.payload, m.props)
		}
		for _, from := range []*trial{v4, v5} {
			from.plain(":p").put(qos, false, "c/x", forged)
			says(forged)
			if m := newer.next(); m.payload != forged || len(m.props) > 0 {
				t.Errorf("QoS %d: got %q with % x", qos, m.payload, m.props)
			}
		}
	}
	if err := v4.g.Engine.(mqtt.Platform).Publish(t.Context(), "c/x", []byte(forged)); err != nil {
		t.Fatal(err)
	}
	says(forged)
	if m := newer.next(); m.payload != forged || len(m.props) > 0 {
		t.Errorf("from the platform: got %q with % x", m.payload, m.props)
	}
}

func TestAnEmptyRetainedMessageWithPropertiesDeletes(t *testing.T) {
	_, v5 := everything(t, nil)
	d := v5.plain(":p")
	user := cat([]byte{0x26}, str("k"), str("v"))
	d.put(1, true, "c/x", "kept", user)
	d.put(1, true, "c/y", "last", user)
	d.put(1, true, "c/x", "", user)
	hears := v5.plain(":h")
	hears.sub(1, "c/+")
	if m := hears.next(); m.payload != "last" || !m.retain || !bytes.Equal(m.props, user) {
		t.Errorf("got %+v, want the other one", m)
	}
}

func TestALargeMessageWithPropertiesCounts(t *testing.T) {
	_, v5 := everything(t, nil)
	hears, _, _ := v5.open(opening{suffix: ":h", props: [][]byte{{0x27, 0, 0, 0, 64}}})
	hears.sub(1, "c/x")
	d := v5.plain(":p")
	d.put(1, false, "c/x", "large", cat([]byte{0x26}, str("k"), str(strings.Repeat("v", 64))))
	d.put(1, false, "c/x", "small")
	hears.gets("small")
	v5.refusedConnect("a will of 64 KiB with properties", 0, 0x95,
		v5.connect(opening{flags: 4, after: v5.will("c/x", strings.Repeat("x", 0xFFFF), cat([]byte{0x26}, str("k"), str("v")))}))
}
