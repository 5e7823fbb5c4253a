package command

import (
	"context"
	"errors"
	"strings"
	"testing"

	"github.com/countersign-iot/countersign/api"
	"github.com/countersign-iot/countersign/test/kit"
)

// TestLogTailShowsEachEventOnce follows the log in each format. With -o json an event is a
// line, since an array would never end.
func TestLogTailShowsEachEventOnce(t *testing.T) {
	w := newWorld(t)
	f := api.EventFilter{Type: "device.created"}
	for _, tt := range []struct{ format, event string }{
		{formatTable, "  device.created  "}, {formatWide, "  device.created  "}, {formatJSON, `{"seq":`}, {formatYAML, "- seq: "},
	} {
		env, out, _ := w.env("")
		env.output = strings.Replace(tt.format, formatWide, formatTable, 1)
		w.do("device", "create", tt.format+"-1")
		kit.Eventually(t, "a sealed event", func() bool {
			out, _ := w.do("log", "tail", "--device", tt.format+"-1")
			return strings.Contains(out, "device.created")
		})
		ctx, cancel := context.WithCancel(t.Context())
		ended := make(chan error, 1)
		newest := newest(sealedAfter(env.admin().Events(ctx, f, api.Order{Order: "desc"}), 0), 1)
		go func() { ended <- follow(ctx, env, f, newest) }()
		kit.Eventually(t, tt.format+": the first event", func() bool { return strings.Contains(out.String(), tt.format+"-1") })
		w.do("device", "create", tt.format+"-2")
		w.do("device", "create", tt.format+"-3")
		kit.Eventually(t, tt.format+": the last event", func() bool { return strings.Contains(out.String(), tt.format+"-3") })
		cancel()
		if err := <-ended; !errors.Is(err, context.Canceled) {
			t.Errorf("%s: got %v, want the end of the context", tt.format, err)
		}
		if got := strings.Count(out.String(), tt.event); got != 3 {
			t.Errorf("%s: got %d events, want 3:\n%s", tt.format, got, out)
		}
	}
}
