package device

import (
	"bytes"
	"testing"
)

func TestConnectPacketIsOneOfMQTT311(t *testing.T) {
	want := []byte("\x10\x11\x00\x04MQTT\x04\x02\x02\x58\x00\x05dev-1")
	if got := ConnectPacket("dev-1"); !bytes.Equal(got, want) {
		t.Errorf("CONNECT: got %x, want %x", got, want)
	}
}

func TestPacketsAreThoseOfMQTT311(t *testing.T) {
	long := bytes.Repeat([]byte("x"), 200)
	for _, tt := range []struct {
		name      string
		got, want []byte
	}{
		{"CONNECT of a kept session", KeptPacket("dev-1"), []byte("\x10\x11\x00\x04MQTT\x04\x00\x02\x58\x00\x05dev-1")},
		{"SUBSCRIBE", SubscribePacket("a/#", 1), []byte("\x82\x08\x00\x01\x00\x03a/#\x01")},
		{"PUBLISH at QoS 0", PublishPacket("a/b", 0, 9, []byte("hi")), []byte("\x30\x07\x00\x03a/bhi")},
		{"PUBLISH at QoS 1", PublishPacket("a/b", 1, 258, []byte("hi")), []byte("\x32\x09\x00\x03a/b\x01\x02hi")},
		{"PUBLISH of 207 octets", PublishPacket("a/b", 1, 1, long), append([]byte("\x32\xcf\x01\x00\x03a/b\x00\x01"), long...)},
		{"PUBACK", PubackPacket(258), []byte("\x40\x02\x01\x02")},
	} {
		if !bytes.Equal(tt.got, tt.want) {
			t.Errorf("%s: got %x, want %x", tt.name, tt.got, tt.want)
		}
	}
}
