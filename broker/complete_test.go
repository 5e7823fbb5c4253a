package broker_test

import "testing"

// TestPubcompFollowsTheRecord asserts that a publisher receives PUBCOMP for a message of QoS 2
// no sooner than the record has forgotten its identifier, however it asks: an identifier
// that is used again too early would be a message received before.
func TestPubcompFollowsTheRecord(t *testing.T) {
	b, db, proxy := proxied(t)
	p := connect(t, b, kept("p"))
	p.publish("x", "one", 2, 7)
	p.answered("5 7 0x0")
	proxy.Hang()
	p.conn.Release(7)
	again := connect(t, b, kept("p")) // takes over, and sends PUBREL again
	again.conn.Release(7)
	if len(again.acks) > 0 {
		t.Errorf("while the record has the identifier: got %q, want no PUBCOMP", again.acks)
	}
	proxy.Heal()
	again.answered("7 7 0x0")
	if n := count(t, db, "mqtt_inbound"); n != 0 {
		t.Errorf("identifiers on record after PUBCOMP: got %d, want 0", n)
	}
	again.conn.Release(7)
	again.answered("7 7 0x0", "7 7 0x92")
}

// TestPubcompComesOnTheSameConnection asserts that a failure of the database leaves no
// QoS 2 message half done: a client does not send PUBREL again before it reconnects.
func TestPubcompComesOnTheSameConnection(t *testing.T) {
	b, db, proxy := proxied(t)
	p := connect(t, b, kept("p"))
	p.publish("x", "one", 2, 7)
	p.answered("5 7 0x0")
	failed := b.Stats().CommitFailed
	proxy.Cut()
	p.conn.Release(7)
	p.until("a failed commit", func() bool { return b.Stats().CommitFailed > failed })
	proxy.Heal()
	p.answered("5 7 0x0", "7 7 0x0")
	if n := count(t, db, "mqtt_inbound"); n != 0 {
		t.Errorf("identifiers on record after PUBCOMP: got %d, want 0", n)
	}
}
