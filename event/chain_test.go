package event

import (
	"bytes"
	"testing"
	"time"

	"pgregory.net/rapid"

	"github.com/countersign-iot/countersign"
)

// drawRow returns a random row of few and short texts, so that two rows are often similar.
func drawRow(t *rapid.T, label string) *row {
	text := rapid.StringOfN(rapid.RuneFrom([]rune("a\x01")), 0, 2, -1)
	draw := func(field string) string { return text.Draw(t, label+" "+field) }
	return &row{
		Event: countersign.Event{
			Seq: rapid.Int64Range(1, 2).Draw(t, label+" seq"), At: time.UnixMicro(rapid.Int64Range(1, 2).Draw(t, label+" at")),
			Type: countersign.EventType(draw("type")), Actor: countersign.Actor(draw("actor")), Device: draw("device"), Fleet: draw("fleet"),
			Cert:   countersign.CertRef{Issuer: draw("issuer"), Serial: countersign.Serial(draw("serial"))},
			Remote: draw("remote"), Via: draw("via"), Code: countersign.Code(draw("code")), Reason: draw("reason"),
		},
		data: draw("data"),
	}
}

// alike reports whether two rows are equal in all that the hash covers.
func alike(a, b *row) bool {
	return a.Seq == b.Seq && a.At.Equal(b.At) && a.Type == b.Type && a.Actor == b.Actor && a.Device == b.Device && a.Fleet == b.Fleet &&
		a.Cert == b.Cert && a.Remote == b.Remote && a.Via == b.Via && a.Code == b.Code && a.Reason == b.Reason && a.data == b.data
}

// TestChainDistinguishesEvents moves text between neighboring fields and draws pairs at
// random. Different events must not have the same encoding, and so the same hash.
func TestChainDistinguishesEvents(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		prev := rapid.SampledFrom([][]byte{nil, make([]byte, 32), bytes.Repeat([]byte{1}, 32)}).Draw(t, "prev")
		a := drawRow(t, "a")
		b := *a
		fields := []*string{
			(*string)(&b.Type), (*string)(&b.Actor), &b.Device, &b.Fleet, &b.Cert.Issuer, (*string)(&b.Cert.Serial),
			&b.Remote, &b.Via, (*string)(&b.Code), &b.Reason, &b.data,
		}
		i := rapid.IntRange(0, len(fields)-2).Draw(t, "field")
		both := *fields[i] + *fields[i+1]
		cut := rapid.IntRange(0, len(both)).Draw(t, "cut")
		*fields[i], *fields[i+1] = both[:cut], both[cut:]
		if same := bytes.Equal(chain(prev, a), chain(prev, &b)); same != alike(a, &b) {
			t.Fatalf("%+v and %+v: same hash %v", a, b, same)
		}
		c := drawRow(t, "c")
		if same := bytes.Equal(chain(prev, a), chain(prev, c)); same != alike(a, c) {
			t.Fatalf("%+v and %+v: same hash %v", a, c, same)
		}
	})
}

func TestChainRestsOnAllBefore(t *testing.T) {
	e := &row{Event: countersign.Event{Seq: 2}}
	if bytes.Equal(chain(make([]byte, 32), e), chain(bytes.Repeat([]byte{1}, 32), e)) {
		t.Error("the hash does not cover the one before it")
	}
}
